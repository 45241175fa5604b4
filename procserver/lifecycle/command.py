"""``procserver reload``, ``refresh`` and ``cache``: their arguments."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``reload``."""
    _add(parser, "reload", "the old version stays")


def add_refresh_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``refresh``."""
    _add(parser, "load", "the cache stays as it is")
    parser.add_argument(
        "--force",
        action="store_true",
        help="accept the table although it has lost more of its items than "
        "procserver.max_row_drop allows",
    )


def _add(parser: argparse.ArgumentParser, what: str, failed: str) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        default=None,
        help="the service JSON (default: $PROCSERVER_CONFIG or conf/service.json)",
    )
    parser.add_argument(
        "--pid", type=int, help="of the master, instead of the one that FILE leads to"
    )
    parser.add_argument(
        "--wait",
        action="store_true",
        help=f"follow the {what}; exit status 0: done, 1: {failed}, and why, 2: no "
        "service runs",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="longest time to wait (default: as long as it takes)",
    )


def add_cache_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``procserver cache``."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    inspect = actions.add_parser(
        "inspect", help="what is cached: segments, generation, age, columns"
    )
    inspect.add_argument(
        "--verify", action="store_true", help="compare the checksums of all bytes too"
    )
    get = actions.add_parser(
        "get", help="one item: what its tables say and what was generated from that"
    )
    get.add_argument("item_id", metavar="ITEM_ID")
    stats = actions.add_parser(
        "stats", help="each column's nulls, sizes, widths, distinct values"
    )
    stats.add_argument(
        "--rows",
        type=_count,
        default=20_000,
        help="rows to look at, spread over the table (default: %(default)s)",
    )
    stats.add_argument("--all", action="store_true", help="look at all rows")
    for action in (inspect, get, stats):
        action.add_argument(
            "service",
            nargs="?",
            metavar="SERVICE",
            help="name of the service, or its JSON (default: $PROCSERVER_CONFIG or "
            "conf/service.json)",
        )
        action.add_argument("--json", action="store_true", help="for machines")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number
