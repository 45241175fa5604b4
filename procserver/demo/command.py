"""``procserver demo``: writes the demo service, calls it, or shows it live."""

import argparse
import sys
import time
from pathlib import Path

DEFAULT_DIRECTORY = Path("demo")
DEFAULT_URL = "http://127.0.0.1:8501"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "directory",
        metavar="DIR",
        type=Path,
        nargs="?",
        default=DEFAULT_DIRECTORY,
        help="folder of the demo (default: %(default)s)",
    )
    parser.add_argument(
        "--items",
        nargs="+",
        metavar="N|ID",
        help="how many items to write (default: 50000); with --call, the item ids to "
        "score instead of the sample's",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=7,
        help="of all that is drawn (default: %(default)s)",
    )
    parser.add_argument(
        "--force", action="store_true", help="write again over a demo that exists"
    )
    parser.add_argument(
        "--call",
        action="store_true",
        help="score a sample request with a running server and print a table",
    )
    parser.add_argument(
        "--url",
        help=f"of a server that runs (default: {DEFAULT_URL}; with --live one is "
        "started)",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="start the service with a stream of changes (Redis where `redis-server` "
        "is on PATH or named by $PROCSERVER_REDIS, else a file), change prices and "
        "show how scores follow, until Ctrl-C; with --url, watch one that runs with "
        "DIR/live.json",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=8501,
        help="for --live to listen at (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds", type=float, metavar="N", help="end --live after N seconds"
    )


def main(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    if args.call:
        return call_demo(args)
    if args.live:
        return live_demo(args)
    return write(args)


def call_demo(args: argparse.Namespace) -> int:
    from procserver.demo.call import CallError, call

    try:
        print(call(args.directory, args.url or DEFAULT_URL, args.items or []))
    except CallError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def live_demo(args: argparse.Namespace) -> int:
    from procserver.demo.call import CallError
    from procserver.demo.live import run_live

    directory: Path = args.directory
    if args.url is None and (args.items or not (directory / "service.json").exists()):
        status = write(args)
        if status:
            return status
    try:
        return run_live(directory, args.url, args.port, args.seconds, say)
    except CallError as error:
        print(error, file=sys.stderr)
        return 1


def say(text: str) -> None:
    """Prints at once, also into a pipe."""
    print(text, flush=True)


def write(args: argparse.Namespace) -> int:
    # NOTE: imported here because torch takes seconds, and --call needs none of it.
    from procserver.demo.write import Size, write_demo, written

    count = item_count(args.items)
    if count is None:
        print("--items takes one number from 1000 to 5000000", file=sys.stderr)
        return 2
    size = Size(items=count, seed=args.seed)
    directory: Path = args.directory
    found = written(directory)
    if found == size.manifest() and not args.force:
        print(f"{directory} holds this demo already")
        # For make, to which a target that stays old is never done.
        (directory / "service.json").touch()
        return 0
    if found is None and holds_something(directory):
        print(f"{directory} is no demo: name another folder", file=sys.stderr)
        return 2
    if found is not None and not args.force:
        print(f"{directory} holds another demo: --force replaces it", file=sys.stderr)
        return 2
    started = time.monotonic()
    write_demo(directory, size)
    print(f"{directory} written in {time.monotonic() - started:.0f} s")
    return 0


def holds_something(path: Path) -> bool:
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def item_count(given: list[str] | None) -> int | None:
    """The number that ``--items`` names, None if it is none."""
    if given is None:
        return 50_000
    if len(given) != 1 or not given[0].isdecimal():
        return None
    count = int(given[0])
    return count if 1000 <= count <= 5_000_000 else None
