"""What the text types of features mean, one text at a time, in plain Python.

Slow on purpose: tokenizers encode single texts, replacing goes match by match, the
normalizer asks about one character after the other, distances fill the whole
matrix. Everything around it (cells, sequences, bucketizers) is ``fg_oracle``'s.
"""

import itertools
import re
import unicodedata

from fg_oracle import Feature, Oracle, Refused, depth, f32, normalise, token_text


def matrix_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


def replaced(pattern, replacement, text, *, replace_all):
    """As ``RE2::GlobalReplace``: no empty match right behind the last match."""
    out, at, last = [], 0, -1
    while at <= len(text):
        match = pattern.search(text, at)
        if match is None:
            break
        out.append(text[at : match.start()])
        if match.start() == match.end() == last:
            out.append(text[at : at + 1])
            at += 1
            continue
        out.append(
            re.sub(r"\\(\d)", lambda m, g=match: g[int(m[1])] or "", replacement)
        )
        at = last = match.end()
        if not replace_all:
            break
    return "".join(out) + text[at:]


def is_chinese(c):
    return any(
        low <= ord(c) <= high
        for low, high in (
            (0x3007, 0x3007),
            (0x3400, 0x4DBF),
            (0x4E00, 0x9FFF),
            (0xF900, 0xFAFF),
            (0x20000, 0x2FA1F),
            (0x30000, 0x323AF),
        )
    )


def normalised(entry, text, simplify):
    options = entry.get("parameter", 58)
    if entry.get("max_length") and len(text) > entry["max_length"]:
        return text
    out = ""
    for c in text:
        if options & 8:
            if 0xFF01 <= ord(c) <= 0xFF5E:
                c = chr(ord(c) - 0xFEE0)
            elif c == "\u3000":
                c = " "
            elif unicodedata.decomposition(c).startswith("<wide>"):
                c = unicodedata.normalize("NFKD", c)[0]
        if options & 2 and len(c.upper()) == 1:
            c = c.upper()
        if options & 4 and len(c.lower()) == 1:
            c = c.lower()
        out += c
    if options & 16:
        out = simplify(out)
    if options & 32:
        out = "".join(
            c for c in out if c.isspace() or unicodedata.category(c)[0] in "LMN"
        )
    if entry.get("remove_space"):
        out = "".join(c for c in out if not c.isspace())
    if options & 512:
        split = out[:1]
        for before, c in itertools.pairwise(out):
            seam = is_chinese(before) or is_chinese(c)
            if seam and not before.isspace() and not c.isspace():
                split += " "
            split += c
        out = split
    return out


class TextFeature(Feature):
    """``encoders``: asset name to a function from a text to its token ids."""

    def __init__(self, entry, group, siblings, farm, encoders, simplify):
        written = entry["feature_type"]
        self.type = written.removeprefix("sequence_").removesuffix("_feature")
        # Inputs, prefixes and sequences are those of an id; of distances a cross's.
        base = "combo" if self.type == "custom" else "id"
        prefix = "sequence_" if written.startswith("sequence_") else ""
        known = entry | {"feature_type": f"{prefix}{base}_feature"}
        super().__init__(known, group, siblings, farm)
        self.encoders = encoders
        self.simplify = simplify
        self.dim = entry.get("value_dim", 0)
        if self.type == "regex_replace":
            self.dim = entry.get("value_dim", int(self.is_sequence))
        if self.type == "tokenize":
            self.buckets.kind = "as they come"
        if self.type == "custom":
            self.dim = self.width = 1
            self.numeric = True

    def texts(self, piece):
        if piece is None:
            return []
        kind, value = piece
        if kind == "text":
            split = self.type == "regex_replace" and self.dim != 1
            return [t for t in value.split(self.separator) if t] if split else [value]
        return [token_text(t) for t in value if t is not None and t != ("s", b"")]

    def values_of(self, text):
        text = text.decode()
        if self.type == "tokenize":
            return self.encoders[self.entry["vocab_file"]](text)
        if self.type == "text_normalizer":
            found = normalised(self.entry, text, self.simplify)
        else:
            patterns = self.entry["regex_pattern"]
            flags = re.ASCII | (re.IGNORECASE if self.entry.get("icase") else 0)
            pattern = re.compile("|".join(f"(?:{p})" for p in patterns), flags)
            found = replaced(
                pattern,
                self.entry["replacement"],
                text,
                replace_all=self.entry.get("replace_all", True),
            )
        return [self.finish(self.prefix + found.encode())] if found else []

    def emit_texts(self, piece):
        texts = self.texts(piece)
        if self.type == "tokenize" and len(texts) > 1:
            raise Refused("a list of several values")
        found = [v for text in texts for v in self.values_of(text)]
        if not found:
            return self.emit_default()
        return [(v, 1.0) for v in (found[: self.dim] if self.dim else found)]

    def emit(self, piece, in_double):
        return self.emit_texts(piece)

    def emit_default(self):
        found = []
        if self.type == "custom":
            found = self.raw_default()
        elif self.default and self.type == "tokenize":
            found = self.values_of(self.default)[: self.dim or None]
        elif self.default:
            found = [self.finish(self.prefix + self.default)]
        return [(v, 1.0) for v in found]

    def cross(self, pieces):
        """The distance of two pieces."""
        sides = []
        for piece in pieces:
            if piece is not None and piece[0] == "values" and len(piece[1]) != 1:
                raise Refused("a list of several values")
            sides.append((self.texts(piece) or [None])[0])
        if None in sides:
            return self.emit_default()
        if self.entry.get("encoding") == "utf-8":
            sides = [side.decode() for side in sides]
        found = matrix_distance(*sides)
        found = normalise(self.normalizer, float(f32(found)), False)
        if self.buckets.kind == "hash_bucket_size":
            return [(self.buckets.of_token(("f", found)), 1.0)]
        return [(self.raw_finish(found), 1.0)]

    def raw_default(self):
        if self.default and self.buckets.kind == "hash_bucket_size":
            return [self.buckets.of_text(self.default)]
        return super().raw_default()


class TextOracle(Oracle):
    """:class:`Oracle` that knows the text types as well."""

    def __init__(self, fg_json, *, encoders, simplify):
        self.features = []
        for entry in fg_json["features"]:
            group = entry if "sequence_name" in entry else None
            children = entry["features"] if group else [entry]
            siblings = {child["feature_name"] for child in children} if group else ()
            for child in children:
                kind = child["feature_type"].removeprefix("sequence_")
                arguments = (child, group, siblings, True)
                if kind in ("id_feature", "raw_feature", "combo_feature"):
                    self.features.append(Feature(*arguments))
                else:
                    self.features.append(TextFeature(*arguments, encoders, simplify))

    def run(self, f, columns, rows, made, out):
        if getattr(f, "type", "") == "tokenize":
            for side, name, is_sequence in f.inputs:
                kind = columns.get(name, ("null", []))[0]
                if side not in ("feature", "const") and depth(kind) > is_sequence:
                    raise Refused(f"{name}: lists")
        super().run(f, columns, rows, made, out)
