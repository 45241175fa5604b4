"""All metrics of a service in the Prometheus text format."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from procserver.observe import metrics
from procserver.observe.block import Block
from procserver.observe.instruments import (
    NANO,
    OTHER,
    Counter,
    Gauge,
    Histogram,
    Instrument,
    Registry,
    Text,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST


def render(registry: Registry = metrics.REGISTRY, block: Block | None = None) -> bytes:
    """What ``GET /metrics`` answers: every row of the service's block.

    :param block: the block to read, when it is not the registry's own
    """
    block = block or registry.block
    assert block is not None
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(_Rows(registry, block))
    return generate_latest(collectors)


def process_name(row: int) -> str:
    """``master``, ``refresher``, ``worker-0``, ... by row."""
    if row < metrics.FIRST_WORKER:
        return ("master", "refresher")[row]
    return f"worker-{row - metrics.FIRST_WORKER}"


class _Rows(Collector):
    """One reading of a block. Rows of ended processes count, but gauge nothing."""

    def __init__(self, registry: Registry, block: Block) -> None:
        self._registry = registry
        self._block = block
        self._used = [row for row in range(block.rows) if block.used(row)]
        self._alive = [row for row in self._used if block.alive(row)]

    def collect(self) -> Iterable[Metric]:
        for one in self._registry:
            if isinstance(one, Counter):
                yield self._counter(one)
            elif isinstance(one, Gauge):
                yield self._gauge(one)
            elif isinstance(one, Histogram):
                yield self._histogram(one)
            elif isinstance(one, Text):
                yield self._text(one)

    def _counter(self, one: Counter) -> Metric:
        family = CounterMetricFamily(one.name, one.help, labels=_labels(one))
        for labels, rows, value in _series(one, self._used):
            total = sum(one.read(self._block, row, value) for row in rows)
            if total or value != OTHER:
                family.add_metric(labels, total)
        return family

    def _gauge(self, one: Gauge) -> Metric:
        family = GaugeMetricFamily(one.name, one.help, labels=_labels(one))
        for labels, rows, value in _series(one, self._alive):
            number = _aggregated(one, self._block, rows, value)
            if number is not None and (number or value != OTHER):
                family.add_metric(labels, number)
        return family

    def _histogram(self, one: Histogram) -> Metric:
        family = HistogramMetricFamily(one.name, one.help, labels=_labels(one))
        for labels, rows, value in _series(one, self._used):
            parts = [one.read(self._block, row, value) for row in rows]
            *counts, nanoseconds = (sum(column) for column in zip(*parts, strict=True))
            if value == OTHER and not any(counts):
                continue
            below, buckets = 0, []
            for bound, count in zip((*one.bounds, "+Inf"), counts, strict=True):
                below += count
                buckets.append((str(bound), below))
            family.add_metric(labels, buckets, nanoseconds / NANO)
        return family

    def _text(self, one: Text) -> Metric:
        # Not InfoMetricFamily: OpenMetrics alone knows that type.
        family = GaugeMetricFamily(one.name, one.help, labels=one.labels)
        texts = {one.read(self._block, row) for row in self._alive} - {None}
        for labels in sorted(text for text in texts if text is not None):
            family.add_metric(labels, 1)
        return family


def _labels(one: Instrument) -> list[str]:
    return [*(["process"] if one.per_process else []), *([one.label] * bool(one.label))]


def _series(
    one: Instrument, rows: list[int]
) -> Iterator[tuple[list[str], list[int], str]]:
    """(label texts, rows that make up the series, label value)."""
    for value in one.values:
        labels = [value] if one.label else []
        if not one.per_process:
            yield labels, rows, value
            continue
        for row in rows:
            # Metrics by process are about workers, if there are any.
            if row >= metrics.FIRST_WORKER or rows[-1] < metrics.FIRST_WORKER:
                yield [process_name(row), *labels], [row], value


def _aggregated(one: Gauge, block: Block, rows: list[int], value: str) -> float | None:
    """One number for the rows; None: never set."""
    read = [one.read(block, row, value) for row in rows]
    if one.aggregation == "sum":
        return sum(number for number, _ in read)
    given = [(stamp, number) for number, stamp in read if stamp]
    if not given:
        return None
    if one.aggregation == "max":
        return max(number for _, number in given)
    stamp, number = max(given)
    if one.aggregation == "age":
        return (time.monotonic_ns() - stamp) / NANO
    return number
