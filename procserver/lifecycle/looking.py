"""``procserver cache``: which service, what to look at, how to show it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from procserver.config import load
from procserver.errors import ConfigError, ServiceError
from procserver.itemcache import inspection
from procserver.itemcache.inspection import Found, Tree
from procserver.lifecycle.settings import config_path

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_NO_CACHE = 2


def main(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    try:
        found = inspection.find(_service(options.service))
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return EXIT_FAILED
    if not found:
        print("there is no item cache of this service here", file=sys.stderr)
        return EXIT_NO_CACHE
    try:
        status: int = ACTIONS[options.action](options, found)
        return status
    except ServiceError as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED


def _service(given: str | None) -> str:
    """The service's name: as given, or out of the service JSON."""
    if given is None or given.endswith(".json") or os.sep in given:
        return load(config_path() if given is None else Path(given)).service.name
    return given


def _inspect(options: argparse.Namespace, found: list[Found]) -> int:
    trees = [inspection.describe(one, verify=options.verify) for one in found]
    if options.json:
        _print_json(trees)
        return EXIT_DONE
    for tree in trees:
        for line in _described(tree):
            print(line)
    return EXIT_DONE


def _get(options: argparse.Namespace, found: list[Found]) -> int:
    tree = inspection.get(found[0], options.item_id)
    if tree is None:
        print(f"no item {options.item_id!r}", file=sys.stderr)
        return EXIT_FAILED
    if options.json:
        _print_json(tree)
        return EXIT_DONE
    print(f"item {tree['item_id']}, generation {tree['generation']}, row {tree['row']}")
    print("raw")
    _print_cells(tree["raw"])
    for digest, cells in tree["generated"].items():
        print(f"generated ahead ({digest})")
        _print_cells(cells)
    return EXIT_DONE


def _stats(options: argparse.Namespace, found: list[Found]) -> int:
    sample = None if options.all else options.rows
    tree = inspection.statistics(found[0], sample=sample)
    if options.json:
        _print_json(tree)
        return EXIT_DONE
    print(
        f"generation {tree['generation']}: {tree['items']} items, {tree['rows']} rows "
        f"and {tree['delta_rows']} changes ({_megabytes(tree['delta_bytes'])}), "
        f"{_megabytes(tree['bytes'])}, of which the index "
        f"{_megabytes(tree['index_bytes'])}; {tree['looked_at']} rows looked at"
    )
    for line in _table(tree["columns"]):
        print(line)
    return EXIT_DONE


ACTIONS: dict[str, Callable[[argparse.Namespace, list[Found]], int]] = {
    "inspect": _inspect,
    "get": _get,
    "stats": _stats,
}


def _described(tree: Tree) -> Iterator[str]:
    owner = tree["owner"]
    state = "running" if owner["alive"] else "dead"
    if tree["kept"]:
        state = "ended, cache kept for the next start"
    yield f"{tree['control']}: process {owner['pid']}, {state}"
    if not tree["generation"]:
        yield "  nothing is published yet"
        return
    yield (
        f"  generation {tree['generation']}: {tree['items']} items, "
        f"{tree['rows']} rows, {_megabytes(tree['bytes'])} "
        f"({tree['bytes_per_item']:g} bytes per item), delta rows {tree['delta_rows']}"
        f", {_megabytes(tree['delta_bytes'])}"
    )
    yield f"  built {tree['built_at']}, {tree['age_seconds']:.0f} s ago"
    if tree.get("verified"):
        yield "  all checksums are right"
    yield f"  key {tree['key']!r}"
    for name, kind in tree["schema"].items():
        yield f"    {name}: {kind.lower()}"
    for companion in tree["companions"]:
        yield (
            f"  generated ahead by fg.json {companion['digest']}: "
            f"{_megabytes(companion['bytes'])}"
        )
        for name, kind in companion["columns"].items():
            yield f"    {name}: {kind.lower()}"
    for segment in tree["segments"]:
        yield f"  segment {segment['name']}: {segment['bytes']} bytes"


def _table(columns: dict[str, Tree]) -> Iterator[str]:
    head = ("column", "kind", "null", "bytes", "mean", "most", "distinct", "range")
    lines = [head]
    for name, one in columns.items():
        spread = one.get("widths") or one.get("values") or {}
        reach = (
            f"{spread['least']:g} .. {spread['median']:g} .. {spread['most']:g}"
            if "least" in spread
            else ""
        )
        if "widths" in one and reach:
            reach = f"width {reach}"
        distinct = f"{one['distinct']}{'+' if one['more_distinct'] else ''}"
        lines.append(
            (
                name,
                one["kind"].lower(),
                f"{one['null_share']:.1%}",
                str(one["bytes"]),
                f"{one['mean_bytes']:g}",
                str(one["most_bytes"]),
                distinct,
                reach,
            )
        )
    sizes = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = [cell.ljust(size) for cell, size in zip(line, sizes, strict=True)]
        yield "  ".join(cells).rstrip()


def _print_cells(cells: dict[str, Any]) -> None:
    for name, cell in cells.items():
        print(f"  {name}: {_json(cell)}")


def _print_json(tree: object) -> None:
    print(json.dumps(tree, ensure_ascii=False, indent=2))


def _json(cell: object) -> str:
    return json.dumps(cell, ensure_ascii=False)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
