"""What the Feature Generator's tests share: the case count in the summary."""

import json
from pathlib import Path

import pytest

DATA = Path(__file__).parent.parent / "data" / "fg"
CASES = json.loads((DATA / "fg_cases.json").read_text())["cases"]
RAN = pytest.StashKey[set[str]]()


@pytest.fixture
def case_ran(request):
    """Call with a case's id once its outcome was compared."""
    return request.config.stash.setdefault(RAN, set()).add


def pytest_terminal_summary(terminalreporter, config):
    ran = config.stash.get(RAN, set())
    if ran:
        terminalreporter.write_line(f"FG cases: {len(ran)} of {len(CASES)} run")
