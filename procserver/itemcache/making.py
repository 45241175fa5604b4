"""Whose companions every generation has: told by the master, kept for each state."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from procserver import shm
from procserver.errors import ServiceError
from procserver.itemcache.cells import TableReader
from procserver.itemcache.commands import FIRST, KEEP, MAKE
from procserver.itemcache.companion import CompanionMaker, make_companion
from procserver.itemcache.live import Live, State
from procserver.itemcache.reader import Companion
from procserver.itemcache.reports import CompanionReport

OpenMaker = Callable[[str], CompanionMaker | None]


@dataclass(frozen=True)
class _Wanted:
    """A maker that the master has named; None: it has nothing to generate.

    Each state needs one of its own, since a maker remembers how it generates for a
    table.
    """

    maker: CompanionMaker | None

    @property
    def digest(self) -> str | None:
        return None if self.maker is None else self.maker.digest


class Makers:
    """Who generates ahead, by label; obeys ``make`` and ``keep`` on one thread while
    a generation is built on another.
    """

    def __init__(
        self,
        live: Live,
        first: CompanionMaker | None = None,
        open_maker: OpenMaker | None = None,
    ) -> None:
        self._live = live
        self._open = open_maker
        self._lock = threading.Lock()
        self._wanted: dict[str, _Wanted] = {FIRST: _Wanted(first)}

    @property
    def reader(self) -> TableReader | None:
        """What is served, that is the maker before any that is prepared."""
        with self._lock:
            served = next(iter(self._wanted.values())).maker
        return None if served is None else served.reader

    def obey(self, line: bytes, report: Callable[[CompanionReport], None]) -> None:
        """Follows a ``make`` or ``keep`` command."""
        word, _, rest = line.rstrip(b"\n").partition(b" ")
        label, _, what = rest.decode().partition(" ")
        if word == MAKE:
            report(self._add(label, what))
        elif word == KEEP and label in self._wanted:
            self._keep(label)

    def is_equipped(self, state: State) -> bool:
        """Whether nothing is missing; what nobody wants any more goes. With the gate
        held, before ``state`` is published.
        """
        digests = self._digests()
        for digest in state.makers.keys() - digests:
            state.drop_maker(digest)
        return digests <= state.makers.keys() | state.refused

    def equip(self, state: State) -> dict[str, Any]:
        """Makes the companions that ``state`` lacks; it is not published yet.

        Returns the fields of the report about the latest maker.
        """
        told: dict[str, Any] = {}
        for wanted in self._distinct():
            if wanted.digest in state.makers.keys() | state.refused:
                continue
            details, maker = self._make(state, wanted)
            if maker is not None:
                state.add_maker(maker)
            told = told or details
        return told

    def _digests(self) -> set[str]:
        with self._lock:
            return {w.digest for w in self._wanted.values() if w.digest is not None}

    def _distinct(self) -> list[_Wanted]:
        """One for each digest, the latest first."""
        with self._lock:
            found = {w.digest: w for w in self._wanted.values() if w.digest is not None}
            return list(reversed(found.values()))

    def _make(
        self, state: State, wanted: _Wanted
    ) -> tuple[dict[str, Any], CompanionMaker | None]:
        """One companion of the state's generation, and who made it."""
        assert wanted.maker is not None
        began = time.monotonic()
        try:
            maker = wanted.maker.fresh()
            if self._is_there(state, maker):
                return {}, maker
            made = make_companion(state.generation, self._live.control, maker)
        except Exception as error:
            # Whatever it is (no memory, a plug-in's error): items can be served.
            state.refused.add(wanted.maker.digest)
            return {"companion_problem": f"{type(error).__name__}: {error}"}, None
        if not made.features:
            state.refused.add(maker.digest)
            return {}, None
        return {
            "pregenerated": made.features,
            "companion_bytes": made.bytes,
            "companion_seconds": time.monotonic() - began,
        }, maker

    def _is_there(self, state: State, maker: CompanionMaker) -> bool:
        """Whether a refresher before this one has made it; a damaged one goes."""
        name = self._live.control.companion_name(state.generation.number, maker.digest)
        try:
            Companion(shm.attach(name)).verify()
        except FileNotFoundError:
            return False
        except ServiceError:
            shm.unlink(name)
            return False
        return True

    def _add(self, label: str, what: str) -> CompanionReport:
        live = self._live
        state = live.state
        number = 0 if state is None else state.generation.number
        if label in self._wanted:
            return CompanionReport(label, number)
        try:
            wanted = _Wanted(None if self._open is None else self._open(what))
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            return CompanionReport(label, number, companion_problem=problem)
        with live.gate, self._lock:
            # Whatever is published after this has its companion too.
            self._wanted[label] = wanted
        details = {} if wanted.digest is None else self._equip_published(wanted)
        state = live.state
        number = 0 if state is None else state.generation.number
        return CompanionReport(label, number, **details)

    def _equip_published(self, wanted: _Wanted) -> dict[str, Any]:
        """What is published gets a companion of one maker more, delta included."""
        live, digest = self._live, wanted.digest
        assert digest is not None
        while True:
            state = live.state
            if state is None or digest in state.makers.keys() | state.refused:
                return {}
            details, maker = self._make(state, wanted)
            with live.gate:
                if live.state is state:
                    if maker is not None:
                        state.add_maker(maker)
                    return details
            # Its generation was replaced meanwhile, and nothing else removes it.
            number = state.generation.number
            live.control.unlink_companion(number, digest)

    def _keep(self, label: str) -> None:
        with self._live.gate:
            with self._lock:
                self._wanted = {label: self._wanted[label]}
            state = self._live.state
            if state is not None:
                for digest in state.makers.keys() - self._digests():
                    state.drop_maker(digest)
                state.refused &= self._digests()
