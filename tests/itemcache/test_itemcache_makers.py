"""A refresher that is told to generate ahead for one more maker, or for one only."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from queue import Queue

import pytest
from test_itemcache_companion import Doubled, Items, batch
from test_itemcache_companion import names_of as all_names_of

from procserver.itemcache import refresh
from procserver.itemcache.commands import FIRST, keep_command, make_command
from procserver.itemcache.companion import CompanionMaker
from procserver.itemcache.control import ControlSegment

OLD, NEW = "a" * 32, "b" * 32


def names_of(control: ControlSegment) -> list[str]:
    """All but where the source's changes go on."""
    return [name for name in all_names_of(control) if name != "cursor"]


class Told:
    """The loop on a thread."""

    def __init__(self, control: ControlSegment) -> None:
        self.reports: Queue[object] = Queue()
        self.read, self.write = os.pipe()
        self.thread = threading.Thread(
            target=refresh.run,
            args=(lambda: Items(batch([0, 1, 2])), control, self.reports.put),
            kwargs={
                "commands": self.read,
                "companion": Doubled(OLD),
                "open_maker": self.open_maker,
            },
            daemon=True,
        )
        self.thread.start()

    @staticmethod
    def open_maker(what: str) -> CompanionMaker | None:
        if what == "broken":
            raise ValueError("no such features")
        return None if what == "nothing" else Doubled(what)

    def tell(self, command: bytes) -> None:
        os.write(self.write, command)

    def report(self) -> object:
        """The next one that tells how something ended."""
        while isinstance(report := self.reports.get(timeout=60), refresh.BuildBegan):
            pass
        return report

    def ask(self, label: str, what: str) -> refresh.CompanionReport:
        self.tell(make_command(label, what))
        report = self.report()
        assert isinstance(report, refresh.CompanionReport)
        assert report.label == label
        return report

    def build(self) -> int:
        self.tell(refresh.BUILD)
        report = self.report()
        assert isinstance(report, refresh.BuildReport)
        return report.generation


@pytest.fixture
def loop(control: ControlSegment) -> Iterator[Told]:
    told = Told(control)
    first = told.report()
    assert isinstance(first, refresh.BuildReport)
    yield told
    os.close(told.write)
    told.thread.join(20)
    assert not told.thread.is_alive()
    os.close(told.read)


def test_both_are_served_until_one_is_dropped(
    control: ControlSegment, loop: Told
) -> None:
    old, new = f"-{OLD[:12]}", f"-{NEW[:12]}"
    assert names_of(control) == ["1", f"1{old}", "control"]
    made = loop.ask("2", NEW)
    assert (made.pregenerated, made.companion_problem) == (1, "")
    assert made.companion_bytes > 0
    assert names_of(control) == ["1", f"1{old}", f"1{new}", "control"]
    assert loop.build() == 2
    assert names_of(control) == ["2", f"2{old}", f"2{new}", "control"]
    loop.tell(keep_command("2"))
    assert loop.build() == 3
    assert names_of(control) == ["3", f"3{new}", "control"]


def test_the_first_one_stays_where_another_is_refused(
    control: ControlSegment, loop: Told
) -> None:
    loop.ask("2", NEW)
    loop.tell(keep_command(FIRST))
    assert loop.ask("3", "nothing").pregenerated == 0
    assert names_of(control) == ["1", f"1-{OLD[:12]}", "control"]


def test_what_is_there_is_not_made_again(control: ControlSegment, loop: Told) -> None:
    assert loop.ask("2", OLD).companion_bytes == 0
    loop.tell(keep_command("2"))
    assert loop.ask("2", NEW).companion_bytes == 0, "the label is known"
    assert names_of(control) == ["1", f"1-{OLD[:12]}", "control"]


def test_one_that_cannot_be_opened_is_told(control: ControlSegment, loop: Told) -> None:
    report = loop.ask("2", "broken")
    assert report.companion_problem == "ValueError: no such features"
    loop.tell(keep_command("2"))
    assert loop.build() == 2
    assert names_of(control) == ["2", f"2-{OLD[:12]}", "control"]
