"""What a new model must keep to, for clients of the one that is served."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from procserver.errors import ModelError
from procserver.lifecycle.candidate import Contract, Examination
from procserver.lifecycle.warmup import WarmUp
from procserver.model.loading import load
from procserver.model.package import open_package
from procserver.model.runner import ModelRunner

SERVED = Contract(False, 1, 2, ("0", "1"))


@pytest.mark.parametrize(
    ("new", "told"),
    [
        (Contract(False, 1, 2, ("0", "1")), None),
        (Contract(False, 0, 3, ("0", "1", "2")), None),
        (Contract(False, 1, 2, ()), None),
        (Contract(False, 2, 2, ("0", "1")), "takes 2 tensors, clients send 1 to 2"),
        (Contract(False, 1, 1, ("0", "1")), "takes 1 tensors, clients send 1 to 2"),
        (Contract(True, 1, 2, ("0", "1")), "takes named tensors"),
        (Contract(False, 1, 2, ("0",)), "returns no '1' any more"),
    ],
)
def test_what_clients_count_on(new: Contract, told: str | None) -> None:
    found = SERVED.broken_by(new, clients_send_tensors=True)
    assert found is None if told is None else told in (found or "")


def test_features_are_ours_to_turn_into_tensors() -> None:
    other = Contract(True, 1, 1, ("0", "1", "2"))
    assert SERVED.broken_by(other, clients_send_tensors=False) is None


def test_a_contract_survives_its_way_to_the_master() -> None:
    message = json.loads(json.dumps(SERVED.as_message()))
    assert Contract.read(message) == SERVED


class Halves(torch.nn.Module):
    def forward(self, a: torch.Tensor) -> torch.Tensor:
        return a / 2


@pytest.fixture
def runner(tmp_path: Path) -> ModelRunner:
    torch.jit.script(Halves()).save(str(tmp_path / "halves.pt"))
    return ModelRunner(load(open_package(tmp_path / "halves.pt")))


def test_only_a_strict_examination_refuses(runner: ModelRunner) -> None:
    runner.non_finite.add("0")
    failed = WarmUp(0, 0, Counter(failed=2))
    lenient = Examination()
    lenient.hold(runner, failed, clients_send_tensors=True)
    assert lenient.contract == Contract(False, 1, 1, ())
    strict = Examination(strict=True)
    with pytest.raises(ModelError, match="not one recorded request of 2 files"):
        strict.hold(runner, failed, clients_send_tensors=True)
    good = WarmUp(6, 1, Counter(failed=2, replayed=1))
    with pytest.raises(ModelError, match="output '0' holds NaN"):
        strict.hold(runner, good, clients_send_tensors=True)
    strict.allow_nan = True
    strict.hold(runner, good, clients_send_tensors=True)
    strict.before = SERVED
    with pytest.raises(ModelError, match="takes 1 tensors"):
        strict.hold(runner, good, clients_send_tensors=True)
