"""Weights in a shared segment: the same model, one copy, nobody hurt."""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from procserver import shm
from procserver.errors import NotShareable, PredictFailed, SharedMemoryError
from procserver.model import segment
from procserver.model.loading import LoadedModel, load
from procserver.model.package import open_package
from procserver.model.shared import attach, publish

SERVICE = "sharedtest"
DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


class Holder(torch.nn.Module):
    """Tensors are registered from outside; ``forward`` reads none of them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Counter(torch.nn.Module):
    """Writes to a buffer in ``forward``, as a running statistic does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.weight = torch.nn.Parameter(torch.arange(5000.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.weight[:1] + self.calls


class Tower(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(2000, 16)
        self.top = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Linear(8, 1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.top(self.table(ids)).squeeze(1)


@pytest.fixture
def name() -> Iterator[str]:
    name = shm.segment_name(SERVICE, shm.this_process(), "weights-1")
    yield name
    gc.collect()
    shm.unlink(name)


def saved(folder: Path, module: torch.nn.Module) -> LoadedModel:
    """The module as an own copy, loaded from its archive."""
    path = folder / "model.pt"
    torch.jit.script(module.eval()).save(str(path))
    return load(open_package(path))


def slots(model: LoadedModel) -> dict[str, torch.Tensor]:
    module = model.module
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def raw(tensor: torch.Tensor) -> bytes:
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
    flat.copy_(tensor.detach().reshape(-1))
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def assert_equal(ours: LoadedModel, theirs: LoadedModel) -> None:
    expected, found = slots(ours), slots(theirs)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert found[key].shape == tensor.shape, key
        assert found[key].requires_grad == tensor.requires_grad, key
        assert raw(found[key]) == raw(tensor), key


def test_a_tower_has_the_same_scores(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path, Tower())
    published = publish(model, name, shm.this_process())
    attached = attach(model.package, name)
    ids = torch.randint(0, 2000, (64,))
    expected = model.module(ids)
    for shared in (published.model, attached):
        assert shared.shared
        assert torch.equal(shared.module(ids), expected)
        assert_equal(model, shared)
    assert not published.private
    assert not model.shared
    table = slots(attached)["table.weight"]
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if name[1:] in line]
    assert any(int(a, 16) <= table.data_ptr() < int(b, 16) for a, b in spans)
    assert table.data_ptr() % 4096 == 0
    assert all(tensor.data_ptr() % 64 == 0 for tensor in slots(attached).values())


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    if draw(st.integers(0, 9)) == 0:
        shape = [300, *shape]
    size = int(np.prod(shape)) if shape else 1
    seed = draw(st.integers(0, 2**32 - 1))
    if dtype == torch.bool:
        values = torch.from_numpy(np.random.default_rng(seed).random(size) < 0.5)
    else:
        bits = np.random.default_rng(seed).bytes(size * dtype.itemsize)
        values = torch.frombuffer(bytearray(bits or b"\0"), dtype=torch.uint8)
        values = values[: size * dtype.itemsize].view(dtype)
    tensor = values.reshape(shape)
    shaping = draw(st.sampled_from(["plain", "transposed", "strided", "expanded"]))
    if shaping == "transposed" and tensor.dim() > 1:
        tensor = tensor.transpose(0, 1)
    elif shaping == "strided" and tensor.dim():
        tensor = tensor[::2]
    elif shaping == "expanded" and tensor.dim() and tensor.shape[0] == 1:
        tensor = tensor.expand(4, *tensor.shape[1:])
    return tensor


@st.composite
def holders(draw: st.DrawFn) -> Holder:
    """A module with tensors of all sorts at several depths, some of them tied."""
    root = Holder()
    root.inner = Holder()
    root.inner.deep = Holder()
    places = [root, root.inner, root.inner.deep]
    made = draw(st.lists(tensors(), min_size=1, max_size=6))
    for index, tensor in enumerate(made):
        place = places[index % 3]
        if draw(st.booleans()) and tensor.dtype.is_floating_point:
            place.register_parameter(
                f"p{index}",
                torch.nn.Parameter(tensor, requires_grad=draw(st.booleans())),
            )
        else:
            place.register_buffer(f"b{index}", tensor)
    for index, tensor in enumerate(made):
        how = draw(st.sampled_from(["alone", "alone", "tied", "overlapping"]))
        if how == "tied":
            root.register_buffer(f"tied{index}", tensor)
        elif how == "overlapping" and tensor.numel() > 1 and tensor.shape[0] > 1:
            root.inner.register_buffer(f"over{index}", tensor[1:])
    return root


@given(holder=holders())
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_tensor_comes_back(tmp_path: Path, holder: Holder) -> None:
    name = shm.segment_name(SERVICE, shm.this_process(), "weights-any")
    model = saved(tmp_path, holder)
    if not any(t.untyped_storage().nbytes() for t in slots(model).values()):
        with pytest.raises(NotShareable, match="no parameters"):
            publish(model, name, shm.this_process())
        return
    try:
        published = publish(model, name, shm.this_process())
        assert not published.private
        attached = attach(model.package, name)
        assert_equal(model, attached)
        assert_equal(model, published.model)
        expected, found = slots(model), slots(attached)

        def aliases(of: dict[str, torch.Tensor]) -> set[tuple[str, str]]:
            filled = {n: t for n, t in of.items() if t.untyped_storage().nbytes()}
            return {
                (a, b)
                for a in filled
                for b in filled
                if of[a].untyped_storage()._cdata == of[b].untyped_storage()._cdata
            }

        assert aliases(found) == aliases(expected)
        for key, tensor in expected.items():
            assert found[key].stride() == tensor.stride()
    finally:
        shm.unlink(name)


def test_a_write_through_one_alias_is_seen_through_the_other(
    tmp_path: Path, name: str
) -> None:
    holder = Holder()
    base = torch.arange(6000.0)
    holder.register_buffer("base", base)
    holder.register_buffer("tail", base[5000:])
    model = saved(tmp_path, holder)
    publish(model, name, shm.this_process())
    first, second = attach(model.package, name), attach(model.package, name)
    slots(first)["base"][5000] = -1
    assert slots(first)["tail"][0] == -1
    assert slots(second)["tail"][0] == 5000
    assert slots(model)["tail"][0] == 5000


NEIGHBOUR = """
import sys, torch
from pathlib import Path
from procserver.model.package import open_package
from procserver.model.shared import attach
model = attach(open_package(Path(sys.argv[1])), sys.argv[2])
for _ in range(3):
    print(model.module(torch.zeros(1)).item(), flush=True)
    sys.stdin.readline()
"""


def test_what_a_worker_writes_no_neighbour_sees(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path, Counter())
    published = publish(model, name, shm.this_process())
    before = (shm.SHM / name[1:]).read_bytes()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", NEIGHBOUR, str(model.package.script), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for calls in (1.0, 2.0, 3.0):
            for process in processes:
                assert float(process.stdout.readline()) == calls
                process.stdin.write("\n")
                process.stdin.flush()
    finally:
        for process in processes:
            process.communicate()
    assert published.model.module(torch.zeros(1)).item() == 1.0
    assert (shm.SHM / name[1:]).read_bytes() == before


def test_the_map_lives_as_long_as_its_tensors(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path, Tower())
    publish(model, name, shm.this_process())
    gc.collect()
    attached = attach(model.package, name)
    shm.unlink(name)
    one = slots(attached)["top.0.bias"].detach()
    expected = one.clone()
    del attached
    gc.collect()
    assert name[1:] in Path("/proc/self/maps").read_text()
    assert torch.equal(one, expected)
    del one
    gc.collect()
    assert name[1:] not in Path("/proc/self/maps").read_text()


def test_tables_are_views_of_the_segment(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path, Tower())
    rng = np.random.default_rng(3)
    tables = {
        "codes": rng.integers(0, 255, (100, 20), dtype=np.uint8),
        "values": rng.standard_normal((50, 8)).astype(np.float32).T,
        "half": rng.standard_normal(7).astype(np.float16),
        "empty": np.zeros((0, 4), np.float32),
    }
    model = LoadedModel(model.package, model.module, tables)
    publish(model, name, shm.this_process())
    attached = attach(model.package, name)
    assert attached.tables.keys() == tables.keys()
    for key, table in tables.items():
        assert attached.tables[key].dtype == table.dtype
        np.testing.assert_array_equal(attached.tables[key], table)
        assert not attached.tables[key].flags.owndata
    bad = LoadedModel(model.package, model.module, {"odd": np.array([None])})
    with pytest.raises(NotShareable, match="table 'odd' has dtype object"):
        publish(bad, name + "-2", shm.this_process())


def test_a_model_of_tables_alone(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path, Holder())
    model = LoadedModel(model.package, model.module, {"t": np.arange(9)})
    publish(model, name, shm.this_process())
    assert attach(model.package, name).tables["t"].tolist() == list(range(9))


def test_attributes_stay_in_the_skeleton(tmp_path: Path, name: str) -> None:
    class Attributed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(10))
            self.plain = torch.randn(10)
            self.several = [torch.ones(3), torch.zeros(2)]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight + self.plain + self.several[0].sum()

    model = saved(tmp_path, Attributed())
    publish(model, name, shm.this_process())
    attached = attach(model.package, name)
    x = torch.randn(10)
    assert torch.equal(attached.module(x), model.module(x))


def test_an_attribute_that_is_a_view_of_a_weight_prevents_sharing(
    tmp_path: Path, name: str
) -> None:
    class Surprise(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(10))
            self.window = self.weight.detach()[2:5]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.window + self.weight.sum()

    model = saved(tmp_path, Surprise())
    assert model.module.window.data_ptr() == model.module.weight.data_ptr() + 8
    expected = model.module(torch.zeros(1))
    with pytest.raises(NotShareable, match="neither parameter nor buffer"):
        publish(model, name, shm.this_process())
    assert torch.equal(model.module(torch.zeros(1)), expected), "it stays usable"
    assert not (shm.SHM / name[1:]).exists()


def test_a_frozen_module_is_not_shared(tmp_path: Path, name: str) -> None:
    path = tmp_path / "frozen.pt"
    torch.jit.freeze(torch.jit.script(Tower().eval())).save(str(path))
    with pytest.raises(NotShareable, match="frozen"):
        publish(load(open_package(path)), name, shm.this_process())


@pytest.mark.parametrize("odd", ["sparse", "conjugate"])
def test_a_tensor_without_plain_memory_stays_private(
    tmp_path: Path, name: str, odd: str, caplog: pytest.LogCaptureFixture
) -> None:
    tensor = {
        "sparse": lambda: torch.eye(4).to_sparse(),
        "conjugate": lambda: torch.randn(4, dtype=torch.complex64).conj(),
    }[odd]()
    holder = Tower()
    holder.register_buffer("odd", tensor)
    model = saved(tmp_path, holder)
    with caplog.at_level(logging.WARNING, "procserver.model"):
        published = publish(model, name, shm.this_process())
    assert list(published.private) == ["odd"]
    assert "tensor 'odd' stays private" in caplog.text
    attached = attach(model.package, name)
    assert torch.equal(slots(attached)["odd"].to_dense(), tensor.to_dense())
    ids = torch.arange(5)
    assert torch.equal(attached.module(ids), model.module(ids))


def test_nothing_but_such_a_tensor_names_it(tmp_path: Path, name: str) -> None:
    holder = Holder()
    holder.register_buffer("adjacency", torch.eye(4).to_sparse())
    with pytest.raises(NotShareable, match="'adjacency': its layout is sparse_coo"):
        publish(saved(tmp_path, holder), name, shm.this_process())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:torch.ao")
def test_a_quantised_tensor_stays_private(tmp_path: Path, name: str) -> None:
    holder = Tower()
    codes = torch.quantize_per_tensor(torch.randn(40), 0.1, 0, torch.qint8)
    holder.register_buffer("codes", codes)
    model = saved(tmp_path, holder)
    published = publish(model, name, shm.this_process())
    assert published.private == {"codes": "it is quantised (qint8)"}
    assert torch.equal(slots(attach(model.package, name))["codes"], codes)


def probe(model: LoadedModel) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        return {"score": model.module(torch.arange(8)).numpy()}


def test_the_probe_compares_outputs(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path, Tower())
    seen: list[LoadedModel] = []

    def watching(which: LoadedModel) -> dict[str, np.ndarray]:
        seen.append(which)
        return probe(which)

    published = publish(model, name, shm.this_process(), probe=watching)
    assert seen == [model, published.model]


def test_a_probe_that_tells_them_apart_prevents_sharing(
    tmp_path: Path, name: str
) -> None:
    model = saved(tmp_path, Tower())

    def differing(which: LoadedModel) -> dict[str, np.ndarray]:
        outputs = probe(which)
        return {"score": outputs["score"] + (which is not model)}

    with pytest.raises(NotShareable, match="output 'score' is another"):
        publish(model, name, shm.this_process(), probe=differing)
    assert not (shm.SHM / name[1:]).exists()


def test_random_models_are_seeded_and_failing_probes_skipped(
    tmp_path: Path, name: str
) -> None:
    class Noisy(Tower):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table(ids).sum(1) + torch.rand(ids.size(0))

    model = saved(tmp_path, Noisy())
    state = torch.random.get_rng_state()
    publish(model, name, shm.this_process(), probe=probe)
    assert torch.equal(torch.random.get_rng_state(), state)
    shm.unlink(name)

    def failing(which: LoadedModel) -> dict[str, np.ndarray]:
        raise PredictFailed("no batch for this model")

    assert publish(model, name, shm.this_process(), probe=failing).model.shared


def test_segments_that_are_not_whole_are_refused(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path, Tower())
    publish(model, name, shm.this_process())
    gc.collect()
    path = shm.SHM / name[1:]
    good = path.read_bytes()

    def refused(content: bytes, message: str) -> None:
        path.write_bytes(content)
        with pytest.raises(SharedMemoryError, match=message):
            attach(model.package, name)

    refused(good[:-1], "bytes instead of")
    refused(good[:100], "not a segment of weights")
    refused(b"\0" * len(good), "not a segment of weights")
    refused(b"PSRVCACH" + good[8:], "not a segment of weights")
    refused(good[:8] + b"\x02" + good[9:], "layout 2")
    refused(good[:68] + b"\0" + good[69:], "not finished")
    for at in (24, 33, 41, 49, 60, 64, 130, 1500):
        damaged = bytearray(good)
        damaged[at] ^= 0x55
        refused(bytes(damaged), "damaged|bytes instead of")
    refused(b"", "empty")
    path.write_bytes(good)
    attach(model.package, name)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        attach(model.package, name)


def test_another_version_is_refused(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path, Tower())
    publish(model, name, shm.this_process())
    os.utime(model.package.script, (1, 1))
    with pytest.raises(SharedMemoryError, match="holds model"):
        attach(open_package(model.package.script), name)


def test_a_taken_name_is_left_alone(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path, Tower())
    path = shm.SHM / name[1:]
    path.write_bytes(b"foreign")
    with pytest.raises(SharedMemoryError, match="exists"):
        publish(model, name, shm.this_process())
    assert path.read_bytes() == b"foreign"


def test_full_memory_is_told_and_leaves_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(tmp_path, Tower())
    real = os.posix_fallocate

    def full(fd: int, start: int, length: int) -> None:
        # Asks the real file system for more than any has.
        real(fd, start, 1 << 50)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SharedMemoryError, match=r"weights: \d+ bytes needed.*free in"):
        publish(model, name, shm.this_process())
    assert not (shm.SHM / name[1:]).exists()
    monkeypatch.undo()
    monkeypatch.setattr(shm, "available_memory", lambda: 1000)
    with pytest.raises(SharedMemoryError, match=r"bytes needed, 1000 available"):
        publish(model, name, shm.this_process())
    assert_equal(model, load(model.package))


def test_the_layout_as_it_is_drawn(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path, Tower())
    owner = shm.Owner(4711, 99)
    publish(model, name, owner)
    assert shm.recorded_owner(name) == owner
    data = (shm.SHM / name[1:]).read_bytes()
    assert data[:12] == b"PSRVWGHT\x01\0\0\0"
    words = np.frombuffer(data, "<u8", 5, 24)
    total, length, skeleton_at, skeleton_bytes, arrays_at = map(int, words)
    assert total == len(data)
    assert data[72:128] == bytes(56)
    directory = json.loads(data[128 : 128 + length])
    assert directory["model"] == model.package.version
    assert data[skeleton_at : skeleton_at + 2] == b"PK"
    assert skeleton_bytes < 40_000
    assert arrays_at % 4096 == 0
    by_name = {entry["name"]: entry for entry in directory["tensors"]}
    table = by_name["table.weight"]
    assert table["shape"] == [2000, 16]
    assert table["strides"] == [16, 1]
    offset, size = table["storage"]
    assert size == 2000 * 16 * 4
    assert data[arrays_at + offset :][:size] == raw(slots(model)["table.weight"])


@given(sizes=st.lists(st.integers(0, 20000), max_size=30))
def test_arrays_never_overlap(sizes: list[int]) -> None:
    offsets, end = segment.place(sizes)
    last = 0
    for offset, size in zip(offsets, sizes, strict=True):
        assert offset >= last
        assert offset % (4096 if size >= 4096 else 64) == 0
        last = offset + size
    assert end == last


def test_available_memory_is_known() -> None:
    assert (shm.available_memory() or 0) > 0
