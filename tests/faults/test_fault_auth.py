"""F58 to F61: who may ask, and what nobody is told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from candidates import cut
from faulty import AUTH, BODY, CANARIES, Service
from live import ROOT

from procserver.errors import Unauthorized
from procserver.wire.auth import Authenticator

Make = Callable[..., Service]
TOKEN = CANARIES["token"]


@pytest.fixture(scope="module")
def guarded(shared: Make) -> Service:
    """With all that it can be made to log."""
    one = shared(
        "good",
        name="auth",
        workers=1,
        env={"GUNICORN_CMD_ARGS": "--log-level debug --access-logfile -"},
    )
    # As an operator may have it who hunts for a crash.
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        return one.start()
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def path_of(service: Service) -> str:
    return f"/api/predict/{service.name}"


WRONG = [
    None,
    "",
    " ",
    "x",
    TOKEN[:-1],
    TOKEN + "=",
    TOKEN.swapcase(),
    "x" * len(TOKEN),
    "x" * 5000,
    f"Basic {TOKEN}",
    f"bearer  {TOKEN}",
    f"EAS {TOKEN}",
    "EAS ",
    "Bearer",
    f"{TOKEN},{TOKEN}",
    "ÿ" * 20,
]


def test_f58_wrong_tokens_are_told_the_same(guarded: Service) -> None:
    answers = []
    for wrong in WRONG:
        headers = {} if wrong is None else {"Authorization": wrong}
        answers.append(guarded.request("POST", path_of(guarded), BODY, headers))
    assert {answer.status for answer in answers} == {401}
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].body
    for path in ("/", path_of(guarded), f"/v2/models/{guarded.name}"):
        assert guarded.request("GET", path, None, {"Authorization": "x"}).status == 401
    assert guarded.predict().status == 200


@pytest.mark.parametrize("second", [TOKEN, "other", ""])
def test_f58_two_tokens_are_none(guarded: Service, second: str) -> None:
    sent = (
        f"POST {path_of(guarded)} HTTP/1.1\r\nHost: x\r\nAuthorization: {TOKEN}\r\n"
        f"Authorization: {second}\r\nContent-Length: {len(BODY)}\r\n\r\n"
    )
    answer = guarded.raw(sent.encode() + BODY)
    assert re.match(rb"HTTP/1\.1 40[01] ", answer)


def test_f58_the_time_tells_nothing() -> None:
    """Loosely: a wrong first character takes as long as a wrong last one."""
    auth = Authenticator(TOKEN * 20)
    right = TOKEN * 20
    samples: dict[str, list[int]] = {"first": [], "last": []}
    wrong = {"first": "!" + right[1:], "last": right[:-1] + "!"}
    for _ in range(2000):
        for where, sent in wrong.items():
            began = time.perf_counter_ns()
            with pytest.raises(Unauthorized):
                auth.check("POST", "/", {"Authorization": sent})
            samples[where].append(time.perf_counter_ns() - began)
    first, last = (statistics.median(samples[where]) for where in wrong)
    assert 0.5 < first / last < 2


def signed(service: Service, body: bytes, **changes: str) -> dict[str, str]:
    """The headers of an EAS client; ``changes`` after they were signed."""
    headers = {
        "Content-MD5": base64.b64encode(hashlib.md5(body).digest()).decode(),
        "Content-Type": "application/octet-stream",
        "Date": "Thu, 01 Jan 1970 00:00:00 GMT",
    }
    text = "\n".join(["POST", *headers.values(), path_of(service)])
    digest = hmac.digest(TOKEN.encode(), text.encode(), "sha1")
    headers["Authorization"] = f"EAS {base64.b64encode(digest).decode()}"
    return {**headers, **changes}


def test_f59_signatures(guarded: Service) -> None:
    path = path_of(guarded)

    def status(headers: dict[str, str], body: bytes = BODY, path: str = path) -> int:
        return guarded.request("POST", path, body, headers).status

    good = signed(guarded, BODY)
    assert status(good) == 200
    # Clients stamp local time as GMT, so that no day is wrong, and a replay is none.
    assert status(good) == 200
    assert status(signed(guarded, BODY), BODY) == 200
    # The sum is never compared with the body: clients send wrong ones.
    other = signed(guarded, b"another body")
    assert status(other) == 200
    for changes in (
        {"Content-MD5": other["Content-MD5"]},
        {"Date": "Thu, 01 Jan 1970 00:00:01 GMT"},
        {"Content-Type": "text/plain"},
        {"Authorization": good["Authorization"][:-3] + "AA="},
        {"Authorization": good["Authorization"].replace("EAS ", "")},
        {"Authorization": good["Authorization"].replace("EAS ", "Bearer ")},
    ):
        assert status({**good, **changes}) == 401, changes
    assert status(good, path=f"{path}?debug=1") == 401
    assert status(good, path=f"{path}/") == 401


TRICKS = [
    # Clients append paths of their own to the service's.
    ("GET", "/api/predict/{name}/../../metrics", {200, 404}),
    ("POST", "/api/predict/../x", {401, 404}),
    ("POST", "/api/predict/%2e%2e/x", {401, 404}),
    ("POST", "/api/predict//{name}", {401, 404}),
    ("POST", "/api/predict/{name}x", {404}),
    ("POST", "/api/predict/%00", {401, 404}),
    ("POST", "/api/predict/", {401, 404}),
    ("POST", "/api/predict", {401, 404}),
    ("POST", "//", {200, 404}),
    ("POST", "/api/predict/other", {404}),
    ("HEAD", "/api/predict/{name}", {405}),
    ("OPTIONS", "/api/predict/{name}", {200, 204, 405}),
    ("PUT", "/api/predict/{name}", {405}),
    ("DELETE", "/v2/models/{name}", {405}),
    ("POST", "/v2/models/{name}", {405}),
    ("POST", "/v2/repository/models/{name}/load", {404}),
    ("GET", "/v2/models/other", {404}),
    ("GET", "/v2/models/{name}/versions/9", {404}),
    ("GET", "/debug", {404}),
    ("GET", "/admin", {404}),
    ("GET", "/../../etc/passwd", {404}),
    ("GET", "/static/../service.json", {404}),
    ("POST", "/metrics", {405}),
    ("TRACE", "/", {400, 404, 405, 501}),
]


@pytest.mark.parametrize(("method", "path", "allowed"), TRICKS)
def test_f60_paths_lead_nowhere_else(
    guarded: Service, method: str, path: str, allowed: set[int]
) -> None:
    path = path.format(name=guarded.name)
    length = len(BODY) if method in ("POST", "PUT") else 0
    sent = (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {TOKEN}\r\n"
        f"Connection: close\r\nContent-Length: {length}\r\n\r\n"
    )
    answer = guarded.raw(sent.encode() + BODY[:length])
    status = int(answer.split()[1])
    assert status in allowed, (status, answer[-300:])
    assert b"root:" not in answer
    assert b"procserver_" not in answer, "metrics are elsewhere"
    if method != "HEAD" and status not in (200, 204):
        assert answer.partition(b"\r\n\r\n")[2]


def test_f60_debug_levels_need_a_token(service: Make) -> None:
    """Without one, nobody is shown the features of a person."""
    one = service("good", name="open", workers=1, token="").start()
    message = BODY + b"\x08\x01"
    assert one.request("POST", path_of(one), BODY).status == 200
    answer = one.request("POST", path_of(one), message)
    assert answer.status == 400
    assert b"debug" in answer.body


def test_f61_secrets_stay_inside(guarded: Service) -> None:
    """What the harness looks at after every test, here with all that is logged."""
    body = BODY + b"\x08\x01"
    for sent in (body, b"\xff", b""):
        guarded.request("POST", path_of(guarded), sent, AUTH)
    guarded.request("POST", path_of(guarded), BODY, {"Authorization": "nonsense"})
    assert "procserver" in guarded.text()
    assert "[DEBUG]" in guarded.text(), "gunicorn tells its configuration"
    found = guarded.everything()
    assert {"log", "answers"} < set(found)
    assert sum(place.startswith("cmdline") for place in found) == 3
    guarded.check_quiet()
    # The secrets are there: the service has read them.
    content = guarded.config.read_text()
    assert all(canary in content for canary in CANARIES.values())


def test_f61_nobody_leaves_a_core(guarded: Service) -> None:
    """Neither the master nor the refresher nor a worker, whatever they were given."""
    family = {guarded.pid, guarded.refresher, *guarded.workers_now()}
    assert len(family) == 3
    for pid in family:
        (line,) = re.findall(
            r"^Max core file size +(\S+) +(\S+)",
            Path(f"/proc/{pid}/limits").read_text(),
            re.MULTILINE,
        )
        assert line == ("0", "0")


def test_f61_secrets_of_a_source_that_fails(service: Make) -> None:
    url = f"s3://{CANARIES['key']}:{CANARIES['password']}@bucket/items.parquet"
    one = service("good", name="leaky", model_config={"url": url}).launch()
    assert one.process is not None
    one.status = one.process.wait(60)
    assert one.status in (2, 4)
    assert one.text().strip()
    one.tracebacks = True


def test_f61_secrets_of_refusals(service: Make) -> None:
    one = service("good", name="refusing", workers=1)
    check = subprocess.run(
        [sys.executable, "-m", "procserver", "check", str(one.config)],
        cwd=ROOT,
        env={**os.environ, **one.env},
        capture_output=True,
        check=False,
    )
    assert check.returncode == 0, check.stderr
    one.change(lambda c: c["model_config"].update(access_key_secret=[1, "x"]))
    ill = subprocess.run(
        [sys.executable, "-m", "procserver", "check", str(one.config)],
        cwd=ROOT,
        env={**os.environ, **one.env},
        capture_output=True,
        check=False,
    )
    assert ill.returncode != 0
    one.change(
        lambda c: c["model_config"].update(access_key_secret=CANARIES["password"])
    )
    one.start()
    cut(one.publish())
    assert one.reload()["outcome"] == "refused"
    one.captured += check.stdout + check.stderr + ill.stdout + ill.stderr
    about = one.request("GET", f"/v2/models/{one.name}", None, AUTH)
    assert json.loads(about.body)["last_reload"]["reason"]
