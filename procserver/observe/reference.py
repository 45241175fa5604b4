"""The table of all metrics as Markdown, from the declarations.

``python -m procserver.observe.reference`` prints it; with ``--write FILE`` it
replaces what stands between the two marks in FILE.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from procserver.config.page import print_or_write
from procserver.observe.instruments import Gauge, Instrument, Text
from procserver.observe.metrics import REGISTRY

BEGIN = "<!-- metrics: begin (python -m procserver.observe.reference) -->"
END = "<!-- metrics: end -->"


def reference() -> str:
    """One row for each metric in the order of declaration."""
    return "\n".join(
        ["| metric | type | labels | meaning |", "|---|---|---|---|", *_rows()]
    )


def _rows() -> Iterator[str]:
    for one in REGISTRY:
        kind = "gauge" if isinstance(one, Gauge | Text) else one.kind
        yield f"| `{one.name}` | {kind} | {_labels(one)} | {one.help} |"


def _labels(one: Instrument) -> str:
    labels = ["`process`"] if one.per_process else []
    if isinstance(one, Text):
        labels += [f"`{label}`" for label in one.labels]
    elif one.label:
        values = ", ".join(f"`{value}`" for value in one.values)
        labels.append(f"`{one.label}`: {values}")
    return "; ".join(labels)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table or writes it into a page."""
    return print_or_write(
        "python -m procserver.observe.reference", reference, (BEGIN, END), arguments
    )


if __name__ == "__main__":
    raise SystemExit(main())
