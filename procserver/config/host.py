"""``procserver``: our own settings, about this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from procserver.config.kinds import (
    Boolean,
    Choice,
    Devices,
    Integer,
    Number,
    Text,
    Texts,
)
from procserver.config.settings import setting


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """What the platform would decide and a machine of one's own must say."""

    SECTION: ClassVar[str] = "procserver"

    workers: int | None = setting(
        "workers",
        Integer(1, 1024),
        "Worker processes; `-w` of gunicorn wins.",
        shown_default="cores of the cgroup quota",
    )
    device: tuple[str, ...] = setting(
        "device",
        Devices(),
        "`cpu`, `cuda:N`, or a list of GPUs over which workers are spread.",
        default=("cpu",),
    )
    state_dir: str | None = setting(
        "state_dir",
        Text(),
        "Folder that the service writes to. Also `$PROCSERVER_STATE`.",
        shown_default="the user's state folder",
    )
    model_version: str = setting(
        "model_version",
        Text(
            r"(?!.*\.tmp)[A-Za-z0-9][A-Za-z0-9._\-]{0,127}",
            '"latest" or the name of a version',
        ),
        "Version to serve of a `model_path` that holds several: `latest`, or the "
        "name of a version's folder.",
        default="latest",
    )
    hot_export: Path | None = setting(
        "hot_export",
        Text(name="path"),
        "Folder of dense hot exports, whose newest version is served over the "
        "export at `model_path`. Relative to the JSON file.",
        shown_default="`dense_hot_export` below `model_path`, if there is one",
    )
    allow_debug: bool | None = setting(
        "allow_debug",
        Boolean(),
        "Answer debug levels, which show features of people.",
        shown_default="on when a token is set",
    )
    strict_debug_keys: bool = setting(
        "strict_debug_keys",
        Boolean(),
        "Refuse a request of debug level 1, 2, 3 or 904 that has a feature which "
        "`fg.json` does not read. `false`, for engines that send all they know: such "
        "features are named in the log.",
        default=True,
    )
    pass_through_data: Mapping[str, str] | None = setting(
        "pass_through_data",
        Texts(),
        "Texts that every answer of `fg_mode` `normal` carries as `pass_through_data`. "
        "`{model_version}` in one stands for the version that is served.",
        shown_default="none",
    )
    max_body_bytes: int = setting(
        "max_body_bytes",
        Integer(1024, 2**31 - 1),
        "Largest request body, also after decompression; beyond it 413.",
        default=64 * 2**20,
        unit="bytes",
    )
    max_items: int = setting(
        "max_items",
        Integer(1, 10_000_000),
        "Most items in one request; beyond it 413.",
        default=5000,
        unit="items",
    )
    pin_cores: bool = setting(
        "pin_cores",
        Boolean(),
        "Bind each CPU worker to a core of its own.",
        default=True,
    )
    warmup_seconds: float = setting(
        "warmup_seconds",
        Number(0, 86_400),
        "Longest time for which recorded requests are replayed before a worker is "
        "ready. Requests made up from `fg.json` come before that.",
        default=60.0,
        unit="s",
    )
    boot_seconds: float = setting(
        "boot_seconds",
        Number(1, 86_400),
        "Longest time from the start of a worker until it is ready. One that takes "
        "longer is ended, with the stacks of its threads in the log; a reload is "
        "refused then.",
        default=600.0,
        unit="s",
    )
    request_kill_seconds: float | None = setting(
        "request_kill_seconds",
        Number(0.1, 86_400),
        "Longest time for which a worker may compute one request. A worker that takes "
        "longer is ended, with the stacks of its threads in the log and the request's "
        "body in `poison` below the state folder. At least `metadata.rpc.keepalive` "
        "counts, which only decides what the client is told.",
        shown_default="the service_hang_detect_period, else 30",
        unit="s",
    )
    max_rss_bytes: int | None = setting(
        "max_rss_bytes",
        Integer(1 << 20, 1 << 50),
        "Memory that one worker may have for itself, shared weights and the item cache "
        "left aside. One that has more is replaced, the new one ready first.",
        unit="bytes",
    )
    reload_mode: str = setting(
        "reload_mode",
        Choice(("rolling", "in_place")),
        "`rolling`: a new worker is ready before an old one ends, which takes memory "
        "for one more. `in_place`: an old one ends first, and one is missing "
        "meanwhile.",
        default="rolling",
    )
    drain_seconds: float | None = setting(
        "drain_seconds",
        Number(0, 3600),
        "After SIGTERM, how long requests are still taken while readiness says 503, "
        "so that load balancers turn away first. Counts inside "
        "`metadata.eas.termination_grace_period`.",
        shown_default="5, at most half of the grace period",
        unit="s",
    )
    access_log: str | None = setting(
        "access_log",
        Text(),
        "File for one line of JSON for every predict request (docs/observability.md); "
        "`-` is standard output. Relative to the JSON file.",
        shown_default="none",
    )
    allow_nan: bool = setting(
        "allow_nan",
        Boolean(),
        "Let a reload go on with a model that returns NaN or infinite values in its "
        "warm-up.",
        default=False,
    )
    share_weights: bool = setting(
        "share_weights",
        Boolean(),
        "Keep one copy of the model's weights in shared memory for all workers.",
        default=True,
    )
    max_row_drop: float = setting(
        "max_row_drop",
        Number(0, 1),
        "Share of its items that the item cache may lose in one build; a build that "
        "loses more is refused, `1` allows any loss but that of all items.",
        default=0.5,
    )
    max_bad_rows: float = setting(
        "max_bad_rows",
        Number(0, 1),
        "Share of rows without a usable item id, and of bad cells in one column, up to "
        "which a build of the item cache is published. Bad cells are null.",
        default=0.1,
    )
    max_cell_bytes: int = setting(
        "max_cell_bytes",
        Integer(64, 2**30),
        "Largest text, list or map of an item; a larger one is a bad cell.",
        default=2**18,
        unit="bytes",
    )
    max_cache_bytes: int | None = setting(
        "max_cache_bytes",
        Integer(2**20),
        "Most shared memory of one generation of the item cache with what is generated "
        "ahead from it. While a new one is built there are two.",
        unit="bytes",
        shown_default="what the machine and its container have",
    )
    max_cache_age_seconds: float | None = setting(
        "max_cache_age_seconds",
        Number(1, 10**9),
        "Age of the item cache over which `/v2/health/ready` answers 503. Requests are "
        "answered all the same.",
        unit="s",
        shown_default="any age",
    )
    keep_item_cache: bool = setting(
        "keep_item_cache",
        Boolean(),
        "Leave the item cache in shared memory when the service is stopped, for its "
        "next start. What a killed service left is taken over in any case.",
        default=False,
    )
    source_required: bool = setting(
        "source_required",
        Boolean(),
        "Refuse to start while the item source cannot be read. `false`: serve without "
        "cached items until it can; readiness says so.",
        default=True,
    )
