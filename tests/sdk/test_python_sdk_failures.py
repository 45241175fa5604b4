"""Compression, direct endpoints and every failure, as the EAS Python SDK takes them."""

from __future__ import annotations

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


def test_overload_is_told_once(tmp_path: Path, sdk: Sdk) -> None:
    config = slow_service(
        tmp_path / "queue", worker_threads=1, max_queue_size=0, keepalive=60_000
    )
    server = logged(config, tmp_path, workers=1).start()
    body = work(server, 6)
    holder = threading.Thread(target=post, args=(server, body))
    holder.start()
    wait_until_busy(server)
    service = PATH.rpartition("/")[2]
    call = {
        "kind": "torch",
        "endpoint": server.url,
        "service": f"{service}/refused",
        "token": tiny.TOKEN,
        "inputs": [[[1], "DT_INT64", 1]],
    }
    (refused,) = sdk(call)
    holder.join()
    assert refused["status"] == 450
    assert "queue_full" in refused["text"]
    assert attempts(server, f"{service}/refused", 1) == 1
    server.stop()

    config = slow_service(tmp_path / "rate", rate_limit=1, keepalive=500)
    server = logged(config, tmp_path, workers=1).start()
    answers = sdk(call | {"endpoint": server.url}, call | {"endpoint": server.url})
    assert answers[0] == {"outputs": [[pytest.approx(1 / 256)]]}
    assert answers[1]["status"] == 429
    assert attempts(server, f"{service}/refused", 2) == 2
    answer, rounds = answers[1], 4000
    deadline = time.monotonic() + 120
    # Until there is room again, and until it takes this machine longer than it may.
    while answer.get("status", 429) == 429 and time.monotonic() < deadline:
        late = {"endpoint": server.url, "inputs": [[[1], "DT_INT64", rounds]]}
        (answer,) = sdk(call | late)
        rounds *= 2 if "outputs" in answer else 1
    assert answer["status"] == 408
    assert "out_of_time" in answer["text"]
    server.stop()
