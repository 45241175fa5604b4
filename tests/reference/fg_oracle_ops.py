"""Operators of several inputs for the oracle of ``fg_oracle``, in plain Python.

Each is a function of the feature and its pieces (None, ``("text", bytes)``,
``("values", tokens)``, ``("pairs", pairs)``; see ``fg_oracle``) that gives the
values of one row or element.
"""

import itertools
import math
from functools import reduce

import numpy as np
from fg_oracle import float_text, normalise, read_number, token_text

INPUTS = {
    "lookup": ["map", "key"],
    "match": ["user", "category", "item"],
    "overlap": ["query", "title"],
    "kv_dot_product": ["query", "document"],
}
WHOLE = {"lookup": "map", "match": "user"}
MAPS = {
    "lookup": {"map"}, "match": {"user"}, "kv_dot_product": {"query", "document"},
}  # fmt: skip


def flag(entry, *names, default=False):
    return next((entry[name] for name in names if name in entry), default)


def written_inputs(kind, entry):
    """Key and ``side:name`` of each input."""
    if kind not in INPUTS:
        listed = entry["expression"]
        listed = [listed] if isinstance(listed, str) else listed
        return [("expression", text) for text in listed]
    texts = [(key, entry.get(key, "ALL")) for key in INPUTS[kind]]
    return [(k, "const:ALL" if text == "ALL" else text) for k, text in texts]


def combiner_of(kind, entry):
    if kind == "combine":
        return entry.get("combiner", "").lower() or "sum"
    if kind != "lookup" or is_discrete(kind, entry):
        return ""
    return entry.get("combiner", "sum").lower()


def is_discrete(kind, entry):
    default = kind == "match"
    if kind == "lookup":
        default = entry.get("value_type", "").lower() == "string"
    return flag(entry, "needDiscrete", "need_discrete", default=default)


def is_numeric(kind, entry, bucket):
    """Whether values are numbers before bucketization."""
    if kind in ("raw", "combine", "overlap", "kv_dot_product"):
        return True
    if kind not in ("lookup", "match"):
        return False
    if combiner_of(kind, entry):
        return True
    if is_discrete(kind, entry):
        return False
    if kind == "lookup" and bucket is None:
        return entry.get("value_type", "float").lower() != "string"
    return bucket in (None, "boundaries")


def width_of(kind, entry):
    if kind in ("lookup", "match") and not combiner_of(kind, entry):
        return entry.get("value_dim", 1) or 1
    return 1


# --------------------------------------------------------------------- pieces


def texts_of(piece, separator):
    """Token texts in their places; None for nulls."""
    if piece is None:
        return []
    kind, value = piece
    if kind == "text":
        return value.split(separator)
    return [None if token is None else token_text(token) for token in value]


def pairs_of(piece, separator, mark, bare):
    """Key texts to value tokens."""
    if piece is None:
        return {}
    kind, value = piece
    found = {}
    if kind == "pairs":
        for key, item in value:
            if key is not None and item is not None and token_text(key):
                found[token_text(key)] = item
        return found
    tokens = [("s", t) for t in value.split(separator)] if kind == "text" else value
    for token in tokens:
        if token is None:
            continue
        if token[0] != "s":
            if bare:
                found[token_text(token)] = ("d", 1.0)
            continue
        key, separated, item = token[1].partition(mark)
        if key and separated:
            found[key] = ("s", item)
        elif key and bare:
            found[key] = ("d", 1.0)
    return found


def number_of(token):
    return read_number(token[1]) if token[0] == "s" else float(token[1])


# ------------------------------------------------------------------ finishing


def finish_number(f, x, in_double):
    """A number to what the feature emits of it."""
    if f.normalizer is not None:
        x = float(normalise(f.normalizer, x, in_double))
    if f.buckets.kind is None:
        with np.errstate(over="ignore"):
            return float(np.float32(x))
    if f.buckets.numeric:
        return f.buckets.of_float(x)
    return f.buckets.of_text(float_text(x, f.normalizer is not None))


def default_of(f):
    if not f.numeric:
        return [value for value, _ in f.emit_default()]
    default = f.default
    if not default and f.kind in ("combine", "overlap", "kv_dot_product"):
        default = b"0"
    if not default:
        return [] if f.buckets.kind else [0.0] * f.width
    if f.buckets.kind and not f.buckets.numeric:
        return [f.buckets.of_text(default)]
    numbers = [np.float32(read_number(part)) for part in default.split(f.separator)]
    numbers = (numbers * f.width)[: f.width]
    if f.buckets.kind is None:
        return [float(x) for x in numbers]
    return [f.buckets.of_float(x) for x in numbers]


def row_of(f, values):
    """Any number of values; a matrix has ``width`` of them, or the default."""
    if f.buckets.kind is None and f.numeric and not f.entry.get("stub_type"):
        values = values[: f.width] if len(values) >= f.width else []
    return values or default_of(f)


def in_double(f, kind):
    """Whether numbers in texts of the column are normalised in double."""
    scalar = kind.removesuffix(">").rsplit("<", 1)[-1].rsplit(", ", 1)[-1]
    if scalar.rstrip(">") != "string":
        return False
    return kind == "string" or f.buckets.kind is not None


# ------------------------------------------------------------------ operators


def combine(name, numbers):
    if name == "count":
        return float(len(numbers))
    if name in ("sum", "mean", "avg"):
        total = reduce(lambda a, b: a + b, numbers)
        return total if name == "sum" else total / len(numbers)
    if name in ("min", "max"):
        return (min if name == "min" else max)(numbers)
    numbers = sorted(numbers, key=lambda x: (math.isnan(x), x))
    gaps = [b - a for a, b in itertools.pairwise(numbers)]
    gaps = [gap for gap in gaps if not math.isnan(gap)]
    return (min if name == "gap_min" else max)(gaps, default=0.0)


def emit_combine(f, pieces, kinds):
    mapped = f.entry.get("value_map")
    (piece,) = pieces
    tokens = []
    if piece is not None:
        kind, value = piece
        tokens = value
        if kind == "text":
            tokens = [("s", text) for text in value.split(f.separator)]
    tokens = [t for t in tokens if t is not None and t[1] != b""]
    if mapped:
        table = {key.encode(): float(number) for key, number in mapped.items()}
        numbers = [table.get(token_text(token)) for token in tokens]
    else:
        numbers = [number_of(token) for token in tokens]
    numbers = [x for x in numbers if x is not None]
    if not numbers:
        return default_of(f)
    x = combine(combiner_of("combine", f.entry), numbers)
    return [finish_number(f, x, in_double(f, kinds[0]))]


def emit_lookup(f, pieces, kinds):
    table = pairs_of(pieces[0], b"\x1d", b":", False)
    keys = [key for key in texts_of(pieces[1], f.separator) if key in table]
    double = in_double(f, kinds[0])
    combiner = combiner_of("lookup", f.entry)
    if f.numeric:
        numbers = [number_of(table[key]) for key in keys]
        numbers = [x for x in numbers if x is not None]
        if combiner:
            if not numbers:
                return default_of(f)
            numbers = [combine(combiner, numbers)]
        values = [finish_number(f, x, double) for x in numbers]
        return values if combiner else row_of(f, values)
    values = []
    for key in keys:
        token = table[key]
        if token == ("s", b""):
            continue
        if flag(f.entry, "needKey", "need_key") and not f.buckets.numeric:
            token = ("s", key + b"_" + token_text(token))
        if f.buckets.kind is None or f.prefix:
            values.append(f.finish(f.prefix + token_text(token)))
        else:
            values.append(f.buckets.of_token(token))
    return row_of(f, values)


def nested_map(piece):
    """(category, item) to value text."""
    found = {}
    if piece is None:
        return found
    kind, value = piece
    blocks = []
    if kind == "pairs":
        for key, text in value:
            if key is not None and text is not None and text[0] == "s":
                blocks.append((token_text(key), text[1]))
    else:
        texts = (
            [value] if kind == "text" else [t[1] for t in value if t and t[0] == "s"]
        )
        for part in (part for text in texts for part in text.split(b"|")):
            category, mark, items = part.partition(b"^")
            if mark:
                blocks.append((category, items))
    for category, items in blocks:
        for one in items.replace(b"\x1d", b",").split(b","):
            item, _, text = one.partition(b":")
            if item and text:
                found[category, item] = text
    return found


def emit_match(f, pieces, kinds):
    table = nested_map(pieces[0])
    many = flag(f.entry, "matchType", "match_type", default="hit") == "multihit"
    wanted = []
    for key, piece in zip(("category", "item"), pieces[1:], strict=True):
        everything = many and f.entry.get(key, "ALL") in ("ALL", "const:ALL")
        wanted.append(None if everything else texts_of(piece, f.separator))
    categories, items = wanted
    matches = []
    for category in [None] if categories is None else categories:
        for item in [None] if items is None else items:
            if category == b"" or item == b"":
                continue
            if (categories is not None and category is None) or (
                items is not None and item is None
            ):
                continue
            matches += [
                (c, i, text)
                for (c, i), text in table.items()
                if category in (None, c) and item in (None, i)
            ]
    values = []
    own = f.own.encode()
    for category, item, text in matches:
        if f.numeric:
            number = read_number(text)
            if number is not None:
                values.append(finish_number(f, number, in_double(f, kinds[0])))
            continue
        if is_discrete("match", f.entry) and f.buckets.kind in (
            None, "hash_bucket_size",
        ):  # fmt: skip
            parts = [own]
            parts += [category] if f.entry.get("show_category") else []
            parts += [item] if f.entry.get("show_item") else []
            text = b"_".join([*parts, text])
        values.append(f.finish(text))
    return row_of(f, values if many else values[:1])


def emit_bool_mask(f, pieces, kinds):
    values, mask = pieces
    if values is None:
        return default_of(f)
    kind, tokens = values
    if kind == "text":
        tokens = [("s", text) for text in tokens.split(f.separator)]
    kept = []
    for token, bit in zip(tokens, texts_of(mask, f.separator), strict=False):
        number = read_number(bit or b"")
        true = (bit or b"").lower() == b"true"
        true = true or (number is not None and abs(number) > 0)
        if true and token is not None and token != ("s", b""):
            kept.append(token)
    if f.dim:
        kept = kept[: f.dim]
    if f.buckets.kind is None or f.prefix:
        found = [f.finish(f.prefix + token_text(token)) for token in kept]
    else:
        found = [f.buckets.of_token(token) for token in kept]
    return found or default_of(f)


def emit_kv_dot_product(f, pieces, kinds):
    mark = f.entry.get("kv_delimiter", ":").encode()
    query, document = (pairs_of(p, f.separator, mark, True) for p in pieces)
    if not query or not document:
        return default_of(f)

    def weight(token):
        number = number_of(token)
        return 1.0 if number is None else number

    product = 0.0
    for key, token in document.items():
        if key in query:
            product += weight(query[key]) * weight(token)
    return [finish_number(f, product, False)]


def measure(method, query, title):
    if method == "query_common_ratio":
        return sum(term in title for term in query) / len(query)
    if method == "title_common_ratio":
        return sum(term in query for term in title) / len(title)
    if method == "is_equal":
        return float(query == title)
    places = [
        at
        for at in range(len(title) - len(query) + 1)
        if title[at : at + len(query)] == query
    ]
    if method == "is_contain":
        return float(bool(places))
    if method == "index_of":
        return float(places[0] if places else -1)
    if method == "proximity_min_cover":
        parts = (
            stop - start
            for start in range(len(title))
            for stop in range(start + 1, len(title) + 1)
            if set(query) <= set(title[start:stop])
        )
        return float(min(parts, default=0))
    missing = len(title) + 1
    distances = []
    for a, b in itertools.combinations(dict.fromkeys(query), 2):
        places_a = [i for i, term in enumerate(title) if term == a]
        places_b = [i for i, term in enumerate(title) if term == b]
        gaps = [abs(i - j) for i in places_a for j in places_b]
        distances.append(min(gaps, default=missing))
    if not distances:
        return float(missing)
    if method == "proximity_min_dist":
        return float(min(distances))
    if method == "proximity_max_dist":
        return float(max(distances))
    return sum(distances) / len(distances)


def emit_overlap(f, pieces, kinds):
    query, title = ([t for t in texts_of(p, f.separator) if t] for p in pieces)
    if not query or not title:
        return default_of(f)
    return [finish_number(f, measure(f.entry["method"], query, title), False)]


EMIT = {
    "combine": emit_combine,
    "lookup": emit_lookup,
    "match": emit_match,
    "overlap": emit_overlap,
    "kv_dot_product": emit_kv_dot_product,
    "bool_mask": emit_bool_mask,
}
