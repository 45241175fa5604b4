"""Operators beyond torch's own: found in the script, loaded or asked for."""

import importlib.util
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from procserver.errors import ModelError
from procserver.model.loading import load
from procserver.model.operators import missing_extra, operator_libraries
from procserver.model.package import open_package

INSTALLED = pytest.mark.skipif(
    importlib.util.find_spec("fbgemm_gpu") is None, reason="needs the extra torchrec"
)


class Plain(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) + 1


def script(file: Path, code: str) -> Path:
    """An archive with the code of a module that calls ``code``."""
    torch.jit.script(Plain()).save(str(file))
    changed = file.with_name(f"changed-{file.name}")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(changed, "w") as new:
        for entry in old.infolist():
            text = old.read(entry)
            if entry.filename.endswith(".py") and b"torch.relu(x)" in text:
                text = text.replace(b"torch.relu(x)", code.encode())
            new.writestr(entry.filename, text)
    return changed


def refusal(file: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(open_package(file))
    return str(caught.value)


def test_a_plain_script_needs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "plain.pt"
    torch.jit.script(Plain()).save(str(file))
    assert operator_libraries(file) == set()
    assert missing_extra(file) is None


def test_the_code_names_its_operators(tmp_path: Path) -> None:
    file = script(tmp_path / "m.pt", "ops.fbgemm.segment_sum_csr(1, x, x)")
    assert operator_libraries(file) == {"fbgemm"}


def test_classes_count_too(tmp_path: Path) -> None:
    code = "annotate(__torch__.torch.classes.fbgemm.AtomicCounter, x)"
    assert operator_libraries(script(tmp_path / "m.pt", code)) == {"fbgemm"}


def test_a_name_across_two_reads(tmp_path: Path) -> None:
    edge = (1 << 20) - 10
    for shift in range(0, 24, 3):
        file = tmp_path / f"{shift}.pt"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("m/code/a.py", "#" * (edge - shift) + " ops.fbgemm.x(1)\n")
        assert operator_libraries(file) == {"fbgemm"}


def test_what_is_unreadable_names_none(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_text("text")
    assert operator_libraries(tmp_path / "m.pt") == set()
    assert operator_libraries(tmp_path / "nothing.pt") == set()


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fbgemm_gpu", None)
    file = script(tmp_path / "m.pt", "ops.fbgemm.segment_sum_csr(1, x, x)")
    assert (
        refusal(file)
        == missing_extra(file)
        == (
            "changed-m.pt uses fbgemm operators, which are not installed; install them "
            'with: pip install "procserver[torchrec]"'
        )
    )


def test_an_fbgemm_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = script(tmp_path / "m.pt", "ops.fbgemm.segment_sum_csr(1, x, x)")
    package = tmp_path / "site" / "fbgemm_gpu"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('never imported')")
    (package / "fbgemm_gpu_py.so").write_bytes(b"\x7fELF")
    monkeypatch.syspath_prepend(tmp_path / "site")
    said = refusal(file)
    assert said.startswith("changed-m.pt uses fbgemm operators, and the installed")
    assert said.endswith(
        f"does not work with torch {torch.__version__}; the version that does comes "
        'with: pip install "procserver[torchrec]"'
    )


def test_operators_of_other_libraries(tmp_path: Path) -> None:
    file = script(tmp_path / "m.pt", "ops.mine.turn(x)")
    with pytest.raises(ModelError, match="library 'mine', which is not loaded"):
        load(open_package(file))


@INSTALLED
def test_the_light_way(tmp_path: Path) -> None:
    file = script(
        tmp_path / "m.pt", "ops.fbgemm.asynchronous_complete_cumsum(torch.relu(x))"
    )
    module = load(open_package(file)).module
    assert module(torch.tensor([1, 2])).tolist() == [1, 2, 4]
    assert "fbgemm_gpu" not in sys.modules
