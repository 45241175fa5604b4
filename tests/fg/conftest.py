"""What the Feature Generator's tests share: the case count in the summary."""

import json
import os
import shutil
from pathlib import Path

import pytest
from text_models import train_bpe

DATA = Path(__file__).parent.parent / "data" / "fg"
CASES = json.loads((DATA / "fg_cases.json").read_text())["cases"]
# The tokenizers that some cases were recorded with belong to others and are not
# kept here; the variable, or a folder beside the checkout, says where they are.
ORIGINALS = Path(
    os.environ.get("PROCSERVER_FG_ASSETS")
    or Path(__file__).parents[3] / "shared" / "cases" / "assets"
)
BORROWED = ("tokenizer.json", "spiece.model")
RAN = pytest.StashKey[set[str]]()


@pytest.fixture
def case_ran(request):
    """Call with a case's id once its outcome was compared."""
    return request.config.stash.setdefault(RAN, set()).add


def borrow(text, folder):
    """Links the tokenizers that ``text`` names into ``folder``; how many."""
    names = [name for name in BORROWED if name in text]
    for name in names:
        if not (ORIGINALS / name).is_file():
            pytest.skip(f"{name} is not in PROCSERVER_FG_ASSETS")
        folder.mkdir(exist_ok=True)
        (folder / name).symlink_to(ORIGINALS / name)
    return len(names)


@pytest.fixture
def case_assets(tmp_path):
    """Call with a case for the folder that its assets are relative to."""

    def folder(case):
        found = borrow(json.dumps(case["fg_json"]), tmp_path / "fg_assets")
        return tmp_path if found else DATA

    return folder


@pytest.fixture
def example_assets(tmp_path):
    """Call with an exported file for the folder that its assets are relative to."""

    def folder(path):
        # Paths of assets as the files name them.
        assets = tmp_path / "data" / "test"
        shutil.copytree(DATA / "fg_assets", assets)
        if "tokenizer.json" in path.read_text():
            train_bpe(assets / "tokenizer.json")
        return tmp_path

    return folder


def pytest_terminal_summary(terminalreporter, config):
    ran = config.stash.get(RAN, set())
    if ran:
        terminalreporter.write_line(f"FG cases: {len(ran)} of {len(CASES)} run")
