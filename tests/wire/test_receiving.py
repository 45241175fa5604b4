"""Bodies in reused memory: alignment, ownership, ends and limits."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procserver.errors import BadRequest, TooLarge
from procserver.wire import torch
from procserver.wire.pb.torch_predict_pb2 import PredictRequest
from procserver.wire.receiving import SMALL, BufferPool, receive

LIMIT = 64 << 20


class Pieces:
    """A body that comes in pieces of the given sizes, then in one."""

    def __init__(self, body: bytes, sizes: list[int], length: int | None = -1) -> None:
        self.length = len(body) if length == -1 else length
        self._body = body
        self._sizes = sizes[::-1]

    def read_into(self, view: memoryview) -> int:
        size = self._sizes.pop() if self._sizes else len(self._body)
        piece = self._body[: min(size, len(view))]
        view[: len(piece)] = piece
        self._body = self._body[len(piece) :]
        return len(piece)

    def read_chunk(self, limit: int) -> bytes:
        size = self._sizes.pop() if self._sizes else len(self._body)
        piece, self._body = self._body[:size], self._body[size:]
        return piece


def message(*tensors: np.ndarray, named: bool = False) -> bytes:
    request = PredictRequest(output_filter=[0])
    for i, array in enumerate(tensors):
        target = request.map_inputs[f"x{i}"] if named else request.inputs.add()
        target.array_shape.dim.extend(array.shape)
        if array.dtype == np.float32:
            target.dtype = 1
            target.float_val.extend(array.ravel().tolist())
        elif array.dtype == np.float64:
            target.dtype = 2
            target.double_val.extend(array.ravel().tolist())
        else:
            target.dtype = 9
            target.int64_val.extend(array.ravel().tolist())
    body: bytes = request.SerializeToString()
    return body


def decoded(view: memoryview) -> list[np.ndarray]:
    request = torch.decode(view)
    values = request.inputs or list((request.map_inputs or {}).values())
    return [value.values for value in values]


def is_view(array: np.ndarray, memory: memoryview) -> bool:
    return np.shares_memory(array, np.frombuffer(memory, np.uint8))


@st.composite
def tensors(draw: st.DrawFn) -> list[np.ndarray]:
    """Up to five tensors; the largest stands anywhere."""
    arrays = []
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from([np.float32, np.float32, np.float64, np.int64]))
        size = draw(st.sampled_from([0, 1, 7, 100, 3001, 20_000, 40_013]))
        arrays.append((np.arange(size) * 3 % 1000).astype(kind))
    return arrays


@given(
    tensors(),
    st.booleans(),
    st.lists(st.sampled_from([1, 2, 13, 500, 4096, 8192, 70_000]), max_size=40),
)
@settings(max_examples=150, deadline=None)
def test_bodies_arrive_as_they_were_sent(
    arrays: list[np.ndarray], named: bool, sizes: list[int]
) -> None:
    body = message(*arrays, named=named)
    pool = BufferPool()
    with receive(Pieces(body, sizes), LIMIT, pool) as view:
        assert view == body
        values = decoded(view)
        # A map's order is nobody's.
        assert sorted(v.tobytes() for v in values) == sorted(
            a.tobytes() for a in arrays
        )
        floats = [v for v in values if v.dtype.kind == "f"]
        if len(body) > SMALL and floats:
            largest = max(floats, key=lambda v: v.nbytes)
            # Where half of the bytes are in tensors before it, what has come may
            # be more than it is: then it is copied instead.
            if 2 * largest.nbytes > len(body):
                assert is_view(largest, view)
                assert largest.ctypes.data % 64 == 0


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("odd", range(9))
def test_the_largest_is_aligned_wherever_it_stands(place: int, odd: int) -> None:
    small = [np.arange(1000 + odd, dtype=np.float32), np.arange(odd, dtype=np.int64)]
    large = np.random.default_rng(odd).normal(size=200_000).astype(np.float32)
    arrays = [*small[:place], large, *small[place:]]
    body = message(*arrays)
    with receive(Pieces(body, [100, 8000]), LIMIT, BufferPool()) as view:
        found = decoded(view)[place]
        assert is_view(found, view)
        assert found.ctypes.data % 64 == 0
        assert np.array_equal(found, large)


def test_doubles_are_aligned_for_doubles() -> None:
    arrays = [np.arange(3, dtype=np.float32), np.arange(50_000, dtype=np.float64)]
    with receive(Pieces(message(*arrays), []), LIMIT, BufferPool()) as view:
        found = decoded(view)[1]
        assert is_view(found, view)
        assert found.ctypes.data % 64 == 0


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data) // 4096


def test_a_buffer_is_used_again() -> None:
    pool = BufferPool()
    body = message(np.arange(100_000, dtype=np.float32))
    places = set()
    for _ in range(3):
        with receive(Pieces(body, []), LIMIT, pool) as view:
            places.add(address(view))
            assert len(decoded(view)[0]) == 100_000
    assert len(places) == 1


@pytest.mark.parametrize("kept", ["tensor", "part", "memory"])
def test_what_is_still_looked_at_is_not_overwritten(kept: str) -> None:
    pool = BufferPool()
    values = np.arange(100_000, dtype=np.float32)
    first = message(values)
    with receive(Pieces(first, []), LIMIT, pool) as view:
        (tensor,) = decoded(view)
        assert is_view(tensor, view)
        held: object = {
            "tensor": tensor,
            "part": tensor[500:510],
            "memory": view[1000:1100],
        }[kept]
        before = bytes(memoryview(held))  # type: ignore[arg-type]
        del tensor
    for _ in range(3):
        with receive(Pieces(message(-values), []), LIMIT, pool) as view:
            assert decoded(view)[0][1] == -1
    assert bytes(memoryview(held)) == before  # type: ignore[arg-type]


def test_an_error_while_reading_frees_the_buffer() -> None:
    pool = BufferPool()
    body = message(np.arange(100_000, dtype=np.float32))
    with (
        pytest.raises(BadRequest, match="ended after"),
        receive(Pieces(body, [], len(body) + 1), LIMIT, pool),
    ):
        pass
    with pytest.raises(ZeroDivisionError), receive(Pieces(body, []), LIMIT, pool):
        raise ZeroDivisionError
    with receive(Pieces(body, []), LIMIT, pool) as view:
        assert view == body


@pytest.mark.parametrize("length", [2, 1000, SMALL, SMALL + 1, 100_000])
@pytest.mark.parametrize("got", [0, 1, -1])
def test_bodies_that_end_early(length: int, got: int) -> None:
    body = bytes(length)[: got if got >= 0 else length - 1]
    source = Pieces(body, [], length)
    with (
        pytest.raises(BadRequest, match=f"{len(body)} of {length} bytes"),
        receive(source, LIMIT, BufferPool()),
    ):
        pass


def test_nothing_is_read_of_a_body_over_the_limit() -> None:
    for length in (101, 10**20):
        source = Pieces(b"x" * 200, [], length)
        with pytest.raises(TooLarge), receive(source, 100, BufferPool()):
            pass
        assert len(source._body) == 200
    source = Pieces(b"x" * 200, [30] * 9, None)
    with pytest.raises(TooLarge), receive(source, 100, BufferPool()):
        pass
    with receive(Pieces(b"x" * 100, [30] * 9, None), 100, BufferPool()) as view:
        assert view == b"x" * 100
    with receive(Pieces(b"", []), 100, BufferPool()) as view:
        assert view == b""


def test_the_pool_keeps_few_buffers() -> None:
    pool = BufferPool(keep=2, keep_bytes=1 << 20)
    sizes = [100_000, 200_000, 300_000, 2 << 20]
    for buffer in [pool.take(size) for size in sizes]:
        pool.give_back(buffer)
    assert len(pool._free) == 2
    assert max(map(len, pool._free)) < 1 << 20
    # The smallest that suffices.
    assert len(pool.take(150_000)) < 300_000


@given(st.binary(max_size=400), st.integers(0, 2**32), st.lists(st.integers(1, 9000)))
@settings(max_examples=200, deadline=None)
def test_any_bytes_arrive(start: bytes, seed: int, sizes: list[int]) -> None:
    """Also what is no message, or lies about its lengths."""
    body = start + random.Random(seed).randbytes(40_000)
    with receive(Pieces(body, sizes), LIMIT, BufferPool()) as view:
        assert view == body
