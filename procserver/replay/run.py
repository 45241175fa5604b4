"""Requests sent one after another, their answers counted and compared."""

from __future__ import annotations

import argparse
import http.client
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from procserver.observe.spool import write_whole
from procserver.replay.answers import differences, outputs_of
from procserver.replay.files import Saved, answer_file, saved_requests


class UsageError(Exception):
    """What was asked for cannot be done; the text says why."""


@dataclass(frozen=True)
class Answer:
    """A status (0: no answer came) and a body, or what went wrong."""

    status: int
    body: bytes
    seconds: float

    @property
    def problem(self) -> str:
        """Why this is not an answer with scores, in one line; empty: it is."""
        if self.status == 200:
            return ""
        text = self.body[:200].decode(errors="replace")
        text = "".join(c if c.isprintable() else " " for c in text)
        return f"{self.status} {text}" if self.status else text


class Source(Protocol):
    """Where answers come from: a server, or a folder of saved ones."""

    def answer(self, request: Saved) -> Answer: ...

    def close(self) -> None: ...


class Server:
    """A server at a URL, called over one connection that is kept."""

    def __init__(self, url: str, token: str | None, timeout: float) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"{url!r}: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is not a URL: http://HOST:PORT[/PATH] is")
        kinds = {
            "http": http.client.HTTPConnection,
            "https": http.client.HTTPSConnection,
        }
        self._connection = kinds[parts.scheme](parts.hostname, port, timeout=timeout)
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Content-Type": "application/octet-stream"}
        if token:
            self._headers["Authorization"] = token

    def answer(self, request: Saved) -> Answer:
        started = time.perf_counter()
        try:
            self._connection.request("POST", self._path, request.body, self._headers)
            response = self._connection.getresponse()
            status, body = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            status, body = 0, f"{type(error).__name__}: {error}".encode()
        return Answer(status, body, time.perf_counter() - started)

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True)
class Folder:
    """Answers that ``--save`` kept."""

    path: Path

    def answer(self, request: Saved) -> Answer:
        try:
            return Answer(200, answer_file(self.path, request.name).read_bytes(), 0.0)
        except OSError as error:
            return Answer(0, f"no saved answer: {error.strerror}".encode(), 0.0)

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Summary:
    """What came of all requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    greatest: dict[str, float] = field(default_factory=dict)
    compared: int = 0
    different: int = 0

    def count(self, answer: Answer) -> None:
        """Counts one answer of the server."""
        self.statuses[str(answer.status or "none")] += 1
        if answer.status:
            self.seconds.append(answer.seconds)

    def __str__(self) -> str:
        lines = [
            "answers: " + ", ".join(f"{n} x {s}" for s, n in self.statuses.items())
        ]
        if self.seconds:
            times = sorted(self.seconds)
            shown = (
                f"{name} {1000 * times[int(part * (len(times) - 1))]:.2f}"
                for name, part in (
                    ("p50", 0.5),
                    ("p90", 0.9),
                    ("p99", 0.99),
                    ("max", 1),
                )
            )
            lines.append("latency: " + ", ".join(shown) + " ms")
        if self.compared or self.different:
            lines.append(f"compared: {self.compared}, different: {self.different}")
            lines += [f"  {n}: at most {d:.9g}" for n, d in self.greatest.items()]
        return "\n".join(lines)


def run(args: argparse.Namespace) -> Summary:
    """Does what the arguments of ``procserver replay`` say.

    :raises UsageError: if that cannot be done
    :raises OSError: if a file cannot be read or written
    """
    with ExitStack() as open_sources:
        server = Server(args.url, args.token, args.timeout)
        open_sources.callback(server.close)
        other = _other(args)
        if other is not None:
            open_sources.callback(other.close)
        requests = list(
            saved_requests(args.files, keep_debug_level=args.keep_debug_level)
        )
        if not requests:
            raise UsageError("no saved requests (.pb, .bin) there")
        return replay(requests, server, other, args)


def _other(args: argparse.Namespace) -> Source | None:
    if args.compare is None:
        return None
    if "://" in args.compare:
        return Server(args.compare, args.token, args.timeout)
    if not Path(args.compare).is_dir():
        raise UsageError(f"--compare: {args.compare!r} is neither a URL nor a folder")
    return Folder(Path(args.compare))


def replay(
    requests: Sequence[Saved],
    server: Source,
    other: Source | None,
    args: argparse.Namespace,
) -> Summary:
    """Sends all requests one after another; prints a line for each that is odd."""
    summary = Summary()
    for _ in range(max(1, args.repeat)):
        for request in requests:
            answer = server.answer(request)
            summary.count(answer)
            if answer.problem:
                print(f"{request.name}: {answer.problem}")
            elif args.save is not None:
                path = answer_file(args.save, request.name)
                write_whole(path.parent, path.name, answer.body)
            if other is not None and not answer.problem:
                _compare(request, answer, other.answer(request), summary, args)
    return summary


def _compare(
    request: Saved,
    answer: Answer,
    expected: Answer,
    summary: Summary,
    args: argparse.Namespace,
) -> None:
    one, two = outputs_of(answer.body), outputs_of(expected.body)
    if expected.problem or one is None or two is None:
        summary.different += 1
        why = expected.problem or "an answer cannot be read"
        print(f"{request.name}: not comparable: {why}")
        return
    summary.compared += 1
    found = dict(differences(one, two))
    for name, difference in found.items():
        summary.greatest[name] = max(difference, summary.greatest.get(name, 0.0))
    beyond = {n: d for n, d in found.items() if not d <= args.tolerance}
    if beyond:
        summary.different += 1
        shown = ", ".join(f"{n} by {d:.9g}" for n, d in beyond.items())
        print(f"{request.name}: differs: {shown}")
