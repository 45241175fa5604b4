"""`procserver demo --call`, against a server on a loopback socket."""

import argparse
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from procserver.demo import command
from procserver.demo.call import CallError, aligned, call, score_rows
from procserver.wire.pb import torchrec_predict_pb2 as torchrec


class Answering(BaseHTTPRequestHandler):
    """Scores item n of a request n/100; refuses a wrong token as the server does."""

    seen: list[tuple[str, torchrec.PBRequest]]

    def do_POST(self) -> None:
        request = torchrec.PBRequest()
        request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, request))
        if self.headers["Authorization"] != "procserver-demo-token":
            self.answer(401, b"[unauthorized] wrong token")
            return
        response = torchrec.PBResponse(item_ids=request.item_ids)
        for name in ("probs_cvr", "probs_ctr"):
            scores = [at / 100 for at in range(len(request.item_ids))]
            response.map_outputs[name].float_val.extend(scores)
        self.answer(200, response.SerializeToString())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    Answering.seen = []
    with HTTPServer(("127.0.0.1", 0), Answering) as answering:
        thread = threading.Thread(target=answering.serve_forever, args=[0.01])
        thread.start()
        yield answering
        answering.shutdown()
        thread.join()


@pytest.fixture
def url(server: HTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_call_prints_items_with_the_best_first(demo, url):
    text = call(demo, url, [])
    path, request = Answering.seen[0]
    assert path == "/api/predict/alirec_rank_with_fg"
    lines = text.splitlines()
    assert lines[0] == f"POST {url}{path}"
    table = lines[3 : 3 + 12]
    assert table[0].split() == [
        *("item_id", "title", "category", "price", "rating"),
        *("probs_ctr", "probs_cvr"),
    ]
    printed = [line.split()[0] for line in table[2:]]
    assert printed == list(request.item_ids)[::-1]
    assert table[2].endswith("0.0900     0.0900")
    assert len({len(line) for line in table}) == 1
    assert lines[-1].startswith("10 items in ")


def test_call_scores_the_items_that_are_named(demo, url):
    text = call(demo, url, ["item_0007", "nonsense", "item_0001"])
    request = Answering.seen[0][1]
    assert list(request.item_ids) == ["item_0007", "nonsense", "item_0001"]
    # One value for all items is right for any number of them.
    assert [len(c.features) for c in request.context_features.values()] == [1, 1]
    unknown = next(line for line in text.splitlines() if line.startswith("nonsense"))
    assert unknown.split()[1:] == ["-", "-", "-", "-", "0.0100", "0.0100"]


def test_command_call(demo, url, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = [str(demo), "--call", "--url", url + "/", "--items", "item_0003"]
    assert command.main(parser.parse_args(arguments)) == 0
    assert "item_0003" in capsys.readouterr().out
    arguments[3] = "http://127.0.0.1:9"
    assert command.main(parser.parse_args(arguments)) == 1
    assert "make serve" in capsys.readouterr().err


def test_call_shows_what_the_server_says(demo, url, tmp_path):
    for name in ("requests", "items.parquet"):
        (tmp_path / name).symlink_to(demo / name)
    document = json.loads((demo / "service.json").read_text())
    document["token"] = "wrong"
    (tmp_path / "service.json").write_text(json.dumps(document))
    with pytest.raises(CallError, match=r"answered 401: \[unauthorized\] wrong token"):
        call(tmp_path, url, [])


def test_call_without_a_demo_says_how_to_write_one(tmp_path):
    with pytest.raises(CallError, match=f"procserver demo {tmp_path}"):
        call(Path(tmp_path), "http://127.0.0.1:9", [])


def test_an_answer_without_outputs_is_printed_as_such():
    rows = score_rows(torchrec.PBResponse(item_ids=["a"]), {})
    assert rows[1] == ["a", "-", "-", "-", "-"]


def test_columns_are_aligned():
    text = aligned([["id", "n"], ["long id", "5.25"]], text_columns=1)
    assert text.splitlines() == ["id          n", "-------  ----", "long id  5.25"]
