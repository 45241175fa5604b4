"""Exports with feature groups as TorchEasyRec builds them, next to their own forward.

As ``test_exports_torchrec``: fails without torchrec under ``make test``, else skips.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace

import exported
import numpy as np
import pytest
from export_features import RANKING, user
from exported import assert_same, item_ids, ranking_request, scores
from live import ROOT, LiveServer, segments
from test_exports_torchrec import PYTHON, REQUIRED, case_name

BUILDER = ROOT / "tests" / "exports" / "grouped_exports.py"
TILES = dict.fromkeys(("gwhole", "gint8"), False) | dict.fromkeys(
    ("gtile2", "gtile3", "gsplit", "gsplit8"), True
)
CASES = [(number, count) for number in (0, 1, 3) for count in (1, 2, 100)]
# Those that are served; the rest are references only.
SERVED = ("gint8", "gtile2", "gtile3", "gsplit8")
# With tables beside the script, and packed into it.
SHARED = ("gsplit8", "gint8")


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The services; beside their exports what these compute of each case."""
    if not PYTHON.exists() and not REQUIRED:
        pytest.skip("no environment with torchrec: `make test` makes .venv-torchrec")
    folder = tmp_path_factory.mktemp("grouped")
    (folder / "cases").mkdir()
    for name, tile in TILES.items():
        for number, count in CASES:
            fields, ids = user(number), item_ids(count, number)
            tensors = exported.tensors_of(RANKING, fields, ids, tile=tile)
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
    servers = []
    for name in SERVED:
        place = folder / f"{name}.d"
        config = exported.service_json(place, name, folder / name, items=True)
        workers = 2 if name in SHARED else 1
        log = folder / f"{name}.log"
        servers.append(LiveServer(config, log, workers=workers, python=str(PYTHON)))
    with exported.running(*servers) as running:
        yield SimpleNamespace(folder=folder, servers=running)


def expected(grouped: SimpleNamespace, case: str) -> dict[str, np.ndarray]:
    with np.load(grouped.folder / "cases" / f"{case}.out.npz") as found:
        return dict(found)


@pytest.mark.parametrize(("number", "count"), CASES)
@pytest.mark.parametrize("name", SERVED)
def test_scores_are_those_of_an_in_process_forward(
    grouped: SimpleNamespace, name: str, number: int, count: int
) -> None:
    request = ranking_request(user(number), item_ids(count, number))
    theirs = expected(grouped, case_name(name, number, count))
    for _ in range(2):
        assert_same(scores(grouped.servers[name], request), theirs)


@pytest.mark.parametrize(("number", "count"), CASES)
def test_the_same_model_scores_alike_however_it_was_exported(
    grouped: SimpleNamespace, number: int, count: int
) -> None:
    """The references, too, agree: they stand for the same network."""
    for first, *others in (("gwhole", "gtile2", "gsplit"), ("gint8", "gtile3")):
        theirs = expected(grouped, case_name(first, number, count))
        for other in others:
            ours = expected(grouped, case_name(other, number, count))
            for name, values in theirs.items():
                assert np.allclose(ours[name], values, rtol=0, atol=1e-6), other


def test_features_of_two_tables_are_among_them(grouped: SimpleNamespace) -> None:
    meta = json.loads((grouped.folder / "gsplit" / "dense_meta.json").read_text())
    names = [name for names in meta.values() for name in names]
    assert any("@" in name and name.endswith("_wide__ebc") for name in names)


@pytest.mark.parametrize("name", SHARED)
def test_weights_are_shared(grouped: SimpleNamespace, name: str) -> None:
    server = grouped.servers[name]
    assert [segment for segment in segments(server) if ".weights-" in segment]
    assert server.text().count("attached to shared weights") >= 2
