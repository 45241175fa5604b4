"""The ideal queue that the real one is measured against."""

from __future__ import annotations

import random

import pytest
import queueing


def test_one_server_serves_one_after_the_other():
    times = queueing.shared_queue([0.0, 1.0, 10.0], [5.0, 5.0, 5.0], 1)
    assert times == [5.0, 9.0, 5.0]


def test_two_servers_take_the_next_one_when_they_are_free():
    arrivals = [0.0, 0.0, 1.0, 2.0]
    assert queueing.shared_queue(arrivals, [10.0, 4.0, 1.0, 1.0], 2) == [10, 4, 4, 4]


def test_means_are_those_of_theory():
    # M/M/2 at 70 %: the time in the system is 1 / (1 - 0.7^2) services.
    chance = random.Random(3)
    now, arrivals, services = 0.0, [], []
    for _ in range(200_000):
        now += chance.expovariate(1.4)
        arrivals.append(now)
        services.append(chance.expovariate(1.0))
    times = queueing.shared_queue(arrivals, services, 2)
    assert sum(times) / len(times) == pytest.approx(1 / (1 - 0.49), rel=0.05)


def test_percentiles():
    values = [float(n) for n in range(100)]
    assert queueing.percentile(values, 50) == 50
    assert queueing.percentile(values, 99) == 99
    assert queueing.percentile([7.0], 99) == 7


def test_the_model_takes_as_long_as_it_is_told(tmp_path):
    config = queueing.write_service(tmp_path, work=False)
    arguments = queueing.parse(
        ["--connections", "4", "--seconds", "1", "--load", "0.2", "--workers", "1"]
    )
    with queueing.BenchServer(config, settings=queueing.SERVE) as server:
        generator = queueing.Generator(server, arguments.connections, 1)
        try:
            generator.settle()
            asked = generator.run(20.0, 1.0, (0.002, 0.004))
        finally:
            generator.close()
    assert asked
    for one in asked:
        assert one.due <= one.sent < one.answered
        assert one.wanted <= one.served <= one.answered - one.sent
