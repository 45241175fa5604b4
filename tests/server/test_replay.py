"""procserver replay against live services: logs, bodies, comparison, exit status."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from live import LiveServer
from test_metrics import eventually
from test_ranking import build, post

from procserver import cli
from procserver.wire.pb.torchrec_predict_pb2 import PBResponse

Replay = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("replayed")
    config = tiny.write(
        folder, "rank", model_config={"request_log_path": str(folder / "log")}
    )
    live = LiveServer(config, folder / "server.log", workers=1).start()
    for number in range(3):
        request = build([f"item_000{number}", "nobody"])
        request.debug_level = 100
        request.meta_data["request_id"] = f"r{number}"
        assert post(live, request.SerializeToString()).status == 200
    eventually(lambda: len(list((folder / "log").rglob("*.pb"))) == 3)
    yield live
    live.stop()


@pytest.fixture
def log(server: LiveServer) -> Path:
    return server.config.parent / "log"


@pytest.fixture
def replay(
    server: LiveServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Replay:
    monkeypatch.setenv("PROCSERVER_TOKEN", tiny.TOKEN)

    def call(*arguments: object, url: str = server.url) -> tuple[int, str]:
        status = cli.main(["replay", *map(str, arguments), "--url", url])
        out = capsys.readouterr()
        return status, out.out + out.err

    return call


def test_a_request_log_is_sent_again_and_not_logged_again(
    replay: Replay, log: Path
) -> None:
    before = set(log.rglob("*"))
    status, text = replay(log, "--repeat", 2)
    assert status == 0, text
    assert "answers: 6 x 200" in text
    assert re.search(
        r"latency: p50 [\d.]+, p90 [\d.]+, p99 [\d.]+, max [\d.]+ ms", text
    )
    assert set(log.rglob("*")) == before


def test_the_level_is_kept_when_asked(replay: Replay, log: Path) -> None:
    (one, *_) = sorted(log.rglob("*.pb"))
    status, _ = replay(one, "--keep-debug-level")
    assert status == 0
    eventually(lambda: len(list(log.rglob("*.pb"))) == 4)
    extra = max(log.rglob("*.pb"), key=lambda path: path.stat().st_mtime_ns)
    extra.unlink()


def test_answers_are_saved_and_compared(
    replay: Replay, log: Path, tmp_path: Path
) -> None:
    assert replay(log, "--save", tmp_path)[0] == 0
    files = sorted(tmp_path.rglob("*.answer"))
    assert len(files) == 3
    status, text = replay(log, "--compare", tmp_path)
    assert status == 0, text
    assert "compared: 3, different: 0" in text
    assert "probs_ctr: at most 0" in text
    answer = PBResponse.FromString(files[0].read_bytes())
    answer.map_outputs["probs_ctr"].float_val[0] += 0.25
    files[0].write_bytes(answer.SerializeToString())
    status, text = replay(log, "--compare", tmp_path)
    assert status == 1
    assert "compared: 3, different: 1" in text
    assert "differs: probs_ctr by 0.25" in text
    assert replay(log, "--compare", tmp_path, "--tolerance", 0.3)[0] == 0
    files[0].unlink()
    status, text = replay(log, "--compare", tmp_path)
    assert status == 1
    assert "no saved answer" in text


def test_two_servers_are_compared(
    replay: Replay, server: LiveServer, log: Path
) -> None:
    status, text = replay(log, "--compare", f"{server.url}/api/predict/rank")
    assert status == 0, text
    assert "compared: 3, different: 0" in text
    status, text = replay(log, "--compare", f"{server.url}/api/predict/absent")
    assert status == 1
    assert "not comparable: 404" in text


def test_bodies_are_sent_as_they_are(replay: Replay, tmp_path: Path) -> None:
    (tmp_path / "good.bin").write_bytes(build(["item_0001"]).SerializeToString())
    (tmp_path / "bad.pb").write_bytes(b"\xff\xff")
    (tmp_path / ".draft.pb").write_bytes(b"never sent")
    (tmp_path / "notes.txt").write_text("never sent")
    status, text = replay(tmp_path)
    assert status == 1
    assert "answers: 1 x 400, 1 x 200" in text
    assert "bad.pb: 400 [undecodable]" in text
    assert replay(tmp_path / "good.bin")[0] == 0


def test_tokens(replay: Replay, log: Path) -> None:
    status, text = replay(log, "--token", "wrong")
    assert status == 1
    assert "answers: 3 x 401" in text
    assert "wrong" not in text.replace(str(log), "")


def test_nobody_there(replay: Replay, log: Path) -> None:
    status, text = replay(log, url="http://127.0.0.1:9")
    assert status == 1
    assert "3 x none" in text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["/nowhere/at/all.pb"], "No such file"),
        (["--compare", "/nowhere/at/all"], "neither a URL nor a folder"),
        (["--compare", "http://127.0.0.1:port"], "ort"),
        (["--compare", "ftp://host/x"], "is not a URL"),
    ],
)
def test_wrong_usage(
    replay: Replay, log: Path, arguments: list[str], problem: str
) -> None:
    status, text = replay(*([log] if "--compare" in arguments else []), *arguments)
    assert status == 2
    assert problem in text


def test_a_folder_without_requests(replay: Replay, tmp_path: Path) -> None:
    status, text = replay(tmp_path)
    assert status == 2
    assert "no saved requests" in text
