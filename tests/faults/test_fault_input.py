"""F38 to F51: bodies and HTTP that nobody should send."""

from __future__ import annotations

import http.client
import random
import re
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cramjam
import pytest
from faulty import AUTH, BODY, CANARIES, Service, request, wait_until
from live import Answer, exchange

from procserver.wire.pb.torch_predict_pb2 import PredictRequest
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest

Make = Callable[..., Service]
LIMIT = 16 << 20
TOKEN = f"Authorization: {CANARIES['token']}\r\n"


@pytest.fixture(scope="module")
def ranking(shared: Make) -> Service:
    one = shared(
        "good",
        name="input",
        workers=1,
        procserver={"max_body_bytes": LIMIT, "max_items": 5000},
        metadata={"rpc": {"worker_threads": 4, "keepalive": 20_000}},
    )
    return one.start()


@pytest.fixture(scope="module")
def tensors(shared: Make) -> Service:
    """The same model, asked with the tensors that it takes."""
    one = shared(
        "good",
        name="tensors",
        workers=1,
        model_config={
            "fg_mode": "bypass",
            "remote_type": None,
            "url": None,
            "tables": None,
        },
        procserver={"max_body_bytes": LIMIT},
    )
    return one.start()


class Client:
    """One connection, which a refused request must not break."""

    def __init__(self, service: Service, healthy: bytes) -> None:
        self.service, self.healthy = service, healthy
        self.connection = service.http()

    def post(self, body: bytes, headers: dict[str, str] | None = None) -> Answer:
        path = f"/api/predict/{self.service.name}"
        sent = {**AUTH, **(headers or {})}
        answer = exchange(self.connection, "POST", path, body, sent)
        self.service.captured += answer.body
        return answer

    def refused(self, body: bytes, *words: str, status: int = 400) -> bytes:
        """What is answered; the same connection is served on."""
        answer = self.post(body)
        assert answer.status == status, (answer.status, answer.body)
        for word in words:
            assert word.encode() in answer.body, answer.body
        # Short, and nothing of the model's source or of ours.
        assert 0 < len(answer.body) < 600
        assert not re.search(rb"Traceback|forward\(|/torch/|\.py", answer.body)
        if answer.headers.get("connection") == "close":
            self.connection.close()
        assert self.post(self.healthy).status == 200
        return answer.body


@pytest.fixture
def client(ranking: Service) -> Iterator[Client]:
    one = Client(ranking, BODY)
    yield one
    one.connection.close()


@pytest.fixture
def bypass(tensors: Service) -> Iterator[Client]:
    one = Client(tensors, batch().SerializeToString())
    yield one
    one.connection.close()


def batch(
    *, ids: tuple[int, ...] = (1, 2), **changes: dict[str, Any]
) -> PredictRequest:
    """The tensors of a request; ``changes``: tensor -> fields that are set so."""
    message = PredictRequest()
    rows = len(ids)
    for name, dtype, shape, values in [
        ("user_id.values", 9, [rows], list(ids)),
        ("user_id.lengths", 3, [rows], [1] * rows),
        ("trouble.values", 1, [rows, 1], [0.0] * rows),
        ("price.values", 1, [rows, 1], [1.5] * rows),
        ("build.values", 1, [rows, 1], [1.0] * rows),
    ]:
        array = message.map_inputs[name]
        change = changes.get(name.replace(".", "_"), {})
        array.dtype = change.get("dtype", dtype)
        array.array_shape.dim.extend(change.get("shape", shape))
        field = {9: "int64_val", 3: "int_val", 1: "float_val"}[dtype]
        getattr(array, field).extend(change.get("values", values))
    return message


RANDOM = random.Random(38)
NO_MESSAGE = {
    "cut in a length": BODY[:-1],
    "cut in a tag": BODY + b"\x80",
    "length beyond the end": b"\x1a\x7fabc",
    "huge length": b"\x1a\xff\xff\xff\xff\x07",
    "negative length": b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    "field 0": b"\x00\x01",
    "field 0 with a length": b"\x02\x01a",
    "tag over 32 bits": b"\xff\xff\xff\xff\xff\x7f\x01",
    "varint of 11 bytes": b"\x08" + b"\x80" * 10 + b"\x01",
    "varint without an end": b"\x08" + b"\xff" * 20,
    "wire type 6": b"\x0e\x01",
    "wire type 7": b"\x0f\x01",
    "end of no group": b"\x0c",
    "group without an end": b"\x0b\x08\x01",
    "group ended as another": b"\x0b\x14",
    "fixed64 cut": b"\x09abc",
    "fixed32 cut": b"\x0dab",
    "map entry cut": b"\x12\x05\x0a\x09ab",
    "text": b"user_id=1&items=2,3",
    "JSON": b'{"user_id": 1}',
    "all bits": b"\xff" * 1000,
    **{f"noise {n}": b"\xff" + RANDOM.randbytes(100 * n) for n in range(1, 6)},
}


@pytest.mark.parametrize("what", NO_MESSAGE)
def test_f38_no_message(client: Client, what: str) -> None:
    client.refused(NO_MESSAGE[what], "undecodable")


@pytest.mark.parametrize("kind", ["torchrec", "torch"])
def test_f38_recorded_noise(client: Client, bypass: Client, kind: str) -> None:
    """The corpus of bodies that decoders were found to differ about."""
    one = client if kind == "torchrec" else bypass
    folder = Path(__file__).parents[1] / "corpus" / kind
    bodies = sorted(folder.glob("*.bin"))
    assert bodies
    for path in bodies:
        answer = one.post(path.read_bytes())
        assert answer.status in (200, 400, 413), path.name
        if answer.headers.get("connection") == "close":
            one.connection.close()
    assert one.post(one.healthy).status == 200


def test_f39_the_other_message(client: Client, bypass: Client) -> None:
    client.refused(batch().SerializeToString())
    client.refused(b"", "neither item_ids nor user_features")
    client.refused(PBRequest(debug_level=0, faiss_neigh_num=3).SerializeToString())
    bypass.refused(BODY)
    bypass.refused(b"")


def nested(depth: int, tag: bytes) -> bytes:
    """A message in a message in a message."""
    body = b""
    for _ in range(depth):
        length = len(body)
        size = bytearray()
        while True:
            size.append((length & 127) | (128 if length > 127 else 0))
            length >>= 7
            if not length:
                break
        body = tag + bytes(size) + body
    return body


DEEP = {
    "groups": b"\x7b" * 100_000,
    "groups with their ends": b"\x7b" * 50_000 + b"\x7c" * 50_000,
    "groups in a map": b"\x12\x83\x80\x02" + b"\x1b" * 32_771,
}


@pytest.mark.parametrize("what", DEEP)
def test_f40_nesting(client: Client, bypass: Client, what: str) -> None:
    client.refused(DEEP[what])
    if what != "groups in a map":
        bypass.refused(DEEP[what])


def test_f40_unknown_fields_are_not_walked_into(client: Client) -> None:
    """Nested as deep as one likes, for a reader that does not care."""
    assert client.post(BODY + nested(2000, b"\x7a")).status == 200


def resident(service: Service, what: str = "VmRSS") -> int:
    """Bytes of the one worker."""
    (pid,) = service.ready_workers()
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) * 1024


def test_f41_small_bodies_do_not_grow(client: Client, ranking: Service) -> None:
    empty_features = PBRequest()
    empty_features.item_ids.append("item_1")
    for _ in range(500_000):
        empty_features.item_features["price"].features.add()
    empty_ids = PBRequest(item_ids=[""] * 1_000_000)
    many_names = PBRequest(item_ids=["item_1"])
    for number in range(100_000):
        many_names.user_features[str(number)].int_feature = 1
    bodies = [m.SerializeToString() for m in (empty_features, empty_ids, many_names)]
    client.post(BODY)
    before = resident(ranking)
    for body in bodies:
        assert len(body) < 3 << 20
        began = time.monotonic()
        answer = client.post(body)
        assert time.monotonic() - began < 20
        assert answer.status in (200, 400, 413)
        if answer.headers.get("connection") == "close":
            client.connection.close()
    assert client.post(BODY).status == 200
    peak = resident(ranking, "VmHWM")
    assert peak - before < 200 << 20, f"{(peak - before) >> 20} MB"


def test_f42_a_million_items(client: Client, ranking: Service) -> None:
    body = PBRequest(item_ids=[f"item_{n}" for n in range(1_000_000)])
    before = resident(ranking)
    sent = body.SerializeToString()
    assert len(sent) > 10 << 20
    answer = client.post(sent)
    assert answer.status == 413
    assert b"5000" in answer.body
    assert resident(ranking, "VmHWM") - before < 512 << 20
    client.connection.close()
    assert client.post(request(["item_1"] * 5000).SerializeToString()).status == 200


def head(
    service: Service,
    *lines: str,
    length: int | str | None = len(BODY),
    method: str = "POST",
    token: str = TOKEN,
) -> bytes:
    extra = "".join(f"{line}\r\n" for line in lines)
    size = "" if length is None else f"Content-Length: {length}\r\n"
    start = f"{method} /api/predict/{service.name} HTTP/1.1\r\nHost: x\r\n"
    return f"{start}{token}{size}{extra}\r\n".encode()


def statuses(answer: bytes) -> list[int]:
    """Of each answer on a connection."""
    return [int(s) for s in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


CHUNKED = "Transfer-Encoding: chunked"


def test_f43_too_much_declared(ranking: Service) -> None:
    for length in (LIMIT + 1, 2**31, 2**62):
        assert statuses(ranking.raw(head(ranking, length=length))) == [413]


def test_f43_too_much_in_chunks(ranking: Service) -> None:
    piece = b"%x\r\n%s\r\n" % (1 << 20, bytes(1 << 20))
    with ranking.connect() as connection:
        connection.sendall(head(ranking, CHUNKED, length=None))
        # The body never ends; it is refused when it is over the limit.
        for _ in range((LIMIT >> 20) + 1):
            connection.sendall(piece)
        assert statuses(connection.recv(65536)) == [413]


BOMBS: dict[str, Callable[[], bytes]] = {
    "zlib": lambda: zlib.compress(bytes(LIMIT + 1), 9),
    "gzip": lambda: bytes(cramjam.gzip.compress(bytes(LIMIT + 1))),
    "zstd": lambda: bytes(cramjam.zstd.compress(bytes(LIMIT + 1))),
    "lz4": lambda: bytes(cramjam.lz4.compress(bytes(LIMIT + 1))),
    "snappy": lambda: bytes(cramjam.snappy.compress_raw(bytes(LIMIT + 1))),
}


@pytest.mark.parametrize("name", BOMBS)
def test_f43_bombs(client: Client, name: str) -> None:
    body = BOMBS[name]()
    assert len(body) < LIMIT / 10
    assert client.post(body).status == 413
    client.connection.close()
    assert client.post(BODY).status == 200


BAD_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "no such dtype": ({"dtype": 99}, "price.values"),
    "no dtype": ({"dtype": 0}, "price.values"),
    "integers for floats": ({"dtype": 9}, "price.values"),
    "text for floats": ({"dtype": 7}, "price.values"),
    "too few values": ({"values": [1.0]}, "price.values"),
    "too many values": ({"values": [1.0] * 3}, "price.values"),
    "a negative dimension": ({"shape": [-2, -1]}, "price.values"),
    "two that overflow": ({"shape": [2**62, 4]}, "price.values"),
    "three that overflow to 0": ({"shape": [2**32, 2**32, 2]}, "price.values"),
    "the largest": ({"shape": [2**63 - 1]}, "price.values"),
    "a million dimensions": ({"shape": [1] * 1_000_000}, "price.values"),
    "no dimension": ({"shape": []}, "price.values"),
    "a dimension of 0": ({"shape": [2, 0]}, "price.values"),
    "other rows": ({"shape": [1, 1], "values": [1.0]}, ""),
}


@pytest.mark.parametrize("what", BAD_TENSORS)
def test_f44_tensors(bypass: Client, what: str) -> None:
    change, named = BAD_TENSORS[what]
    body = batch(price_values=change).SerializeToString()
    bypass.refused(body, *([named] if named else []))


NOT_FINITE = [float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 5e-324, 1e-40]


def test_f45_numbers_that_are_none(client: Client, ranking: Service) -> None:
    before = ranking.metric("procserver_nan_scores_total", **{"class": "nan"})
    for value in NOT_FINITE:
        message = request(["item_1", "item_2"])
        for price in (value, 2.0):
            message.item_features["price"].features.add().double_feature = price
        message.user_features["trouble"].double_feature = value
        answer = client.post(message.SerializeToString())
        # A number that its feature cannot be may be refused by name.
        assert answer.status in (200, 400), answer.body
        if answer.status == 400:
            assert b"price" in answer.body or b"trouble" in answer.body
    assert client.post(BODY).status == 200
    wait_until(
        lambda: (
            ranking.metric("procserver_nan_scores_total", **{"class": "nan"}) > before
        )
    )


@pytest.mark.parametrize("bad", [100, -1, 2**31, 2**63 - 1, -(2**63)])
def test_f46_ids_outside_of_the_table(bypass: Client, bad: int) -> None:
    bypass.refused(batch(ids=(1, bad)).SerializeToString())


def test_f47_lists_of_another_length(client: Client) -> None:
    message = request(["item_1", "item_2", "item_3"])
    for price in (1.0, 2.0):
        message.item_features["price"].features.add().double_feature = price
    client.refused(message.SerializeToString(), "price", "2 values for 3 items")
    for price in (3.0, 4.0):
        message.item_features["price"].features.add().double_feature = price
    assert client.post(message.SerializeToString()).status == 200
    del message.item_features["price"].features[1:]
    assert client.post(message.SerializeToString()).status == 200


def test_f48_text(client: Client) -> None:
    for bad in (b"\xff\xfe\xfd\xfc", b"\xc0\x80ab", b"\xed\xa0\x80a", b"abc\xe4"):
        for where in (request(user="@@@@"), request(["@@@@", "item_1"])):
            body = where.SerializeToString()
            client.refused(body.replace(b"@@@@", bad))
    for good in ("a\0b", "\0", "商品", "\U0001f600", "﻿x"):
        assert client.post(request([good], user=good).SerializeToString()).status == 200


def smuggled(service: Service) -> dict[str, tuple[bytes, set[int]]]:
    """HTTP on which two servers would not agree."""
    start = f"POST /api/predict/{service.name} HTTP/1.1\r\nHost: x\r\n{TOKEN}"
    size = f"Content-Length: {len(BODY)}\r\n"
    bad = {400}
    return {
        "length and chunks": (head(service, CHUNKED) + BODY, bad),
        "two lengths": (head(service, "Content-Length: 5") + BODY, bad),
        "two equal lengths": (
            head(service, f"Content-Length: {len(BODY)}") + BODY,
            bad,
        ),
        "negative": (head(service, length=-1), bad),
        "signed": (head(service, length="+5") + BODY, bad),
        "underscore": (head(service, length="1_0") + BODY, bad),
        "hexadecimal": (head(service, length="0x10") + BODY, bad),
        "list of lengths": (head(service, length="5, 5") + BODY, bad),
        "unknown coding": (
            head(service, "Transfer-Encoding: zip", length=None),
            {400, 501},
        ),
        "chunks, then gzip": (
            head(service, "Transfer-Encoding: chunked, gzip", length=None),
            bad,
        ),
        "chunks twice": (
            head(service, "Transfer-Encoding: chunked, chunked", length=None),
            {400, 501},
        ),
        "two codings": (head(service, CHUNKED, CHUNKED, length=None), {400, 501}),
        "a chunk of no size": (head(service, CHUNKED, length=None) + b"zz\r\n", bad),
        "a negative chunk": (head(service, CHUNKED, length=None) + b"-1\r\n", bad),
        "a chunk that goes on": (
            head(service, CHUNKED, length=None) + b"3\r\nabcd\r\n0\r\n\r\n",
            bad,
        ),
        "blank before the colon": (f"{start}A : b\r\n{size}\r\n".encode() + BODY, bad),
        "folded header": (f"{start}A: b\r\n c\r\n{size}\r\n".encode() + BODY, bad),
        "bare LF": (f"{start}{size}\r\n".replace("\r\n", "\n").encode() + BODY, bad),
        "NUL in a header": (f"{start}A: b\0c\r\n{size}\r\n".encode() + BODY, bad),
        "lower-case method": (head(service, method="post") + BODY, bad),
        "9 KB header": (head(service, "A: " + "b" * 9000) + BODY, {431}),
        "101 headers": (head(service, *["A: b"] * 101) + BODY, {431}),
        "5 KB URL": (
            head(service).replace(b" HTTP/1.1", b"?" + b"x" * 5000 + b" HTTP/1.1"),
            {414},
        ),
        "two tokens": (head(service, TOKEN.strip()) + BODY, {400, 401}),
    }


SMUGGLED = 24


@pytest.mark.parametrize("number", range(SMUGGLED))
def test_f49_smuggling(ranking: Service, number: int) -> None:
    table = smuggled(ranking)
    assert len(table) == SMUGGLED
    what, (sent, allowed) = list(table.items())[number]
    answered = ranking.metric("procserver_requests_total", status="200")
    # A second request behind it must not be taken for one.
    answer = ranking.raw(sent + head(ranking) + BODY)
    found = statuses(answer)
    assert len(found) == 1, (what, found)
    assert found[0] in allowed, (what, found)
    assert answer.partition(b"\r\n\r\n")[2], "an empty body is a message to clients"
    assert ranking.metric("procserver_requests_total", status="200") == answered


@pytest.mark.parametrize("sent", [0, 1, len(BODY) - 1])
def test_f50_a_body_that_ends_early(ranking: Service, sent: int) -> None:
    answer = ranking.raw(head(ranking) + BODY[:sent], half_close=True)
    assert statuses(answer) == [400]
    assert f"{sent} of {len(BODY)} bytes".encode() in answer


def test_f51_chunks(ranking: Service) -> None:
    def chunks(*parts: bytes) -> bytes:
        sent = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts)
        return head(ranking, CHUNKED, "Connection: close", length=None) + sent

    for parts in ((BODY,), (BODY[:1], BODY[1:20], BODY[20:])):
        assert statuses(ranking.raw(chunks(*parts) + b"0\r\n\r\n")) == [200]
    # No body in chunks is no body; one that is cut is none either.
    assert statuses(ranking.raw(chunks() + b"0\r\n\r\n")) == [400]
    assert statuses(ranking.raw(chunks(BODY[:9]), half_close=True)) == [400]


def test_f49_connections_are_closed_after_it(ranking: Service) -> None:
    with socket.create_connection(("127.0.0.1", ranking.port), 60) as connection:
        connection.sendall(head(ranking, CHUNKED) + BODY)
        reply = http.client.HTTPResponse(connection, method="POST")
        reply.begin()
        assert reply.status == 400
        reply.read()
        assert connection.recv(1) == b""
        reply.close()
