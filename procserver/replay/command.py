"""``procserver replay``: saved requests again, against one server or two."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:8501"
TOKEN = "PROCSERVER_TOKEN"
EXIT_DIFFERENT = 1
EXIT_USAGE = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "files",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="entries of the request log, request bodies (torch_req, warm-up), or "
        "folders of them",
    )
    parser.add_argument(
        "--url",
        default=DEFAULT_URL,
        help="of the server or service (default: %(default)s)",
    )
    parser.add_argument(
        "--token",
        default=os.environ.get(TOKEN),
        help=f"sent as it is (default: ${TOKEN}, which no process list shows)",
    )
    parser.add_argument("--repeat", type=int, default=1, help="send each N times")
    parser.add_argument(
        "--compare",
        metavar="URL|DIR",
        help="compare with another server's answers, or with those in DIR",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="greatest absolute difference that counts as equal (default: 0)",
    )
    parser.add_argument(
        "--save", metavar="DIR", type=Path, help="keep the answers in DIR"
    )
    parser.add_argument(
        "--timeout", type=float, default=30.0, help="seconds (default: %(default)g)"
    )
    parser.add_argument(
        "--keep-debug-level",
        action="store_true",
        help="send entries of the request log at the debug level that they had",
    )


def main(args: argparse.Namespace) -> int:
    """Runs the command.

    Returns:
        0 if every request was answered with 200 and, with ``--compare``, the same
        within the tolerance; 1 if not; 2 for wrong usage.
    """
    # Declaring arguments must not wait for numpy and the messages.
    from procserver.replay.run import UsageError, run

    try:
        summary = run(args)
    except (UsageError, OSError) as error:
        print(f"procserver replay: {error}", file=sys.stderr)
        return EXIT_USAGE
    print(summary)
    failed = set(summary.statuses) != {"200"}
    return EXIT_DIFFERENT if failed or summary.different else 0
