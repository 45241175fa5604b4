"""Both parts of ``make soak``, for seconds, and that they can fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import soak
from candidates import BAD


def test_reloads_for_seconds(tmp_path: Path) -> None:
    options = soak.parse(
        ["--good", "2", "--bad", "2", "--minutes", "0", "--calm", "0.3"]
    )
    summary = soak.run(options, tmp_path)
    # How fast it was is not for a test to say.
    failed = [
        line for line in summary.lines if line[2] is False and "p99" not in line[0]
    ]
    assert [line for line in failed if line[0].strip() != "ratio"] == [], str(summary)
    told = dict(line[:2] for line in summary.lines)
    assert told["failed requests"] == "0"
    assert told["reloads, good and bad"] == "2 and 2"
    assert int(told["requests"]) > 20


def test_faults_for_seconds(tmp_path: Path) -> None:
    options = soak.parse(["--good", "0", "--bad", "0", "--minutes", "0.2"])
    summary = soak.run(options, tmp_path)
    assert summary.good, str(summary)
    assert dict(line[:2] for line in summary.lines)["violations under faults"] == "0"


def test_a_bad_line_is_a_failure() -> None:
    summary = soak.Summary()
    summary.note("requests", 7)
    summary.judge("left", 0, True)
    assert summary.good
    summary.judge("failed", 3, False)
    assert not summary.good
    assert "FAILED" in str(summary)


@pytest.mark.parametrize(
    "arguments", [["--reloads", "10"], ["--good", "10", "--bad", "0", "--minutes", "0"]]
)
def test_a_short_form(arguments: list[str]) -> None:
    options = soak.parse(arguments)
    assert (options.good, options.bad, options.minutes) == (10, 0, 0.0)
    assert len(BAD) >= 10
