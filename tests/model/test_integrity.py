"""Damaged and altered model files are refused before anything is loaded."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import distributed, export, hot_version, publish
from hypothesis import given, settings
from hypothesis import strategies as st

from procserver.errors import ModelError
from procserver.model.integrity import check_archive, check_script, verify
from procserver.model.loading import load
from procserver.model.package import open_package


class Scorer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(4096.0))

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"probs": self.weight[data["id.values"]]}


def _script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Scorer()), buffer)
    return buffer.getvalue()


SCRIPT = _script()


def model(path: Path) -> Path:
    """An export with a real script."""
    export(path)
    (path / "scripted_model.pt").write_bytes(SCRIPT)
    return path


def with_tables(path: Path) -> Path:
    """A distributed export with a real script and real shards."""
    distributed(path)
    (path / "scripted_model.pt").write_bytes(SCRIPT)
    for shard in (path / "sparse").glob("*.npz"):
        np.savez(shard, table=np.arange(1000, dtype=np.float32))
    return path


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(bytes(data))


def sums_of(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def write_manifest(folder: Path, kind: str) -> None:
    sums = sums_of(folder)
    if kind == "manifest.json":
        (folder / kind).write_text(json.dumps({"files": sums}))
    else:
        lines = subprocess.run(
            ["sha256sum", *sums], cwd=folder, check=True, capture_output=True
        )
        (folder / kind).write_bytes(lines.stdout)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        verify(open_package(path))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_sound_packages(tmp_path: Path) -> None:
    verify(open_package(model(tmp_path / "plain")))
    verify(open_package(with_tables(tmp_path / "tables")))


def test_a_flipped_weight(tmp_path: Path) -> None:
    script = model(tmp_path) / "scripted_model.pt"
    # Deep inside the one tensor: torch itself would load this.
    flip(script, SCRIPT.index(np.float32(2000).tobytes()))
    load(open_package(tmp_path))
    assert refusal(tmp_path) == (
        "scripted_model.pt is damaged: 'archive/data/0' in it does not match its "
        "checksum"
    )


@pytest.mark.parametrize("part", [0.05, 0.5, 0.99])
def test_a_script_that_is_cut_short(tmp_path: Path, part: float) -> None:
    script = model(tmp_path) / "scripted_model.pt"
    script.write_bytes(SCRIPT[: int(len(SCRIPT) * part)])
    assert refusal(tmp_path).startswith("scripted_model.pt is cut short or damaged")


def test_what_is_no_archive(tmp_path: Path) -> None:
    script = model(tmp_path) / "scripted_model.pt"
    script.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert refusal(tmp_path) == "scripted_model.pt is not a TorchScript archive"
    script.write_bytes(b"")
    assert refusal(tmp_path) == "scripted_model.pt is empty"


def test_a_state_dict_is_no_script(tmp_path: Path) -> None:
    torch.save(Scorer().state_dict(), model(tmp_path) / "scripted_model.pt")
    assert "must be saved with torch.jit.save" in refusal(tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
def test_shards_are_read_through(tmp_path: Path, compressed: bool) -> None:
    path = with_tables(tmp_path)
    shard = path / "sparse" / "sparse_embeddings-01-of-02.npz"
    save = np.savez_compressed if compressed else np.savez
    save(shard, table=np.arange(100_000, dtype=np.int64) * 7919)
    verify(open_package(path))
    sound = shard.read_bytes()
    flip(shard, len(sound) // 2)
    assert refusal(path).startswith(f"{shard.name} is damaged: 'table.npy'")
    shard.write_bytes(sound[:-100])
    assert refusal(path).startswith(f"{shard.name} is cut short")
    shard.write_text("no tables")
    assert refusal(path) == f"{shard.name} is not an npz archive"


@given(place=st.integers(0, len(SCRIPT) - 1), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=150)
def test_no_flipped_bit_gets_through_but_in_padding(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    """One clear refusal, or contents that are what they were."""
    import zipfile

    data = bytearray(SCRIPT)
    data[place] ^= 1 << bit
    file = tmp_path_factory.mktemp("flip") / "scripted_model.pt"
    file.write_bytes(bytes(data))
    try:
        check_archive(file)
        check_script(file)
    except ModelError:
        return
    with zipfile.ZipFile(file) as read, zipfile.ZipFile(io.BytesIO(SCRIPT)) as kept:
        assert sorted(read.namelist()) == sorted(kept.namelist())
        for name in kept.namelist():
            assert read.read(name) == kept.read(name)


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_bytes_are_refused_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.mktemp("noise")
    export(folder)
    (folder / "scripted_model.pt").write_bytes(data)
    refusal(folder)
    (folder / "scripted_model.pt").write_bytes(b"PK\x03\x04" + data)
    refusal(folder)


@pytest.mark.parametrize("kind", ["manifest.json", "SHA256SUMS"])
class TestManifest:
    """Both forms say the same."""

    def test_sound(self, tmp_path: Path, kind: str) -> None:
        path = with_tables(tmp_path)
        write_manifest(path, kind)
        (path / "READY").touch()
        (path / "notes.md").write_text("what nobody reads may be there unlisted")
        verify(open_package(path))

    @pytest.mark.parametrize(
        "name", ["scripted_model.pt", "fg.json", "sparse/sparse_features.json"]
    )
    def test_altered(self, tmp_path: Path, kind: str, name: str) -> None:
        path = with_tables(tmp_path)
        write_manifest(path, kind)
        with (path / name).open("ab") as file:
            file.write(b" ")
        assert refusal(path) == f"{name} is altered: its sha256 is not the {kind}'s"

    def test_missing(self, tmp_path: Path, kind: str) -> None:
        path = model(tmp_path)
        (path / "city_vocab_4e19.txt").write_text("a\nb\n")
        write_manifest(path, kind)
        (path / "city_vocab_4e19.txt").unlink()
        assert refusal(path) == (
            f"{kind} lists city_vocab_4e19.txt, which is not there"
        )

    def test_unlisted(self, tmp_path: Path, kind: str) -> None:
        path = with_tables(tmp_path)
        write_manifest(path, kind)
        shutil.copy(
            path / "sparse" / "sparse_embeddings-00-of-02.npz",
            path / "sparse" / "sparse_embeddings-02-of-03.npz",
        )
        assert refusal(path) == (
            f"sparse_embeddings-02-of-03.npz is not listed in {kind}"
        )

    def test_unlisted_assets(self, tmp_path: Path, kind: str) -> None:
        path = model(tmp_path)
        write_manifest(path, kind)
        (path / "vocab.txt").write_text("a\n")
        verify(open_package(path))
        fg = {"features": [{"feature_name": "f", "vocab_file": "vocab.txt"}]}
        (path / "fg.json").write_text(json.dumps(fg))
        (path / kind).unlink()
        (path / "vocab.txt").rename(path / "v")
        write_manifest(path, kind)
        (path / "v").rename(path / "vocab.txt")
        assert "lists v, which is not there" in refusal(path)
        if kind == "manifest.json":
            sums = sums_of(path)
            del sums["vocab.txt"], sums[kind]
            (path / kind).write_text(json.dumps({"files": sums}))
            assert refusal(path) == "vocab.txt is not listed in manifest.json"

    def test_a_manifest_around_towers(self, tmp_path: Path, kind: str) -> None:
        for tower in ("user", "item"):
            model(tmp_path / tower)
        write_manifest(tmp_path, kind)
        verify(open_package(tmp_path, entry="item"))
        (tmp_path / "user" / "fg.json").write_text("{}")
        assert "user/fg.json is altered" in refusal(tmp_path / "item")

    def test_a_listed_base_under_an_unlisted_hot_version(
        self, tmp_path: Path, kind: str
    ) -> None:
        base = with_tables(tmp_path)
        write_manifest(base, kind)
        root = base / "dense_hot_export"
        script = hot_version(root, "1") / "scripted_model.pt"
        publish(root, "1")
        script.write_bytes(SCRIPT)
        verify(open_package(base))
        flip(script, SCRIPT.index(np.float32(2000).tobytes()))
        assert "scripted_model.pt is damaged" in refusal(base)

    @pytest.mark.parametrize("name", ["../other", "/etc/hostname", "sparse/../../x"])
    def test_paths_stay_below(self, tmp_path: Path, kind: str, name: str) -> None:
        path = model(tmp_path)
        digest = "0" * 64
        (path / kind).write_text(
            json.dumps({"files": {name: digest}})
            if kind == "manifest.json"
            else f"{digest}  {name}\n"
        )
        assert refusal(path) == f"{kind}: {name!r} is not a path below it"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("manifest.json", "{"),
        ("manifest.json", '{"files": []}'),
        ("manifest.json", '{"files": {"fg.json": 5}}'),
        ("manifest.json", '{"files": {"fg.json": "12"}}'),
        ("SHA256SUMS", "abc"),
        ("SHA256SUMS", "d41d8cd98f00b204e9800998ecf8427e  fg.json"),
    ],
)
def test_damaged_manifests(tmp_path: Path, kind: str, text: str) -> None:
    path = model(tmp_path)
    (path / kind).write_text(text)
    assert refusal(path).startswith(kind)


def test_sums_of_names_with_backslashes(tmp_path: Path) -> None:
    path = model(tmp_path)
    (path / "a\\b\nc").write_text("x")
    write_manifest(path, "SHA256SUMS")
    assert (path / "SHA256SUMS").read_text().startswith("\\")
    verify(open_package(path))


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    path = with_tables(tmp_path)
    np.savez(path / "sparse" / "sparse_embeddings-00-of-02.npz", t=np.zeros(2**25))
    write_manifest(path, "SHA256SUMS")
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from procserver.model.integrity import verify\n"
        "from procserver.model.package import open_package\n"
        "package = open_package(Path(sys.argv[1]))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "verify(package)\n"
        "(package.directory / 'SHA256SUMS').unlink()\n"
        "verify(package)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    grown = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(grown.stdout) * 1024 < 32 * 2**20 < 2**25 * 8
