"""Desks of workers, and who is blamed for a death."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cython_ext.xxh64 import xxh64
from procserver.errors import PoisonRequest
from procserver.lifecycle import breaker
from procserver.lifecycle.breaker import MOST_KEPT, Breaker, read_memory, save
from procserver.lifecycle.stuck import _suspects
from procserver.lifecycle.watch import DESKS, MOST_REFUSED, Computed, Desks, Watch


def body(text: bytes = b"a request") -> memoryview:
    return memoryview(bytearray(text))


def at_desk(digest: int) -> Computed:
    return Computed(4096, time.monotonic_ns(), digest, 0, 0)


def test_a_request_is_seen_while_it_is_computed() -> None:
    desks = Desks()
    watch, other = Watch(desks, 0), Watch(desks, 1)
    sent = body(b"x" * 100_000)
    with watch.computing(sent), other.computing(body()):
        [seen] = desks.computed(0)
        assert seen.digest == xxh64(sent)
        assert seen.length == 100_000
        assert 0 <= seen.seconds() < 60
        assert desks.is_still(seen)
        assert read_memory(os.getpid(), seen.address, seen.length) == bytes(sent)
        assert len(desks.computed(1)) == 1
    assert desks.computed(0) == desks.computed(1) == []
    assert not desks.is_still(seen)
    with watch.computing(sent):
        assert not desks.is_still(seen), "another request"


def test_a_desk_is_free_again_whatever_happens() -> None:
    desks = Desks()
    watch = Watch(desks, 3)
    for _ in range(DESKS + 5):
        with pytest.raises(KeyError), watch.computing(body()):
            raise KeyError
    assert desks.computed(3) == []


def test_a_new_worker_computes_nothing() -> None:
    desks = Desks()
    Watch(desks, 0).computing(body()).__enter__()
    assert desks.computed(0)
    desks.open_slot(0)
    assert desks.computed(0) == []


@pytest.mark.parametrize("sent", [b"", b"1"])
def test_bodies_without_an_address(sent: bytes) -> None:
    desks = Desks()
    with Watch(desks, 0).computing(memoryview(sent)):
        [seen] = desks.computed(0)
    assert seen.address == 0
    assert read_memory(os.getpid(), seen.address, seen.length) is None


def test_what_cannot_be_read_is_not_read() -> None:
    assert read_memory(os.getpid(), 4096, 10) is None
    assert read_memory(os.getpid(), 1 << 63, 10) is None
    assert read_memory(1 << 30, 1 << 20, 10) is None


def test_a_refused_request_is_not_computed() -> None:
    desks = Desks()
    kept: list[tuple[int, bytes]] = []
    watch = Watch(desks, 0, lambda digest, sent: kept.append((digest, sent)))
    digest = xxh64(b"a request")
    desks.refuse({digest: time.monotonic_ns() + 60 * 10**9})
    with pytest.raises(PoisonRequest), watch.computing(body()):
        pytest.fail("it was let in")
    assert kept == [(digest, b"a request")]
    assert desks.computed(0) == []
    with watch.computing(body(b"another one")):
        pass
    desks.refuse({digest: time.monotonic_ns() - 1})
    with watch.computing(body()):
        pass


def test_the_newest_refused_requests_count() -> None:
    desks = Desks()
    end = time.monotonic_ns() + 60 * 10**9
    desks.refuse({digest: end + digest for digest in range(1, MOST_REFUSED + 3)})
    assert not desks.refuses(2)
    assert desks.refuses(3)
    assert desks.refuses(MOST_REFUSED + 2)


def test_the_only_request_of_a_crash_is_refused_at_once() -> None:
    desks = Desks()
    judge = Breaker(desks)
    judge.note_death([at_desk(7)], crashed=True)
    assert desks.refuses(7)
    # Two clients, one request.
    judge.note_death([at_desk(8), at_desk(8)], crashed=True)
    assert desks.refuses(8)


@pytest.mark.parametrize("crashed", [True, False])
def test_one_of_several_is_refused_the_second_time(crashed: bool) -> None:
    desks = Desks()
    judge = Breaker(desks)
    judge.note_death([at_desk(7), at_desk(8)], crashed=crashed)
    assert not desks.refuses(7)
    judge.note_death([at_desk(7), at_desk(9)], crashed=crashed)
    assert desks.refuses(7)
    assert not desks.refuses(8)
    assert not desks.refuses(9)


def test_who_is_suspected_of_being_stuck() -> None:
    now, second = time.monotonic_ns(), 10**9

    def began(seconds_ago: float, digest: int) -> Computed:
        return Computed(4096, now - int(seconds_ago * second), digest, 0, 0)

    late, waits, later = began(5.5, 1), began(5.2, 2), began(2, 3)
    assert _suspects([], 5) == []
    assert _suspects([later, late], 60) == []
    assert _suspects([later, late], 5) == [late]
    assert _suspects([waits, later, late], 5) == [late, waits]


def test_suspicions_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "REFUSED_SECONDS", 0.0)
    desks = Desks()
    judge = Breaker(desks)
    judge.note_death([at_desk(7), at_desk(8)], crashed=True)
    judge.note_stuck([at_desk(9)])
    assert not desks.refuses(9)
    monkeypatch.setattr(breaker, "REFUSED_SECONDS", 60.0)
    judge.note_death([at_desk(7), at_desk(8)], crashed=True)
    assert not desks.refuses(7)


def test_bodies_are_kept_once_and_not_without_end(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "poison"
    for digest in range(MOST_KEPT + 4):
        save(folder, "stuck", digest, b"%d" % digest)
        save(folder, "crash", digest, b"again")
    kept = list(folder.iterdir())
    assert len(kept) == MOST_KEPT
    assert folder.stat().st_mode & 0o777 == 0o700
    newest = f"stuck-{MOST_KEPT + 3:016x}_"
    [path] = [path for path in kept if path.name.startswith(newest)]
    assert path.read_bytes() == b"%d" % (MOST_KEPT + 3)
    folder.chmod(0o700)
    (tmp_path / "file").write_text("")
    save(tmp_path / "file", "stuck", 1, b"no folder, no file, no error")
