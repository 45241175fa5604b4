"""``procserver reload`` and ``procserver refresh``: their arguments."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``reload``."""
    _add(parser, "reload", "the old version stays")


def add_refresh_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``refresh``."""
    _add(parser, "load", "the cache stays as it is")


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
