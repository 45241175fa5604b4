"""How many threads a worker has, for requests and inside the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from procserver.lifecycle.settings import (
    FRONT_THREADS,
    MOST_MERGED,
    MOST_THREADS,
    service_settings,
)
from procserver.lifecycle.worker import threads_of


@pytest.mark.parametrize(
    ("rpc", "turns"),
    [
        ({}, 3),
        ({"worker_threads": 1}, 1),
        ({"worker_threads": 64}, 32),
        ({"batching": True}, 17),
        ({"batching": True, "max_batch_size": 2, "worker_threads": 64}, 32),
        ({"batching": True, "max_batch_size": 65536}, MOST_MERGED + 1),
        ({"max_batch_size": 64}, 3),
    ],
)
def test_a_worker_has_turns_for_every_request_of_a_pass(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rpc: dict[str, object],
    turns: int,
) -> None:
    content = {
        "metadata": {"name": "svc", "instance": 1, "rpc": rpc},
        "processor": "easyrec-torch-1.12",
        "model_path": "m.pt",
        "procserver": {"workers": 2},
    }
    (tmp_path / "service.json").write_text(json.dumps(content))
    monkeypatch.setenv("PROCSERVER_CONFIG", str(tmp_path / "service.json"))
    service_settings.cache_clear()
    try:
        settings = service_settings()
        assert settings.turns == turns
        # Those that wait have a thread as well, and refusals and health checks.
        service = settings.service.rpc
        held = max(turns, service.worker_threads + service.max_queue_size)
        assert settings.threads == min(MOST_THREADS, held + FRONT_THREADS)
    finally:
        service_settings.cache_clear()


@pytest.mark.parametrize(
    ("given", "cores", "threads"),
    [(None, 4, 4), (0, 4, 4), (2, 4, 2), (16, 4, 4), (16, 1, 1)],
)
def test_operators_keep_to_a_workers_cores(
    given: int | None, cores: int, threads: int
) -> None:
    assert threads_of(given, cores) == threads


def test_the_environment_is_set_before_torch_is_imported() -> None:
    # PYTORCH_TENSOREXPR_FALLBACK is read by torch, from the environment that the
    # master completes before it imports our rooms.
    code = (
        "import sys, procserver.lifecycle.boot, procserver.lifecycle.worker;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
