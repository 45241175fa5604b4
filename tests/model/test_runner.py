"""TorchScript modules behind the runner, and what clients are told of failures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from procserver.errors import BadTensor, ModelError, PredictFailed
from procserver.model.loading import load
from procserver.model.package import open_package
from procserver.model.runner import ModelRunner
from procserver.observe.metrics import NAN_SCORES, REGISTRY

FLOAT, HALF, INT64, BFLOAT16 = 1, 19, 9, 14


class Named(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.EmbeddingBag(4, 2)

    def forward(
        self,
        data: dict[str, torch.Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> dict[str, torch.Tensor]:
        offsets = torch.cumsum(data["id.lengths"], 0) - data["id.lengths"]
        pooled = self.table(data["id.values"], offsets)
        score = pooled.sum(1) + data["price.values"][:, 0]
        return {"probs": torch.sigmoid(score), "logits": score, "rank": score.argsort()}


class Positional(torch.nn.Module):
    def forward(
        self, a: torch.Tensor, b: torch.Tensor, scale: float = 2.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (a + b) * scale, a.to(torch.float16)


class Bare(torch.nn.Module):
    def forward(self, data: dict[str, torch.Tensor]) -> torch.Tensor:
        return data["x"] * 2


def runner(path: Path, module: torch.nn.Module, **options: object) -> ModelRunner:
    file = path / "m.pt"
    torch.jit.script(module).save(str(file))
    return ModelRunner(load(open_package(file)), **options)  # type: ignore[arg-type]


def batch(ids: list[int]) -> dict[str, np.ndarray]:
    return {
        "id.values": np.array(ids, dtype=np.int64),
        "id.lengths": np.ones(len(ids), dtype=np.int64),
        "price.values": np.linspace(0, 1, len(ids), dtype=np.float32)[:, None],
    }


def test_scores_equal_an_in_process_forward(tmp_path: Path) -> None:
    module = Named()
    ours = runner(tmp_path, module).run(batch([0, 3, 1]))
    tensors = {k: torch.from_numpy(v) for k, v in batch([0, 3, 1]).items()}
    with torch.inference_mode():
        expected = module(tensors)
    assert list(ours) == ["probs", "logits", "rank"]
    for name, tensor in expected.items():
        assert np.array_equal(ours[name], tensor.numpy())


def test_outputs_are_filtered_in_the_configured_order(tmp_path: Path) -> None:
    ours = runner(tmp_path, Named(), outputs=("rank", "probs")).run(batch([1]))
    assert list(ours) == ["rank", "probs"]


def test_an_output_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="probs_ctr"):
        runner(tmp_path, Named(), outputs=("probs_ctr",)).run(batch([1]))


def test_positional_models(tmp_path: Path) -> None:
    ours = runner(tmp_path, Positional())
    tensors = [(FLOAT, np.ones(3, np.float32)), (FLOAT, np.ones(3, np.float32))]
    first, second = ours.run_positional(tensors)
    assert first.tolist() == [4, 4, 4]
    assert second.dtype == np.float32
    assert [a.tolist() for a in ours.run_positional(tensors, [1, 0])] == [
        [1, 1, 1],
        [4, 4, 4],
    ]
    with pytest.raises(BadTensor, match="index 2 of 2"):
        ours.run_positional(tensors, [2])
    with pytest.raises(BadTensor, match="takes 2 to 3 tensors, got 1"):
        ours.run_positional(tensors[:1])
    with pytest.raises(BadTensor, match="positional"):
        ours.run_map({"a": tensors[0]})


def test_half_types_travel_in_float32(tmp_path: Path) -> None:
    class Half(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            assert a.dtype == torch.float16
            assert b.dtype == torch.bfloat16
            return a.float() + b.float()

    values = np.array([1.5, 2.5], np.float32)
    out = runner(tmp_path, Half()).run_positional([(HALF, values), (BFLOAT16, values)])
    assert out[0].tolist() == [3.0, 5.0]


def test_a_bare_tensor_is_named_default(tmp_path: Path) -> None:
    out = runner(tmp_path, Bare()).run_map({"x": (FLOAT, np.ones(2, np.float32))})
    assert {k: v.tolist() for k, v in out.items()} == {"default": [2, 2]}


def test_failures_name_the_tensor_and_never_show_source(tmp_path: Path) -> None:
    ours = runner(tmp_path, Named())
    wire = {name: (1, array) for name, array in batch([1, 2]).items()}
    del wire["price.values"]
    with pytest.raises(BadTensor, match=r"needs 'price\.values'"):
        ours.run_map(wire)
    wire["price.values"] = (FLOAT, np.ones((3, 1), np.float32))
    with pytest.raises(BadTensor, match=r"price\.values: float32\[3, 1\]") as refused:
        ours.run_map(wire)
    assert "forward" not in str(refused.value)
    wire = {name: (1, array) for name, array in batch([1, 9]).items()}
    with pytest.raises(BadTensor, match="outside of its table"):
        ours.run_map(wire)


def test_a_failure_on_generated_features_is_the_servers(tmp_path: Path) -> None:
    tensors = batch([1, 2])
    del tensors["price.values"]
    with pytest.raises(PredictFailed) as failed:
        runner(tmp_path, Named()).run(tensors)
    assert "price" not in str(failed.value)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04half"])
def test_files_that_are_no_model(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "m.pt"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.pt"):
        load(open_package(file))


def test_empty_outputs_are_learnt_from_a_warm_up(tmp_path: Path) -> None:
    ours = runner(tmp_path, Named(), outputs=("probs",))
    ours.learn_outputs(ours.run(batch([1, 2, 3])), 3)
    assert ours.output_names == ("probs",)
    assert ours.empty_outputs["probs"].shape == (0,)
    assert ours.empty_outputs["probs"].dtype == np.float32
    ours.learn_outputs({"other": np.zeros((1, 3))}, 1)
    assert list(ours.empty_outputs) == ["probs"]


class Odd(torch.nn.Module):
    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x = data["x"]
        return {"p": torch.log(x), "rank": x.argsort()}


def test_scores_that_are_no_numbers_are_counted_and_passed_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = runner(tmp_path, Odd())

    def counted() -> list[int]:
        block = REGISTRY.block
        return [NAN_SCORES.read(block, REGISTRY.row, v) for v in ("nan", "inf")]

    before = counted()
    scores = ours.run({"x": np.array([1.0, -1.0, 0.0, -2.0], np.float32)})
    assert np.array_equal(scores["p"], [0, np.nan, -np.inf, np.nan], equal_nan=True)
    assert [b - a for a, b in zip(before, counted(), strict=True)] == [2, 1]
    assert not caplog.text
    ours.learn_outputs(scores, 4)
    assert "output 'p' holds NaN" in caplog.text
    assert "rank" not in caplog.text


def test_gradients_are_kept_in_neither_mode(tmp_path: Path) -> None:
    class Modes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(1))

        def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            y = data["x"] * self.w
            return {
                "inference": torch.full((1,), float(y.is_inference())),
                "grad": torch.full((1,), float(y.requires_grad)),
            }

    found = []
    for guard in (False, True):
        out = runner(tmp_path, Modes(), plain_no_grad=guard).run(
            {"x": np.ones(1, np.float32)}
        )
        found.append([float(out[name][0]) for name in ("inference", "grad")])
    assert found == [[1.0, 0.0], [0.0, 0.0]]
