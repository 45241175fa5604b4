"""The unmodified EAS Python SDK, in the environment that it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "server"))

SDK_PYTHON = Path(
    os.environ.get("PROCSERVER_SDK_PYTHON", ROOT / ".venv-sdk" / "bin" / "python")
)


@pytest.fixture(scope="session")
def sdk() -> Callable[..., list[dict[str, Any]]]:
    """Makes calls through the SDK and returns what it returned."""
    assert SDK_PYTHON.exists(), "no SDK environment: `make test` creates it"

    def call(*calls: dict[str, Any]) -> list[dict[str, Any]]:
        done = subprocess.run(
            [str(SDK_PYTHON), str(Path(__file__).parent / "eas_client.py")],
            input="\n".join(map(json.dumps, calls)),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return call


@pytest.fixture(scope="session")
def sdk_reads() -> Callable[[Path], dict[str, Any]]:
    """What the SDK's messages find in a file of the request log."""

    def read(path: Path) -> dict[str, Any]:
        done = subprocess.run(
            [str(SDK_PYTHON), str(Path(__file__).parent / "read_log.py")],
            input=f"{path}\n",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        content: dict[str, Any] = json.loads(done.stdout)
        return content

    return read
