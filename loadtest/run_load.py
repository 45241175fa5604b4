"""``make loadtest``: Locust without its web page, against a running server.

Ranking requests go to ``--url``. Bypass requests go to ``--bypass-url``; where that is
not given, the demo's bypass twin is started beside it for the time of the run. Prints
rates, percentiles and errors, and exits with 1 if there were any errors.
"""

import argparse
import contextlib
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_server import ROOT, BenchServer, ServerFailed, is_ready

PERCENTILES = ("50%", "90%", "95%", "99%", "100%")


def main() -> int:
    args = parse()
    if not is_ready(args.url):
        print(
            f"no server is ready at {args.url}: start one with `make serve`, "
            "or name another with --url",
            file=sys.stderr,
        )
        return 2
    environment = {"LOAD_URL": args.url, "LOAD_CONFIG": args.config}
    environment["LOAD_REQUESTS"] = args.requests or f"{args.demo}/requests/rank_*.pb"
    with contextlib.ExitStack() as stack:
        if not args.no_bypass:
            environment |= bypass_environment(args, stack)
        return run_locust(args, environment)


def bypass_environment(
    args: argparse.Namespace, stack: contextlib.ExitStack
) -> dict[str, str]:
    """Locust's settings for the twin, which is started if none runs."""
    config = Path(args.demo) / "bypass.json"
    url = args.bypass_url
    if url is None:
        try:
            url = stack.enter_context(BenchServer(config)).url
        except (OSError, ServerFailed) as error:
            raise SystemExit(f"the bypass twin cannot be started: {error}") from error
    return {
        "LOAD_BYPASS_URL": url,
        "LOAD_BYPASS_CONFIG": str(config),
        "LOAD_BYPASS_REQUESTS": f"{args.demo}/requests/bypass.pb",
    }


def run_locust(args: argparse.Namespace, environment: dict[str, str]) -> int:
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        command = [sys.executable, "-m", "locust", "--headless", "--only-summary"]
        command += ["-f", str(Path(__file__).with_name("locustfile.py"))]
        command += ["-u", str(args.users), "-r", str(args.users)]
        command += ["-t", f"{args.seconds}s", "--csv", f"{folder}/load"]
        done = subprocess.run(
            command,
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        rows = read_csv(Path(folder) / "load_stats.csv")
        errors = read_csv(Path(folder) / "load_failures.csv")
    if not rows or not any(int(row["Request Count"]) for row in rows):
        print(done.stdout, file=sys.stderr)
        print("Locust made no request", file=sys.stderr)
        return 1
    print(f"{args.users} users for {args.seconds} s against {args.url}\n")
    print_table(rows)
    for error in errors:
        print(f"{error['Occurrences']} x {error['Name']}: {error['Error']}")
    failed = sum(int(error["Occurrences"]) for error in errors)
    print(f"errors: {failed}")
    if done.returncode not in (0, 1):
        print(done.stdout, file=sys.stderr)
    return 1 if failed or done.returncode else 0


def read_csv(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def print_table(rows: list[dict[str, str]]) -> None:
    """One line per request file, times in milliseconds."""
    head = "".join(f"{'max' if p == '100%' else p:>8}" for p in PERCENTILES)
    print(f"{'request':24} {'count':>8} {'errors':>7} {'per s':>8} {head}")
    for row in rows:
        times = "".join(f"{milliseconds(row[p]):>8}" for p in PERCENTILES)
        print(
            f"{row['Name']:24} {row['Request Count']:>8} {row['Failure Count']:>7} "
            f"{float(row['Requests/s']):8.1f} {times}"
        )


def milliseconds(text: str) -> str:
    return "-" if text in ("", "N/A") else f"{float(text):.0f}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8501", help="of the ranking service")
    add("--demo", default=str(ROOT / "demo"), help="folder of the demo")
    add("--config", help="service JSON of the ranking service (default: the demo's)")
    add("--requests", help="its request files (default: the demo's), a glob pattern")
    add("--bypass-url", help="of the bypass twin (default: start it)")
    add("--no-bypass", action="store_true", help="send ranking requests only")
    add("--users", type=int, default=5)
    add("--seconds", type=int, default=20)
    args = parser.parse_args()
    args.config = args.config or f"{args.demo}/service.json"
    return args


if __name__ == "__main__":
    sys.exit(main())
