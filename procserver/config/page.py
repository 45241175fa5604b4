"""Generated parts of the documentation's pages, each between two marks."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def print_or_write(
    prog: str,
    generate: Callable[[], str],
    marks: tuple[str, str],
    arguments: Sequence[str] | None,
) -> int:
    """The command that prints a generated part, or writes it into ``--write FILE``.

    Returns the exit status: 2 if the two marks are not in the page.
    """
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.write is None:
        print(generate())
        return 0
    page = options.write.read_text(encoding="utf-8")
    head, begin, rest = page.partition(marks[0])
    _, end, tail = rest.partition(marks[1])
    if not begin or not end:
        print(f"{options.write}: the two marks are not there", file=sys.stderr)
        return 2
    page = f"{head}{begin}\n\n{generate()}\n\n{end}{tail}"
    options.write.write_text(page, encoding="utf-8")
    return 0
