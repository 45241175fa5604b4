"""/metrics of a live service: what was counted, over all processes and their ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
from live import LiveServer, children, segments
from prometheus_client.parser import text_string_to_metric_families
from test_ranking import build, post

Samples = dict[str, float]
URL = "/api/predict/rank"
RECLAIMED = f"reclaimed-{os.getpid()}"


def scrape(server: LiveServer) -> Samples:
    answer = server.request("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name.removeprefix('procserver_')}{{{labels}}}"] = (
                sample.value
            )
    return found


def grown(before: Samples, after: Samples) -> Samples:
    """What has changed, without ages and sums of times."""
    return {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if value != before.get(name, 0)
        and "_bucket{" not in name
        and not name.split("{")[0].endswith(("_sum", "age_seconds", "uptime_seconds"))
    }


def eventually(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_request_is_counted_once_whoever_answers_it(ranking: LiveServer) -> None:
    items = ["item_0001", "nobody", "item_0002"]
    body = build(items).SerializeToString()
    before = scrape(ranking)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: post(ranking, body), range(20)))
    assert {answer.status for answer in answers} == {200}
    by_worker = {
        name: change
        for name, change in grown(before, scrape(ranking)).items()
        if name.startswith("worker_requests_total")
    }
    assert sum(by_worker.values()) == 20
    assert set(by_worker) <= {
        f"worker_requests_total{{process=worker-{slot}}}" for slot in (0, 1)
    }
    rest = {
        name: change
        for name, change in grown(before, scrape(ranking)).items()
        if name not in by_worker and name != "handed_over_total{}"
    }
    assert rest == {
        "requests_total{status=200}": 20,
        "request_seconds_count{}": 20,
        "queue_seconds_count{}": 20,
        "items_total{}": 60,
        "missing_items_total{}": 20,
        **{
            f"stage_seconds_count{{stage={stage}}}": 20
            for stage in ("decode", "gather", "generate", "run", "encode")
        },
    }


def test_stages_make_up_most_of_a_request(ranking: LiveServer) -> None:
    values = scrape(ranking)
    whole = values["request_seconds_sum{}"]
    stages = sum(v for n, v in values.items() if n.startswith("stage_seconds_sum"))
    assert 0 < stages <= whole


@pytest.mark.parametrize(
    ("status", "path", "body", "token"),
    [
        ("401", URL, b"", "wrong"),
        ("404", "/api/predict/other", b"", tiny.TOKEN),
        ("400", URL, b"\xff\xff", tiny.TOKEN),
    ],
)
def test_refusals_are_counted_by_status(
    ranking: LiveServer, status: str, path: str, body: bytes, token: str
) -> None:
    before = scrape(ranking)
    answer = ranking.request("POST", path, body, {"Authorization": token})
    assert str(answer.status) == status
    changes = grown(before, scrape(ranking))
    assert changes[f"requests_total{{status={status}}}"] == 1
    assert changes["request_seconds_count{}"] == 1
    assert "items_total{}" not in changes


def test_health_checks_and_descriptions_are_not_requests(ranking: LiveServer) -> None:
    before = scrape(ranking)
    for path in ("/v2/health/live", "/v2/health/ready", "/nowhere"):
        ranking.request("GET", path)
    ranking.request("GET", URL, None, {"Authorization": tiny.TOKEN})
    assert grown(before, scrape(ranking)) == {}


def test_the_state_of_cache_and_model_is_told(ranking: LiveServer) -> None:
    values = scrape(ranking)
    assert values["cache_generation{}"] == 1
    assert values["cache_rows{}"] == tiny.ITEMS
    assert values["cache_bytes{}"] > 0
    assert 0 < values["cache_age_seconds{}"] <= values["uptime_seconds{}"]
    assert values["workers_ready{}"] == 2
    assert values["worker_starts_total{}"] == 2
    assert values["cache_builds_total{outcome=published}"] == 1
    (model,) = [name for name in values if name.startswith("model_info")]
    version = post(ranking, build(["item_0001"]).SerializeToString()).headers[
        "x-model-version"
    ]
    assert f"version={version}" in model
    assert "weights=shared" in model
    assert values["shared_weights_bytes{}"] > 0
    assert values["in_flight{process=worker-0}"] == 0


def test_nothing_of_a_request_or_secret_is_shown(ranking: LiveServer) -> None:
    request = build(["item_0001"])
    request.meta_data["request_id"] = "planted-request-id"
    post(ranking, request.SerializeToString(), f"{URL}/planted-path")
    ranking.request("POST", URL, b"", {"Authorization": "planted-token"})
    text = ranking.request("GET", "/metrics").body
    assert b"planted" not in text
    assert tiny.TOKEN.encode() not in text


def test_counters_survive_their_worker(
    tmp_path, launch: Callable[..., LiveServer]
) -> None:
    server = launch(tiny.write(tmp_path, "churn"), workers=1).start()
    body = build(["item_0001"]).SerializeToString()
    for _ in range(3):
        assert post(server, body, "/api/predict/churn").status == 200
    refresher, worker = sorted(children(server.pid))
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: worker not in children(server.pid))
    eventually(lambda: server.text().count("warmed up in") == 2)
    assert post(server, body, "/api/predict/churn").status == 200
    eventually(lambda: scrape(server)["workers_ready{}"] == 1)
    values = scrape(server)
    assert values["requests_total{status=200}"] == 4
    assert values["worker_requests_total{process=worker-0}"] == 4
    assert values["worker_starts_total{}"] == 2
    assert values["worker_deaths_total{cause=signal}"] == 1
    os.kill(refresher, signal.SIGKILL)
    eventually(lambda: scrape(server)["refresher_starts_total{}"] == 2)
    assert values["cache_rows{}"] == tiny.ITEMS
    server.stop()


def test_the_segment_of_a_killed_master_goes_with_the_next_start(
    tmp_path, launch: Callable[..., LiveServer]
) -> None:
    config = tiny.write_bypass(tmp_path, RECLAIMED)
    first = launch(config, workers=1).start()
    left = segments(first)
    assert f"procserver.{RECLAIMED}.{first.pid}.metrics" in left
    assert first.process is not None
    first.process.kill()
    first.process.wait()
    second = launch(config, workers=1).start()
    assert f"procserver.{RECLAIMED}.{second.pid}.metrics" in segments(second)
    assert segments(first) == []
    second.stop()
    assert segments(second) == []
