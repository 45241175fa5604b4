"""Calls the demo service over HTTP and prints what it answers as a table."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from procserver.demo.features import SEQUENCE
from procserver.wire.pb import torchrec_predict_pb2 as torchrec

SAMPLE = "rank_10.pb"
TIMEOUT_S = 30
SHOWN_COLUMNS = ("title", "category", "price", "rating")


class CallError(Exception):
    """The call did not succeed; the text says why, for a person."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a service is called and what it knows of items."""

    url: str
    token: str
    items: Path


def read_target(service_json: Path, url: str) -> Target:
    """Name, token and item file from the demo's service JSON.

    :raises CallError: if there is no demo
    """
    try:
        document = json.loads(service_json.read_text())
    except FileNotFoundError:
        raise CallError(
            f"{service_json} does not exist: write a demo with "
            f"`procserver demo {service_json.parent}`"
        ) from None
    name = document["metadata"]["name"]
    return Target(
        url=f"{url.rstrip('/')}/api/predict/{name}",
        token=document["token"],
        items=service_json.parent / document["model_config"]["url"],
    )


def sample_message(directory: Path, ids: Sequence[str]) -> Any:
    """The demo's sample request of 10 items, or the same user with these items."""
    message = torchrec.PBRequest()
    message.ParseFromString((directory / "requests" / SAMPLE).read_bytes())
    if ids:
        del message.item_ids[:]
        message.item_ids.extend(ids)
        sources = message.context_features["recall_source"].features
        del sources[1:]  # one value stands for all items
    return message


def post(target: Target, message: Any) -> tuple[Any, float]:
    """The answer and the seconds that it took.

    :raises CallError: if no server answers, or one answers with an error
    """
    request = urllib.request.Request(
        target.url,
        data=message.SerializeToString(),
        headers={
            "Authorization": target.token,
            "Content-Type": "application/octet-stream",
        },
    )
    started = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        text = error.read().decode("utf-8", "replace")
        raise CallError(f"{target.url} answered {error.code}: {text}") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise CallError(
            f"no server at {target.url} ({reason}): start one with `make serve`"
        ) from error
    took = time.perf_counter() - started
    response = torchrec.PBResponse()
    response.ParseFromString(body)
    return response, took


def known_items(path: Path, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Some columns of these items, by id."""
    table = pq.read_table(
        path,
        columns=["item_id", *SHOWN_COLUMNS],
        filters=[("item_id", "in", sorted(set(ids)))],
    )
    return {row["item_id"]: row for row in table.to_pylist()}


def score_rows(response: Any, items: dict[str, dict[str, Any]]) -> list[list[str]]:
    """One row of text per item, the best score first; the head row is row 0."""
    outputs = {
        name: list(array.float_val)
        for name, array in sorted(response.map_outputs.items())
    }
    order = range(len(response.item_ids))
    first = next(iter(outputs.values()), [0.0] * len(order))
    rows = [["item_id", *SHOWN_COLUMNS, *outputs]]
    for at in sorted(order, key=lambda at: -first[at]):
        name = response.item_ids[at]
        known = items.get(name)
        rows.append(
            [
                name,
                *(cell(known[column]) if known else "-" for column in SHOWN_COLUMNS),
                *(f"{values[at]:.4f}" for values in outputs.values()),
            ]
        )
    return rows


def cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def aligned(rows: Sequence[Sequence[str]], text_columns: int = 3) -> str:
    """Columns side by side: the first few to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            text.ljust(width) if at < text_columns else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def describe_user(message: Any, items: dict[str, dict[str, Any]]) -> str:
    """Who asks, and what the newest clicks were."""
    user = message.user_features
    clicks = list(user[SEQUENCE].string_list.features)
    newest = [
        items[click]["category"] if click in items else click for click in clicks[:5]
    ]
    return (
        f"user {user['user_id'].string_feature}: {user['gender'].string_feature}, "
        f"{user['age'].int_feature} years, spends at level "
        f"{user['spend_level'].int_feature} of 0-9, "
        f"{len(clicks)} clicks, newest: {', '.join(newest) or 'none'}"
    )


def call(directory: Path, url: str, ids: Sequence[str]) -> str:
    """Scores a sample request and returns the text to print.

    :raises CallError: with a message for a person
    """
    target = read_target(directory / "service.json", url)
    message = sample_message(directory, ids)
    response, took = post(target, message)
    clicks = message.user_features[SEQUENCE].string_list.features
    items = known_items(target.items, [*response.item_ids, *clicks])
    return "\n".join(
        [
            f"POST {target.url}",
            describe_user(message, items),
            "",
            aligned(score_rows(response, items)),
            "",
            f"{len(response.item_ids)} items in {took * 1000:.1f} ms",
        ]
    )
