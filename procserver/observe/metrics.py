"""Every metric of the service, declared once, so that all processes agree on it.

``REQUESTS.add(1, "200")``, ``IN_FLIGHT.add(-1)``, ``CACHE_ROWS.set(n)``,
``STAGE_SECONDS.observe(0.002, "run")``, ``MODEL.set("v12", "shared")``. Without a
service around (library use, unit tests) everything counts in private memory. A
service's master calls :func:`create` before it forks, every child :func:`join`.

Label values are declared; an unknown one counts as ``other``.
"""

from __future__ import annotations

import time

from procserver.observe.block import Block
from procserver.observe.instruments import Counter, Gauge, Histogram, Registry, Text

STAGES = ("decode", "gather", "generate", "run", "encode")
STATUSES = (
    *("200", "400", "401", "404", "405", "408", "411", "413", "429", "450"),
    *("499", "500", "503"),
)
SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)

MASTER = 0
REFRESHER = 1
FIRST_WORKER = 2
# Rows that do not depend on the number of workers: those of a reload, of TTIN.
SPARE_WORKERS = 16

REGISTRY = Registry()
_declare = REGISTRY.declare

REQUESTS = _declare(
    Counter(
        "procserver_requests_total",
        "Predict requests answered, by HTTP status; 499: the client had left before.",
        label="status",
        values=STATUSES,
    )
)
REQUEST_SECONDS = _declare(
    Histogram(
        "procserver_request_seconds",
        "Time from a predict request's arrival to its answer, waiting included.",
        SECONDS,
    )
)
STAGE_SECONDS = _declare(
    Histogram(
        "procserver_stage_seconds",
        "Time of one predict request in each stage.",
        SECONDS,
        label="stage",
        values=STAGES,
    )
)
QUEUE_SECONDS = _declare(
    Histogram(
        "procserver_queue_seconds",
        "Time that processed requests waited for a worker and their turn.",
        SECONDS,
    )
)
HANDED_OVER = _declare(
    Counter(
        "procserver_handed_over_total",
        "Waiting requests that another worker took over from the one whose "
        "connection they came on.",
    )
)
UNREAD_ANSWERS = _declare(
    Counter(
        "procserver_unread_answers_total",
        "Answers that were cut off: their client went away or read too slowly.",
    )
)
ACCEPT_ERRORS = _declare(
    Counter(
        "procserver_accept_errors_total",
        "Connections that could not be taken for want of descriptors or memory.",
    )
)
WORKER_REQUESTS = _declare(
    Counter(
        "procserver_worker_requests_total",
        "Predict requests by worker slot: how even the load is.",
        per_process=True,
    )
)
IN_FLIGHT = _declare(
    Gauge(
        "procserver_in_flight",
        "Predict requests being answered, by worker slot.",
        per_process=True,
    )
)
INSIDE = _declare(
    Gauge(
        "procserver_requests_inside",
        "Predict requests inside the service, waiting ones included: more than "
        "worker_threads + max_queue_size are refused.",
        aggregation="last",
    )
)
SLOW_REQUESTS = _declare(
    Counter(
        "procserver_slow_requests_total",
        "Requests over long_request_threshold.",
    )
)
ITEMS = _declare(Counter("procserver_items_total", "Items scored."))
MISSING_ITEMS = _declare(
    Counter(
        "procserver_missing_items_total",
        "Items of requests that the item cache does not hold.",
    )
)
NAN_SCORES = _declare(
    Counter(
        "procserver_nan_scores_total",
        "Output values that are no numbers, by what they are.",
        label="class",
        values=("nan", "inf"),
    )
)
BATCHES = _declare(
    Counter("procserver_batches_total", "Forward passes that merged requests.")
)
BATCHED_REQUESTS = _declare(
    Counter(
        "procserver_batched_requests_total",
        "Requests answered from a merged forward pass.",
    )
)

CACHE_GENERATION = _declare(
    Gauge(
        "procserver_cache_generation",
        "Number of the newest item cache generation.",
        aggregation="max",
    )
)
CACHE_ROWS = _declare(
    Gauge(
        "procserver_cache_rows",
        "Items in the cache, with those that changes made and without the deleted.",
        aggregation="last",
    )
)
CACHE_BYTES = _declare(
    Gauge(
        "procserver_cache_bytes",
        "Shared memory of the item cache: the generation, what was generated ahead, "
        "what was appended.",
        aggregation="last",
    )
)
CACHE_DELTA_ROWS = _declare(
    Gauge(
        "procserver_cache_delta_rows",
        "Records that were appended to the item cache generation.",
        aggregation="last",
    )
)
CACHE_DELTA_BYTES = _declare(
    Gauge(
        "procserver_cache_delta_bytes",
        "Shared memory of what was appended to the item cache generation.",
        aggregation="last",
    )
)
CACHE_AGE = _declare(
    Gauge(
        "procserver_cache_age_seconds",
        "Time since the item cache was last as new as its source: a load was "
        "published, changes were, or there were none.",
        aggregation="age",
    )
)
CACHE_LAG = _declare(
    Gauge(
        "procserver_cache_newest_change_age_seconds",
        "Age of the newest change that the item cache holds, by the source's own time.",
        aggregation="age",
    )
)
CACHE_BUILDS = _declare(
    Counter(
        "procserver_cache_builds_total",
        "Builds of the item cache from its source, by outcome.",
        label="outcome",
        values=("published", "failed", "refused"),
    )
)
CACHE_BUILD_STARTS = _declare(
    Counter(
        "procserver_cache_build_starts_total",
        "Builds of the item cache from its source that were begun.",
    )
)
CACHE_BUILD_SECONDS = _declare(
    Gauge(
        "procserver_cache_build_seconds",
        "Duration of the last build of the item cache that was published.",
        aggregation="last",
        scale=1000,
    )
)
CACHE_COMPACTIONS = _declare(
    Counter(
        "procserver_cache_compactions_total",
        "Appended changes folded into a new generation, by outcome.",
        label="outcome",
        values=("published", "failed", "refused"),
    )
)
CACHE_CHANGES = _declare(
    Counter(
        "procserver_cache_changes_total",
        "Changes that the source told, by what became of them; stale: the cache held "
        "a newer one. expired: items of which nothing was heard for `item_ttl`.",
        label="outcome",
        values=("upserted", "deleted", "stale", "expired"),
    )
)
CACHE_SKIPPED = _declare(
    Counter(
        "procserver_cache_skipped_rows_total",
        "Rows of the source that were left out, and cells that were nulled (bad_value, "
        "bad_text, long_cell, refused_cell), by reason.",
        label="reason",
        values=(
            *("null_key", "bad_key", "long_key", "huge_row", "duplicate_key"),
            *("bad_value", "bad_text", "long_cell", "refused_cell"),
            *("bad_line", "bad_op", "bad_time"),
        ),
    )
)
REFRESH_FAILURES = _declare(
    Counter(
        "procserver_cache_refresh_failures_total",
        "What failed while the item cache was kept fresh; gap: changes were lost, and "
        "everything is loaded again; died: the refresher.",
        label="kind",
        values=("full", "changes", "gap", "compaction", "died"),
    )
)
LAST_REFRESH = _declare(
    Text(
        "procserver_last_refresh_info",
        "The last build of the item cache from its source: number, outcome, the "
        "generation that is served since, when.",
        ("number", "outcome", "generation", "at"),
    )
)
LAST_REFRESH_FAILURE = _declare(
    Text(
        "procserver_last_refresh_failure_info",
        "The last failure to keep the item cache fresh: what, when.",
        ("kind", "at"),
    )
)
LAST_REFRESH_FAILURE_REASON = _declare(
    Text(
        "procserver_last_refresh_failure_reason_info",
        "Why that failed.",
        ("reason",),
    )
)

MODEL = _declare(
    Text(
        "procserver_model_info",
        "The model that workers serve; weights are shared or own.",
        ("version", "weights"),
    )
)
MODEL_BYTES = _declare(
    Gauge("procserver_model_bytes", "Size of the model.", aggregation="last")
)
SHARED_WEIGHTS_BYTES = _declare(
    Gauge(
        "procserver_shared_weights_bytes",
        "Shared memory of the weights.",
        aggregation="last",
    )
)
WARM_UP = _declare(
    Counter(
        "procserver_warmup_requests_total",
        "Warm-up requests of all workers, by outcome.",
        label="outcome",
        values=("synthesized", "replayed", "failed"),
    )
)
WARM_UP_FILES = _declare(
    Counter(
        "procserver_warmup_files_total",
        "Files of recorded requests; skipped: unusable, or beyond a limit.",
        label="outcome",
        values=("replayed", "skipped", "failed"),
    )
)
CAPTURES = _declare(
    Counter(
        "procserver_captures_total",
        "Requests kept for later warm-ups, by outcome.",
        label="outcome",
        values=("written", "dropped", "failed"),
    )
)
LOG_ENTRIES = _declare(
    Counter(
        "procserver_log_entries_total",
        "Requests for the request log, by outcome; dropped: the queue was full.",
        label="outcome",
        values=("written", "dropped", "failed"),
    )
)

ACCESS_LINES = _declare(
    Counter(
        "procserver_access_log_lines_total",
        "Lines of the access log; dropped: its file or reader did not take them.",
        label="outcome",
        values=("written", "dropped"),
    )
)

WORKER_STARTS = _declare(Counter("procserver_worker_starts_total", "Workers forked."))
WORKER_DEATHS = _declare(
    Counter(
        "procserver_worker_deaths_total",
        "Workers that ended, by cause; boot: before they were ready; stuck: for a "
        "request that did not end, or a main loop that hung; memory: over the limit.",
        label="cause",
        values=("exit", "signal", "oom", "boot", "stuck", "memory"),
    )
)
POISON_REQUESTS = _declare(
    Counter(
        "procserver_poison_requests_total",
        "Requests refused because workers have died over them.",
    )
)
REFRESHER_STARTS = _declare(
    Counter("procserver_refresher_starts_total", "Starts of the refresher.")
)
WORKERS_READY = _declare(Gauge("procserver_workers_ready", "Workers that are ready."))
WORKERS_WANTED = _declare(
    Gauge("procserver_workers_wanted", "Workers that there should be.")
)
RELOADS = _declare(
    Counter(
        "procserver_reloads_total",
        "Reloads, by outcome.",
        label="outcome",
        values=("done", "refused", "rolled_back"),
    )
)
RELOAD_STARTS = _declare(
    Counter("procserver_reload_starts_total", "Reloads that were begun.")
)
LAST_RELOAD = _declare(
    Text(
        "procserver_last_reload_info",
        "The last reload: its number, outcome, the version that is served since, when.",
        ("number", "outcome", "version", "at"),
    )
)
LAST_RELOAD_REASON = _declare(
    Text(
        "procserver_last_reload_reason_info",
        "Why the last reload was refused or rolled back; empty if it was not.",
        ("reason",),
    )
)
UPTIME = _declare(
    Gauge(
        "procserver_uptime_seconds",
        "Time since the service was started.",
        aggregation="age",
    )
)
REGISTRY.bind_private()


def create(service: str, workers: int) -> Block:
    """Makes the service's metrics segment; the master writes its row from now on.

    :param workers: how many are wanted; reloads and TTIN find spare rows
    :raises SharedMemoryError: if the system refuses
    """
    rows = FIRST_WORKER + 2 * workers + SPARE_WORKERS
    block = REGISTRY.create(service, rows)
    REGISTRY.bind(block, MASTER)
    UPTIME.mark()
    return block


def join(row: int) -> None:
    """This process, forked from the master, writes to ``row`` from now on.

    Call before threads start. Without a service around nothing changes.
    """
    if REGISTRY.block is not None and REGISTRY.block.name is not None:
        REGISTRY.bind(REGISTRY.block, row)


def cache_age(block: Block | None = None) -> float | None:
    """``procserver_cache_age_seconds`` as it is now; None: there is no cache.

    :param block: the service's, when it is not this process's own
    """
    block = block or REGISTRY.block
    if block is None:
        return None
    stamp = max(CACHE_AGE.read(block, row, "")[1] for row in (MASTER, REFRESHER))
    return (time.monotonic_ns() - stamp) / 1e9 if stamp else None


def last_reload(block: Block | None = None) -> dict[str, object] | None:
    """The master's word on the last reload; None: there was none, or no master.

    :param block: the service's, when it is not this process's own
    """
    block = block or REGISTRY.block
    if block is None:
        return None
    texts = LAST_RELOAD.read(block, MASTER)
    if texts is None or block.name is None:
        return None
    told = dict(zip(LAST_RELOAD.labels, texts, strict=True))
    (reason,) = LAST_RELOAD_REASON.read(block, MASTER) or ("",)
    return {**told, "number": int(told["number"]), "reason": reason or None}


def last_refresh(block: Block | None = None) -> dict[str, object] | None:
    """The master's word on the item cache's last build and failure; None: there is
    no item source, or no master.

    :param block: the service's, when it is not this process's own
    """
    block = block or REGISTRY.block
    if block is None or block.name is None:
        return None
    failure = LAST_REFRESH_FAILURE.read(block, MASTER)
    texts = LAST_REFRESH.read(block, MASTER)
    if failure is None and texts is None:
        return None
    told: dict[str, object] = {}
    if texts is not None:
        told = dict(zip(LAST_REFRESH.labels, texts, strict=True))
        told["number"] = int(texts[0])
        told["generation"] = int(texts[2])
    told["last_failure"] = None
    if failure is not None:
        (reason,) = LAST_REFRESH_FAILURE_REASON.read(block, MASTER) or ("",)
        about = dict(zip(LAST_REFRESH_FAILURE.labels, failure, strict=True))
        told["last_failure"] = {**about, "reason": reason}
    return told


def cache_is_empty() -> bool:
    """Whether there is an item cache, and no item in it."""
    block = REGISTRY.block
    if block is None or block.name is None:
        return False
    rows, stamp = CACHE_ROWS.read(block, MASTER, "")
    return stamp != 0 and rows == 0


def has_item_source(block: Block) -> bool:
    """Whether a service has started a refresher."""
    return REFRESHER_STARTS.read(block, MASTER, "") > 0


def refresh_counts(block: Block) -> tuple[int, int]:
    """Builds of the item cache that a service has begun, and ended."""
    ended = sum(
        CACHE_BUILDS.read(block, MASTER, outcome) for outcome in CACHE_BUILDS.values
    )
    return CACHE_BUILD_STARTS.read(block, MASTER, ""), ended


def reload_counts(block: Block) -> tuple[int, int]:
    """Reloads that the master of a service has begun, and ended."""
    ended = sum(RELOADS.read(block, MASTER, outcome) for outcome in RELOADS.values)
    return RELOAD_STARTS.read(block, MASTER, ""), ended


def crew() -> tuple[int, int] | None:
    """Workers that are ready and workers that there should be; None: no master."""
    block = REGISTRY.block
    if block is None or block.name is None:
        return None
    ready, _ = WORKERS_READY.read(block, MASTER, "")
    wanted, _ = WORKERS_WANTED.read(block, MASTER, "")
    return int(ready), int(wanted)


def worker_row(slot: int) -> int:
    """The row of a worker slot (0, 1, ...)."""
    return FIRST_WORKER + slot


def leave() -> None:
    """Removes the service's segment (the master, last of all)."""
    block = REGISTRY.block
    if block is not None and block.name is not None:
        REGISTRY.bind_private()
        block.unlink()
