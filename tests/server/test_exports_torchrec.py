"""Exports that call fbgemm's operators, served where the extra is installed.

``make test`` makes that environment and has this module fail without it; a bare
pytest skips.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import exported
import numpy as np
import pytest
from export_features import RANKING, user
from exported import assert_same, item_ids, ranking_request, scores
from live import BOOT_SECONDS, ROOT, LiveServer, children, segments

PYTHON = Path(
    os.environ.get(
        "PROCSERVER_TORCHREC_PYTHON", ROOT / ".venv-torchrec" / "bin" / "python"
    )
)
REQUIRED = os.environ.get("PROCSERVER_REQUIRE_TORCHREC") == "1"
BUILDER = ROOT / "tests" / "exports" / "torchrec_exports.py"
TILES = {"trfloat": False, "trint8": False, "trmixed": True}
CASES = [(number, count) for number in (0, 2) for count in (1, 7, 300)]


def case_name(name: str, number: int, count: int) -> str:
    return f"{name}-u{number}-n{count}"


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exports, and beside them what their scripts compute of each case."""
    if not PYTHON.exists() and not REQUIRED:
        pytest.skip("no environment with torchrec: `make test` makes .venv-torchrec")
    folder = tmp_path_factory.mktemp("torchrec")
    (folder / "cases").mkdir()
    for name, tile in TILES.items():
        for number, count in CASES:
            tensors = exported.tensors_of(
                RANKING, user(number), item_ids(count), tile=tile
            )
            path = folder / "cases" / f"{case_name(name, number, count)}.npz"
            np.savez(path, **tensors)
    done = subprocess.run(
        [str(PYTHON), "-W", "ignore", str(BUILDER), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def torchrec(
    exports: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("services")
    servers = []
    for name in TILES:
        config = exported.service_json(folder / name, name, exports / name, items=True)
        servers.append(
            LiveServer(config, folder / f"{name}.log", workers=1, python=str(PYTHON))
        )
    with exported.running(*servers) as running:
        yield SimpleNamespace(exports=exports, servers=running)


@pytest.mark.parametrize(("number", "count"), CASES)
@pytest.mark.parametrize("name", TILES)
def test_scores_are_those_of_an_in_process_forward(
    torchrec: SimpleNamespace, name: str, number: int, count: int
) -> None:
    request = ranking_request(user(number), item_ids(count))
    case = f"{case_name(name, number, count)}.out.npz"
    with np.load(torchrec.exports / "cases" / case) as theirs:
        ours = scores(torchrec.servers[name], request)
        assert_same(ours, dict(theirs))
        assert count == 1 or np.unique(ours["probs"]).size > 1


def test_an_item_list_that_is_empty_and_items_that_do_not_exist(
    torchrec: SimpleNamespace,
) -> None:
    for server in torchrec.servers.values():
        assert scores(server, ranking_request(user(2), []))["probs"].shape == (0,)
        ours = scores(server, ranking_request(user(2), ["item_0001", "nobody"]))
        alone = scores(server, ranking_request(user(2), ["item_0001"]))
        assert ours["probs"][1] == exported.EMPTY_SCORE
        assert np.allclose(ours["probs"][0], alone["probs"][0], atol=1e-6)


def test_packed_tables_are_shared(torchrec: SimpleNamespace) -> None:
    for server in torchrec.servers.values():
        assert [segment for segment in segments(server) if ".weights-" in segment]


def test_torchrec_itself_is_not_imported_by_the_server(
    torchrec: SimpleNamespace,
) -> None:
    for server in torchrec.servers.values():
        pids = [server.pid, *children(server.pid)]
        mapped = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids)
        assert "fbgemm_gpu_py.so" in mapped
        assert "tensordict" not in mapped


def test_the_scripts_are_what_they_stand_for(exports: Path) -> None:
    """Packed tables as ``_tensor_constantN``, operators of the right types."""
    wanted = {
        "trfloat": ["torch.embedding_bag", "jagged_to_padded_dense"],
        "trint8": ["int_nbit_split_embedding", "_tensor_constant"],
        "trmixed": ["permute_1D_sparse_data", "segment_sum_csr"],
    }
    for name, words in wanted.items():
        with ZipFile(exports / name / "scripted_model.pt") as archive:
            code = b"".join(
                archive.read(entry)
                for entry in archive.namelist()
                if entry.endswith(".py")
            ).decode()
        for word in words:
            assert word in code, (name, word)


def test_without_the_extra_the_service_does_not_start(
    exports: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec("fbgemm_gpu") is not None:
        pytest.skip("this environment has the extra")
    config = exported.service_json(tmp_path, "lacking", exports / "trint8")
    server = LiveServer(config, tmp_path / "server.log", workers=1).launch()
    try:
        assert server.process is not None
        assert server.process.wait(BOOT_SECONDS) == 3
    finally:
        server.stop(expect_clean=False)
    told = [line for line in server.text().splitlines() if "fbgemm" in line]
    assert len(told) == 1, server.text()
    assert 'pip install "procserver[torchrec]"' in told[0]
    assert "Traceback" not in server.text()
    assert "def forward" not in server.text()
    assert sys.executable != str(PYTHON)
