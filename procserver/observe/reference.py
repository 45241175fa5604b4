"""The table of all metrics as Markdown, from the declarations.

``python -m procserver.observe.reference`` prints it; with ``--write FILE`` it
replaces what stands between the two marks in FILE.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

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
    parser = argparse.ArgumentParser(prog="python -m procserver.observe.reference")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.write is None:
        print(reference())
        return 0
    page = options.write.read_text(encoding="utf-8")
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        print(f"{options.write}: the two marks are not there", file=sys.stderr)
        return 2
    page = f"{head}{BEGIN}\n\n{reference()}\n\n{END}{tail}"
    options.write.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
