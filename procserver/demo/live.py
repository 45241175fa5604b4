"""``procserver demo --live``: prices change, and the scores with them.

Starts the demo service with a stream of changes beside its items, changes the price
of one of ten items a few times a second, and asks until its score is another one.
"""

import json
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from procserver.demo.call import (
    Target,
    known_items,
    post,
    read_target,
    sample_message,
)
from procserver.demo.publish import Publish, open_stream, redis_choice, start_redis
from procserver.demo.service import service_document
from procserver.demo.starting import start_service

SERVICE = "live.json"
CHANGES = "changes.jsonl"
STREAM_KEY = "procserver-demo"
# Between two changes, between two questions, and until a change is given up.
PAUSE_SECONDS = 0.3
ASK_SECONDS = 0.005
PATIENCE_SECONDS = 10.0
# The first one is shown; two prices may have the same score of one of them.
OUTPUTS = ("probs_ctr", "probs_cvr")

Scores = tuple[float, ...]


def run_live(
    directory: Path,
    url: str | None,
    port: int,
    seconds: float | None,
    say: Callable[[str], None],
) -> int:
    """Watches a service at ``url``, or one that is started here, until told to end.

    :returns: exit status, 1 if a change was not seen
    :raises CallError: with a message for a person
    """
    found: list[float | None] = []
    with until_interrupted(), ExitStack() as stack:
        if url is None:
            url = stack.enter_context(started(directory, port, say))
        target = read_target(directory / SERVICE, url)
        publish = stack.enter_context(open_stream(directory / SERVICE))
        until = None if seconds is None else time.monotonic() + seconds
        for latency in watch(directory, target, publish, until, say):
            found.append(latency)
    say(summary(found))
    return 1 if None in found else 0


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end what is inside; they are no failure."""

    def end(number: int, frame: FrameType | None) -> None:
        # One is enough: another one must not interrupt the cleaning up.
        for one in signals:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {one: signal.signal(one, end) for one in signals}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def started(directory: Path, port: int, say: Callable[[str], None]) -> Iterator[str]:
    """The demo service with a stream, and its URL; all that was started is ended."""
    with ExitStack() as stack:
        choice = redis_choice(os.environ)
        if choice is None:
            (directory / CHANGES).unlink(missing_ok=True)
            stream = {"url": CHANGES}
            say(f"changes go through {directory / CHANGES}")
        else:
            url = choice
            if "://" not in choice:
                url = stack.enter_context(start_redis(choice))
            stream = {"url": url, "key": STREAM_KEY}
            say("changes go through Redis")
        document = service_document()
        document["model_config"]["stream"] = stream
        # Nobody is to be turned away first.
        document["procserver"] = {"drain_seconds": 0}
        text = json.dumps(document, indent=2)
        (directory / SERVICE).write_text(f"{text}\n")
        yield stack.enter_context(start_service(directory / SERVICE, port))


def watch(
    directory: Path,
    target: Target,
    publish: Publish,
    until: float | None,
    say: Callable[[str], None],
) -> Iterator[float | None]:
    """Changes one price after the other; seconds until the score was another one.

    None: it was not within ten seconds.
    """
    message = sample_message(directory, ())
    ids = list(message.item_ids)
    prices = {
        name: row["price"] for name, row in known_items(target.items, ids).items()
    }
    usual = dict(prices)
    rng = random.Random()
    say(f"{'item':12}  {'price':>17}  {'score':>18}  until it was seen")
    number = 0
    while until is None or time.monotonic() < until:
        name = ids[number % len(ids)]
        number += 1
        old = prices[name]
        new = prices[name] = other_price(usual[name], old, rng)
        before = score_of(target, message, name)
        began = time.perf_counter()
        publish(name, new)
        after = until_changed(target, message, name, before)
        latency = time.perf_counter() - began
        seen = "not seen" if after is None else f"{latency * 1000:6.1f} ms"
        score = before if after is None else after
        scores = f"{before[0]:8.5f}->{score[0]:8.5f}"
        say(f"{name:12}  {old:7.2f}->{new:8.2f}  {scores}  {seen}")
        yield None if after is None else latency
        time.sleep(PAUSE_SECONDS)


def other_price(usual: float, old: float, rng: random.Random) -> float:
    """Half to double the usual price, and well away from the old one."""
    while True:
        new = round(usual * 2 ** rng.uniform(-1, 1), 2)
        if abs(new - old) > 0.1 * usual:
            return new


def until_changed(
    target: Target, message: Any, name: str, before: Scores
) -> Scores | None:
    """Asks until the score of an item is another one, which is returned."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        score = score_of(target, message, name)
        if score != before:
            return score
        time.sleep(ASK_SECONDS)
    return None


def score_of(target: Target, message: Any, name: str) -> Scores:
    response, _ = post(target, message)
    at = list(response.item_ids).index(name)
    return tuple(response.map_outputs[output].float_val[at] for output in OUTPUTS)


def summary(found: list[float | None]) -> str:
    """One line on all changes."""
    seen = [1000 * latency for latency in found if latency is not None]
    text = f"{len(found)} changes, {len(seen)} seen"
    if seen:
        text += f": median {statistics.median(seen):.1f} ms, worst {max(seen):.1f} ms"
    return text
