"""Counters, gauges, histograms and texts: private, shared, over process churn."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from procserver import shm
from procserver.errors import SharedMemoryError
from procserver.observe import metrics
from procserver.observe.block import Block
from procserver.observe.exposition import process_name, render
from procserver.observe.instruments import Counter, Gauge, Histogram, Registry, Text

SERVICE = f"metrics-test-{os.getpid()}"


class Sample:
    """A registry with one instrument of each kind."""

    def __init__(self) -> None:
        self.registry = Registry()
        declare = self.registry.declare
        self.plain = declare(Counter("plain_total", "Plain."))
        self.split = declare(
            Counter("split_total", "Split.", label="status", values=("200", "400"))
        )
        self.each = declare(Counter("each_total", "Each.", per_process=True))
        self.flying = declare(Gauge("flying", "Sum."))
        self.newest = declare(Gauge("newest", "Max.", aggregation="max"))
        self.latest = declare(
            Gauge("latest", "Last.", aggregation="last", scale=1_000_000)
        )
        self.age = declare(Gauge("age_seconds", "Age.", aggregation="age"))
        self.seconds = declare(
            Histogram(
                "seconds", "Times.", (0.001, 0.01), label="stage", values=("run",)
            )
        )
        self.info = declare(Text("info", "Texts.", ("version", "weights")))
        self.registry.bind_private()

    def values(self, block: Block | None = None) -> dict[str, float]:
        text = render(self.registry, block).decode()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}"] = sample.value
        return found


@pytest.fixture
def sample() -> Sample:
    return Sample()


@pytest.fixture
def shared(sample: Sample) -> Iterator[Block]:
    block = sample.registry.create(SERVICE, 5)
    sample.registry.bind(block, 0)
    yield block
    block.unlink()
    assert shm.list_segments(f"/procserver.{SERVICE}.") == []


def in_child(work: Callable[[], None]) -> None:
    """Runs ``work`` in a fork and waits; it must not raise."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_everything_counts_in_private_memory(sample: Sample) -> None:
    sample.plain.add()
    sample.plain.add(41)
    sample.split.add(1, "400")
    sample.flying.add(3)
    sample.flying.add(-5)
    sample.newest.set(7)
    sample.latest.set(0.25)
    sample.seconds.observe(0.0005, "run")
    sample.seconds.observe(0.001, "run")
    sample.seconds.observe(7, "run")
    values = sample.values()
    assert values["plain_total{}"] == 42
    assert values["split_total{status=400}"] == 1
    assert values["split_total{status=200}"] == 0
    assert values["flying{}"] == -2
    assert values["newest{}"] == 7
    assert values["latest{}"] == 0.25
    assert values["seconds_bucket{le=0.001,stage=run}"] == 2
    assert values["seconds_bucket{le=0.01,stage=run}"] == 2
    assert values["seconds_bucket{le=+Inf,stage=run}"] == 3
    assert values["seconds_count{stage=run}"] == 3
    assert values["seconds_sum{stage=run}"] == pytest.approx(7.0015)


def test_unknown_label_values_make_no_series(sample: Sample) -> None:
    before = set(sample.values())
    for hostile in ('x"} 1\n', "", "200 ", "🦊", "9" * 5000):
        sample.split.add(1, hostile)
        sample.seconds.observe(0.1, hostile)
    after = sample.values()
    assert after["split_total{status=other}"] == 5
    assert after["seconds_count{stage=other}"] == 5
    assert {
        name for name in set(after) - before if "status=" in name or "stage=" in name
    } == set(after) - before
    assert len(after) - len(before) == 1 + 3 + 2


def test_what_was_never_set_is_not_shown(sample: Sample) -> None:
    values = sample.values()
    assert "newest{}" not in values
    assert "age_seconds{}" not in values
    assert not any(name.startswith("info") for name in values)
    assert values["flying{}"] == 0


def test_age_grows(sample: Sample) -> None:
    sample.age.mark()
    first = sample.values()["age_seconds{}"]
    time.sleep(0.01)
    assert first + 0.01 <= sample.values()["age_seconds{}"] < 60


def test_rows_of_processes_become_one_number(sample: Sample, shared: Block) -> None:
    registry = sample.registry
    sample.newest.set(3)
    sample.latest.set(1)
    sample.plain.add(1)
    sample.flying.add(1)
    reader, writer = os.pipe()
    done, finish = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(finish)
        registry.bind(shared, 2)
        sample.newest.set(2)
        sample.latest.set(2)
        sample.plain.add(10)
        sample.each.add(10)
        sample.flying.add(5)
        os.write(writer, b".")
        os.read(done, 1)
        os._exit(0)
    os.read(reader, 1)
    values = sample.values()
    assert values["newest{}"] == 3
    assert values["latest{}"] == 2
    assert values["plain_total{}"] == 11
    assert values["flying{}"] == 6
    assert values["each_total{process=worker-0}"] == 10
    os.close(finish)
    os.waitpid(pid, 0)
    # What a dead process gauged is gone, what it counted stays.
    values = sample.values()
    assert values["flying{}"] == 1
    assert values["latest{}"] == 1
    assert values["plain_total{}"] == 11
    assert values["each_total{process=worker-0}"] == 10
    for fd in (reader, writer, done):
        os.close(fd)


def test_the_next_process_of_a_row_goes_on_counting(
    sample: Sample, shared: Block
) -> None:
    def work() -> None:
        sample.registry.bind(shared, 3)
        sample.plain.add(5)
        sample.seconds.observe(0.002, "run")
        sample.flying.add(1)
        sample.info.set("v1", "own")
        assert sample.values()["flying{}"] == 1

    in_child(work)
    in_child(work)
    values = sample.values()
    assert values["plain_total{}"] == 10
    assert values["seconds_count{stage=run}"] == 2
    assert values["flying{}"] == 0


def test_surplus_processes_share_the_last_row(sample: Sample, shared: Block) -> None:
    each = 20_000

    def work(row: int) -> None:
        sample.registry.bind(shared, row)
        for _ in range(each):
            sample.plain.add()

    pids = []
    for row in (4, 5, 6, 700):
        pid = os.fork()
        if pid == 0:
            work(row)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
    assert sample.values()["plain_total{}"] == 4 * each
    assert sample.plain.read(shared, 4, "") == 4 * each


def test_texts_are_cut_cleaned_and_escaped(sample: Sample) -> None:
    sample.info.set('v"1\n\\', "ü" * 300)
    (labels,) = [
        s.labels
        for family in text_string_to_metric_families(render(sample.registry).decode())
        for s in family.samples
        if s.name == "info"
    ]
    assert labels["version"] == 'v"1?\\'
    assert re.fullmatch("ü{50,}", labels["weights"])
    with pytest.raises(ValueError, match="version, weights"):
        sample.info.set("one")


def test_a_torn_text_is_not_shown(sample: Sample, shared: Block) -> None:
    sample.info.set("v1", "shared")
    assert sample.info.read(shared, 0) == ("v1", "shared")
    place = sample.info.start(shared.base(0), "") + 16
    memoryview(shared.mapping)[place : place + 2] = b"xx"
    assert sample.info.read(shared, 0) is None


def test_another_process_attaches_and_renders(sample: Sample, shared: Block) -> None:
    sample.plain.add(9)
    assert shared.name is not None
    other = Sample()
    block = other.registry.attach(shared.name)
    assert other.values(block)["plain_total{}"] == 9
    assert not block.mapping.writable


def test_a_block_of_other_declarations_is_refused(
    sample: Sample, shared: Block
) -> None:
    assert shared.name is not None
    other = Registry()
    other.declare(Counter("else_total", "Else."))
    with pytest.raises(SharedMemoryError, match="version"):
        other.attach(shared.name)


def test_a_name_that_lives_is_not_taken(sample: Sample, shared: Block) -> None:
    with pytest.raises(SharedMemoryError, match="belongs to another"):
        sample.registry.create(SERVICE, 5)


def test_the_block_of_a_dead_owner_is_reclaimed(sample: Sample) -> None:
    service = f"{SERVICE}-dead"

    def work() -> None:
        sample.registry.bind(sample.registry.create(service, 5), 0)

    in_child(work)
    prefix = f"/procserver.{service}."
    assert len(shm.list_segments(prefix)) == 1
    assert shm.reclaim(prefix) == 1
    assert shm.list_segments(prefix) == []


def test_rows_are_whole_cache_lines(sample: Sample, shared: Block) -> None:
    assert shared.row_bytes % 64 == 0
    assert shared.base(1) % 64 == 0
    assert shared.base(4) + shared.row_bytes == len(shared.mapping)


def test_declarations_are_checked(sample: Sample) -> None:
    registry = Registry()
    registry.declare(Counter("a_total", "A."))
    with pytest.raises(ValueError, match="twice"):
        registry.declare(Counter("a_total", "A."))
    with pytest.raises(ValueError, match="label"):
        Counter("b_total", "B.", label="x")
    with pytest.raises(ValueError, match="grow"):
        Histogram("c", "C.", (0.1, 0.1))
    with pytest.raises(ValueError, match="too late"):
        sample.registry.declare(Counter("d_total", "D."))


def test_the_services_own_metrics_follow_the_naming_rules() -> None:
    for one in metrics.REGISTRY:
        assert re.fullmatch(r"procserver_[a-z_]+", one.name)
        assert one.help.endswith(".")
        assert one.name.endswith("_total") == isinstance(one, Counter)
        assert one.name.endswith("_info") == isinstance(one, Text)
        if isinstance(one, Histogram):
            assert one.name.endswith("_seconds")


def test_a_service_from_create_to_leave() -> None:
    service = f"{SERVICE}-own"

    def master() -> None:
        block = metrics.create(service, 2)
        metrics.WORKER_STARTS.add()

        def worker() -> None:
            metrics.join(metrics.worker_row(1))
            metrics.REQUESTS.add(3, "200")
            metrics.WORKER_REQUESTS.add(3)
            metrics.MODEL.set("v7", "shared")
            text = render().decode()
            assert 'procserver_model_info{version="v7",weights="shared"} 1.0' in text

        in_child(worker)
        text = render().decode()
        assert 'procserver_requests_total{status="200"} 3.0' in text
        assert 'procserver_worker_requests_total{process="worker-1"} 3.0' in text
        assert "procserver_worker_starts_total 1.0" in text
        assert "procserver_model_info{" not in text
        assert block.name is not None
        metrics.leave()
        metrics.leave()

    in_child(master)
    assert shm.list_segments(f"/procserver.{service}.") == []


def test_join_without_a_service_changes_nothing() -> None:
    before = metrics.REGISTRY.block
    metrics.join(5)
    assert metrics.REGISTRY.block is before


def test_process_names() -> None:
    assert [process_name(row) for row in range(4)] == [
        "master",
        "refresher",
        "worker-0",
        "worker-1",
    ]
