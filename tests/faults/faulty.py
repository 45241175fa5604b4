"""A service that tests do harm to, and the proof that nothing is left of it.

``Service`` is a real gunicorn with a model of ``fault_models``, a Parquet table
whose items carry the number of their build, a state folder of its own, secrets
planted where a service has them, and (if asked for) armed fault points.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from live import SHM, Answer, LiveServer, children
from traffic import Traffic

from procserver.lifecycle.refreshing import REFRESH
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse

# Long enough for a hang, not a measure of speed.
DEADLINE = 60.0
ITEMS = 50
# Planted where a service has secrets; none may ever be seen. Base64 like EAS tokens.
CANARIES = {
    "token": "Y2FuYXJ5LXRva2VuLTE3Mw==",
    "key": "canary-key-LTAI5tQq8",
    "password": "canary-password-x81kd",
    "env": "canary-env-77ab20",
}
AUTH = {"Authorization": CANARIES["token"]}
# What an armed fault point raises may be in the log.
INJECTED = "InjectedFault"
MARKER = "PROCSERVER_TEST_SERVICE"
_serial = itertools.count(1)


def wait_until(holds: Callable[[], bool], seconds: float = DEADLINE) -> None:
    """Polls; fails when ``seconds`` are over."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "that did not happen in time"
        time.sleep(0.02)


def request(
    items: Sequence[str] = ("item_1", "item_2", "item_3"),
    *,
    user: str = "u1",
    trouble: float = 0.0,
) -> PBRequest:
    """A ranking request; ``trouble`` is what some models wait for."""
    message = PBRequest()
    message.user_features["user_id"].string_feature = user
    message.user_features["trouble"].float_feature = trouble
    message.item_ids.extend(items)
    return message


BODY = request().SerializeToString()
TROUBLE = request(trouble=1000.0).SerializeToString()


def made_of(body: bytes) -> tuple[frozenset[float], frozenset[float]]:
    """The builds of an answer's items, and its model's marks."""
    outputs = PBResponse.FromString(body).map_outputs
    return (
        frozenset(outputs["build"].float_val),
        frozenset(outputs["mark"].float_val),
    )


def tracebacks(text: str) -> list[str]:
    """The last line of every traceback in a log."""
    block = r"Traceback \(most recent call last\).*\n(?:[ \t].*\n|\n)*(.*)"
    return re.findall(block, text)


def write_items(path: Path, build: int) -> None:
    """The item table; each item carries the number of its build. Replaced whole."""
    table = pa.table(
        {
            "item_id": [f"item_{i}" for i in range(ITEMS)],
            "price": [float(i) for i in range(ITEMS)],
            "build": [float(build)] * ITEMS,
        }
    )
    draft = path.with_suffix(".draft")
    pq.write_table(table, draft)
    draft.replace(path)


def carriers(name: str) -> list[int]:
    """Live processes that a service of this name started, orphans too."""
    wanted = f"{MARKER}={name}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX":
                    found.append(int(entry.name))
        except OSError:
            continue
    return found


@dataclass
class Service(LiveServer):
    """One service of a test.

    ``captured`` is everything that it ever answered to :meth:`request` and
    :meth:`raw`. Tests that mean to see a traceback or an exit status other than 0
    say so in ``tracebacks`` and ``status``.
    """

    models: Path = Path()
    newest: int = 1
    tracebacks: bool = False
    status: int = 0
    captured: bytearray = field(default_factory=bytearray)
    lines: str = ""

    @property
    def name(self) -> str:
        # The service JSON may be broken by now.
        return self.env[MARKER]

    @property
    def folder(self) -> Path:
        return self.config.parent

    @property
    def versions(self) -> Path:
        """The versions root."""
        return self.folder / "versions"

    @property
    def order(self) -> list[str]:
        """Versions in the order in which they were published."""
        return [str(number) for number in range(1, self.newest + 1)]

    # What changes.

    def publish(self, model: str = "good2") -> Path:
        """A copy of the model as the next version, complete at once."""
        self.newest += 1
        draft = self.versions / f"{self.newest}.tmp.1"
        shutil.copytree(self.models / model, draft)
        return draft.rename(self.versions / str(self.newest))

    def withdraw(self, version: Path) -> None:
        """Removes a version that was refused."""
        shutil.rmtree(version)

    def change(self, edit: Callable[[dict[str, Any]], object]) -> None:
        """Edits the service JSON, in one rename."""
        content = json.loads(self.config.read_text())
        edit(content)
        draft = self.config.with_suffix(".draft")
        draft.write_text(json.dumps(content))
        draft.replace(self.config)

    def new_items(self, build: int) -> None:
        """The item table of the next refresh."""
        write_items(self.folder / "items.parquet", build)

    def arm(self, faults: str) -> None:
        """Arms faults from now on, or (empty) none. Needs ``service(faults=...)``."""
        draft = self.folder / "faults.draft"
        draft.write_text(faults)
        draft.replace(self.folder / "faults")

    # Signals.

    def hup(self) -> None:
        os.kill(self.pid, signal.SIGHUP)

    def kill(self, pid: int | None = None) -> int:
        """SIGKILL for the master (None) or one of its children; returns the pid."""
        victim = self.pid if pid is None else pid
        os.kill(victim, signal.SIGKILL)
        return victim

    @property
    def refresher(self) -> int:
        """The refresher: the child that was forked last of those that say so."""
        found = re.findall(r"refresher started \(pid (\d+)\)", self.text())
        return int(found[-1])

    def workers_now(self) -> list[int]:
        """Worker processes, booting ones included."""
        return sorted(set(children(self.pid)) - {self.refresher})

    def ready_workers(self) -> list[int]:
        """Workers that said they are ready and are still there."""
        said = {int(pid) for pid in re.findall(r"worker (\d+) is ready", self.text())}
        return sorted(said & set(self.workers_now()))

    def wait_workers(self, count: int | None = None) -> None:
        """Until so many workers (all that there should be) are ready."""
        wanted = self.workers if count is None else count
        wait_until(lambda: len(self.ready_workers()) == wanted)

    # Reloads.

    def last_reload(self) -> dict[str, Any]:
        """What the service tells of its last reload; ``number`` 0: there was none."""
        answer = self.request("GET", f"/v2/models/{self.name}", None, AUTH)
        assert answer.status == 200, answer.body
        found: dict[str, Any] | None = json.loads(answer.body)["last_reload"]
        return found or {"number": 0}

    def reload(self) -> dict[str, Any]:
        """HUP, and what has become of it."""
        number = self.last_reload()["number"] + 1
        self.hup()
        return self.reloaded(number)

    def reloaded(self, number: int) -> dict[str, Any]:
        """What became of that reload, once it has ended."""
        wait_until(lambda: self.last_reload()["number"] >= number, 2 * DEADLINE)
        return self.last_reload()

    def refresh(self, build: int) -> None:
        """New items, until they are served.

        A generation of older items may come first: a load that failed before is
        tried again at any moment.
        """
        before = self.generation()
        self.new_items(build)
        self.ask_for_load()
        wait_until(lambda: set(self.outputs()["build"]) == {float(build)})
        assert self.generation() > before

    def ask_for_load(self) -> None:
        """What ``procserver refresh`` does."""
        os.kill(self.pid, REFRESH)

    def generation(self) -> int:
        """The generation that requests see."""
        return int(self.predict().headers["x-cache-generation"])

    # Talking to it.

    def load(self, clients: int = 4, **options: Any) -> Traffic:
        """Clients that ask for ``BODY`` all the time; a context manager."""
        body = options.pop("body", BODY)
        return Traffic(self, body, clients, headers=dict(AUTH), read=made_of, **options)

    def predict(self, body: bytes = BODY) -> Answer:
        return self.request("POST", f"/api/predict/{self.name}", body, AUTH)

    def outputs(self, body: bytes = BODY) -> dict[str, list[float]]:
        """The scores of a request that must be answered."""
        answer = self.predict(body)
        assert answer.status == 200, answer.body
        outputs = PBResponse.FromString(answer.body).map_outputs
        return {name: list(array.float_val) for name, array in outputs.items()}

    def metric(self, name: str, **labels: str) -> float:
        """One sample of ``/metrics``; 0 if there is none."""
        inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
        sample = f"{name}{{{inside}}}" if inside else name
        text = self.request("GET", "/metrics").body.decode()
        for line in text.splitlines():
            start, _, value = line.rpartition(" ")
            if start == sample:
                return float(value)
        return 0.0

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        answer = super().request(method, path, body, headers)
        self._capture(answer.body, repr(answer.headers).encode())
        return answer

    def raw(self, data: bytes, *, half_close: bool = False) -> bytes:
        answer = super().raw(data, half_close=half_close)
        self._capture(answer)
        return answer

    def connect(self) -> socket.socket:
        """A connection; the caller closes it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)

    def http(self) -> http.client.HTTPConnection:
        """A kept-alive connection; the caller closes it."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)

    def _capture(self, *parts: bytes) -> None:
        for part in parts:
            self.captured += part

    # The log.

    def wait_log(self, text: str, times: int = 1) -> None:
        """Until the log has the text so many times."""
        wait_until(lambda: self.text().count(text) >= times)

    def launch(self) -> Service:
        if self.process is not None:
            # The file is begun anew.
            self.lines += self.text()
        super().launch()
        return self

    # What must never be.

    def shm_segments(self) -> list[str]:
        """Shared memory of any process that this service ever was."""
        start = f"procserver.{self.name}."
        return sorted(p.name for p in SHM.iterdir() if p.name.startswith(start))

    def everything(self) -> dict[str, bytes]:
        """All that the service has let out, by where it was found."""
        found = {"log": (self.lines + self.text()).encode()}
        found["answers"] = bytes(self.captured)
        for path in (self.folder / "state").rglob("*"):
            # Sockets are no files; others may go while we look.
            with suppress(OSError):
                if path.is_file():
                    found[str(path.relative_to(self.folder))] = path.read_bytes()
        for pid in carriers(self.name):
            try:
                found[f"cmdline {pid}"] = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
        return found

    def check_quiet(self) -> None:
        """No secret was let out, and no traceback that nobody expects."""
        text = self.lines + self.text()
        strange = [end for end in tracebacks(text) if INJECTED not in end]
        assert self.tracebacks or not strange, f"{text}\nunexpected: {strange}"
        for place, content in self.everything().items():
            for name, canary in CANARIES.items():
                assert canary.encode() not in content, f"{name} in {place}"

    def check_gone(self) -> None:
        """No process, no segment, no pid file is left."""
        wait_until(lambda: not carriers(self.name))
        assert self.shm_segments() == []

    def end(self) -> None:
        """Ends the service if it runs; nothing may be left, whatever happened."""
        if self.process is not None:
            status = self.stop(expect_clean=False)
            self.check_gone()
            self.check_quiet()
            if status != -signal.SIGKILL:
                assert status == self.status, self.text()


def write_service(
    folder: Path, name: str, models: Path, model: str, overrides: Mapping[str, Any]
) -> Path:
    """A versions root with one model, items, a service JSON with secrets in it."""
    (folder / "versions").mkdir(parents=True)
    shutil.copytree(models / model, folder / "versions" / "1")
    write_items(folder / "items.parquet", 1)
    (folder / "faults").write_text("")
    content: dict[str, Any] = {
        "metadata": {"name": name, "instance": 1, "rpc": {"worker_threads": 4}},
        "processor": "easyrec-torch-1.12",
        "token": CANARIES["token"],
        "model_path": "versions",
        "model_config": {
            "fg_mode": "normal",
            "item_empty_score": -1,
            "intra_op_parallelism_threads": 1,
            "remote_type": "parquet",
            "url": "items.parquet",
            "tables": [{"key": "item_id"}],
            "access_key_id": CANARIES["key"],
            "access_key_secret": CANARIES["password"],
        },
        "processor_envs": [{"name": "MY_SECRET", "value": CANARIES["env"]}],
        "procserver": {"state_dir": "state", "drain_seconds": 0},
    }
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            merged = {**content[key], **value}
            # None takes a key away.
            content[key] = {k: v for k, v in merged.items() if v is not None}
        else:
            content[key] = value
    path = folder / "service.json"
    path.write_text(json.dumps(content))
    return path


def make_service(
    folder: Path,
    models: Path,
    model: str = "good",
    *,
    name: str = "faulty",
    workers: int = 2,
    env: dict[str, str] | None = None,
    faults: str | None = None,
    **overrides: Any,
) -> Service:
    """A service that is not started yet.

    :param models: exports by name, of which ``model`` becomes version 1
    :param faults: arms fault points (an empty text: ``arm`` will)
    :param overrides: of the service JSON, by top key
    """
    # Nobody else's shared memory has this name, not even of another run.
    name = f"{name}-{os.getpid()}-{next(_serial)}"
    place = folder / name
    config = write_service(place, name, models, model, overrides)
    given = {MARKER: name, **(env or {})}
    if faults is not None:
        (place / "faults").write_text(faults)
        given["PROCSERVER_FAULTS"] = f"@{place / 'faults'}"
    log = place / "server.log"
    return Service(config, log, workers=workers, env=given, models=models)
