"""Items out of a real Feast repository."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast_refusal import Refused

from procserver.errors import SourceError
from procserver.itemcache.sources import open_source

Feast = Callable[..., Any]


def rank(repository: Path, **changes: object) -> dict[str, Any]:
    return {
        "url": str(repository),
        "fs_project": "shop",
        "fs_model": "rank",
        "fs_entity": ["item", "raw"],
        **changes,
    }


def test_the_latest_rows_of_a_service(feast: Feast, repository: Path) -> None:
    found = feast("snapshot", rank(repository))
    assert found["key"] == "item_id"
    assert found["schema"] == {
        "item_id": "STRING",
        "price": "FLOAT32",
        "stock": "INT64",
        "tags": "LIST_STRING",
        "title": "STRING",
    }
    # Of "a" the later row, in Feast's names and types; "t" is a text only.
    assert found["rows"] == [
        dict(item_id="a", price=2.5, stock=2, tags=["x", "y"], title="Apple"),
        dict(item_id="b", price=3.0, stock=None, tags=[], title=None),
        dict(item_id="c", price=None, stock=4, tags=["z"], title=None),
        dict(item_id="t", price=None, stock=None, tags=None, title="Tea"),
    ]


def test_one_entity_and_some_features(feast: Feast, repository: Path) -> None:
    found = feast("snapshot", rank(repository, fs_entity=["item"]))
    assert list(found["schema"]) == ["item_id", "price", "stock", "tags"]
    found = feast("snapshot", rank(repository, fs_entity=["item"], fs_model="some"))
    # What is older than its view's ttl is not there.
    assert found["rows"] == [
        {"item_id": "a", "stock": 2, "clicks": 7},
        {"item_id": "b", "stock": None, "clicks": None},
        {"item_id": "c", "stock": 4, "clicks": None},
    ]


def test_rows_of_later_events(feast: Feast, repository: Path) -> None:
    config = rank(repository, fs_entity=["item"])
    now = datetime.now(UTC)
    found = feast("changes", config, (now - timedelta(hours=25)).isoformat())
    assert [(row["item_id"], row["price"]) for row in found["rows"]] == [
        ("a", 2.5),
        ("b", 3.0),
    ]
    hours = [(now.timestamp() - time / 1e6) / 3600 for time in found["times"]]
    assert hours == pytest.approx([20, 10], abs=1)
    assert found["newest"] == max(found["times"]) / 1e6
    found = feast("changes", config, found["cursor"])
    assert (found["rows"], found["newest"]) == ([], None)
    with pytest.raises(Refused, match="'yesterday' is no time"):
        feast("changes", config, "yesterday")


def test_online_items_by_a_table_of_ids(
    feast: Feast, repository: Path, tmp_path: Path
) -> None:
    feast("materialize", str(repository))
    pq.write_table(
        pa.table({"sku": ["b", "a", None, "nobody"]}), tmp_path / "ids.parquet"
    )
    config = rank(
        repository,
        fs_entity=["item"],
        load_feature_from_offlinestore=False,
        tables=[{"name": str(tmp_path / "ids.parquet"), "key": "sku"}],
    )
    found = feast("snapshot", config)
    assert found["rows"] == [
        {"item_id": "a", "price": 2.5, "stock": 2, "tags": ["x", "y"]},
        {"item_id": "b", "price": 3.0, "stock": None, "tags": []},
    ]
    assert found["skipped"] == {"null_key": 1, "not_online": 1}
    assert feast("changes", config, found["cursor"]) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fs_project": "other"}, "fs_project is 'other', the repository's is 'shop'"),
        ({"fs_entity": ["shoe"]}, "fs_entity 'shoe': there are .*item, raw, user"),
        ({"fs_model": "nothing"}, "nothing"),
        ({"fs_model": "nobody"}, "no feature view is of items"),
        ({"fs_model": "computed"}, "'doubled' computes features on demand"),
        ({"fs_model": "dated_items"}, "column 'born' has Arrow type timestamp"),
        ({"url": "/nowhere"}, "there is no /nowhere"),
        ({"load_feature_from_offlinestore": False}, "cannot list its items"),
    ],
)
def test_what_cannot_be_loaded_is_said(
    feast: Feast, repository: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Refused, match=reason):
        feast("snapshot", rank(repository, **changes))


def test_a_file_that_is_gone(feast: Feast, repository: Path) -> None:
    file = repository / "short.parquet"
    held = file.read_bytes()
    file.unlink()
    try:
        with pytest.raises(Refused, match="feature view 'short'"):
            feast("snapshot", rank(repository, fs_model="some"))
    finally:
        file.write_bytes(held)


def test_without_the_extra() -> None:
    config = SimpleNamespace(
        remote_type="feast", url=".", tables=[], load_feature_from_offlinestore=True
    )
    with pytest.raises(SourceError, match=r"procserver\[feast\]"):
        open_source(config)
