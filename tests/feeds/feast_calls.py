"""Runs in Feast's environment: one command a line of JSON on stdin, one answer each.

``apply`` writes a repository into a folder; ``write`` replaces the rows of one of
its files; ``materialize`` fills the online store; the others call the item source.
"""

import json
import os
import sys
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

warnings.simplefilter("ignore")
os.environ["FEAST_USAGE"] = "False"

import pandas as pd  # noqa: E402
from feast import (  # noqa: E402
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    ValueType,
)
from feast.on_demand_feature_view import on_demand_feature_view  # noqa: E402
from feast.types import Array, Float32, Float64, Int64, String, UnixTimestamp  # noqa: E402

from procserver.errors import SourceError  # noqa: E402
from procserver.itemcache.sources import open_source  # noqa: E402

YAML = """project: shop
provider: local
registry: {folder}/registry.db
online_store: {{type: sqlite, path: {folder}/online.db}}
offline_store: {{type: file}}
entity_key_serialization_version: 3
"""


def rows(values):
    """A table of rows; the last column is the event's age in hours."""
    now = datetime.now(UTC)
    frame = pd.DataFrame(values)
    frame["event_at"] = [now - timedelta(hours=age) for age in frame.pop("age")]
    return frame


def apply(folder):
    folder = Path(folder)
    (folder / "feature_store.yaml").write_text(YAML.format(folder=folder))
    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
    raw = Entity(name="raw", join_keys=["raw_id"], value_type=ValueType.STRING)
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)

    def view(name, entity, fields, ttl=None, **source):
        about = FileSource(
            name=f"{name}_file",
            path=str(folder / f"{name}.parquet"),
            timestamp_field="event_at",
            **source,
        )
        key = Field(name=entity.join_key, dtype=String)
        return FeatureView(
            name=name,
            entities=[entity],
            schema=[key, *fields],
            ttl=ttl or timedelta(0),
            source=about,
        )

    basics = view(
        "basics",
        item,
        [
            Field(name="price", dtype=Float32),
            Field(name="stock", dtype=Int64),
            Field(name="tags", dtype=Array(String)),
        ],
        field_mapping={"preis": "price"},
    )
    texts = view("texts", raw, [Field(name="title", dtype=String)])
    short = view("short", item, [Field(name="clicks", dtype=Int64)], timedelta(hours=6))
    people = view("people", user, [Field(name="age", dtype=Int64)])
    dated = view("dated", item, [Field(name="born", dtype=UnixTimestamp)])

    @on_demand_feature_view(
        sources=[basics], schema=[Field(name="double_price", dtype=Float64)]
    )
    def doubled(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"double_price": frame["price"] * 2})

    store = FeatureStore(fs_yaml_file=folder / "feature_store.yaml")
    services = [
        FeatureService(name="rank", features=[basics, texts, people]),
        FeatureService(name="some", features=[basics[["stock"]], short]),
        FeatureService(name="computed", features=[basics, doubled]),
        FeatureService(name="dated_items", features=[dated]),
        FeatureService(name="nobody", features=[people]),
    ]
    live = view(
        "live",
        item,
        [
            Field(name="category", dtype=String),
            Field(name="price", dtype=Float64),
            Field(name="vector", dtype=Array(Float64)),
        ],
    )
    services.append(FeatureService(name="live_items", features=[live]))
    views = [basics, texts, short, people, dated, live]
    store.apply([item, raw, user, *views, doubled, *services])
    return sorted(view.name for view in store.list_feature_views())


def write(path, values):
    rows(values).to_parquet(path)


def materialize(folder):
    store = FeatureStore(fs_yaml_file=Path(folder) / "feature_store.yaml")
    start = datetime.now(UTC) - timedelta(days=30)
    store.materialize(start, datetime.now(UTC), feature_views=["basics", "short"])


def source_of(config):
    tables = [
        SimpleNamespace(
            **{"name": None, "value": None, "condition": None, **table},
        )
        for table in config.pop("tables", [])
    ]
    given = {"remote_type": "feast", "load_feature_from_offlinestore": True}
    return open_source(SimpleNamespace(**{**given, **config, "tables": tables}))


def snapshot(config):
    source = source_of(config)
    about = source.describe()
    cursor, batches = source.snapshot()
    cells = [row for batch in batches for row in batch.to_pylist()]
    return {
        "key": about.key,
        "schema": {name: kind.name for name, kind in about.schema.items()},
        "cursor": cursor,
        "rows": sorted(cells, key=lambda row: row[about.key]),
        "skipped": dict(source.skipped),
    }


def changes(config, cursor):
    found = source_of(config).changes(cursor)
    if found is None:
        return None
    return {
        "rows": [row for step in found.steps for row in step.batch.to_pylist()],
        "times": [int(time) for step in found.steps for time in step.times],
        "cursor": found.next_cursor,
        "newest": found.newest,
    }


COMMANDS = {
    command.__name__: command
    for command in (apply, write, materialize, snapshot, changes)
}

if __name__ == "__main__":
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        name, *given = json.loads(line)
        try:
            answer = {"answer": COMMANDS[name](*given)}
        except SourceError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=out, flush=True)
