"""Item sources: tables, FeatureStore keys, what is not there yet."""

import re
from pathlib import Path
from typing import Any

import pytest

from procserver import config
from procserver.config.source import missing_store_drivers
from procserver.errors import ConfigError

PARQUET = {
    "fg_mode": "normal",
    "remote_type": "parquet",
    "url": "items",
    "tables": {"key": "item_id"},
}


def parse(
    minimal: dict[str, Any], environ: dict[str, str], **model_config: Any
) -> config.Loaded:
    return config.parse(minimal | {"model_config": model_config}, "/srv", environ)


def problem(
    minimal: dict[str, Any], environ: dict[str, str], **model_config: Any
) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(minimal, environ, **model_config)
    return "; ".join(caught.value.problems)


def test_parquet(minimal: dict[str, Any], environ: dict[str, str]) -> None:
    loaded = parse(minimal, environ, **PARQUET)
    source = loaded.service.source
    assert source is not None
    assert source is loaded.service.item_source
    assert source.url == config.Url("/srv/items")
    assert source.tables == (config.TableConfig(key="item_id"),)
    assert source.tables[0].value is None
    assert loaded.warnings == []


def test_tables_as_list(minimal: dict[str, Any], environ: dict[str, str]) -> None:
    tables = [
        {"name": "a", "key": "id", "value": "x, y", "static": "true"},
        {"name": "b", "key": "id", "value": ["z"], "timekey": "t"},
    ]
    loaded = parse(minimal, environ, **PARQUET | {"tables": tables})
    assert loaded.service.source is not None
    one, two = loaded.service.source.tables
    assert (one.value, one.static) == (("x", "y"), True)
    assert (two.value, two.timekey) == (("z",), "t")
    for key in ("static", "timekey"):
        assert any(f"{key} has no effect on Parquet" in w for w in loaded.warnings)


def test_urls_stay_and_paths_go_through_mounts(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    storage = [{"mount_path": "/data", "local": {"path": "here"}}]
    for url, resolved in (
        ("oss://bucket/items", "oss://bucket/items"),
        ("/data/items/*.parquet", "/srv/here/items/*.parquet"),
        ("/other/items", "/other/items"),
    ):
        document = minimal | {"model_config": PARQUET | {"url": url}}
        document["storage"] = storage
        source = config.parse(document, "/srv", environ).service.source
        assert source is not None
        assert source.url == config.Url(resolved)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"url": None}, "model_config.url: missing"),
        ({"tables": None}, "model_config.tables: missing"),
        ({"tables": []}, "model_config.tables: missing"),
        ({"tables": [{}]}, "model_config.tables[0].key: missing"),
        ({"tables": {"name": "x"}}, "model_config.tables.key: missing"),
        ({"tables": {"key": "k", "condition": "x < 1"}}, "condition is SQL"),
        ({"tables": "x"}, "expected an object or a list of objects, got a text"),
        ({"tables": [1]}, "model_config.tables[0]: expected an object"),
        ({"tables": [{"key": "k", "static": "so"}]}, "tables[0].static: expected true"),
        ({"remote_type": None}, "model_config.remote_type: missing although"),
        ({"remote_type": "none"}, '"none" contradicts model_config.tables'),
        ({"remote_type": "mysql"}, "model_config.remote_type: expected one of parquet"),
        ({"remote_type": "hologres"}, "has no name"),
        ({"remote_type": "postgres"}, "has no name"),
        ({"remote_type": "redis"}, "has no name"),
        ({"remote_type": "redis", "tables": []}, "model_config.tables: missing"),
        ({"remote_type": "redis", "url": None}, "model_config.url: missing"),
        (
            {"remote_type": "redis", "tables": {"name": "items", "key": "k"}},
            "is to have one *",
        ),
        (
            {
                "remote_type": "redis",
                "tables": {"name": "i:*", "key": "k", "condition": "x < 1"},
            },
            "condition is SQL, which Redis",
        ),
        (
            {"tables": {"key": "k", "types": {"x": "list<float"}}},
            "model_config.tables.types: expected a type such as float32",
        ),
        ({"tables": {"key": "k", "types": "x"}}, "expected an object of types"),
        ({"tables": {"key": "k", "overlap": -1}}, "expected a number from 0"),
        ({"statement_timeout": 0}, "statement_timeout: expected a number from 1"),
        ({"stream": {"key": "changes"}}, "model_config.stream.url: missing"),
        ({"stream": {"url": "redis://h"}}, "model_config.stream.key: missing"),
        ({"stream": {"url": "file://x/y"}}, "stream.url: expected file:///PATH"),
        ({"stream": "redis://h"}, "model_config.stream: expected an object"),
        (
            {
                "remote_type": "none",
                "tables": [],
                "stream": {"url": "redis://h", "key": "k"},
            },
            "model_config.stream: needs a source of all items",
        ),
        ({"period": 0}, "model_config.period: expected an integer from 1"),
    ],
)
def test_problems(
    change: dict[str, Any],
    text: str,
    minimal: dict[str, Any],
    environ: dict[str, str],
) -> None:
    assert text in problem(minimal, environ, **PARQUET | change)


def test_unknown_table_keys(minimal: dict[str, Any], environ: dict[str, str]) -> None:
    tables = [{"key": "id", "time_key": "t"}]
    loaded = parse(minimal, environ, **PARQUET | {"tables": tables})
    assert loaded.warnings == [
        "model_config.tables[0].time_key: unknown key, did you mean timekey?"
    ]


DATABASE = {
    "fg_mode": "normal",
    "remote_type": "hologres",
    "url": "postgresql://u:p@h:80/d",
    "tables": {"name": "public.t", "key": "id"},
}


@pytest.mark.parametrize("kind", ["hologres", "postgres", "postgresql", "redis"])
def test_databases(kind: str, minimal: dict[str, Any], environ: dict[str, str]) -> None:
    table = {"name": "item:*", "key": "id", "value": "a,b"}
    given = DATABASE | {"remote_type": kind, "tables": table}
    loaded = parse(minimal, environ, **given)
    source = loaded.service.item_source
    assert source is not None
    assert source.remote_type == kind
    assert source.statement_timeout == 1800.0
    assert source.tables[0].value == ("a", "b")
    assert loaded.warnings == []
    assert "u:p" not in repr(loaded.service)


def test_tables_of_a_database(minimal: dict[str, Any], environ: dict[str, str]) -> None:
    table = {
        "name": "public.t",
        "key": "id",
        "condition": "style_id<10000",
        "timekey": "at",
        "overlap": "90",
        "static": "1",
    }
    more = {"listen": "items", "statement_timeout": 60}
    loaded = parse(minimal, environ, **DATABASE | more | {"tables": table})
    source = loaded.service.item_source
    assert source is not None
    (one,) = source.tables
    assert (one.condition, one.timekey, one.overlap, one.static) == (
        "style_id<10000",
        "at",
        90.0,
        True,
    )
    assert (source.listen, source.statement_timeout) == ("items", 60.0)
    assert loaded.warnings == []


def test_types_of_hashes(minimal: dict[str, Any], environ: dict[str, str]) -> None:
    types = {"price": "Float32", "m": "map<string, list_>"}
    table = {"name": "i:*", "key": "id", "types": types}
    redis = DATABASE | {"remote_type": "redis", "tables": table}
    assert "expected a type" in problem(minimal, environ, **redis)
    types["m"] = "map<string, int64>"
    source = parse(minimal, environ, **redis).service.item_source
    assert source is not None
    assert source.tables[0].types == (("price", "float32"), ("m", "map<string,int64>"))


def test_streams(minimal: dict[str, Any], environ: dict[str, str]) -> None:
    stream = {"key": "changes", "id": "sku", "timekey": "at"}
    url = {"url": "redis://u:c4n4ry@h/0"}
    loaded = parse(minimal, environ, **PARQUET | {"stream": stream | url})
    assert loaded.service.item_source is not None
    assert loaded.service.item_source.stream == config.StreamConfig(
        **stream, url=config.Url(url["url"])
    )
    assert loaded.warnings == []
    assert "c4n4ry" not in repr(loaded.service)
    # A Redis of items is that of the changes too.
    redis = {"remote_type": "redis", "tables": {"name": "i:*", "key": "k"}, **url}
    loaded = parse(minimal, environ, **PARQUET | redis | {"stream": stream})
    assert loaded.service.item_source is not None
    assert loaded.service.item_source.stream is not None
    assert loaded.service.item_source.stream.url == config.Url(url["url"])
    loaded = parse(
        minimal, environ, **PARQUET | {"stream": stream | url | {"keys": "x"}}
    )
    assert loaded.warnings == [
        "model_config.stream.keys: unknown key, did you mean model_config.stream.key?"
    ]


@pytest.mark.parametrize(
    ("url", "resolved"),
    [
        ("some changes.jsonl", "file:///srv/some%20changes.jsonl"),
        ("/var/changes.jsonl", "file:///var/changes.jsonl"),
        ("file:///var/changes.jsonl", "file:///var/changes.jsonl"),
    ],
)
def test_files_of_changes(
    url: str, resolved: str, minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    model = PARQUET | {"stream": {"url": url, "timekey": "at"}}
    document = minimal | {"model_config": model}
    loaded = config.parse(document, "/srv", environ)
    source = loaded.service.item_source
    assert source is not None
    assert source.stream is not None
    assert source.stream.url == config.Url(resolved)
    assert missing_store_drivers(source) == []
    assert loaded.warnings == []
    model["stream"]["key"] = "k"
    assert config.parse(document, "/srv", environ).warnings == [
        "model_config.stream.key: has no effect with a file"
    ]


@pytest.mark.parametrize(
    ("kind", "change", "text"),
    [
        ("redis", {"timekey": "t"}, "timekey has no effect on redis: every load"),
        ("redis", {"static": True}, "static has no effect on redis"),
        ("redis", {"overlap": 5}, "overlap has no effect on redis"),
        ("hologres", {"types": {"x": "int32"}}, "types has no effect on hologres"),
        ("parquet", {"overlap": 5}, "overlap has no effect on Parquet"),
    ],
)
def test_keys_of_other_sources(
    kind: str,
    change: dict[str, Any],
    text: str,
    minimal: dict[str, Any],
    environ: dict[str, str],
) -> None:
    table = {"name": "i*", "key": "id", **change}
    given = DATABASE | {"remote_type": kind, "tables": table}
    loaded = parse(minimal, environ, **given)
    assert any(text in warning for warning in loaded.warnings)


def test_listen_needs_a_timekey(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    loaded = parse(minimal, environ, **DATABASE, listen="x")
    assert any("listen: has no effect" in warning for warning in loaded.warnings)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({}, "none of them ends"),
        ({"period": 60}, "is not longer than period"),
        ({"period": 59}, ""),
        ({"stream": {"url": "changes.jsonl"}}, ""),
        ({"period": 60, "stream": {"url": "changes.jsonl"}}, ""),
    ],
)
def test_items_end_only_if_something_is_heard(
    minimal: dict[str, Any], environ: dict[str, str], more: dict[str, Any], text: str
) -> None:
    loaded = parse(minimal, environ, **DATABASE, item_ttl=60, **more)
    source = loaded.service.item_source
    assert source is not None
    assert source.item_ttl_minutes == 60.0
    told = [warning for warning in loaded.warnings if "item_ttl" in warning]
    assert len(told) == bool(text)
    assert all(text in warning for warning in told)


def test_feature_store_keys_beside_a_database(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    loaded = parse(minimal, environ, **DATABASE, fs_project="p")
    assert any("not used, remote_type is hologres" in w for w in loaded.warnings)


def test_missing_drivers(
    minimal: dict[str, Any], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = {"key": "k", "url": "redis://h"}
    given = parse(minimal, environ, **DATABASE, stream=stream).service.item_source
    assert given is not None
    assert missing_store_drivers(given) == []
    monkeypatch.setattr("procserver.config.source.find_spec", lambda name: None)
    assert missing_store_drivers(given) == [
        f"model_config: the driver for {extra} is missing: "
        f"pip install 'procserver[{extra}]'"
        for extra in ("postgres", "redis")
    ]


FEAST = {
    "fg_mode": "normal",
    "remote_type": "feast",
    "url": "feature_repo",
    "fs_project": "shop",
    "fs_model": "rank",
    "fs_entity": "item, raw",
    "load_feature_from_offlinestore": True,
}
FEATUREDB = {
    "fg_mode": "normal",
    "remote_type": "featuredb",
    "url": "http://h:80/instance",
    "fs_project": "shop",
    "featuredb_username": "u",
    "featuredb_passwd": "p",
    "tables": {"name": "items", "key": "id", "types": {"x": "timestamp"}},
}


def test_feature_stores(minimal: dict[str, Any], environ: dict[str, str]) -> None:
    source = parse(minimal, environ, **FEAST).service.item_source
    assert source is not None
    assert source.url is not None
    assert source.url.reveal().endswith("/feature_repo")
    assert source.url.reveal().startswith("/")
    assert (source.fs_project, source.fs_entity) == ("shop", ("item", "raw"))
    source = parse(minimal, environ, **FEATUREDB).service.item_source
    assert source is not None
    assert source.tables[0].types == (("x", "timestamp"),)


@pytest.mark.parametrize("given", [FEAST, FEATUREDB])
def test_the_url_tells_which_feature_store(
    given: dict[str, Any], minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    change = {key: value for key, value in given.items() if key != "remote_type"}
    source = parse(minimal, environ, **change).service.item_source
    assert source is not None
    assert source.remote_type == given["remote_type"]


@pytest.mark.parametrize(
    ("given", "change", "text"),
    [
        (FEAST, {"url": None}, "model_config.url: missing"),
        (FEAST, {"load_feature_from_offlinestore": False}, "cannot list their items"),
        (FEATUREDB, {"fs_project": None}, "model_config.fs_project: missing"),
        (FEATUREDB, {"featuredb_username": None}, "featuredb_username: missing"),
        (FEATUREDB, {"featuredb_passwd": None}, "featuredb_password: missing"),
        (FEATUREDB, {"tables": {"name": "t", "key": "id"}}, "'t' has no types"),
        (
            FEATUREDB,
            {"tables": {"key": "id", "types": {"x": "int32"}}},
            "the table with key 'id' has no name",
        ),
        (FEATUREDB, {"tables": []}, "model_config.tables: missing"),
    ],
)
def test_what_feature_stores_need(
    given: dict[str, Any],
    change: dict[str, Any],
    text: str,
    minimal: dict[str, Any],
    environ: dict[str, str],
) -> None:
    assert text in problem(minimal, environ, **given | change)


def test_items_of_feast_by_their_ids(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    change = {
        "load_feature_from_offlinestore": False,
        "tables": {"name": "ids.parquet", "key": "sku"},
    }
    assert parse(minimal, environ, **FEAST | change).service.item_source is not None


def test_feature_store_keys_beside_parquet(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    loaded = parse(minimal, environ, **PARQUET, fs_project="p", fs_entity="item, raw")
    source = loaded.service.item_source
    assert source is not None
    assert source.remote_type == "parquet"
    assert source.fs_entity == ("item", "raw")
    assert any("not used, remote_type is parquet" in w for w in loaded.warnings)


def test_every_example_of_the_page_loads(environ: dict[str, str]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "sources.md").read_text()
    examples = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    kinds = set()
    for example in examples:
        loaded = config.load_text(example, "/srv", environ)
        assert loaded.service.item_source is not None
        assert [w for w in loaded.warnings if "without effect" not in w] == []
        kinds.add(loaded.service.item_source.remote_type)
    assert kinds == {"parquet", "hologres", "redis", "feast", "featuredb"}


def test_no_source(minimal: dict[str, Any], environ: dict[str, str]) -> None:
    loaded = parse(minimal, environ, fg_mode="normal")
    assert loaded.service.source is None
    assert loaded.service.item_source is None
    assert any("item_features" in line for line in loaded.warnings)
    loaded = parse(minimal, environ, fg_mode="normal", remote_type="none", tables=[])
    assert loaded.service.source is not None
    assert loaded.service.item_source is None
    assert loaded.warnings == []


def test_bypass_uses_no_source(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    loaded = parse(minimal, environ, **PARQUET | {"fg_mode": "bypass"})
    assert loaded.service.item_source is None
    assert any("not used in fg_mode" in line for line in loaded.warnings)


def test_plugged_in_sources_are_known(
    minimal: dict[str, Any],
    environ: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    info = tmp_path / "plug-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[procserver.item_sources]\nscylla = plug:Source\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    loaded = parse(minimal, environ, fg_mode="normal", remote_type="scylla")
    assert loaded.service.item_source is not None
    assert loaded.service.item_source.remote_type == "scylla"
