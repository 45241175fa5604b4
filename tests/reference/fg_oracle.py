"""A slow Feature Generator in plain Python: what the kernels are checked against.

Written from the specification alone; shares no code with ``procserver.fg`` or
``cython_ext``. Columns are ``(type, values)`` with Arrow's name of the type
(``string``, ``int32``, ``int64``, ``float``, ``double``, ``null``, ``list<T>``,
``list<list<T>>``, ``map<K, V>``); a map is a list of pairs.
"""

import bisect
import ctypes
import itertools
import math
import re

import numpy as np

MASK = 2**64 - 1
LIBM = ctypes.CDLL("libm.so.6")
LIBM.logf.restype = ctypes.c_float
LIBM.logf.argtypes = [ctypes.c_float]


class Refused(Exception):
    """The original would not compute this."""


# -------------------------------------------------------------------- hashes


def word(data, at, size=8):
    return int.from_bytes(data[at : at + size], "little")


def std_hash(data):
    mul = 0xC6A4A7935BD1E995
    h = 0xC70F6907 ^ (len(data) * mul & MASK)
    whole = len(data) // 8 * 8
    for at in range(0, whole, 8):
        d = word(data, at) * mul & MASK
        d = (d ^ d >> 47) * mul & MASK
        h = (h ^ d) * mul & MASK
    if whole < len(data):
        h = (h ^ int.from_bytes(data[whole:], "little")) * mul & MASK
    h = (h ^ h >> 47) * mul & MASK
    return h ^ h >> 47


K0, K1, K2 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F


def rot(v, n):
    v &= MASK
    return (v >> n | v << 64 - n) & MASK


def shift_mix(v):
    v &= MASK
    return v ^ v >> 47


def len16(u, v, mul):
    a = shift_mix(((u ^ v) & MASK) * mul)
    return shift_mix((v ^ a) * mul) * mul & MASK


def weak32(data, at, a, b):
    w, x, y, z = (word(data, at + 8 * i) for i in range(4))
    a = (a + w) & MASK
    b = rot(b + a + z, 21)
    c = a
    a = (a + x + y) & MASK
    return (a + z) & MASK, (b + rot(a, 44) + c) & MASK


def farm_hash(s):
    n = len(s)
    mul = (K2 + n * 2) & MASK
    if n == 0:
        return K2
    if n < 4:
        y = s[0] + (s[n >> 1] << 8)
        z = n + (s[-1] << 2)
        return shift_mix(y * K2 ^ z * K0) * K2 & MASK
    if n < 8:
        return len16(n + (word(s, 0, 4) << 3), word(s, n - 4, 4), mul)
    if n <= 16:
        a, b = (word(s, 0) + K2) & MASK, word(s, n - 8)
        return len16(rot(b, 37) * mul + a & MASK, (rot(a, 25) + b) * mul & MASK, mul)
    if n <= 32:
        a, b = word(s, 0) * K1, word(s, 8)
        c, d = word(s, n - 8) * mul, word(s, n - 16) * K2
        return len16(
            rot(a + b, 43) + rot(c, 30) + d & MASK, a + rot(b + K2, 18) + c & MASK, mul
        )
    if n <= 64:
        a, b = word(s, 0) * K2 & MASK, word(s, 8)
        c, d = word(s, n - 8) * mul, word(s, n - 16) * K2
        y = (rot(a + b, 43) + rot(c, 30) + d) & MASK
        z = len16(y, a + rot(b + K2, 18) + c & MASK, mul)
        e, f = word(s, 16) * mul & MASK, word(s, 24)
        g = (y + word(s, n - 32)) * mul
        h = (z + word(s, n - 24)) * mul
        return len16(
            rot(e + f, 43) + rot(g, 30) + h & MASK, e + rot(f + a, 18) + g & MASK, mul
        )
    x, y = 81, (81 * K1 + 113) & MASK
    z = shift_mix(y * K2 + 113) * K2 & MASK
    v = w = (0, 0)
    x = (x * K2 + word(s, 0)) & MASK
    end = (n - 1) // 64 * 64
    for at in range(0, end, 64):
        x = rot(x + y + v[0] + word(s, at + 8), 37) * K1 & MASK
        y = rot(y + v[1] + word(s, at + 48), 42) * K1 & MASK
        x ^= w[1]
        y = (y + v[0] + word(s, at + 40)) & MASK
        z = rot(z + w[0], 33) * K1 & MASK
        v = weak32(s, at, v[1] * K1, x + w[0])
        w = weak32(s, at + 32, z + w[1], y + word(s, at + 16))
        x, z = z, x
    mul = (K1 + ((z & 0xFF) << 1)) & MASK
    at = n - 64
    w = ((w[0] + (n - 1 & 63)) & MASK, w[1])
    v = ((v[0] + w[0]) & MASK, v[1])
    w = ((w[0] + v[0]) & MASK, w[1])
    x = rot(x + y + v[0] + word(s, at + 8), 37) * mul & MASK
    y = rot(y + v[1] + word(s, at + 48), 42) * mul & MASK
    x ^= w[1] * 9 & MASK
    y = (y + v[0] * 9 + word(s, at + 40)) & MASK
    z = rot(z + w[0], 33) * mul & MASK
    v = weak32(s, at, v[1] * mul, x + w[0])
    w = weak32(s, at + 32, z + w[1], y + word(s, at + 16))
    x, z = z, x
    return len16(
        len16(v[0], w[0], mul) + shift_mix(y) * K0 + z & MASK,
        len16(v[1], w[1], mul) + x & MASK,
        mul,
    )


# ------------------------------------------------------------------- numbers


def float_text(value, single):
    text = repr(float(value))
    if single and math.isfinite(value):
        x = np.float32(value)
        fixed = x == 0 or 1e-4 <= abs(x) < 1e16
        write = np.format_float_positional if fixed else np.format_float_scientific
        text = write(x, unique=True, trim="-")
    return text.removesuffix(".0").encode()


NUMBER = re.compile(
    rb"[ \t-\r]*([+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
    rb"|inf|infinity|nan))[ \t-\r]*",
    re.IGNORECASE,
)
INTEGER = re.compile(rb"[ \t-\r]*([+-]?[0-9]+)")


def read_number(text):
    match = NUMBER.fullmatch(text)
    return None if match is None else float(match[1])


def f32(value):
    with np.errstate(all="ignore"):
        return np.float32(value)


def log10f(x):
    x = np.float32(x)
    if x == 0:
        return np.float32(-math.inf)
    if x < 0:
        return np.float32(math.nan)
    if not np.isfinite(x):
        return x
    k = 0
    if x < np.float32(2.0**-126):
        x, k = x * np.float32(2.0**25), -25
    mantissa, exponent = math.frexp(float(x))
    k += exponent - 1
    i = 1 if k < 0 else 0
    m = np.float32(mantissa * 2 * 2.0**-i)
    y = np.float32(k + i)
    z = y * np.float32(7.9034151668e-07) + np.float32(4.3429449201e-01) * np.float32(
        LIBM.logf(float(m))
    )
    return z + y * np.float32(3.0102920532e-01)


def parse_normalizer(text):
    if not text:
        return None
    parts = dict(part.split("=", 1) for part in text.split(","))
    names = {
        "log10": ("threshold", "default"),
        "zscore": ("mean", "standard_deviation"),
        "minmax": ("min", "max"),
    }[parts["method"]]
    defaults = {"threshold": "1", "default": "0"}
    a, b = (np.float32(float(parts.get(n, defaults.get(n)))) for n in names)
    return parts["method"], a, b


def normalise(spec, x, in_double):
    """``x`` is a Python float; the result a float32."""
    with np.errstate(all="ignore"):
        if spec is None:
            return np.float32(x)
        method, a, b = spec
        if not in_double:
            x = np.float32(x)
            if method == "log10":
                return log10f(x) if x > a else b
            return (x - a) / (b if method == "zscore" else b - a)
        x = np.float64(x)
        if method == "log10":
            return np.float32(np.log10(x)) if x > np.float64(a) else b
        divisor = b if method == "zscore" else b - a
        return np.float32((x - np.float64(a)) / np.float64(divisor))


# --------------------------------------------------------------- bucketizers


class Buckets:
    def __init__(self, entry, farm):
        self.kind = next(
            (
                key
                for key in (
                    "hash_bucket_size",
                    "vocab_list",
                    "vocab_dict",
                    "num_buckets",
                    "boundaries",
                )
                if entry.get(key)
            ),
            None,
        )
        self.hash = farm_hash if farm else std_hash
        self.value = entry.get(self.kind)
        self.unknown = entry.get("default_bucketize_value", 0)
        if self.kind == "vocab_list":
            self.words = {w.encode(): i for i, w in enumerate(self.value)}
        elif self.kind == "vocab_dict":
            self.words = {w.encode(): i for w, i in self.value.items()}
        elif self.kind == "boundaries":
            self.bounds = [float(np.float32(b)) for b in self.value]

    @property
    def numeric(self):
        return self.kind in ("num_buckets", "boundaries")

    def of_text(self, text):
        if self.kind == "hash_bucket_size":
            return self.hash(text) % self.value
        if self.kind in ("vocab_list", "vocab_dict"):
            return self.words.get(text, self.unknown)
        if self.kind == "num_buckets":
            match = INTEGER.fullmatch(text)
            number = int(match[1]) if match else -1
            return number if 0 <= number < min(self.value, 2**63 - 1) else 0
        number = read_number(text)
        return 0 if number is None else self.of_float(f32(number))

    def of_float(self, x):
        """``x``: what boundaries see as float32, num_buckets as it is."""
        x = float(x)
        if self.kind == "boundaries":
            x = float(f32(x))
            if math.isnan(x):
                return len(self.bounds)
            return bisect.bisect_right(self.bounds, x)
        if not abs(x) < 9.2e18:
            return 0
        return int(x) if 0 <= int(x) < self.value else 0

    def of_token(self, token):
        kind, value = token
        if self.kind == "num_buckets" and kind in "fd":
            return self.of_float(value)
        if self.kind == "boundaries" and kind != "s":
            return self.of_float(f32(value))
        return self.of_text(token_text(token))


def token_text(token):
    kind, value = token
    if kind == "s":
        return value
    if kind == "i":
        return str(value).encode()
    return float_text(value, kind == "f")


# --------------------------------------------------------------------- cells


def make_token(scalar, value):
    if value is None:
        return None
    if scalar == "string":
        return "s", value.encode("utf-8", "surrogateescape")
    if scalar in ("int32", "int64"):
        return "i", value
    return ("f", float(np.float32(value))) if scalar == "float" else ("d", value)


def inner_type(kind):
    while kind.startswith("list<"):
        kind = kind[5:-1]
    return kind


def depth(kind):
    return kind.count("list<")


def read_cell(column, row, single=False):
    """None, ("text", bytes), ("values", tokens) or ("pairs", pairs)."""
    kind, values = column
    value = values[row if len(values) != 1 else 0]
    if kind == "null" or value is None:
        return None
    if kind.startswith("map<"):
        key, item = kind[4:-1].split(", ")
        pairs = [(make_token(key, k), make_token(item, v)) for k, v in value]
        return ("pairs", pairs) if pairs else None
    if depth(kind) == 0:
        token = make_token(kind, value)
        if token[0] != "s":
            return "values", [token]
        return ("text", token[1]) if token[1] else None
    return list_piece([make_token(inner_type(kind), v) for v in value], single)


def list_piece(tokens, single):
    if single and len(tokens) == 1 and tokens[0] is not None and tokens[0][0] == "s":
        return ("text", tokens[0][1]) if tokens[0][1] else None
    return ("values", tokens) if tokens else None


def read_elements(column, row, delim, single=False):
    """The pieces of a sequence cell."""
    kind, values = column
    value = values[row if len(values) != 1 else 0]
    if kind == "null" or value is None:
        return []
    scalar = inner_type(kind)
    if depth(kind) == 0:
        token = make_token(kind, value)
        if token[0] != "s":
            return [("values", [token])]
        parts = token[1].split(delim) if token[1] else []
        return [("text", part) if part else None for part in parts]
    if depth(kind) == 1:
        pieces = []
        for v in value:
            token = make_token(scalar, v)
            if token is None or token == ("s", b""):
                pieces.append(None)
            elif token[0] == "s":
                pieces.append(("text", token[1]))
            else:
                pieces.append(("values", [token]))
        return pieces
    if len(value) == 1 and not value[0]:
        return []
    return [
        list_piece([make_token(scalar, v) for v in inner], single) if inner else None
        for inner in value
    ]


# ------------------------------------------------------------------ features


class Feature:
    """One entry. ``rows`` of a result are lists of values, or of elements."""

    def __init__(self, entry, group, siblings, farm):
        # NOTE: that module is written with the functions of this one.
        import fg_oracle_ops as ops

        self.entry = entry
        self.group = group
        kind = entry["feature_type"]
        self.kind = kind.removeprefix("sequence_").removesuffix("_feature")
        alone = kind.startswith("sequence_") or entry.get("is_sequence")
        cut = group if group else entry if alone else None
        self.is_sequence = cut is not None
        if cut is not None:
            self.delim = cut.get("sequence_delim", ";").encode()
            self.limit = cut.get("sequence_length", 0)
        self.own = entry["feature_name"]
        self.name = f"{group['sequence_name']}__{self.own}" if group else self.own
        self.separator = entry.get("separator", "\x1d").encode()
        self.buckets = Buckets(entry, farm)
        default_dim = 1 if self.is_sequence else 0
        if self.kind not in ("id", "bool_mask"):
            default_dim = 0 if self.kind == "combo" else 1
        self.dim = entry.get("value_dim", default_dim)
        self.numeric = ops.is_numeric(self.kind, entry, self.buckets.kind)
        self.width = self.dim if self.kind == "raw" else ops.width_of(self.kind, entry)
        self.operate = ops.EMIT.get(self.kind)
        textual = self.kind in ("id", "combo", "bool_mask", "combine")
        default = entry.get("default_value", "" if textual else "0")
        if self.is_sequence:
            default = default or "0"
        self.default = default.encode()
        self.weighted = self.kind == "id" and entry.get("weighted", False)
        self.prefix = b""
        plain = self.numeric or self.buckets.numeric or self.kind == "match"
        if entry.get("need_prefix") and not plain:
            self.prefix = f"{self.own}_".encode()
        self.normalizer = parse_normalizer(entry.get("normalizer", ""))
        self.inputs = []
        chosen = []
        written = ops.written_inputs(self.kind, entry)
        for _, text in written:
            side, name = text.split(":", 1)
            fields = entry.get("sequence_fields")
            if not self.is_sequence or side == "const":
                chosen.append(False)
            elif fields is not None:
                chosen.append(name in fields)
            elif side == "feature":
                chosen.append(name in siblings)
            else:
                chosen.append(self.kind in ("id", "raw", "combine") or side == "item")
            self.inputs.append((side, name))
        if self.is_sequence and not any(chosen):
            whole = ops.WHOLE.get(self.kind)
            chosen = [
                text.split(":")[0] != "const" and key != whole for key, text in written
            ]
        self.maps = [
            not c and (self.weighted or key in ops.MAPS.get(self.kind, ()))
            for c, (key, _) in zip(chosen, written, strict=True)
        ]
        self.inputs = [
            (
                side,
                f"{group['sequence_name']}__{name}" if group and c else name,
                c,
            )
            for (side, name), c in zip(self.inputs, chosen, strict=True)
        ]

    # One piece to a list of (value, weight).

    def emit_all(self, pieces, kinds, in_double):
        if self.kind == "combo":
            return self.cross(pieces)
        if self.operate is not None:
            return [(value, 1.0) for value in self.operate(self, pieces, kinds)]
        return self.emit(pieces[0], in_double)

    def emit(self, piece, in_double):
        if self.kind == "raw":
            return [(v, 1.0) for v in self.emit_raw(piece, in_double)]
        found = []
        if piece is not None:
            found = self.id_tokens(piece)
        if self.dim:
            found = found[: self.dim]
        out = []
        for token, weight in found:
            if self.buckets.kind is None or self.prefix:
                text = self.prefix + token_text(token)
                out.append((self.finish(text), weight))
            else:
                out.append((self.buckets.of_token(token), weight))
        return out or self.emit_default()

    def finish(self, text):
        return text if self.buckets.kind is None else self.buckets.of_text(text)

    def emit_default(self):
        return [(self.finish(self.prefix + self.default), 1.0)] if self.default else []

    def id_tokens(self, piece):
        kind, value = piece
        if kind == "pairs":
            return [
                (key, self.weight_of(item))
                for key, item in value
                if key is not None and key != ("s", b"")
            ]
        tokens = (
            [("s", t) for t in value.split(self.separator)] if kind == "text" else value
        )
        found = []
        for token in tokens:
            if token is None or token == ("s", b""):
                continue
            weight = 1.0
            if self.weighted and token[0] == "s":
                key, _, rest = token[1].partition(b":")
                weight = self.weight_of(("s", rest))
                token = ("s", key)
                if not key:
                    continue
            found.append((token, weight))
        return found

    def weight_of(self, token):
        if token is None:
            return 1.0
        if token[0] != "s":
            return float(f32(token[1]))
        number = read_number(token[1])
        return 1.0 if number is None else float(f32(number))

    def emit_raw(self, piece, in_double):
        if piece is None:
            return self.raw_default()
        kind, value = piece
        tokens = (
            [("s", t) for t in value.split(self.separator)] if kind == "text" else value
        )
        if len(tokens) != self.dim:
            raise Refused(f"{len(tokens)} values, not {self.dim}")
        numbers = []
        for token in tokens:
            x = None
            if token is not None:
                x = read_number(token[1]) if token[0] == "s" else token[1]
            if x is None:
                return self.raw_default()
            double = in_double and token[0] == "s"
            if not double:
                x = float(f32(x))
            numbers.append(normalise(self.normalizer, x, double))
        return [self.raw_finish(x) for x in numbers]

    def raw_finish(self, x):
        return float(x) if self.buckets.kind is None else self.buckets.of_float(x)

    def raw_default(self):
        if not self.default:
            return [] if self.buckets.kind else [0.0] * self.dim
        parts = self.default.split(self.separator)
        numbers = [f32(read_number(part)) for part in parts]
        return [self.raw_finish(x) for x in (numbers * self.dim)[: self.dim]]

    def cross(self, pieces):
        operands = []
        for piece in pieces:
            if piece is None:
                operands.append([])
                continue
            kind, value = piece
            tokens = (
                [("s", t) for t in value.split(self.separator)]
                if kind == "text"
                else value
            )
            operands.append(
                [token_text(t) for t in tokens if t is not None and t != ("s", b"")]
            )
        joined = [self.prefix + b"_".join(c) for c in itertools.product(*operands)]
        if self.dim:
            joined = joined[: self.dim]
        return [(self.finish(t), 1.0) for t in joined] or self.emit_default()

    def row(self, columns, nodes, row):
        """Values of one row, or its elements' lists of values."""
        kinds = [column[0] for column in columns]
        in_double = inner_type(kinds[0]) == "string" and (
            depth(kinds[0]) == 0 or self.buckets.kind is not None
        )
        if self.is_sequence:
            return self.sequence_row(columns, nodes, row, in_double)
        pieces = [
            read_cell(c, row, node) for c, node in zip(columns, nodes, strict=True)
        ]
        if self.kind not in ("id", "raw"):
            return self.emit_all(pieces, kinds, in_double)
        numeric = depth(kinds[0]) == 0 and kinds[0] in (
            "int32",
            "int64",
            "float",
            "double",
        )
        quirk = self.kind == "raw" and numeric and self.dim == 1 and not self.default
        if quirk and pieces[0] is None:
            return [(self.raw_finish(0.0), 1.0)]
        return self.emit(pieces[0], in_double)

    def sequence_row(self, columns, nodes, row, in_double):
        from fg_oracle_ops import default_of

        kinds = [column[0] for column in columns]
        pieces = []
        for column, node, (_, _, is_sequence) in zip(
            columns, nodes, self.inputs, strict=True
        ):
            if is_sequence:
                elements = read_elements(column, row, self.delim, node)
                pieces.append(elements[: self.limit] if self.limit else elements)
            else:
                pieces.append(read_cell(column, row, node))
        lengths = [len(p) for p, i in zip(pieces, self.inputs, strict=True) if i[2]]
        count = max(lengths, default=0)
        out = []
        for at in range(count):
            now = [
                (p[at] if at < len(p) else None) if i[2] else p
                for p, i in zip(pieces, self.inputs, strict=True)
            ]
            out.append(self.emit_all(now, kinds, in_double))
        if not out and self.operate is not None:
            out.append([(value, 1.0) for value in default_of(self)])
        elif not out:
            out.append(
                self.emit_default()
                if self.kind == "combo"
                else self.emit(None, in_double)
            )
        return out


class Oracle:
    """``fg_json`` as a mapping; :meth:`transform` gives lists under tensor names."""

    def __init__(self, fg_json, *, farm_hash=False):
        self.features = []
        for entry in fg_json["features"]:
            if "sequence_name" in entry:
                siblings = {child["feature_name"] for child in entry["features"]}
                for child in entry["features"]:
                    self.features.append(Feature(child, entry, siblings, farm_hash))
            else:
                self.features.append(Feature(entry, None, (), farm_hash))

    def transform(self, columns):
        used = {
            name
            for f in self.features
            for side, name, _ in f.inputs
            if side not in ("feature", "const")
        }
        counts = {len(v) for n, (_, v) in columns.items() if n in used}
        counts = (counts or {len(v) for _, v in columns.values()}) - {1}
        rows = counts.pop() if counts else 1
        made, out = {}, {}
        pending = list(self.features)
        while pending:
            feature = next(
                f
                for f in pending
                if all(s != "feature" or n in made for s, n, _ in f.inputs)
            )
            pending.remove(feature)
            self.run(feature, columns, rows, made, out)
        return out

    def run(self, f, columns, rows, made, out):
        inputs, nodes = [], []
        for (side, name, is_sequence), takes_map in zip(f.inputs, f.maps, strict=True):
            nodes.append(side == "feature")
            if side == "const":
                inputs.append(("string", [name]))
            elif side == "feature":
                inputs.append(as_column(*made[name], is_sequence))
            else:
                inputs.append(columns.get(name, ("null", [None])))
            kind = inputs[-1][0]
            if kind.startswith("map<") and not takes_map:
                raise Refused(f"{name}: maps")
            if depth(kind) == 2 and not is_sequence:
                raise Refused(f"{name}: lists of lists")
        own = 1 if all(len(values) == 1 for _, values in inputs) else rows
        found = [f.row(inputs, nodes, row) for row in range(own)]
        made[f.name] = (f, found)
        if own != rows:
            found = found * rows
        if f.entry.get("stub_type") or (f.buckets.kind is None and not f.numeric):
            return
        elements = [e for row in found for e in row] if f.is_sequence else found
        flat = [pair for e in elements for pair in e]
        values = [value for value, _ in flat]
        if f.buckets.kind is None:
            w = f.width
            values = [values[i : i + w] for i in range(0, len(values), w)]
        out[f"{f.name}.values"] = values
        if f.buckets.kind is not None or f.is_sequence:
            out[f"{f.name}.lengths"] = [len(row) for row in found]
        if f.is_sequence and f.buckets.kind is not None and f.dim != 1:
            out[f"{f.name}.key_lengths"] = [len(e) for e in elements]
        if f.weighted:
            out[f"{f.name}.weights"] = [weight for _, weight in flat]


def as_column(feature, found, is_sequence):
    """A feature's result as what its consumers read."""
    scalar = "string"
    if feature.buckets.kind is not None:
        scalar = "int64"
    elif feature.numeric:
        scalar = "float"

    def plain(pairs):
        return [
            v.decode("utf-8", "surrogateescape") if scalar == "string" else v
            for v, _ in pairs
        ]

    if not feature.is_sequence:
        return f"list<{scalar}>", [plain(row) for row in found]
    nested = [[plain(element) for element in row] for row in found]
    if is_sequence:
        return f"list<list<{scalar}>>", nested
    return f"list<{scalar}>", [[v for e in row for v in e] for row in nested]
