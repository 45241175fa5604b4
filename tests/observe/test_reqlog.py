"""Where slow requests go, and what their line says."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from procserver import config
from procserver.observe.reqlog import line, open_logs, slow_folder
from procserver.observe.trace import DECODE, RUN, Trace


def service(tmp_path: Path, **model_config: object) -> config.ServiceConfig:
    (tmp_path / "export").mkdir(exist_ok=True)
    (tmp_path / "service.json").write_text(
        json.dumps(
            {
                "name": "s",
                "processor": "easyrec-torch-1.12",
                "model_path": "export",
                "model_config": model_config,
                "procserver": {"state_dir": "state"},
            }
        )
    )
    return config.load(tmp_path / "service.json").service


def test_threads_are_those_of_the_service(tmp_path: Path) -> None:
    loaded = service(tmp_path, background_feature_thread_num=8)
    assert [open_logs(loaded, n).spool.threads for n in (1, 2, 3, 8, 100)] == [
        *(8, 4, 3, 1, 1)
    ]


def test_slow_requests_go_below_the_model_if_that_can_be_written() -> None:
    # Not pytest's folder: only its owner may enter that.
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        loaded = service(place)
        assert slow_folder(loaded) == place / "export" / "torch_req"
        for path in (place, place / "export"):
            path.chmod(0o555)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                # Root may write everywhere; nobody else may here.
                if os.geteuid() == 0:
                    os.setuid(65534)
                found = slow_folder(loaded)
                status = 0 if found == loaded.state_dir / "torch_req" else 2
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        place.chmod(0o755)


@pytest.mark.parametrize("save", [True, False])
def test_places(tmp_path: Path, save: bool) -> None:
    loaded = service(tmp_path, save_long_request=save, long_request_threshold=1.5)
    logs = open_logs(loaded, 1)
    assert logs.requests.folder == loaded.state_dir / "request_log"
    assert logs.slow.threshold_ns == 1_500_000
    assert (logs.slow.folder is not None) == save


def test_a_line_tells_the_stages_that_were_reached() -> None:
    trace = Trace()
    trace.request_id = "x" * 500
    trace.begin()
    trace.done(DECODE)
    trace.done(RUN)
    trace.stop()
    entry = json.loads(line(trace, 7))
    assert entry["request_id"] == "x" * 128
    assert entry["bytes"] == 7
    assert list(entry["ms"]) == ["total", "receive", "queue", "decode", "run"]
