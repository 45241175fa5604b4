"""``metadata.rpc`` and ``metadata.eas``: how requests are taken and queued."""

from dataclasses import dataclass
from typing import ClassVar

from procserver.config.kinds import Boolean, Choice, Integer, Number, Text
from procserver.config.settings import setting

_HEALTH_PATH = r"/(?!api/|metrics$|v2/(?!health/ready$))[\w.~/-]+"


@dataclass(frozen=True, kw_only=True)
class RpcConfig:
    """Limits of the whole service, not of one worker process."""

    SECTION: ClassVar[str] = "metadata.rpc"

    worker_threads: int = setting(
        "worker_threads",
        Integer(1, 65536),
        "Requests processed at the same time in the whole service.",
        default=5,
        unit="requests",
        aliases=("metadata.workers",),
    )
    max_queue_size: int = setting(
        "max_queue_size",
        Integer(0, 1_000_000),
        "Requests of the whole service that may wait beside those that are "
        "processed; beyond it the answer is 450 and the connection is closed.",
        default=64,
        unit="requests",
    )
    keepalive_ms: int = setting(
        "keepalive",
        Integer(1, 86_400_000),
        "Longest time for one request, from its first byte to its answer, queueing "
        "included; beyond it 408 (also when a forward pass that is not interrupted "
        "ends too late). It is not an idle timeout of connections.",
        default=5000,
        unit="ms",
    )
    io_threads: int = setting(
        "io_threads",
        Integer(1, 1024),
        "Network threads of the closed processors; accepted, our workers read "
        "requests in their own threads.",
        default=4,
        unit="threads",
        pending=True,
    )
    batching: bool = setting(
        "batching",
        Boolean(),
        "Merge concurrent requests of a worker into one forward pass. Requests of "
        "INPUT_TILE exports cannot be merged.",
        default=False,
    )
    max_batch_size: int = setting(
        "max_batch_size",
        Integer(1, 65536),
        "Most requests in one merged forward pass, which has `max_items` items at "
        "most; with `batching` only. A worker gets this many request threads.",
        default=16,
        unit="requests",
    )
    max_batch_timeout_ms: int = setting(
        "max_batch_timeout",
        Integer(0, 60_000),
        "Longest wait for a batch to fill, while other requests of the worker are "
        "being prepared; with `batching` only. A lone request never waits.",
        default=50,
        unit="ms",
    )
    rate_limit: int = setting(
        "rate_limit",
        Integer(0, 10_000_000),
        "Requests per second of the whole service; beyond it 429. Up to a second's "
        "worth may come at once. 0 is no limit.",
        default=0,
        unit="1/s",
    )
    enable_jemalloc: bool = setting(
        "enable_jemalloc",
        Boolean(),
        "Run the workers with a tuned jemalloc.",
        default=False,
        pending=True,
    )
    enable_sigterm: bool = setting(
        "enable_sigterm",
        Boolean(),
        "Deliver SIGTERM on stop; here SIGTERM always drains first.",
        default=False,
    )
    decompressor: str | None = setting(
        "decompressor",
        Choice(("zlib", "gzip", "snappy", "zstd", "lz4"), none_words=("none",)),
        "Compression that every request body has. Absent: each body's is recognised "
        "by its first bytes (not blocks of lz4, which have none), or it is plain. "
        "Answers are never compressed.",
        shown_default="recognise",
    )
    health_check_path: str | None = setting(
        "health_check_path",
        Text(
            _HEALTH_PATH, "a path that begins with / and is none of the service's own"
        ),
        "A further path that answers like `/v2/health/ready`.",
    )
    health_check_port: int | None = setting(
        "health_check_port",
        Integer(1, 65535),
        "Port of the health check on the platform.",
        pending=True,
    )
    enable_service_hang_detect: bool = setting(
        "enable_service_hang_detect",
        Boolean(),
        "Replace a worker that no longer answers; here that is always done, and "
        "`true` has `service_hang_detect_period` count.",
        default=False,
    )
    service_hang_detect_period_s: float | None = setting(
        "service_hang_detect_period",
        Number(1, 86_400),
        "How long a worker may be silent: in its main loop, which a change after the "
        "start does not reach, and over one request, unless "
        "`procserver.request_kill_seconds` says otherwise.",
        shown_default="30",
        unit="s",
    )


@dataclass(frozen=True, kw_only=True)
class EasConfig:
    """What the platform does around a service and we do ourselves."""

    SECTION: ClassVar[str] = "metadata.eas"

    termination_grace_period_s: float = setting(
        "termination_grace_period",
        Number(0, 86_400),
        "How long a stopping service may finish its requests.",
        default=30.0,
        unit="s",
    )
