"""The speed table of the wire: each kernel against what it replaces, and its bar.

    PYTHONPATH=. python loadtest/micro/wire.py [--rounds 31] [--json FILE]

Figures are medians of interleaved rounds in CPU time of one core; ratios are taken
within a round. The last line is a real server's (``receive.py``). Exit status 1 if a
bar is missed.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch as pytorch

from cython_ext.column import Column
from procserver.demo.bypass import sample_request, script_twin
from procserver.wire import torch, torchrec
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse
from procserver.wire.receiving import BufferPool, receive

sys.path.insert(0, str(Path(__file__).resolve().parent))

from receive import server_ratio

ITEMS, CONTEXT, USER = 300, 10, 50


@dataclass(frozen=True)
class Row:
    """A ratio, and the bar that it must stay below or reach."""

    what: str
    ratio: float
    bar: float
    at_least: bool
    figures: str

    @property
    def passed(self) -> bool:
        return self.ratio >= self.bar if self.at_least else self.ratio <= self.bar

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "PASS" if self.passed else "MISS"
        bar = f"{sign} {self.bar:g}"
        return f"{verdict}  {self.ratio:8.3f}  {bar:>8}  {self.what}  ({self.figures})"


def request_body() -> bytes:
    """300 items, 10 context columns and 50 user features of mixed types."""
    rng = random.Random(0)
    message = PBRequest(item_ids=[str(10**7 + i) for i in range(ITEMS)])
    for i in range(USER):
        feature = message.user_features[f"user_feature_{i}"]
        if i % 5 == 0:
            feature.long_feature = rng.getrandbits(40)
        elif i % 5 == 1:
            feature.string_feature = f"value_{i}"
        elif i % 5 == 2:
            feature.float_feature = rng.random()
        elif i % 5 == 3:
            feature.int_list.features.extend(range(20))
        else:
            feature.string_int_map.map_field.update({f"k{j}": j for j in range(10)})
    for i in range(CONTEXT):
        features = message.context_features[f"context_{i}"].features
        for _ in range(ITEMS):
            if i % 3 == 0:
                features.add().long_feature = rng.getrandbits(40)
            elif i % 3 == 1:
                features.add().double_feature = rng.random()
            else:
                features.add().string_feature = f"value_{rng.randrange(1000)}"
    return bytes(message.SerializeToString())


def walk(body: bytes) -> tuple[list[str], dict[str, object], dict[str, list[object]]]:
    """upb and a Python walk to lists, as servers without kernels do."""
    message = PBRequest.FromString(body)
    user: dict[str, object] = {}
    for name, feature in message.user_features.items():
        kind = feature.WhichOneof("value")
        value = getattr(feature, kind)
        if kind.endswith("_list"):
            value = list(value.features)
        elif kind.endswith("_map"):
            value = dict(value.map_field)
        user[name] = value
    context = {
        name: [getattr(f, f.WhichOneof("value")) for f in features.features]
        for name, features in message.context_features.items()
    }
    return list(message.item_ids), user, context


def interleaved(
    calls: dict[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
    """CPU microseconds of each call, per round; rounds take them in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    counts = {name: repeats(call) for name, call in calls.items()}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(cpu_ns(call, counts[name]) / counts[name] / 1e3)
    return times


def cpu_ns(call: Callable[[], Any], count: int) -> int:
    """CPU time of so many calls; the clock costs as much as a short one."""
    start = time.thread_time_ns()
    for _ in range(count):
        call()
    return time.thread_time_ns() - start


def repeats(call: Callable[[], Any]) -> int:
    """How many calls take two milliseconds."""
    count = 1
    while cpu_ns(call, count) < 2_000_000:
        count *= 2
    return count


def row(
    what: str,
    times: dict[str, list[float]],
    over: str,
    under: str,
    bar: float,
    at_least: bool,
) -> Row:
    """The median ratio of two calls."""
    pairs = zip(times[over], times[under], strict=True)
    figures = ", ".join(
        f"{name} {statistics.median(times[name]):.1f} us" for name in (over, under)
    )
    ratio = statistics.median(a / b for a, b in pairs)
    return Row(what, ratio, bar, at_least, figures)


def parsing(rounds: int) -> list[Row]:
    body = request_body()
    calls = {
        "ours": lambda: torchrec.decode(body),
        "upb": lambda: PBRequest.FromString(body),
        "upb and walk": lambda: walk(body),
    }
    times = interleaved(calls, rounds)
    size = f"{len(body)} bytes, {ITEMS} items"
    return [
        row(f"parse to columns / upb parse, {size}", times, "ours", "upb", 0.5, False),
        row("upb and Python walk / parse", times, "upb and walk", "ours", 20, True),
    ]


def writing(rounds: int) -> list[Row]:
    rng = np.random.default_rng(0)
    outputs = {
        "probs_ctr": rng.random(ITEMS, np.float32),
        "probs_cvr": rng.random(ITEMS, np.float32),
    }
    texts = [str(10**7 + i) for i in range(ITEMS)]
    ids = Column.from_arrow(pa.array(texts))

    def with_upb() -> bytes:
        message = PBResponse()
        for name, values in outputs.items():
            tensor = message.map_outputs[name]
            tensor.dtype = 1
            tensor.array_shape.dim.append(len(values))
            tensor.float_val.extend(values.tolist())
        message.item_ids.extend(texts)
        return bytes(message.SerializeToString())

    same = PBResponse.FromString(torchrec.encode(outputs, ids))
    assert same == PBResponse.FromString(with_upb())
    calls = {"ours": lambda: torchrec.encode(outputs, ids), "upb": with_upb}
    times = interleaved(calls, rounds)
    what = f"upb extend(tolist()) / write, 2 x {ITEMS} floats and ids"
    return [row(what, times, "upb", "ours", 20, True)]


class Recorded:
    """A body as it comes from a connection."""

    def __init__(self, body: bytes) -> None:
        self._rest = memoryview(body)
        self.length = len(body)

    def read_into(self, view: memoryview) -> int:
        n = min(len(view), len(self._rest))
        view[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        return n

    def read_chunk(self, limit: int) -> bytes:
        raise NotImplementedError


def bypass(rounds: int) -> list[Row]:
    """A 10 MB request as the server receives it, and one byte off."""
    body = sample_request(0)
    with ExitStack() as stack:
        aligned = stack.enter_context(receive(Recorded(body), 1 << 30, BufferPool()))
        # Nothing of it lies on the address of a float.
        shifts = [memoryview(bytearray(s) + body)[s:] for s in range(4)]
        misaligned = next(view for view in shifts if not views_of(view))
        target = memoryview(bytearray(len(body)))
        source = np.frombuffer(misaligned, np.uint8)

        def memcpy() -> None:
            target[:] = aligned

        calls = {
            "aligned": lambda: torch.decode(aligned),
            "misaligned": lambda: torch.decode(misaligned),
            "memcpy": memcpy,
            "copy": lambda: source.copy(),
        }
        times = interleaved(calls, rounds)
        same = scores(aligned).tobytes() == scores(misaligned).tobytes()
    what = f"tensors of an aligned body / memcpy, {len(body)} bytes"
    copied = "tensors of a misaligned body / copy to new memory"
    return [
        row(what, times, "aligned", "memcpy", 0.333, False),
        row(copied, times, "misaligned", "copy", 1.25, False),
        Row("scores of both equal in every bit", float(same), 1, True, "1: yes"),
    ]


def views_of(body: memoryview) -> bool:
    """Whether a tensor of floats is a view of the body."""
    return any(
        not value.values.flags.owndata and value.values.dtype == np.float32
        for value in torch.decode(body).inputs or []
    )


def scores(body: memoryview) -> np.ndarray[Any, Any]:
    inputs = torch.decode(body).inputs or []
    with pytorch.inference_mode():
        answer = script_twin(0)(*[pytorch.from_numpy(v.values) for v in inputs])
    result: np.ndarray[Any, Any] = answer.numpy()
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    pytorch.set_num_threads(1)
    rows = [*parsing(given.rounds), *writing(given.rounds), *bypass(given.rounds)]
    ratio, figures = server_ratio()
    rows.append(
        Row("server CPU of a 10 MB body / receiving alone", ratio, 2, False, figures)
    )
    print("         ratio       bar  what")
    for one in rows:
        print(one)
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in rows], indent=2))
    return 0 if all(one.passed for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
