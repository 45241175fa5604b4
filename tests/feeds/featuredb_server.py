"""A server that answers as FeatureDB does, as far as its public SDKs tell.

Its encoder is written for itself: types are walked, nothing is shared with the source.
"""

from __future__ import annotations

import base64
import json
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa

USER, PASSWORD, TOKEN = "reader", "geheim:1", "token-of-the-store"
CODES = {"int32": "i", "int64": "q", "float32": "f", "float64": "d", "bool": "?"}
CODES["timestamp"] = "q"


def many(kind: str, values: list[Any]) -> bytes:
    if kind != "string":
        return b"".join(struct.pack("<" + CODES[kind], value) for value in values)
    if not values:
        return b""
    texts = [value.encode() for value in values]
    ends = [sum(map(len, texts[:n])) for n in range(len(texts) + 1)]
    return b"".join(struct.pack("<I", end) for end in ends) + b"".join(texts)


def one(kind: str, value: Any) -> bytes:
    if kind == "string":
        return struct.pack("<I", len(value.encode())) + value.encode()
    if kind in CODES:
        return many(kind, [value])
    if kind == "list<list<float32>>":
        flat = [number for inner in value for number in inner]
        out = struct.pack("<I", len(value))
        if value:
            out += struct.pack("<I", len(flat))
        if flat:
            out += b"".join(struct.pack("<I", len(inner)) for inner in value)
            out += many("float32", flat)
        return out
    if kind.startswith("list<"):
        return struct.pack("<I", len(value)) + many(kind[5:-1], value)
    key, _, held = kind[4:-1].partition(",")
    out = struct.pack("<I", len(value))
    return out + many(key, list(value)) + many(held, list(value.values()))


def encode(types: Mapping[str, str], row: Mapping[str, Any]) -> bytes:
    out = b"F1"
    for name, kind in types.items():
        value = row.get(name)
        out += b"\x01" if value is None else b"\x00" + one(kind, value)
    return out


def stream(rows: Mapping[str, bytes | None], batch: int = 2) -> bytes:
    """Keys and values as an Arrow stream of several batches."""
    table = pa.table(
        {
            "key": pa.array(list(rows), pa.string()),
            "value": pa.array(list(rows.values()), pa.binary()),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return bytes(sink.getvalue().to_pybytes())


@dataclass
class View:
    """A feature view: its rows, and what changed at which time."""

    rows: dict[str, bytes | None] = field(default_factory=dict)
    changes: list[tuple[int, dict[str, bytes | None]]] = field(default_factory=list)
    oldest: int = 0


@dataclass
class FeatureDB:
    """The server; ``views`` by ``<instance>/<project>/<view>``.

    ``fault``: status that every question gets; ``cut``: bytes after which an answer's
    body ends.
    """

    views: dict[str, View] = field(default_factory=dict)
    now: int = 1000
    fault: int = 0
    cut: int | None = None
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/inst-1"

    def stop(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        database = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self.tell(*database.answer(self.command, self.path, self.headers))

            do_POST = do_GET

            def tell(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                whole = database.cut is None or status != 200
                self.wfile.write(body if whole else body[: database.cut])

        return Handler

    def answer(
        self, method: str, target: str, headers: Any
    ) -> tuple[int, bytes, dict[str, str]]:
        self.asked.append(f"{method} {target}")
        pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if headers["Auth"] != pair or headers["Authorization"] != TOKEN:
            return 401, b'{"message": "who are you?"}', {}
        if self.fault:
            return self.fault, b'{"message": "not now"}', {}
        url = urlsplit(target)
        name, _, rest = url.path.removeprefix("/api/v1/tables/").partition("/snapshots")
        if url.path.endswith("/iterate_get_kv"):
            name = name.removesuffix("/iterate_get_kv")
        view = self.views.get(name)
        if view is None:
            return 404, b'{"message": "no such table"}', {}
        if url.path.endswith("/iterate_get_kv"):
            since = int(parse_qs(url.query)["ts"][0])
            if since < view.oldest:
                return 410, b'{"message": "too old"}', {}
            found: dict[str, bytes | None] = {}
            for moment, changed in view.changes:
                if moment >= since:
                    found.update(changed)
            body = stream(found) if found else b""
            return 200, body, {"Next-Ts": str(self.now)}
        if method == "POST":
            told = {"code": "OK", "data": {"snapshot_id": "s 1", "ts": self.now}}
            return 200, json.dumps(told).encode(), {}
        assert rest == "/s%201/scan", rest
        return 200, stream(view.rows), {}
