"""Normalizers of numeric features: reading ``method=...`` (spec section 6)."""

import math
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from procserver.fg.entry import Entry
from procserver.fg.expression import Formula, compile_formula

if TYPE_CHECKING:
    from cython_ext.fg_bucket import NormalizerSpec

PARAMETERS: dict[str, tuple[tuple[str, float | None], tuple[str, float | None]]] = {
    "log10": (("threshold", 1.0), ("default", 0.0)),
    "zscore": (("mean", None), ("standard_deviation", None)),
    "minmax": (("min", None), ("max", None)),
}


# What follows ``expr=`` is the expression, commas and equal signs included.
EXPRESSION = re.compile(r"(?:^|,)\s*expr\s*=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Normalizer:
    """A numeric transform with two parameters, both rounded to float32.

    ``log10``: threshold and default; ``zscore``: mean and standard deviation;
    ``minmax``: minimum and maximum; ``expression``: none, but a formula in ``x``.
    """

    method: Literal["log10", "zscore", "minmax", "expression"]
    first: float = 0.0
    second: float = 0.0
    formula: Formula | None = None

    def compiled(self) -> "NormalizerSpec":
        """The form that the kernels load."""
        if self.formula is not None:
            return (self.method, self.formula.program, None)
        return (self.method, self.first, self.second)


def read_normalizer(entry: Entry) -> Normalizer | None:
    """The ``normalizer`` of an entry, or None.

    :raises FgConfigError: for an unknown method, missing or unusable parameters
    """
    text = entry.text("normalizer", default="").strip()
    if not text:
        return None
    given: dict[str, str] = {}
    expression = EXPRESSION.search(text)
    settings = text[: expression.start()] if expression else text
    for part in settings.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise entry.refuse("normalizer", f"{part!r:.40} is not key=value")
        given[key.strip()] = value.strip()
    method = given.get("method", "")
    if method == "expression":
        return Normalizer("expression", formula=_formula(entry, expression))
    if method not in PARAMETERS:
        raise entry.refuse("normalizer", f"unknown method {method!r:.40}")
    first, second = (
        _parameter(entry, given, name, default) for name, default in PARAMETERS[method]
    )
    if (method == "zscore" and second == 0) or (method == "minmax" and first == second):
        raise entry.refuse("normalizer", f"method={method} would divide by zero")
    return Normalizer(method, first, second)  # type: ignore[arg-type]


def _formula(entry: Entry, found: re.Match[str] | None) -> Formula:
    if found is None:
        raise entry.refuse("normalizer", "parameter expr is missing")
    formula = compile_formula(found[1], ["x"], feature=entry.name, key="normalizer")
    if not formula.scalar:
        raise entry.refuse("normalizer", "vector functions need rows, not numbers")
    return formula


def _parameter(
    entry: Entry, given: dict[str, str], name: str, default: float | None
) -> float:
    text = given.get(name)
    if text is None:
        if default is None:
            raise entry.refuse("normalizer", f"parameter {name} is missing")
        return default
    try:
        number: float = struct.unpack("<f", struct.pack("<f", float(text)))[0]
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise entry.refuse("normalizer", f"{name}={text:.40} is not a float32")
    return number
