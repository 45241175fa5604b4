"""What clients are told when a model fails."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import modules

from procserver.errors import BadTensor, DeviceLost, PredictFailed
from procserver.model.failures import device_lost, is_device_lost
from procserver.model.runner import ModelRunner

GPU = torch.device("cuda:0")


class Lookups(torch.nn.Module):
    """Three tables, each with an operator of its own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.small = torch.nn.Embedding(4, 2)
        self.bag = torch.nn.EmbeddingBag(6, 2)
        self.large = torch.nn.Parameter(torch.randn(10, 2))
        self.top = torch.nn.Linear(1, 2)

    def forward(self, data: dict[str, torch.Tensor]) -> torch.Tensor:
        small = data["small.values"]
        if self.how == "embedding":
            looked = self.small(small)
        elif self.how == "select":
            looked = self.small.weight.index_select(0, small)
        elif self.how == "index":
            looked = self.small.weight[small]
        else:
            looked = torch.gather(self.small.weight, 0, small[:, None]).expand(-1, 2)
        bags = data["bag.values"]
        offsets = torch.arange(bags.size(0), device=bags.device)
        large = self.large.index_select(0, data["large.values"])
        return looked + self.bag(bags, offsets) + large + self.top(data["x.values"])


def given(**changes: np.ndarray) -> dict[str, tuple[int, np.ndarray]]:
    arrays = {
        "small.values": np.array([0, 1, 3]),
        "bag.values": np.array([0, 5, 5]),
        "large.values": np.array([9, 8, 7]),
        "x.values": np.ones((3, 1), np.float32),
    }
    arrays.update({f"{name}.values": array for name, array in changes.items()})
    return {name: (0, array) for name, array in arrays.items()}


@pytest.fixture(scope="module", params=["embedding", "select", "index", "gather"])
def runner(request: pytest.FixtureRequest, tmp_path_factory) -> ModelRunner:
    path = tmp_path_factory.mktemp("m")
    return ModelRunner(modules.loaded(path, Lookups(request.param)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"small": [0, 4, 1]}, r"small\.values\[1\]: id 4 is outside of its table"),
        ({"bag": [0, 1, 6]}, r"bag\.values\[2\]: id 6 is outside of its table"),
        ({"bag": [-1, 1, 2]}, r"bag\.values\[0\]: id -1 .* of its table of 6 rows"),
        ({"bag": [-7, 1, 1], "large": [9, -7, 1]}, r"values\[\d\]: id -7 is outside"),
        ({"large": [1, -2, 3]}, r"large\.values\[1\]: id -2 is outside of its table"),
        ({"large": [1, 2, 10]}, r"large\.values\[2\]: id 10 is outside of its table"),
        ({"large": [99, -2, 10]}, r"large\.values\[\d\]: id (99|-2|10) is outside"),
        ({"small": [9, 4, 1], "large": [77, 2, 1]}, r"(small|large)\.values\[0\]: id"),
    ],
)
def test_an_id_outside_of_its_table_is_named(
    runner: ModelRunner, changes: dict[str, list[int]], message: str
) -> None:
    arrays = {name: np.array(ids) for name, ids in changes.items()}
    assert runner.run_map(given())
    with pytest.raises(BadTensor, match=message) as refused:
        runner.run_map(given(**arrays))
    assert "forward" not in str(refused.value)
    assert len(str(refused.value)) < 200


def test_generated_features_are_not_the_clients(
    runner: ModelRunner, caplog: pytest.LogCaptureFixture
) -> None:
    arrays = {n: array for n, (_, array) in given(small=np.array([0, 4, 1])).items()}
    with pytest.raises(PredictFailed, match="see the service log"):
        runner.run(arrays)
    assert "model failed" in caplog.text


def test_other_refusals(runner: ModelRunner) -> None:
    with pytest.raises(
        BadTensor, match=r"x\.values: float64\[3, 1\], expected float32"
    ):
        runner.run_map(given(x=np.ones((3, 1))))
    with pytest.raises(BadTensor, match=r"x\.values: float32\[2, 1\]"):
        runner.run_map(given(x=np.ones((2, 1), np.float32)))
    wire = given()
    del wire["bag.values"]
    with pytest.raises(BadTensor, match=r"the model needs 'bag\.values'"):
        runner.run_map(wire)
    with pytest.raises(BadTensor, match=r"small\.lengths: the lengths sum up to 2"):
        runner.run_map({**given(), "small.lengths": (9, np.array([1, 1]))})


def test_an_index_that_is_no_input_is_not_blamed_on_one(tmp_path: Path) -> None:
    class Own(torch.nn.Module):
        def forward(self, data: dict[str, torch.Tensor]) -> torch.Tensor:
            return data["x"].index_select(0, torch.tensor([7]))

    runner = ModelRunner(modules.loaded(tmp_path, Own()))
    with pytest.raises(BadTensor, match=r"refuses an index; given: x int64\[2\]"):
        runner.run_map({"x": (9, np.array([1, 2]))})


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (
            RuntimeError(
                "The following operation failed in the TorchScript interpreter.\n"
                "RuntimeError: CUDA error: device-side assert triggered\n"
                "CUDA kernel errors might be asynchronously reported"
            ),
            True,
        ),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), True),
        (torch.AcceleratorError("the device is gone"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (IndexError("index out of range in self"), False),
    ],
)
def test_a_lost_gpu_is_recognised(error: Exception, lost: bool) -> None:
    assert is_device_lost(error, GPU) is lost
    assert not is_device_lost(error, torch.device("cpu"))


def test_a_lost_gpu_is_reported_once_and_every_request_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    runner = ModelRunner(
        modules.loaded(tmp_path, Lookups("index")),
        on_device_lost=lambda: calls.append(1),
    )

    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    # There is no GPU to break here, so the pass is made to say what a GPU's says.
    monkeypatch.setattr(runner, "_forward", lost)
    runner.device = GPU
    for _ in range(2):
        with pytest.raises(DeviceLost, match="replaced"):
            runner.run_map(given())
    assert calls == [1]
    assert runner.lost
    assert device_lost().status == 500
