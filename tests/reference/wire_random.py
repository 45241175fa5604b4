"""Random requests of both protocols, right more often than not."""

import numpy as np

from procserver.wire.pb.torch_predict_pb2 import PredictRequest
from procserver.wire.pb.torchrec_predict_pb2 import PBFeature, PBRequest
from tests.reference import wire_walk

ALTERNATIVES = [field.name for field in PBFeature.DESCRIPTOR.fields]
TEXTS = ["", "a", "item_1", "0123456789abcdef", "x" * 130, "é", "日本語", "😀b", "\0"]
INTS = [0, 1, -1, 127, 128, 300, 2**31 - 1, -(2**31)]
LONGS = [*INTS, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63), 10**12]
FLOATS = [0.0, -0.0, 1.5, -2.25, float("inf"), float("nan"), 3.4e38]
DOUBLES = [*FLOATS, 0.1, 1e300, 5e-324]
VALUES = {
    "int": INTS,
    "long": LONGS,
    "string": TEXTS,
    "float": FLOATS,
    "double": DOUBLES,
}


def fill_feature(feature, alternative, rng):
    """Sets the alternative to random content, empty content included."""
    *of, last = alternative.split("_")
    if last == "feature":
        setattr(feature, alternative, rng.choice(VALUES[of[0]]))
        return
    message = getattr(feature, alternative)
    message.SetInParent()
    n = rng.choice([0, 1, 2, 3, 12])
    if last == "map":
        for _ in range(n):
            key = rng.choice(VALUES[of[0]])
            if rng.random() < 0.5:
                key = str(rng.random()) if of[0] == "string" else rng.randrange(99)
            message.map_field[key] = rng.choice(VALUES[of[1]])
    elif last == "list":
        message.features.extend(rng.choices(VALUES[of[0]], k=n))
    else:
        for _ in range(n):
            inner = message.lists.add()
            inner.features.extend(rng.choices(VALUES[of[0]], k=rng.choice([0, 1, 5])))


def fill_rows(features, rng):
    """Rows of one type, with or without blanks, or of a few types."""
    kinds = [rng.choice(ALTERNATIVES)]
    if rng.random() < 0.4:
        kinds += ["string_feature"]
    if rng.random() < 0.3:
        kinds += rng.choices(ALTERNATIVES[:5] + ALTERNATIVES[20:25], k=2)
    plain = rng.random() < 0.5
    for _ in range(rng.choice([0, 1, 2, 9])):
        feature = features.add()
        if plain:
            fill_feature(feature, kinds[0], rng)
        elif rng.random() < 0.3:
            feature.string_feature = ""
        elif rng.random() < 0.9:
            fill_feature(feature, rng.choice(kinds), rng)


def torchrec_request(rng):
    message = PBRequest()
    if rng.random() < 0.5:
        message.debug_level = rng.choice(INTS)
        message.faiss_neigh_num = rng.choice(INTS)
    message.item_ids.extend(rng.choices(TEXTS, k=rng.choice([0, 1, 5])))
    for i in range(rng.randrange(5)):
        fill_feature(message.user_features[f"u{i}"], rng.choice(ALTERNATIVES), rng)
    if rng.random() < 0.2:
        message.user_features[rng.choice(TEXTS)].SetInParent()
    for columns in (message.context_features, message.item_features):
        for i in range(rng.randrange(4)):
            columns[f"é{i}"].SetInParent()
            fill_rows(columns[f"é{i}"].features, rng)
    for i in range(rng.randrange(3)):
        message.meta_data[f"m{i}"] = rng.choice(TEXTS)
    return message


def fill_tensor(proto, rng):
    """Sets a tensor that is right more often than not."""
    dtype = rng.choice(list(wire_walk.CARRIED))
    field, numpy_dtype = wire_walk.CARRIED[dtype]
    proto.dtype = dtype
    dims = [rng.choice([0, 1, 2, 3, 5]) for _ in range(rng.randrange(4))]
    proto.array_shape.dim.extend(dims)
    n = int(np.prod(dims, dtype=np.int64))
    if np.dtype(numpy_dtype).kind == "c":
        n *= 2
    if rng.random() < 0.1:
        n += 1
    if np.dtype(numpy_dtype).kind == "b":
        low, high = 0, 1
    elif field in ("int_val", "int64_val"):
        low, high = np.iinfo(numpy_dtype).min, np.iinfo(numpy_dtype).max
    else:
        low, high = -1000, 1000
    for _ in range(n):
        value = rng.choice([low, high, rng.randint(int(low), int(high))])
        if rng.random() < 0.02:
            value = max(-(2**31), min(2**31 - 1, int(value) + 1))
        getattr(proto, field).append(int(value))
    if rng.random() < 0.03:
        proto.float_val.append(1.0)
    if rng.random() < 0.03:
        proto.string_val.append(b"x")
    if rng.random() < 0.03:
        proto.dtype = rng.choice([0, 7, 20, 21, 22, -1])
    if rng.random() < 0.03:
        proto.array_shape.dim.append(rng.choice([-1, 2**62, 4]))


def torch_request(rng):
    message = PredictRequest()
    for _ in range(rng.choice([0, 1, 3])):
        fill_tensor(message.inputs.add(), rng)
    for i in range(rng.choice([0, 0, 1, 3])):
        fill_tensor(message.map_inputs[f"é{i}.values"], rng)
    message.output_filter.extend(rng.choices([0, 1, -1, 300], k=rng.randrange(3)))
    if rng.random() < 0.3:
        message.debug_level = 903
    return message
