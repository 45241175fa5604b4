"""``model_config``: where item features come from."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, ClassVar

from procserver.config.kinds import (
    Boolean,
    Choice,
    ColumnTypes,
    Integer,
    Names,
    Number,
    Raw,
    SecretText,
    Text,
    UrlText,
    shown,
)
from procserver.config.rules import AVAILABLE, AWAITED, DATABASES, check_source
from procserver.config.secret import Secret, Url
from procserver.config.settings import read_section, setting

ENTRY_POINTS = "procserver.item_sources"


def plugged_types() -> tuple[str, ...]:
    """Remote types that installed packages add through the entry point group."""
    return tuple(sorted(entry_points(group=ENTRY_POINTS).names))


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """One table of items; of a column in several tables the last one counts."""

    SECTION: ClassVar[str] = "model_config.tables[]"

    name: str | None = setting(
        "name",
        Text(),
        "Table name. Parquet: a path below `url`, absent where `url` is the table. "
        "Hologres: with its schema, such as `public.items`. Redis: pattern of the "
        "hashes' keys with one `*`, which is the item id, such as `item:*`.",
    )
    key: str = setting("key", Text(), "Column of the item id.", required=True)
    value: tuple[str, ...] | None = setting(
        "value",
        Names(),
        "Columns to load.",
        shown_default="all",
    )
    condition: str | None = setting(
        "condition", Text(), "SQL condition that selects items (hologres)."
    )
    timekey: str | None = setting(
        "timekey",
        Text(),
        "Column of the time of change, a timestamp or integer, for incremental loads "
        "(hologres).",
    )
    overlap: float | None = setting(
        "overlap",
        Number(0, 1e18),
        "How far behind the newest `timekey` an incremental load begins, for rows "
        "committed late: seconds, or the column's own unit where its integers are no "
        "time since 1970.",
        shown_default="60 s; 0 for such integers",
    )
    static: bool = setting(
        "static",
        Boolean(),
        "Load once, leave out of periodic loads (hologres).",
        default=False,
    )
    types: tuple[tuple[str, str], ...] | None = setting(
        "types",
        ColumnTypes(),
        "Types by name: `int32`, `int64`, `float32`, `float64`, `string`, `list<T>`, "
        "`list<list<T>>` and `map<K,V>` of these; `bool`, `timestamp` for FeatureDB. "
        "Redis: of fields of hashes, which are texts. FeatureDB: all fields' in order.",
        shown_default="Redis: from a sample",
    )


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Changes beside any source that has a snapshot: a Redis Stream, or a file."""

    SECTION: ClassVar[str] = "model_config.stream"

    key: str | None = setting(
        "key", Text(), "Redis key of the stream; none for a file."
    )
    url: Url | None = setting(
        "url",
        UrlText(),
        "`redis://`, `rediss://` or `unix://` URL of the server; or of a file that "
        "lines are appended to: `file:///PATH`, or a path relative to the JSON file.",
        shown_default="`model_config.url` where that is Redis",
    )
    id: str | None = setting(
        "id",
        Text(),
        "Field of an entry that has the item id.",
        shown_default="name of the items' key column",
    )
    timekey: str | None = setting(
        "timekey",
        Text(),
        "Field of an entry that has the time of the event, a number since 1970.",
        shown_default="time at which Redis took the entry; of lines the order counts",
    )


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """The item source; ``available`` says whether this version can open it."""

    SECTION: ClassVar[str] = "model_config"

    remote_type: str = setting(
        "remote_type",
        Choice((*AVAILABLE, *AWAITED, "none"), more=plugged_types),
        "`parquet`: files, local or in an object store. `hologres`: any PostgreSQL, "
        "as are `postgres` and `postgresql`. `redis`: hashes. `feast`, `featuredb`: "
        "feature stores. `none`: features come in each request's `item_features`.",
        shown_default="no source",
    )
    url: Url | None = setting(
        "url",
        UrlText(),
        "Parquet: folder, file, glob or fsspec URL, relative to the JSON file. "
        "Hologres: a libpq URL. Redis: `redis://`, `rediss://` or `unix://`. Feast: "
        "its repository's folder. FeatureDB: `http://HOST/INSTANCE`.",
    )
    tables: tuple[TableConfig, ...] = setting(
        "tables",
        Raw("object or list of objects", secret=True),
        "Tables to load, see below.",
        default=(),
    )
    period_minutes: int | None = setting(
        "period",
        Integer(1, 5_256_000),
        "Time between full loads, or between looks at what has changed in tables "
        "with a `timekey`.",
        unit="min",
        shown_default="never",
    )
    item_ttl_minutes: float | None = setting(
        "item_ttl",
        Number(0.01, 5_256_000),
        "Time after which an item of which nothing was heard is unknown: no change of "
        "it came, nor a load that has it, or with a newer `timekey`. Takes 8 bytes "
        "an item.",
        unit="min",
        shown_default="never",
    )
    statement_timeout: float = setting(
        "statement_timeout",
        Number(1, 86_400),
        "Longest time for one statement at the database (hologres).",
        default=1800.0,
        unit="s",
    )
    listen: str | None = setting(
        "listen",
        Text(),
        "NOTIFY channel whose messages make the tables with a `timekey` be read at "
        "once (PostgreSQL).",
    )
    stream: StreamConfig | None = None
    fs_project: str | None = setting("fs_project", Text(), "FeatureStore project.")
    fs_model: str | None = setting(
        "fs_model", Text(), "FeatureStore model feature: the columns to load."
    )
    fs_entity: tuple[str, ...] = setting(
        "fs_entity", Names(), "FeatureStore entities.", default=()
    )
    region: str | None = setting("region", Text(), "Region of the FeatureStore.")
    access_key_id: Secret | None = setting(
        "access_key_id", SecretText(), "Access key id for the FeatureStore."
    )
    access_key_secret: Secret | None = setting(
        "access_key_secret", SecretText(), "Access key secret for the FeatureStore."
    )
    security_token: Secret | None = setting(
        "security_token", SecretText(), "Temporary token that goes with the key."
    )
    load_feature_from_offlinestore: bool = setting(
        "load_feature_from_offlinestore",
        Boolean(),
        "Load from the offline store instead of the online one.",
        default=False,
    )
    featuredb_username: str | None = setting(
        "featuredb_username", Text(), "User name for FeatureDB."
    )
    featuredb_password: Secret | None = setting(
        "featuredb_password",
        SecretText(),
        "Password for FeatureDB.",
        aliases=("model_config.featuredb_passwd",),
    )

    featuredb_token: Secret | None = setting(
        "featuredb_token",
        SecretText(),
        "Token of the FeatureDB data source, sent as `Authorization`.",
    )

    @property
    def available(self) -> bool:
        """Whether this version can load items from it."""
        return self.remote_type in AVAILABLE or self.remote_type in plugged_types()


def is_file(url: Url) -> bool:
    """Whether a stream's URL names a file, and no Redis server."""
    return url.scheme in ("", "file")


def missing_store_drivers(source: SourceConfig) -> list[str]:
    """What to install for the source's databases; empty where nothing is missing."""
    wanted: list[tuple[str, tuple[str, ...]]] = []
    if source.remote_type in DATABASES:
        wanted.append(("postgres", ("psycopg", "adbc_driver_postgresql")))
    stream = source.stream.url if source.stream else None
    if source.remote_type == "redis" or (stream and not is_file(stream)):
        wanted.append(("redis", ("redis",)))
    if source.remote_type == "feast":
        wanted.append(("feast", ("feast",)))
    return [
        f"model_config: the driver for {extra} is missing: "
        f"pip install 'procserver[{extra}]'"
        for extra, modules in wanted
        if not all(find_spec(module) for module in modules)
    ]


def read_source(
    tree: Mapping[str, Any], problems: list[str], warnings: list[str]
) -> dict[str, Any] | None:
    """Attributes of :class:`SourceConfig`, or None where no source is named."""
    before = len(problems)
    values = read_section(SourceConfig, tree, problems)
    values["tables"] = _read_tables(values["tables"], problems)
    values["stream"] = _read_stream(tree, values, problems, warnings)
    feature_store = [
        f"model_config.fs_{key}"
        for key in ("project", "model", "entity")
        if values[f"fs_{key}"]
    ]
    if values["remote_type"] is None:
        if len(problems) > before:
            return None
        if feature_store and values["url"] is not None:
            # The vendor's JSON with a store of one's own in place of the platform's.
            is_http = values["url"].scheme in ("http", "https")
            values["remote_type"] = "featuredb" if is_http else "feast"
        elif values["url"] is not None or values["tables"]:
            problems.append(
                "model_config.remote_type: missing although url or tables is given; "
                'say "parquet", or "none" for features in the request'
            )
            return None
        elif not feature_store:
            return None
        else:
            values["remote_type"] = "featurestore"
    check_source(
        values, feature_store, problems, warnings, whole=len(problems) == before
    )
    return values


def _read_tables(raw: Any, problems: list[str]) -> tuple[TableConfig, ...]:
    path = "model_config.tables"
    # NOTE: the vendor's page shows one table as an object, several as a list.
    single = isinstance(raw, Mapping)
    elements = [raw] if single else raw
    if not isinstance(elements, list | tuple):
        got = shown(raw, secret=True)
        problems.append(f"{path}: expected an object or a list of objects, got {got}")
        return ()
    tables = []
    for index, element in enumerate(elements):
        where = path if single else f"{path}[{index}]"
        if not isinstance(element, Mapping):
            got = shown(element, secret=True)
            problems.append(f"{where}: expected an object, got {got}")
            continue
        before = len(problems)
        values = read_section(TableConfig, element, problems, element=where)
        if len(problems) == before:
            tables.append(TableConfig(**values))
    return tuple(tables)


def _read_stream(
    tree: Mapping[str, Any],
    values: dict[str, Any],
    problems: list[str],
    warnings: list[str],
) -> StreamConfig | None:
    before = len(problems)
    given = read_section(StreamConfig, tree, problems)
    if len(problems) > before or not any(given.values()):
        return None
    path = "model_config.stream"
    if values["remote_type"] in (None, "none"):
        problems.append(f"{path}: needs a source of all items, see remote_type")
    if given["url"] is not None and is_file(given["url"]):
        if given["url"].scheme and not given["url"].reveal()[7:].startswith("/"):
            problems.append(f"{path}.url: expected file:///PATH, or a path")
        if given["key"] is not None:
            warnings.append(f"{path}.key: has no effect with a file")
        return StreamConfig(**given)
    if given["key"] is None:
        problems.append(f"{path}.key: missing; Redis key of the stream")
    if given["url"] is None:
        if values["remote_type"] != "redis":
            problems.append(f"{path}.url: missing; the URL of the Redis server")
        given["url"] = values["url"]
    return StreamConfig(**given)
