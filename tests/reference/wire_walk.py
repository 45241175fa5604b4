"""What a decoder should say, by a slow walk over the messages that upb parsed."""

import math
import struct

import numpy as np

SCALARS = {
    "int_feature": "INT32",
    "long_feature": "INT64",
    "string_feature": "STRING",
    "float_feature": "FLOAT32",
    "double_feature": "FLOAT64",
}
TYPES = {
    "int": "INT32",
    "long": "INT64",
    "string": "STRING",
    "float": "FLOAT32",
    "double": "FLOAT64",
}


class Conflict(Exception):
    """The rows of a feature are of types that do not mix."""


class Refused(Exception):
    """A tensor whose dtype, shape and values do not agree."""


def cell(feature):
    """(shape, key type, value type, value) of a PBFeature; None if unset."""
    name = feature.WhichOneof("value")
    if name is None:
        return None
    value = getattr(feature, name)
    if name in SCALARS:
        return "SCALAR", None, SCALARS[name], value
    *parts, last = name.split("_")
    if last == "map":
        key, of = parts
        return "MAP", TYPES[key], TYPES[of], dict(value.map_field)
    if last == "list":
        return "LIST", None, TYPES[parts[0]], list(value.features)
    lists = [list(inner.features) for inner in value.lists]
    return "LISTS", None, TYPES[parts[0]], lists


def join(a, b):
    """The type that holds values of both."""
    if a == b:
        return a
    ints, floats = {"INT32", "INT64"}, {"FLOAT32", "FLOAT64"}
    both = {a, b}
    if both <= ints:
        return "INT64"
    if both <= ints | {"STRING"}:
        return "STRING"
    if both <= ints | floats:
        return "FLOAT64"
    raise Conflict


def convert(value, source, target):
    if target == "STRING" and source != "STRING":
        return str(value)
    if target == "FLOAT64" and source in ("INT32", "INT64"):
        if int(float(value)) != value:
            raise Conflict
        return float(value)
    return value


def kind_name(shape, key, value):
    if shape == "SCALAR":
        return value
    return f"MAP_{key}_{value}" if shape == "MAP" else f"{shape}_{value}"


def column(features):
    """(kind name, cells) of the column that these features make."""
    cells = [cell(feature) for feature in features]
    blank = [c is None or (c[0] == "SCALAR" and c[3] == "") for c in cells]
    shape = key = value = None
    for c, is_blank in zip(cells, blank, strict=True):
        if is_blank:
            continue
        if shape is None:
            shape, key, value = c[:3]
            continue
        shapes = {shape, c[0]}
        if len(shapes) == 2:
            if shapes != {"SCALAR", "LIST"}:
                raise Conflict
            shape = "LIST"
        value = join(value, c[2])
        key = join(key, c[1]) if shape == "MAP" else None
    if shape is None:
        if all(c is None for c in cells):
            return "ABSENT", [None] * len(cells)
        shape, value = "SCALAR", "STRING"
    is_text = (shape, value) == ("SCALAR", "STRING")
    out = []
    for c, is_blank in zip(cells, blank, strict=True):
        if c is None or (is_blank and not is_text):
            out.append(None)
            continue
        own_shape, own_key, own, content = c
        if own_shape == "SCALAR":
            content = convert(content, own, value)
            out.append([content] if shape == "LIST" else content)
        elif own_shape == "LIST":
            out.append([convert(v, own, value) for v in content])
        elif own_shape == "LISTS":
            out.append([[convert(v, own, value) for v in inner] for inner in content])
        else:
            out.append(
                {
                    convert(k, own_key, key): convert(v, own, value)
                    for k, v in content.items()
                }
            )
    return kind_name(shape, key, value), out


def request(message):
    """A PBRequest as plain Python values."""
    return {
        "debug_level": message.debug_level,
        "faiss_neigh_num": message.faiss_neigh_num,
        "item_ids": list(message.item_ids),
        "meta": dict(message.meta_data),
        "user": {k: column([f]) for k, f in message.user_features.items()},
        "context": {k: column(c.features) for k, c in message.context_features.items()},
        "item": {k: column(c.features) for k, c in message.item_features.items()},
    }


def frozen(value):
    """The value such that equal means the same bits, NaN included."""
    if isinstance(value, dict):
        return {k: frozen(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [frozen(v) for v in value]
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("<d", value)
    return value


def decoded(request):
    """A ``TorchRecRequest`` in the form of :func:`request`."""

    def plain(columns):
        out = {}
        for name, c in columns.items():
            cells = c.to_pylist()
            if c.kind.name.startswith("MAP"):
                for entries in cells:
                    keys = [k for k, _ in entries or []]
                    assert len(set(keys)) == len(keys), "a key appears twice"
                cells = [None if e is None else dict(e) for e in cells]
            out[name] = (c.kind.name, cells)
        return out

    return {
        "debug_level": request.debug_level,
        "faiss_neigh_num": request.faiss_neigh_num,
        "item_ids": request.item_ids.to_pylist(),
        "meta": request.meta,
        "user": plain(request.user),
        "context": plain(request.context),
        "item": plain(request.item),
    }


FIELDS = ("float_val", "double_val", "int_val", "string_val", "int64_val")
CARRIED = {
    1: ("float_val", np.float32),
    2: ("double_val", np.float64),
    3: ("int_val", np.int32),
    4: ("int_val", np.uint8),
    5: ("int_val", np.int16),
    6: ("int_val", np.int8),
    8: ("float_val", np.complex64),
    9: ("int64_val", np.int64),
    10: ("int_val", np.bool_),
    11: ("int_val", np.int8),
    12: ("int_val", np.uint8),
    13: ("int_val", np.int32),
    14: ("float_val", np.float32),
    15: ("int_val", np.int16),
    16: ("int_val", np.uint16),
    17: ("int_val", np.uint16),
    18: ("double_val", np.complex128),
    19: ("float_val", np.float32),
}


def float_bytes(proto):
    """The values of an ArrayProto that has nothing but floats or doubles.

    As upb writes them, last: a Python float would change the bits of some NaNs.
    """
    proto.DiscardUnknownFields()
    n = 4 * len(proto.float_val) + 8 * len(proto.double_val)
    return proto.SerializeToString()[-n:] if n else b""


def array(proto):
    """The numpy array that an ArrayProto stands for."""
    if proto.dtype not in CARRIED:
        raise Refused
    field, dtype = CARRIED[proto.dtype]
    if any(len(getattr(proto, other)) for other in FIELDS if other != field):
        raise Refused
    dims = list(proto.array_shape.dim)
    values = list(getattr(proto, field))
    if len(dims) > 64 or any(d < 0 for d in dims):
        raise Refused
    if math.prod(d for d in dims if d) > (2**63 - 1) >> 4:
        raise Refused
    elements = math.prod(dims)
    pairs = 2 if np.dtype(dtype).kind == "c" else 1
    if len(values) != pairs * elements:
        raise Refused
    if dtype is np.bool_:
        low, high = 0, 1
    elif np.dtype(dtype).kind in "iu":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    else:
        return np.frombuffer(float_bytes(proto), dtype, elements).reshape(dims)
    if any(not low <= v <= high for v in values):
        raise Refused
    return np.array(values, dtype).reshape(dims)


def arrays(message):
    """(inputs, map_inputs, output_filter, debug_level) of a PredictRequest."""
    return (
        [(p.dtype, array(p)) for p in message.inputs],
        {k: (p.dtype, array(p)) for k, p in message.map_inputs.items()},
        list(message.output_filter),
        message.debug_level,
    )
