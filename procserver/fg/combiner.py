"""Combiners of several numbers: reading their names (spec section 8.5)."""

from procserver.fg.entry import Entry

COMBINERS = {
    "sum": "sum",
    "mean": "mean",
    "avg": "mean",
    "min": "min",
    "max": "max",
    "count": "count",
    "gap_min": "gap_min",
    "gap_max": "gap_max",
}


def read_combiner(entry: Entry, absent: str) -> str:
    """The combiner as the kernels name it; "" for none.

    :raises FgConfigError: for an unknown name
    """
    written = entry.text("combiner", default=absent).strip().lower()
    if written and written not in COMBINERS:
        raise entry.refuse("combiner", f"unknown combiner {written!r:.40}")
    return COMBINERS.get(written, "")
