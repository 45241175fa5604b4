"""Compression, direct endpoints and every failure, as the EAS Python SDK takes them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from live import LiveServer
from test_overload import PATH, post, slow_service, wait_until_busy, work

Sdk = Callable[..., list[dict[str, Any]]]
TOO_OLD = 10**7


class Failing(torch.nn.Module):
    """The tiny ranker, but for an age that no one has."""

    def __init__(self) -> None:
        super().__init__()
        self.ranker = tiny.Ranker()

    def forward(
        self,
        data: dict[str, torch.Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> dict[str, torch.Tensor]:
        if bool((data["age.values"] > 1000.0).any()):
            raise ValueError("older than anybody")
        return self.ranker(data, device)


def attempts(server: LiveServer, service: str, expected: int) -> int:
    """POST requests to this service path that were answered, by the access log.

    A line is written after its answer has gone, so the expected ones are waited
    for. The SDK has made all its attempts when it returns.
    """
    deadline = time.monotonic() + 30
    while True:
        count = server.text().count(f'"POST /api/predict/{service} ')
        if count >= expected or time.monotonic() > deadline:
            return count
        time.sleep(0.02)


def logged(config: Path, folder: Path, **options: Any) -> LiveServer:
    env = {"GUNICORN_CMD_ARGS": "--access-logfile -"}
    return LiveServer(config, folder / "server.log", env=env, **options)


@pytest.fixture(scope="module")
def bypass(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("sdk-wire")
    config = tiny.write_bypass(folder, "sdkwire")
    server = logged(config, folder, workers=1).start()
    yield server
    server.stop()


def tensors(server: LiveServer, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "torch",
        "endpoint": server.url,
        "service": "sdkwire",
        "token": tiny.TOKEN,
        "inputs": [[[3, 2], "DT_INT64", 4], [[3], "DT_FLOAT", 0.5]],
        **changes,
    }


def test_compressed_requests(bypass: LiveServer, sdk: Sdk) -> None:
    large = [[[3000, 2], "DT_INT64", 4], [[3000], "DT_FLOAT", 0.5]]
    plain, compressed, big = sdk(
        tensors(bypass),
        tensors(bypass, compressed=True),
        tensors(bypass, compressed=True, inputs=large),
    )
    assert plain == compressed == {"outputs": [[9.0] * 3]}
    assert big == {"outputs": [[9.0] * 3000]}


def test_direct_endpoints(bypass: LiveServer, sdk: Sdk) -> None:
    """The SDK asks where the service is and then calls what it was told."""
    # No scheme: the SDK puts it before the discovery's path itself.
    endpoint = f"127.0.0.1:{bypass.port}"
    direct, named = sdk(
        tensors(bypass, endpoint=endpoint, direct=True),
        tensors(bypass, endpoint=endpoint, direct=True, service="sdkwire/model"),
    )
    assert direct == named == {"outputs": [[9.0] * 3]}
    assert "GET /api/v1/servicediscovery/upstreams/sdkwire" in bypass.text()


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"service": "sdkwire/token", "token": "wrong"}, 401),
        ({"service": "other"}, 404),
        ({"service": "sdkwire/one", "inputs": [[[3], "DT_FLOAT", 0.5]]}, 400),
        (
            {
                "service": "sdkwire/large",
                "inputs": [[[30_000], "DT_INT64", 2**60]],
            },
            413,
        ),
    ],
)
def test_refusals_are_not_repeated(
    tmp_path_factory: pytest.TempPathFactory,
    bypass: LiveServer,
    sdk: Sdk,
    changes: dict[str, Any],
    status: int,
) -> None:
    if status == 413:
        folder = tmp_path_factory.mktemp("sdk-small")
        config = tiny.write_bypass(
            folder, "sdkwire", procserver={"max_body_bytes": 100_000}
        )
        bypass = logged(config, folder, workers=1).start()
    (answer,) = sdk(tensors(bypass, **changes))
    assert answer["status"] == status, answer
    assert answer["text"]
    assert attempts(bypass, changes["service"], 1) == 1
    if status == 413:
        bypass.stop()


def test_a_failing_model_is_tried_five_times(tmp_path: Path, sdk: Sdk) -> None:
    config = tiny.write(tmp_path, "sdkfail")
    script = torch.jit.script(Failing().eval())
    script.save(str(tmp_path / "export" / "scripted_model.pt"))
    server = logged(config, tmp_path, workers=1).start()
    call = {
        "kind": "torchrec",
        "endpoint": server.url,
        "service": "sdkfail",
        "token": tiny.TOKEN,
        "items": ["item_0001"],
    }
    failed, served = sdk(
        {**call, "user": [["age", TOO_OLD, "INT"]]},
        {**call, "user": [["age", 20, "INT"]]},
    )
    assert failed["status"] == 500
    assert "older" not in failed["text"]
    assert sorted(served["scores"]) == ["probs_ctr", "probs_cvr"]
    assert attempts(server, "sdkfail", 6) == 6
    server.stop(expect_clean=False)


def one_round(server: LiveServer, path: str, rounds: int = 1) -> dict[str, Any]:
    """A call of the slow service, at a path of its own."""
    service = f"{PATH.rpartition('/')[2]}/{path}"
    return tensors(server, service=service, inputs=[[[1], "DT_INT64", rounds]])


def test_a_full_queue_is_told_once(tmp_path: Path, sdk: Sdk) -> None:
    config = slow_service(
        tmp_path / "queue", worker_threads=1, max_queue_size=0, keepalive=600_000
    )
    server = logged(config, tmp_path, workers=1).start()
    # The SDK's start takes what it takes on this machine; the worker has to be busy
    # when it comes.
    for seconds in (4, 8, 16, 32, 64):
        call = one_round(server, f"refused{seconds}")
        holder = threading.Thread(target=post, args=(server, work(server, seconds)))
        holder.start()
        wait_until_busy(server)
        (refused,) = sdk(call)
        came_late = "outputs" in refused and not holder.is_alive()
        holder.join()
        if not came_late:
            break
    assert refused.get("status") == 450, refused
    assert "queue_full" in refused["text"]
    assert attempts(server, call["service"], 1) == 1
    server.stop()


def test_a_rate_limit_and_a_deadline_are_told_once(tmp_path: Path, sdk: Sdk) -> None:
    config = slow_service(tmp_path / "rate", rate_limit=1, keepalive=500)
    server = logged(config, tmp_path, workers=1).start()
    deadline = time.monotonic() + 120
    # Until both come within a second, which was not used before.
    for number in itertools.count():
        call = one_round(server, f"limited{number}")
        first, second = sdk(call, call)
        if "outputs" in first and "outputs" not in second:
            break
        assert time.monotonic() < deadline, (first, second)
    assert first == {"outputs": [[pytest.approx(1 / 256)]]}
    assert second["status"] == 429
    assert attempts(server, call["service"], 2) == 2
    answer, rounds = second, 4000
    # Until there is room again, and until it takes this machine longer than it may.
    while answer.get("status", 429) == 429 and time.monotonic() < deadline:
        (answer,) = sdk(one_round(server, "late", rounds))
        rounds *= 2 if "outputs" in answer else 1
    assert answer["status"] == 408
    assert "out_of_time" in answer["text"]
    server.stop()
