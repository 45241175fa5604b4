"""Feast, in the environment that it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from feast_refusal import Refused

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "server"))

import tiny  # noqa: E402

FEAST_PYTHON = Path(
    os.environ.get("PROCSERVER_FEAST_PYTHON", ROOT / ".venv-feast" / "bin" / "python")
)

Feast = Callable[..., Any]


@pytest.fixture(scope="session")
def feast_python() -> str:
    assert FEAST_PYTHON.exists(), "no Feast environment: `make test` creates it"
    return str(FEAST_PYTHON)


@pytest.fixture(scope="session")
def feast(
    feast_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Feast]:
    """Sends a command of ``feast_calls`` to one process for all tests."""
    script = str(Path(__file__).parent / "feast_calls.py")
    log = tmp_path_factory.mktemp("feast-log") / "stderr"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [feast_python, script],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None

        def call(*command: Any) -> Any:
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, log.read_text()
            told = json.loads(line)
            if "error" in told:
                raise Refused(told["error"])
            return told["answer"]

        yield call
        process.stdin.close()
        process.wait(60)


@pytest.fixture(scope="module")
def repository(feast: Feast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with item, text and user views; rows by age in hours."""
    folder = tmp_path_factory.mktemp("feast") / "repo"
    folder.mkdir()
    feast(
        "write",
        str(folder / "basics.parquet"),
        {
            "item_id": ["a", "a", "b", "c"],
            "preis": [1.0, 2.5, 3.0, None],
            "stock": [1, 2, None, 4],
            "tags": [["x"], ["x", "y"], [], ["z"]],
            "age": [30, 20, 10, 300],
        },
    )
    feast(
        "write",
        str(folder / "texts.parquet"),
        {"raw_id": ["a", "t"], "title": ["Apple", "Tea"], "age": [5, 6]},
    )
    feast(
        "write",
        str(folder / "short.parquet"),
        {"item_id": ["a", "b"], "clicks": [7, 8], "age": [1, 50]},
    )
    feast(
        "write",
        str(folder / "people.parquet"),
        {"user_id": ["u"], "age": [1]} | {"years": [30]},
    )
    feast(
        "write",
        str(folder / "dated.parquet"),
        {"item_id": ["a"], "born": [1700000000], "age": [1]},
    )
    items = [tiny.item(number) for number in range(tiny.ITEMS)]
    live = {name: [row[name] for row in items] for name in items[0]}
    feast("write", str(folder / "live.parquet"), {**live, "age": [1] * len(items)})
    views = feast("apply", str(folder))
    assert views == ["basics", "dated", "live", "people", "short", "texts"]
    return folder
