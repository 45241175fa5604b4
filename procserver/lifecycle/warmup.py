"""Warm-up: what a worker answers before it counts as ready.

First requests of our own making, two for each shape, because the first and the
second forward pass of a TorchScript model are slow (spec/export.md section 3). Then
requests that were recorded: captures of an earlier start (``warmup_data_path``) and
files of the operator's (EAS ``warm_up_data_path``).

What is in those folders is not trusted to be of any use: files that are no requests
are counted, named in the log and passed over, and time and number are bounded.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from procserver.config import ServiceConfig
from procserver.errors import BadFeature, ModelError, RequestError, ServiceError
from procserver.lifecycle.recordings import Limits, Recording, Unusable, recordings
from procserver.lifecycle.synthesis import Synthesis
from procserver.observe.capture import fallback_folder
from procserver.observe.metrics import WARM_UP, WARM_UP_FILES
from procserver.pipeline import Pipeline

log = logging.getLogger("procserver.lifecycle")

SYNTHESIZED_ROUNDS = 2
EAS_ROUNDS = 5
# A first look at every file before time goes into any of them.
FIRST_ROUNDS = 2
# Files looked at, as a multiple of those that a service captures.
FILES_PER_CAPTURE = 10
DEFAULT_CAPTURES = 64
LOGGED = 10


@dataclass(frozen=True)
class WarmUp:
    """What a warm-up came to: requests answered, files by outcome."""

    synthesized: int
    replayed: int
    files: Counter[str]

    def __str__(self) -> str:
        text = f"{self.synthesized} synthesized and {self.replayed} recorded requests"
        if self.files:
            counts = (f"{self.files[k]} {k}" for k in ("replayed", "skipped", "failed"))
            text += f" (files: {', '.join(counts)})"
        return text


def warm_up(
    pipeline: Pipeline, synthesis: Synthesis | None, service: ServiceConfig
) -> WarmUp:
    """Makes a pipeline ready for its first request.

    :param synthesis: None if nothing is known of what the model takes
    :raises ModelError: if the model fails on requests made from its own ``fg.json``
        and no recorded request was answered either
    """
    synthesized, failure = 0, None
    if synthesis is not None:
        synthesized, failure = _synthesized(pipeline, synthesis)
    replay = _Replay(pipeline, service)
    captures = _captures(service)
    rounds = service.model.warmup_cnt_per_file
    replay.folder("model_config.warmup_data_path", captures, rounds)
    if service.warm_up_data_path is not None:
        replay.folder("warm_up_data_path", [service.warm_up_data_path], EAS_ROUNDS)
    replay.report()
    if failure is not None and not (synthesized or replay.requests):
        raise ModelError(
            "the model fails on requests made from fg.json, does it belong to "
            f"this fg.json? {_told(failure)}"
        ) from failure
    return WarmUp(synthesized, replay.requests, replay.files)


def _synthesized(
    pipeline: Pipeline, synthesis: Synthesis
) -> tuple[int, Exception | None]:
    """How many requests were answered, and a failure of the model."""
    answered = 0
    failure: Exception | None = None
    for rows in synthesis.shapes:
        # Where features or model refuse what was made up, empty features do.
        for filled in (True, False):
            try:
                body = synthesis.body(rows, filled=filled)
                for _ in range(SYNTHESIZED_ROUNDS):
                    pipeline.predict(body)
                    WARM_UP.add(1, "synthesized")
                    answered += 1
                break
            except ServiceError:
                raise
            except Exception as error:
                # Not only ours: a script may raise what it likes.
                WARM_UP.add(1, "failed")
                log.warning(
                    "synthesized request of %d rows with %s features failed: %s",
                    rows,
                    "made-up" if filled else "empty",
                    _told(error),
                )
                if synthesis.is_binding and not isinstance(error, BadFeature):
                    failure = error
    return answered, failure


def _told(error: Exception) -> str:
    """One line: of a script's failure the last one, above which is its source."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _captures(service: ServiceConfig) -> list[Path]:
    """Where captures may be; nothing is there before the first start."""
    path = service.model.warmup_data_path
    folders = [] if path is None else [path, fallback_folder(service)]
    return [folder for folder in folders if folder.is_dir()]


@dataclass
class _Replay:
    """Replays recordings, within limits that hold for all of them together."""

    pipeline: Pipeline
    service: ServiceConfig
    requests: int = 0
    files: Counter[str] = field(default_factory=Counter)
    _told: int = 0
    _crashed: bool = False
    _ends: float = field(init=False)

    def __post_init__(self) -> None:
        self._ends = time.monotonic() + self.service.host.warmup_seconds

    def folder(self, key: str, places: list[Path], rounds: int) -> None:
        """Replays each usable file of ``places`` (folders or files) so often."""
        if rounds == 0:
            return
        captures = self.service.model.warmup_pb_files_count or DEFAULT_CAPTURES
        limits = Limits(
            files=FILES_PER_CAPTURE * captures,
            body_bytes=self.service.host.max_body_bytes,
        )
        good: list[tuple[Recording, float]] = []
        late = 0
        for found in chain.from_iterable(recordings(p, limits) for p in places):
            if isinstance(found, Unusable):
                self._tell("skipped", f"{key}: {found}", found.files)
            elif self._over:
                late += 1
            else:
                left = self._first(key, found, min(FIRST_ROUNDS, rounds))
                if left is not None:
                    good.append((found, left))
        if late:
            self._tell("skipped", f"{key}: {late} files left after {self._time}", late)
        for found, seconds in good:
            if self._over:
                log.info("warm-up: %s are over, not all rounds were done", self._time)
                break
            self._play(found, rounds - FIRST_ROUNDS, seconds)

    @property
    def _over(self) -> bool:
        return time.monotonic() >= self._ends

    @property
    def _time(self) -> str:
        return f"{self.service.host.warmup_seconds:g} s"

    def _first(self, key: str, file: Recording, rounds: int) -> float | None:
        """Plays a file for the first time: the seconds left to it; None: failed."""
        limit = 2 * self.service.rpc.keepalive_ms / 1000
        started = time.monotonic()
        error = self._play(file, rounds, limit)
        if error is not None:
            self._tell("failed", f"{key}: {file.name}: {error}")
            return None
        self.files["replayed"] += 1
        WARM_UP_FILES.add(1, "replayed")
        return limit - (time.monotonic() - started)

    def _play(self, file: Recording, rounds: int, seconds: float) -> str | None:
        """Sends the requests of a file in a row; why none was answered."""
        ends = min(self._ends, time.monotonic() + seconds)
        answered = 0
        problem: str | None = None
        for body, fault in self._bodies(file, rounds):
            # NOTE: a request cannot be interrupted, so the time is looked at
            # between requests.
            if answered and time.monotonic() >= ends:
                break
            error = fault or self._request(body)
            if error is None:
                answered += 1
            else:
                problem = problem or error
                if time.monotonic() >= ends:
                    break
        return None if answered else problem or "holds no request"

    @staticmethod
    def _bodies(file: Recording, rounds: int) -> Iterator[tuple[bytes, str | None]]:
        for _ in range(rounds):
            yield from file.bodies()

    def _request(self, body: bytes) -> str | None:
        try:
            self.pipeline.predict(body)
        except RequestError as error:
            WARM_UP.add(1, "failed")
            return f"{error.code}: {error}"
        except Exception as error:
            # SAFETY: no file may keep a worker from starting, whatever it finds.
            WARM_UP.add(1, "failed")
            first, self._crashed = not self._crashed, True
            log.error("a recorded request failed: %r", error, exc_info=first)
            return type(error).__name__
        WARM_UP.add(1, "replayed")
        self.requests += 1
        return None

    def _tell(self, outcome: str, text: str, files: int = 1) -> None:
        self.files[outcome] += files
        WARM_UP_FILES.add(files, outcome)
        self._told += 1
        if self._told <= LOGGED:
            log.warning("warm-up: %s", text)

    def report(self) -> None:
        """The last lines about files."""
        if self._told > LOGGED:
            log.warning("warm-up: and %d more like these", self._told - LOGGED)
        if self.files and not self.requests:
            log.error(
                "warm-up: NOT ONE recorded request of %d files was answered; "
                "were they recorded for another model?",
                self.files.total(),
            )
