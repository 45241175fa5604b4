"""Item sources: tables, FeatureStore keys, what is not there yet."""

from pathlib import Path
from typing import Any

import pytest

from procserver import config
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


@pytest.mark.parametrize("kind", ["hologres", "redis", "feast", "featuredb"])
def test_awaited_sources_are_typed_and_warned_about(
    kind: str, minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    loaded = parse(
        minimal,
        environ,
        fg_mode="normal",
        remote_type=kind,
        url="x://h/d",
        tables={"name": "t", "key": "id"},
    )
    assert loaded.service.source is not None
    assert loaded.service.source.remote_type == kind
    assert loaded.service.item_source is None
    assert any("not available yet" in line for line in loaded.warnings)


def test_feature_store_keys_beside_parquet(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    loaded = parse(minimal, environ, **PARQUET, fs_project="p", fs_entity="item, raw")
    source = loaded.service.item_source
    assert source is not None
    assert source.remote_type == "parquet"
    assert source.fs_entity == ("item", "raw")
    assert any("not used, remote_type is parquet" in w for w in loaded.warnings)


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
