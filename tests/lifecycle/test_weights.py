"""Who loads, who attaches, and what happens when memory is short."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from procserver import shm
from procserver.errors import ModelError
from procserver.lifecycle.weights import EVENT, Weights
from procserver.model.package import ModelPackage, open_package

Reports = list[dict[str, Any]]


@pytest.fixture
def package(tmp_path: Path) -> ModelPackage:
    module = torch.nn.EmbeddingBag(10_000, 64)
    torch.jit.script(module.eval()).save(str(tmp_path / "model.pt"))
    return open_package(tmp_path / "model.pt")


@pytest.fixture
def weights() -> Iterator[Weights]:
    weights = Weights.of_version("weightstest", 3, share=True)
    yield weights
    gc.collect()
    weights.remove()


def obtain(
    weights: Weights, package: ModelPackage, *, canary: bool, reports: Reports
) -> Any:
    return weights.obtain(
        package,
        "cpu",
        is_canary=canary,
        report=lambda event, **details: reports.append({"event": event, **details}),
    )


def test_the_canary_publishes_and_the_others_attach(
    package: ModelPackage, weights: Weights
) -> None:
    reports: Reports = []
    first = obtain(weights, package, canary=True, reports=reports)
    (report,) = reports
    assert report["event"] == EVENT
    assert report["name"] == weights.segment
    assert weights.segment.endswith(".weights-3")
    assert report["bytes"] == (shm.SHM / weights.segment[1:]).stat().st_size
    assert not weights.settled
    weights.note(report)
    assert weights.settled
    second = obtain(weights, package, canary=False, reports=reports)
    assert len(reports) == 1, "only the canary reports"
    assert first.shared
    assert second.shared
    ids = torch.arange(20).reshape(4, 5)
    assert torch.equal(first.module(ids), second.module(ids))
    weights.remove()
    assert not (shm.SHM / weights.segment[1:]).exists()
    assert torch.equal(first.module(ids), second.module(ids))


def test_short_memory_means_own_copies(
    package: ModelPackage,
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(shm, "available_memory", lambda: 12345)
    reports: Reports = []
    with caplog.at_level(logging.WARNING):
        model = obtain(weights, package, canary=True, reports=reports)
    assert not model.shared
    (report,) = reports
    assert report["name"] is None
    assert "12345 available" in report["reason"]
    assert caplog.text.count("each worker has a copy of its own") == 1
    weights.note(report)
    assert weights.settled
    assert not weights.published
    other = obtain(weights, package, canary=False, reports=reports)
    assert not other.shared
    assert len(reports) == 1
    assert not (shm.SHM / weights.segment[1:]).exists()


def test_switched_off_it_is_still_the_canary_that_verifies(
    package: ModelPackage,
) -> None:
    weights = Weights.of_version("weightstest", 4, share=False)
    reports: Reports = []
    assert not obtain(weights, package, canary=True, reports=reports).shared
    assert reports == [{"event": EVENT, "name": None, "reason": "share_weights is off"}]
    data = bytearray(package.script.read_bytes())
    data[len(data) // 2] ^= 1
    package.script.write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.pt"):
        obtain(weights, package, canary=True, reports=reports)
    assert len(reports) == 1


def test_a_lost_segment_means_an_own_copy(
    package: ModelPackage, weights: Weights, caplog: pytest.LogCaptureFixture
) -> None:
    weights.note({"event": EVENT, "name": weights.segment, "bytes": 1})
    with caplog.at_level(logging.WARNING):
        assert not obtain(weights, package, canary=False, reports=[]).shared
    assert "shared weights cannot be used" in caplog.text
