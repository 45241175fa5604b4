"""Locust users of both request kinds: ranking with FG, and bypass tensors.

Where to and what is sent is set by the environment (``run_load.py`` sets it from its
arguments; for Locust's own web page set it by hand and run
``locust -f loadtest/locustfile.py``):

=====================  ========================================  ===================
variable               meaning                                   default
=====================  ========================================  ===================
LOAD_URL               server of the ranking service             -
LOAD_CONFIG            its service JSON: name and token          demo/service.json
LOAD_REQUESTS          its request files, ':' between patterns   demo/requests/
                                                                 rank_*.pb
LOAD_BYPASS_URL        server of the bypass service              -
LOAD_BYPASS_CONFIG     its service JSON                          demo/bypass.json
LOAD_BYPASS_REQUESTS   its request files                         demo/requests/
                                                                 bypass.pb
LOAD_USERS_PER_BYPASS  ranking users for each bypass user        4
=====================  ========================================  ===================

A kind of request whose URL is not set is left out. Every answer is decoded: a
response without a score for every item counts as a failure.
"""

import itertools
import json
import os
from glob import glob
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant, task

from procserver.wire.pb import torch_predict_pb2 as torch_pb
from procserver.wire.pb import torchrec_predict_pb2 as torchrec


class Target:
    """One service: path, headers and the request bodies to send in turn."""

    def __init__(self, config: str, patterns: str) -> None:
        document = json.loads(Path(config).read_text())
        self.path = f"/api/predict/{document['metadata']['name']}"
        self.headers = {"Content-Type": "application/octet-stream"}
        if document.get("token"):
            self.headers["Authorization"] = document["token"]
        found = sorted(p for pattern in patterns.split(":") for p in glob(pattern))
        if not found:
            raise SystemExit(f"no request files: {patterns}")
        self.bodies = [(Path(p).stem, Path(p).read_bytes()) for p in found]


class PredictUser(FastHttpUser):
    """Sends one request after the other over one connection."""

    abstract = True
    wait_time = constant(0)
    network_timeout = 30.0
    connection_timeout = 5.0
    target: Target

    def on_start(self) -> None:
        self.turn = itertools.cycle(self.target.bodies)

    @task
    def predict(self) -> None:
        name, body = next(self.turn)
        with self.client.post(
            self.target.path,
            data=body,
            headers=self.target.headers,
            name=name,
            catch_response=True,
        ) as answer:
            if answer.status_code != 200:
                text = (answer.content or b"").decode("utf-8", "replace")
                answer.failure(f"status {answer.status_code}: {text[:200]}")
                return
            problem = self.problem(body, answer.content)
            if problem:
                answer.failure(problem)

    def problem(self, body: bytes, content: bytes) -> str | None:
        raise NotImplementedError


def score_counts(content: bytes) -> tuple[int, set[int]]:
    """Number of item ids of an answer, and the lengths of its outputs."""
    response = torchrec.PBResponse()
    response.ParseFromString(content)
    outputs: Any = response.map_outputs.values()
    return len(response.item_ids), {len(array.float_val) for array in outputs}


if os.environ.get("LOAD_URL"):

    class RankingUser(PredictUser):
        host = os.environ["LOAD_URL"]
        weight = int(os.environ.get("LOAD_USERS_PER_BYPASS", "4"))
        target = Target(
            os.environ.get("LOAD_CONFIG", "demo/service.json"),
            os.environ.get("LOAD_REQUESTS", "demo/requests/rank_*.pb"),
        )

        def problem(self, body: bytes, content: bytes) -> str | None:
            request = torchrec.PBRequest()
            request.ParseFromString(body)
            wanted = len(request.item_ids)
            items, scores = score_counts(content)
            if (items, scores) != (wanted, {wanted}):
                return f"{wanted} items sent, {items} answered with {scores} scores"
            return None


if os.environ.get("LOAD_BYPASS_URL"):

    class BypassUser(PredictUser):
        host = os.environ["LOAD_BYPASS_URL"]
        target = Target(
            os.environ.get("LOAD_BYPASS_CONFIG", "demo/bypass.json"),
            os.environ.get("LOAD_BYPASS_REQUESTS", "demo/requests/bypass.pb"),
        )

        def problem(self, body: bytes, content: bytes) -> str | None:
            response = torch_pb.PredictResponse()
            response.ParseFromString(content)
            if not response.outputs or not response.outputs[0].float_val:
                return "an answer without scores"
            return None
