"""The command ``procserver``: one function per sub-command, imports inside."""

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Sequence

Run = Callable[[argparse.Namespace], int]


def check(arguments: argparse.ArgumentParser) -> Run:
    """Print the service as it would run here, or every problem in its JSON."""
    arguments.add_argument("file", help="the service JSON")

    def run(options: argparse.Namespace) -> int:
        from procserver.config.check import check
        from procserver.model.inspection import inspect

        return check(options.file, os.environ, sys.stdout, sys.stderr, inspect)

    return run


def demo(arguments: argparse.ArgumentParser) -> Run:
    """Write the demo service, call one that runs, or show how scores follow prices."""
    from procserver.demo.command import add_arguments

    add_arguments(arguments)

    def run(options: argparse.Namespace) -> int:
        from procserver.demo.command import main

        return main(options)

    return run


def transform(arguments: argparse.ArgumentParser) -> Run:
    """Generate the features of Parquet files, as the service would, into one file."""
    from procserver.offline.command import add_arguments

    add_arguments(arguments)

    def run(options: argparse.Namespace) -> int:
        from procserver.offline.command import main

        return main(options)

    return run


def replay(arguments: argparse.ArgumentParser) -> Run:
    """Send saved requests again and compare the answers."""
    from procserver.replay.command import add_arguments

    add_arguments(arguments)

    def run(options: argparse.Namespace) -> int:
        from procserver.replay.command import main

        return main(options)

    return run


def reload(arguments: argparse.ArgumentParser) -> Run:
    """Have a running service load its model and service JSON again."""
    from procserver.lifecycle.command import add_arguments

    add_arguments(arguments)

    def run(options: argparse.Namespace) -> int:
        from procserver.lifecycle.following import main

        return main(options)

    return run


def cache(arguments: argparse.ArgumentParser) -> Run:
    """Look into a service's item cache, which may be running, and is not disturbed."""
    from procserver.lifecycle.command import add_cache_arguments

    add_cache_arguments(arguments)

    def run(options: argparse.Namespace) -> int:
        from procserver.lifecycle.looking import main

        return main(options)

    return run


def refresh(arguments: argparse.ArgumentParser) -> Run:
    """Have a running service load its items from their source again."""
    from procserver.lifecycle.command import add_refresh_arguments

    add_refresh_arguments(arguments)

    def run(options: argparse.Namespace) -> int:
        from procserver.lifecycle.following import refresh

        return refresh(options)

    return run


# A sub-command is a function that declares its arguments and returns what runs;
# its name is the command's and its docstring the help text. What it needs is
# imported when it runs, so that `procserver check` does not wait for torch.
COMMANDS: tuple[Callable[[argparse.ArgumentParser], Run], ...] = (
    check,
    demo,
    transform,
    replay,
    reload,
    refresh,
    cache,
)


def parser() -> argparse.ArgumentParser:
    """All sub-commands."""
    whole = argparse.ArgumentParser(
        prog="procserver",
        description="Serve recommendation models exported by TorchEasyRec.",
    )
    subcommands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        text = inspect.getdoc(command) or ""
        arguments = subcommands.add_parser(
            command.__name__, help=text.partition("\n")[0], description=text
        )
        arguments.set_defaults(run=command(arguments))
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one sub-command.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong usage or configuration.
    """
    options = parser().parse_args(arguments)
    run: Run = options.run
    try:
        status = run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # A reader such as `head` has seen enough; keep the interpreter from
        # complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status
