"""The access log's lines and its file."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from procserver.observe.accesslog import (
    LONGEST_ESCAPED,
    LONGEST_LINE,
    TRACE,
    AccessLog,
    fields,
    line,
    log_access,
)
from procserver.observe.metrics import ACCESS_LINES, REGISTRY
from procserver.observe.trace import DECODE, RUN, Trace


def environ_of(**more: Any) -> dict[str, Any]:
    return {
        "REMOTE_ADDR": "10.1.2.3",
        "REQUEST_METHOD": "POST",
        "RAW_URI": "/api/predict/x?token=secret-in-query",
        "CONTENT_LENGTH": "8123",
        "HTTP_AUTHORIZATION": "secret-token",
        "HTTP_COOKIE": "secret-cookie",
        **more,
    }


def counted(outcome: str) -> int:
    assert REGISTRY.block is not None
    return ACCESS_LINES.read(REGISTRY.block, 0, outcome)


def test_a_line_tells_the_request_and_no_secret() -> None:
    trace = Trace()
    trace.request_id, trace.items, trace.missing = "r-1", 100, 2
    trace.received()
    trace.taken_up()
    trace.begin()
    trace.done(DECODE)
    trace.done(RUN)
    trace.stop()
    environ = environ_of(
        HTTP_X_REQUEST_ID="edge-7",
        HTTP_TRACEPARENT="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        HTTP_USER_AGENT="Go-http-client/1.1",
    )
    headers = {"x-model-version": "v3", "x-cache-generation": "7"}
    text = line(fields(environ, trace, "200 OK", headers))
    assert text.endswith(b"\n")
    assert text.count(b"\n") == 1
    assert b"secret" not in text
    told = json.loads(text)
    assert told["remote"] == "10.1.2.3"
    assert (told["method"], told["path"]) == ("POST", "/api/predict/x")
    assert (told["status"], told["bytes_in"]) == (200, 8123)
    assert (told["request_id"], told["x_request_id"]) == ("r-1", "edge-7")
    assert told["traceparent"].startswith("00-4bf9")
    assert (told["items"], told["missing"]) == (100, 2)
    assert (told["model_version"], told["cache_generation"]) == ("v3", 7)
    assert set(told["ms"]) == {"total", "receive", "queue", "decode", "run"}
    assert told["ms"]["total"] >= told["ms"]["run"]
    assert told["user_agent"] == "Go-http-client/1.1"
    assert told["time"].endswith("Z")


def test_every_key_is_there_for_a_refused_request_too() -> None:
    told = json.loads(line(fields({}, Trace(), "450 Queue Full", {})))
    assert told["status"] == 450
    assert told["model_version"] is told["cache_generation"] is None
    full = json.loads(line(fields(environ_of(), Trace(), "200 OK", {})))
    assert set(told) == set(full)


def test_a_client_cannot_break_a_line_or_make_it_long() -> None:
    evil = '"},\n{"status": 200}\r\n\x00\x7f\x1b[31m' + "é𝄞" * 5000
    trace = Trace()
    trace.request_id = evil
    environ = environ_of(
        RAW_URI="/" + evil,
        REMOTE_ADDR=evil,
        REQUEST_METHOD=evil,
        HTTP_USER_AGENT=evil,
        HTTP_X_REQUEST_ID=evil,
        HTTP_TRACEPARENT=evil,
        CONTENT_LENGTH="²",
    )
    for stage in range(len(trace.stages)):
        trace.stages[stage] = 10**15
    text = line(fields(environ, trace, "200 OK", {"x-model-version": "v" * 128}))
    assert len(text) <= LONGEST_LINE
    assert text.count(b"\n") == 1
    assert all(32 <= byte < 127 for byte in text[:-1])
    told = json.loads(text)
    assert told["user_agent"] == evil[:LONGEST_ESCAPED]
    assert told["bytes_in"] is None


def test_many_writers_one_file_and_nothing_lost_over_a_rotation(tmp_path: Path) -> None:
    path, old = tmp_path / "access.log", tmp_path / "access.log.1"
    logs = [AccessLog(str(path)), AccessLog(str(path))]
    count, before = 300, counted("written")

    def write(writer: int) -> None:
        for number in range(count):
            logs[writer % 2].write(line({"writer": writer, "number": number}))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    path.rename(old)
    for log in logs:
        log.reopen()
    logs[0].write(line({"writer": 9, "number": 0}))
    for thread in threads:
        thread.join()
    lines = [
        json.loads(one) for file in (old, path) for one in file.read_text().splitlines()
    ]
    seen = {(one["writer"], one["number"]) for one in lines}
    assert seen == {(w, n) for w in range(4) for n in range(count)} | {(9, 0)}
    assert len(lines) == len(seen)
    assert '"writer":9' in path.read_text()
    assert path.stat().st_mode & 0o777 & ~0o640 == 0
    assert counted("written") - before == len(lines)
    for log in logs:
        log.close()


def test_a_file_that_cannot_be_made_again_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = AccessLog(str(folder / "access.log"))
    folder.rename(tmp_path / "moved")
    log.reopen()
    log.write(b"still there\n")
    log.close()
    assert (tmp_path / "moved" / "access.log").read_bytes() == b"still there\n"
    with pytest.raises(FileNotFoundError):
        AccessLog(str(folder / "access.log"))


def test_a_reader_that_is_behind_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    monkeypatch.setattr(os, "dup", lambda fd: writer)
    log = AccessLog("-")
    dropped, written = counted("dropped"), counted("written")
    for _ in range(10):
        log.write(b"x" * 1023 + b"\n")
    assert counted("dropped") - dropped >= 6
    assert counted("written") - written >= 1
    log.reopen()
    log.close()
    os.close(reader)


def test_a_full_disk_is_counted_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = AccessLog("/dev/full")
    before = counted("dropped")
    log.write(b"x\n")
    log.write(b"x\n")
    log.close()
    assert counted("dropped") - before == 2
    assert len(caplog.records) <= 1


def test_the_line_comes_when_the_answer_is_out(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    ended = []

    class Body:
        def __iter__(self) -> Any:
            yield b"abc"
            yield b"de"

        def close(self) -> None:
            ended.append(True)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] == "POST":
            environ[TRACE] = Trace()
        start_response("200 OK", [("X-Model-Version", "v1")])
        return Body()

    started: list[str] = []
    wrapped = log_access(app, log)
    for method in ("GET", "POST"):
        answer: Any = wrapped(
            environ_of(REQUEST_METHOD=method),
            lambda status, headers: started.append(status),
        )
        assert b"".join(answer) == b"abcde"
        assert path.read_text() == ""
        answer.close()
    assert ended == [True, True]
    assert started == ["200 OK", "200 OK"]
    (only,) = path.read_text().splitlines()
    told = json.loads(only)
    assert (told["method"], told["bytes_out"], told["model_version"]) == (
        "POST",
        5,
        "v1",
    )
    log.close()
