"""Slow expr_feature and SeqExpr over columns, on the oracle's cells and language.

Columns are ``(type, values)`` as in ``fg_oracle``; a result is a list under each
tensor name.
"""

import math

import fg_expr_oracle as language
from fg_oracle import (
    Buckets,
    Refused,
    depth,
    f32,
    normalise,
    parse_normalizer,
    read_cell,
    read_elements,
    read_number,
)


def numbers_of(piece, separator):
    """The numbers of a piece, or None if it is empty or holds something else."""
    if piece is None:
        return None
    kind, value = piece
    if kind == "text":
        found = [read_number(token) for token in value.split(separator)]
    else:
        found = [
            None if t is None else read_number(t[1]) if t[0] == "s" else float(t[1])
            for t in value
        ]
    return None if None in found else found


class ExprOracle:
    """One entry, outside of a group or in it."""

    def __init__(self, entry, group=None):
        self.is_custom = entry["feature_type"] == "custom_feature"
        prefixed = entry["feature_type"].startswith("sequence_")
        cut = group or (entry if prefixed or entry.get("is_sequence") else None)
        self.is_sequence = cut is not None
        if self.is_sequence:
            self.delim = cut.get("sequence_delim", ";").encode()
            self.limit = cut.get("sequence_length", 0)
        own = entry["feature_name"]
        self.name = f"{group['sequence_name']}__{own}" if group else own
        self.separator = entry.get("separator", "\x1d").encode()
        self.fill = float(entry.get("fill_missing", "nan"))
        self.dim = entry.get("value_dim", 1 if self.is_custom else 0)
        self.buckets = Buckets(entry, False)
        self.default = entry.get("default_value", "0")
        if self.is_sequence:
            self.default = self.default or "0"
        self.normalizer = parse_normalizer(entry.get("normalizer", ""))
        written = entry["expression"] if self.is_custom else entry["variables"]
        self.names = [text.split(":", 1)[1] for text in written]
        sides = [text.split(":", 1)[0] for text in written]
        fields = entry.get("sequence_fields")
        self.chosen = [
            self.is_sequence and (n in fields if fields is not None else s == "item")
            for n, s in zip(self.names, sides, strict=True)
        ]
        self.spread = self.is_custom and self.is_sequence and not any(self.chosen)
        if self.is_sequence and not any(self.chosen):
            self.chosen = [True] * len(self.names)
        self.columns = [
            f"{group['sequence_name']}__{n}" if group and c and not self.spread else n
            for n, c in zip(self.names, self.chosen, strict=True)
        ]
        formula = entry["formula"] if self.is_custom else entry["expression"]
        if formula == "spherical_distance":
            formula = f"haversine({','.join(self.names)})"
        self.tree = language.parse(formula)

    def default_numbers(self):
        if not self.default:
            return [] if self.buckets.kind else [0.0]
        parts = self.default.encode().split(self.separator)
        numbers = [float(f32(read_number(part))) for part in parts]
        return numbers * self.dim if self.dim and len(numbers) == 1 else numbers

    def unit(self, found):
        """The values of a row or element; None stands for its default."""
        if any(numbers is None for numbers in found):
            return None
        row = dict(zip(self.names, found, strict=True))
        values = [float(f32(x)) for x in language.evaluate(self.tree, row, self.fill)]
        if self.dim:
            values = values[: self.dim]
        return [float(normalise(self.normalizer, x, False)) for x in values]

    def sequence_row(self, columns, row):
        pieces = []
        for column, chosen in zip(columns, self.chosen, strict=True):
            if not chosen:
                pieces.append(numbers_of(read_cell(column, row), self.separator))
                continue
            elements = read_elements(column, row, self.delim)
            elements = elements[: self.limit] if self.limit else elements
            pieces.append([numbers_of(e, self.separator) for e in elements])
        counts = [len(p) for p, c in zip(pieces, self.chosen, strict=True) if c]
        units = []
        for at in range(max(*counts, 1, 0)):
            now = []
            for piece, chosen in zip(pieces, self.chosen, strict=True):
                if not chosen:
                    now.append(piece)
                elif self.spread and len(piece) == 1:
                    now.append(piece[0])
                else:
                    now.append(piece[at] if at < len(piece) else None)
            units.append(self.unit(now))
        return units

    def transform(self, columns):
        found = [columns.get(name, ("null", [None])) for name in self.columns]
        for (kind, _), chosen in zip(found, self.chosen, strict=True):
            if kind.startswith("map<") or (depth(kind) == 2 and not chosen):
                raise Refused(kind)
        counts = {len(values) for _, values in found} - {1}
        rows = counts.pop() if counts else 1
        made = []
        for row in range(rows):
            if self.is_sequence:
                made.append(self.sequence_row(found, row))
            else:
                cells = [numbers_of(read_cell(c, row), self.separator) for c in found]
                made.append([self.unit(cells)])
        return self.tensors(made)

    def tensors(self, made):
        units = [unit for row in made for unit in row]
        out = {}
        if self.buckets.kind is None:
            width = self.dim or max([len(u) for u in units if u], default=1)
            values = [self.wide(unit, width) for unit in units]
        else:
            lists = [self.default_numbers() if u is None else u for u in units]
            values = [self.buckets.of_float(x) for one in lists for x in one]
            lengths = [len(one) for one in lists]
            if self.is_sequence and self.dim != 1:
                out[f"{self.name}.key_lengths"] = lengths
            out[f"{self.name}.lengths"] = lengths
        if self.is_sequence:
            out[f"{self.name}.lengths"] = [len(row) for row in made]
        out[f"{self.name}.values"] = values
        return out

    def wide(self, unit, width):
        numbers = self.default_numbers() if unit is None else unit
        if len(numbers) == 1:
            return numbers * width
        if len(numbers) != width:
            raise Refused(f"{len(numbers)} values, not {width}")
        return numbers


def same_number(a, b):
    return a == b or (math.isnan(a) and math.isnan(b))
