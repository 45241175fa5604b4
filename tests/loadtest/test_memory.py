"""The parts of ``make memory`` that measure."""

import os
import socket

import memory
import numpy as np
import pytest

from procserver.wire import torch as torch_wire


def test_requests_reach_the_whole_table():
    body = memory.request(np.random.default_rng(1), 1000)
    (ids,) = torch_wire.decode(body).inputs
    assert ids.values.shape == (memory.ROWS, memory.IDS)
    assert 0 <= ids.values.min() < 10
    assert 990 <= ids.values.max() < 1000


def test_pss_grows_with_what_is_touched():
    before = memory.pss(os.getpid())
    block = np.ones(64_000_000, np.uint8)
    assert 60 < memory.pss(os.getpid()) - before < 80
    assert block[0] == 1


def test_the_holder_of_a_connection_is_found():
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as client:
        port = client.getsockname()[1]
        accepted, _ = listener.accept()
        with accepted:
            assert memory.holds(os.getpid(), port)
            assert not memory.holds(os.getppid(), port)
        assert not memory.holds(os.getpid(), port)


@pytest.mark.parametrize(("last", "ratio", "met"), [(1090, 0.99, 3), (1500, 0.9, 1)])
def test_verdicts(last: float, ratio: float, met: int):
    rows = [
        memory.Row(1, True, 1000, [900], 3.0, 0.1),
        memory.Row(4, True, last, [250] * 4, 4.0, 0.2),
        memory.Row(1, False, 1000, [900], 3.0, 2.0),
        memory.Row(4, False, 4000, [900] * 4, 4.0, 2.0),
    ]
    results = memory.verdicts(rows, ratio)
    assert sum(ok for _, ok in results) == met
    text = memory.table(rows)
    assert "| own | 4 | 4000 | 1000 |" in text
    assert f"| shared | 4 | {last} | {(last - 1000) / 3:.0f} |" in text
