"""``model_config``: where item features come from."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar

from procserver.config.kinds import (
    Boolean,
    Choice,
    Integer,
    Names,
    Raw,
    SecretText,
    Text,
    UrlText,
    shown,
)
from procserver.config.secret import Secret, Url
from procserver.config.settings import read_section, setting

#: Remote types whose items this version can load.
AVAILABLE = ("parquet",)
#: Remote types that are read and typed, for which there is no adapter yet.
AWAITED = ("hologres", "redis", "feast", "featuredb", "featurestore")
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
        "Table name; for Parquet a path below `url`, absent where `url` is the table.",
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
        "timekey", Text(), "Column of the time of change, for incremental loads."
    )
    static: bool = setting(
        "static", Boolean(), "Load once, leave out of periodic loads.", default=False
    )


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """The item source; ``available`` says whether this version can open it."""

    SECTION: ClassVar[str] = "model_config"

    remote_type: str = setting(
        "remote_type",
        Choice(("parquet", *AWAITED, "none"), more=plugged_types),
        "`parquet`: files, local or in an object store. `hologres`: any "
        "PostgreSQL. `none`: features come in each request's `item_features`.",
        shown_default="no source",
    )
    url: Url | None = setting(
        "url",
        UrlText(),
        "Parquet: folder, file, glob or fsspec URL, relative to the JSON file. "
        "Others: how to connect.",
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

    @property
    def available(self) -> bool:
        """Whether this version can load items from it."""
        return self.remote_type in AVAILABLE or self.remote_type in plugged_types()


def read_source(
    tree: Mapping[str, Any], problems: list[str], warnings: list[str]
) -> dict[str, Any] | None:
    """Attributes of :class:`SourceConfig`, or None where no source is named."""
    before = len(problems)
    values = read_section(SourceConfig, tree, problems)
    values["tables"] = _read_tables(values["tables"], problems)
    feature_store = [
        f"model_config.fs_{key}"
        for key in ("project", "model", "entity")
        if values[f"fs_{key}"]
    ]
    if values["remote_type"] is None:
        if len(problems) > before:
            return None
        if values["url"] is not None or values["tables"]:
            problems.append(
                "model_config.remote_type: missing although url or tables is given; "
                'say "parquet", or "none" for features in the request'
            )
            return None
        if not feature_store:
            return None
        values["remote_type"] = "featurestore"
    _check(values, feature_store, problems, warnings, whole=len(problems) == before)
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


def _check(
    values: dict[str, Any],
    feature_store: list[str],
    problems: list[str],
    warnings: list[str],
    *,
    whole: bool,
) -> None:
    kind = values["remote_type"]
    path = "model_config.remote_type"
    tables: tuple[TableConfig, ...] = values["tables"]
    if kind == "none" and tables:
        problems.append(f'{path}: "none" contradicts model_config.tables')
    if kind in ("parquet", "hologres") and values["url"] is None:
        problems.append(f"model_config.url: missing; {path} {kind} needs it")
    if kind in ("parquet", "hologres") and not tables and whole:
        problems.append(
            "model_config.tables: missing; at least the item id's column is needed, "
            'such as {"key": "item_id"}'
        )
    if kind == "hologres":
        problems.extend(
            f"model_config.tables: the table with key {table.key!r} has no name"
            for table in tables
            if table.name is None
        )
    if kind == "parquet":
        _check_parquet(tables, feature_store, problems, warnings)
    if kind == "featurestore":
        warnings.append(
            f"{', '.join(feature_store)}: the FeatureStore source is not available "
            'yet; items come from "remote_type": "parquet" with url and tables, or '
            "in each request's item_features"
        )
    elif kind in AWAITED:
        warnings.append(
            f'{path}: "{kind}" is read but not available yet; items come from '
            '"parquet", or in each request\'s item_features'
        )


def _check_parquet(
    tables: tuple[TableConfig, ...],
    feature_store: list[str],
    problems: list[str],
    warnings: list[str],
) -> None:
    if any(table.condition for table in tables):
        # NOTE: left out silently, items would be served that should not be.
        problems.append(
            "model_config.tables: condition is SQL, which Parquet files do not take"
        )
    if feature_store:
        warnings.append(f"{', '.join(feature_store)}: not used, remote_type is parquet")
    for key in ("timekey", "static"):
        if any(getattr(table, key) for table in tables):
            warnings.append(
                f"model_config.tables: {key} has no effect on Parquet in this "
                "version: every load takes all rows"
            )
