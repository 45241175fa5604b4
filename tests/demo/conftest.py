"""One small demo for all tests of this room."""

import sys
from pathlib import Path

import pytest

from procserver.demo.training import Report
from procserver.demo.write import Size, write_demo

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "loadtest"))

SMALL = Size(items=2000, requests=4000, seed=7)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    return folder, write_demo(folder, SMALL, say=lambda text: None)


@pytest.fixture(scope="session")
def demo(written: tuple[Path, Report]) -> Path:
    """Folder of a demo of 2,000 items."""
    return written[0]


@pytest.fixture(scope="session")
def report(written: tuple[Path, Report]) -> Report:
    """What its training reported."""
    return written[1]
