"""Tensors packed into one buffer. Pinning and the GPU itself need a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from procserver.errors import ModelError
from procserver.model.transfer import ALIGNMENT, Transfer, open_device, pack

CPU = torch.device("cpu")
DTYPES = (
    *(torch.float32, torch.float64, torch.int64, torch.int32, torch.bool),
    *(torch.float16, torch.bfloat16, torch.complex64, torch.uint8),
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(DTYPES),
            st.lists(st.integers(0, 7), min_size=1, max_size=3),
            st.lists(st.integers(0, 3), max_size=2),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_every_tensor_arrives_as_it_was(
    tensors: list[tuple[torch.dtype, list[int], list[int]]],
) -> None:
    parts = {
        f"t{i}": [(torch.randn(rows, *rest) * 50).to(dtype) for rows in pieces]
        for i, (dtype, pieces, rest) in enumerate(tensors)
    }
    parts["strided"] = [torch.arange(12).view(3, 4).t()]
    packed = pack(parts, CPU, pin=False)
    assert list(packed) == list(parts)
    (storage,) = {tensor.untyped_storage().data_ptr() for tensor in packed.values()}
    for name, pieces in parts.items():
        joined = torch.cat(pieces)
        assert packed[name].dtype == joined.dtype
        assert packed[name].is_contiguous()
        assert torch.equal(packed[name], joined)
        if joined.numel():
            assert (packed[name].data_ptr() - storage) % ALIGNMENT == 0


def test_no_tensor_lies_over_another() -> None:
    sizes = [1, 63, 64, 65, 128, 3]
    parts = {
        str(i): [torch.full((n,), i, dtype=torch.uint8)] for i, n in enumerate(sizes)
    }
    packed = pack(parts, CPU, pin=False)
    for i, size in enumerate(sizes):
        assert packed[str(i)].tolist() == [i] * size


def test_scalars_stay_in_host_memory() -> None:
    number = torch.tensor(7)
    packed = pack({"batch_size": [number], "x": [torch.ones(2)]}, CPU, pin=False)
    assert packed["batch_size"] is number


def test_the_cpu_joins_without_packing() -> None:
    first, second = {"x": torch.ones(3)}, {"x": torch.zeros(1)}
    transfer = Transfer(CPU)
    assert transfer.to_device([first]) is first
    assert transfer.to_device([first, second])["x"].tolist() == [1, 1, 1, 0]


def test_outputs_come_back_contiguous_and_wide() -> None:
    half = torch.tensor([1.5, -2.0]).half()
    outputs = Transfer(CPU).to_host(
        {
            "half": half,
            "brain": half.to(torch.bfloat16),
            "turned": torch.arange(6).view(2, 3).t(),
            "kept": torch.ones(2, requires_grad=True),
        }
    )
    assert outputs["half"].dtype == outputs["brain"].dtype == np.float32
    assert outputs["half"].tolist() == [1.5, -2.0]
    assert outputs["turned"].flags["C_CONTIGUOUS"]
    assert outputs["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_gpu_that_is_not_here_is_refused() -> None:
    assert open_device("cpu") == CPU
    with pytest.raises(ModelError, match="cuda:0"):
        open_device("cuda:0")
