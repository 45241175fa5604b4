"""The wire kernels against upb: one line for each comparison.

Run from the repository root: ``python -m loadtest.micro.wire_torchrec``.
Times are the best of interleaved rounds on one core; the ratios are what counts.
"""

import random
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from cython_ext.column import Column
from procserver.wire import torch, torchrec
from procserver.wire.pb.torch_predict_pb2 import PredictRequest
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse

ITEMS, CONTEXT, USER = 300, 10, 50
FLOATS = 2_534_000


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
    return message.SerializeToString()


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


def best(*calls: Callable[[], object], rounds: int) -> list[float]:
    """Microseconds of each call, the best of interleaved rounds."""
    times = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            times[i] = min(times[i], time.perf_counter() - start)
    return [t * 1e6 for t in times]


def bypass_body() -> tuple[bytearray, list[memoryview]]:
    """A 10 MB request, and views of it in which its floats are shifted."""
    message = PredictRequest()
    tensor = message.inputs.add(dtype=1)
    tensor.array_shape.dim.append(FLOATS)
    tensor.float_val.extend(np.arange(FLOATS, dtype=np.float32).tolist())
    body = message.SerializeToString()
    memory = bytearray(len(body) + 8)
    views = []
    for shift in range(4):
        view = memoryview(memory)[shift : shift + len(body)]
        view[:] = body
        values = torch.decode(view).inputs
        assert values is not None
        views.append((not values[0].values.flags.owndata, shift))
    # The aligned shift first, then one that is not.
    order = sorted(views, reverse=True)
    size = len(body)
    memory[order[0][1] : order[0][1] + size] = body
    other = bytearray(bytes(order[-1][1]) + body)
    return memory, [
        memoryview(memory)[order[0][1] : order[0][1] + size],
        memoryview(other)[order[-1][1] :],
    ]


def main() -> None:
    """Prints the table."""
    body = request_body()
    ours, upb, both = best(
        lambda: torchrec.decode(body),
        lambda: PBRequest.FromString(body),
        lambda: walk(body),
        rounds=300,
    )
    print(f"parse to columns, {len(body)} bytes: {ours:.1f} us")
    print(f"  upb ParseFromString: {upb:.1f} us, ours is {ours / upb:.2f}x of it")
    print(f"  upb and Python walk: {both:.1f} us, ours is {both / ours:.1f}x faster")

    outputs = {
        "probs_ctr": np.random.default_rng(0).random(ITEMS, np.float32),
        "probs_cvr": np.random.default_rng(1).random(ITEMS, np.float32),
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
        return message.SerializeToString()

    ours, upb = best(lambda: torchrec.encode(outputs, ids), with_upb, rounds=2000)
    print(f"write response, 2 x {ITEMS} floats and ids: {ours:.2f} us")
    print(f"  upb extend(tolist()): {upb:.1f} us, ours is {upb / ours:.1f}x faster")

    large = {"x": np.zeros(FLOATS, np.float32)}
    source = memoryview(bytearray(FLOATS * 4))
    target = memoryview(bytearray(FLOATS * 4))

    def copy() -> None:
        target[:] = source

    (aligned, shifted) = bypass_body()[1]
    view, copied, written, memcpy = best(
        lambda: torch.decode(aligned),
        lambda: torch.decode(shifted),
        lambda: torch.encode(large),
        copy,
        rounds=30,
    )
    print(f"bypass, {len(aligned)} bytes; one memcpy of them: {memcpy:.0f} us")
    print(f"  decode, aligned: {view:.1f} us ({view / memcpy:.3f} memcpy)")
    print(f"  decode, misaligned: {copied:.0f} us ({copied / memcpy:.2f} memcpy)")
    print(f"  encode: {written:.0f} us ({written / memcpy:.2f} memcpy)")


if __name__ == "__main__":
    main()
