"""What the refresher is told, and what its reports do in the master."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from procserver.config import load
from procserver.errors import SourceError
from procserver.itemcache.reports import (
    AttachReport,
    BuildBegan,
    BuildReport,
    ChangesReport,
    FailureReport,
    Report,
)
from procserver.itemcache.schedule import Plan
from procserver.lifecycle.news import News, message_of, without_credentials
from procserver.lifecycle.refresher import plan_of
from procserver.observe import metrics


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "no such file: s3://key:se+cret@bucket/items",
            "no such file: s3://***@bucket/items",
        ),
        ("no such file: /data/a@b.parquet", "no such file: /data/a@b.parquet"),
        ("oss://bucket/a@b and more", "oss://bucket/a@b and more"),
    ],
)
def test_credentials_in_urls_are_masked(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


@pytest.mark.parametrize(
    ("source", "own", "plan"),
    [
        ({}, {}, Plan(None, True, "sku")),
        ({"period": 2880}, {}, Plan(172_800.0, True, "sku")),
        ({}, {"source_required": False}, Plan(None, False, "sku")),
    ],
)
def test_the_plan_is_that_of_the_service_json(
    tmp_path: Path, source: dict[str, object], own: dict[str, object], plan: Plan
) -> None:
    items = {"remote_type": "parquet", "url": "i.parquet", "tables": {"key": "sku"}}
    content = {
        "metadata": {"name": "planned"},
        "processor": "easyrec-torch-1.12",
        "model_path": "export",
        "model_config": {"fg_mode": "normal", **items, **source},
        "procserver": own,
    }
    path = tmp_path / "service.json"
    path.write_text(json.dumps(content))
    service = load(path, {}).service
    assert service.item_source is not None
    assert plan_of(service, service.item_source) == plan


class Master:
    """The master's ear over a block of metrics of its own."""

    def __init__(self) -> None:
        self.block = metrics.create("news", 1)
        self.news = News()

    def hear(self, report: Report) -> bool:
        # As over the pipe.
        return self.news.note(json.loads(json.dumps(message_of(report))))

    def counted(self, counter: metrics.Counter, value: str) -> int:
        return counter.read(self.block, metrics.MASTER, value)

    def shown(self, gauge: metrics.Gauge) -> float:
        return gauge.read(self.block, metrics.MASTER, "")[0]


@pytest.fixture
def master():  # type: ignore[no-untyped-def]
    yield Master()
    metrics.leave()


BUILT = BuildReport(3, 50, 4000, 1.5, {"null_key": 2, "odd": 1}, replayed=4)


def test_a_build_is_counted_and_told(master: Master) -> None:
    assert not master.hear(BuildBegan())
    assert metrics.refresh_counts(master.block) == (1, 0)
    assert master.hear(BUILT)
    assert metrics.refresh_counts(master.block) == (1, 1)
    assert master.shown(metrics.CACHE_ROWS) == 50
    assert master.shown(metrics.CACHE_BUILD_SECONDS) == 1.5
    assert master.counted(metrics.CACHE_SKIPPED, "null_key") == 2
    assert master.counted(metrics.CACHE_SKIPPED, "other") == 1
    told = metrics.last_refresh(master.block)
    assert told is not None
    assert (told["number"], told["outcome"], told["generation"]) == (1, "published", 3)
    assert told["last_failure"] is None


def test_items_that_end_are_counted_and_do_not_make_it_young(master: Master) -> None:
    master.hear(ChangesReport(3, expired=4, current=False))
    assert master.counted(metrics.CACHE_CHANGES, "expired") == 4
    assert metrics.CACHE_AGE.read(master.block, metrics.MASTER, "")[1] == 0


def test_changes_are_counted_and_make_the_cache_young(master: Master) -> None:
    master.hear(ChangesReport(3, 5, 2, 1, {"bad_value": 1}, 8, 900, newest=1.0))
    assert master.counted(metrics.CACHE_CHANGES, "upserted") == 5
    assert master.counted(metrics.CACHE_CHANGES, "deleted") == 2
    assert master.counted(metrics.CACHE_CHANGES, "stale") == 1
    assert master.counted(metrics.CACHE_SKIPPED, "bad_value") == 1
    assert master.shown(metrics.CACHE_DELTA_ROWS) == 8
    assert metrics.CACHE_AGE.read(master.block, metrics.MASTER, "")[1] > 0


def test_a_failure_leaves_the_age_alone(
    master: Master, caplog: pytest.LogCaptureFixture
) -> None:
    master.hear(BuildBegan())
    reason = "tcp://user:secret@db refused"
    with caplog.at_level(logging.ERROR, "procserver.lifecycle"):
        master.hear(FailureReport("full", SourceError(reason), 4.0))
    assert metrics.refresh_counts(master.block) == (1, 1)
    assert master.counted(metrics.REFRESH_FAILURES, "full") == 1
    assert metrics.CACHE_AGE.read(master.block, metrics.MASTER, "")[1] == 0
    told = metrics.last_refresh(master.block)
    assert told is not None
    assert told["outcome"] == "failed"
    failure = told["last_failure"]
    assert isinstance(failure, dict)
    assert failure["kind"] == "full"
    assert failure["reason"] == "tcp://***@db refused"
    assert "item cache build failed: tcp://***@db refused; again in 4 s" in caplog.text


def test_a_build_ends_with_its_refresher(master: Master) -> None:
    master.hear(BuildBegan())
    master.news.died()
    master.news.died()
    assert metrics.refresh_counts(master.block) == (1, 1)
    assert master.counted(metrics.REFRESH_FAILURES, "died") == 2


def test_an_empty_cache_is_told_until_there_are_items(master: Master) -> None:
    assert not metrics.cache_is_empty()
    assert master.hear(BuildReport(1, 0, 400, 0.0, {}, kind="empty"))
    assert metrics.cache_is_empty()
    assert metrics.refresh_counts(master.block) == (0, 0)
    assert metrics.CACHE_AGE.read(master.block, metrics.MASTER, "")[1] == 0
    master.hear(BUILT)
    assert not metrics.cache_is_empty()


def test_what_was_taken_over_is_published(master: Master) -> None:
    assert master.hear(AttachReport(3, 50, 4000, 7, continues=True))
    assert master.shown(metrics.CACHE_DELTA_ROWS) == 7
    assert metrics.refresh_counts(master.block) == (0, 0)


def test_a_compaction_is_no_build(master: Master) -> None:
    master.hear(BuildReport(4, 50, 4000, 1.5, {}, kind="compaction"))
    assert master.counted(metrics.CACHE_COMPACTIONS, "published") == 1
    assert metrics.refresh_counts(master.block) == (0, 0)
    assert metrics.CACHE_AGE.read(master.block, metrics.MASTER, "")[1] == 0
    master.hear(FailureReport("compaction", SourceError("no memory"), 1.0))
    assert master.counted(metrics.CACHE_COMPACTIONS, "failed") == 1
