"""Which keys of an item source go together."""

from typing import Any, Protocol

#: Remote types whose items can be loaded.
AVAILABLE = (
    "parquet",
    "hologres",
    "postgres",
    "postgresql",
    "redis",
    "feast",
    "featuredb",
)
#: Those that speak PostgreSQL's protocol.
DATABASES = ("hologres", "postgres", "postgresql")
#: Read and typed, but there is nothing that could be asked for items.
AWAITED = ("featurestore",)


class Table(Protocol):
    """What the rules look at of a table."""

    @property
    def name(self) -> str | None: ...
    @property
    def key(self) -> str: ...
    @property
    def condition(self) -> str | None: ...
    @property
    def timekey(self) -> str | None: ...
    @property
    def types(self) -> tuple[tuple[str, str], ...] | None: ...


def check_source(
    values: dict[str, Any],
    feature_store: list[str],
    problems: list[str],
    warnings: list[str],
    *,
    whole: bool,
) -> None:
    """Whether the keys of an item source go together.

    :param feature_store: the FeatureStore's keys that are given
    :param whole: no key was ill-typed, so what is missing was not given
    """
    kind = values["remote_type"]
    path = "model_config.remote_type"
    tables: tuple[Table, ...] = values["tables"]
    if kind == "none" and tables:
        problems.append(f'{path}: "none" contradicts model_config.tables')
    if kind in AVAILABLE and values["url"] is None:
        problems.append(f"model_config.url: missing; {path} {kind} needs it")
    if kind in AVAILABLE and kind != "feast" and not tables and whole:
        problems.append(
            "model_config.tables: missing; at least the item id's column is needed, "
            'such as {"key": "item_id"}'
        )
    if kind in (*DATABASES, "redis", "featuredb"):
        problems.extend(
            f"model_config.tables: the table with key {table.key!r} has no name"
            for table in tables
            if table.name is None
        )
    if kind in (*DATABASES, "redis"):
        _warn_of_feature_store(kind, feature_store, warnings)
    if kind == "feast":
        _check_feast(values, problems)
    if kind == "featuredb" and whole:
        _check_featuredb(values, problems)
    if kind == "redis":
        _check_redis(tables, problems)
    if kind in AVAILABLE:
        _warn_of_idle(kind, values, warnings)
    if kind == "parquet":
        _check_parquet(tables, feature_store, problems, warnings)
    if kind == "featurestore":
        warnings.append(
            f"{', '.join(feature_store)}: the platform's FeatureStore cannot be asked "
            "what it holds; items come from a Feast repository or a FeatureDB whose "
            'url is given, from "remote_type": "parquet" with url and tables, or in '
            "each request's item_features"
        )


def _check_parquet(
    tables: tuple[Table, ...],
    feature_store: list[str],
    problems: list[str],
    warnings: list[str],
) -> None:
    if any(table.condition for table in tables):
        # NOTE: left out silently, items would be served that should not be.
        problems.append(
            "model_config.tables: condition is SQL, which Parquet files do not take"
        )
    _warn_of_feature_store("parquet", feature_store, warnings)


def _warn_of_feature_store(
    kind: str, feature_store: list[str], warnings: list[str]
) -> None:
    if feature_store:
        warnings.append(f"{', '.join(feature_store)}: not used, remote_type is {kind}")


def _check_feast(values: dict[str, Any], problems: list[str]) -> None:
    named = any(table.name for table in values["tables"])
    if not values["load_feature_from_offlinestore"] and not named:
        problems.append(
            "model_config.load_feature_from_offlinestore: is to be true for Feast, "
            "whose online stores cannot list their items; or name a Parquet file of "
            "item ids as the table"
        )


def _check_featuredb(values: dict[str, Any], problems: list[str]) -> None:
    for key in ("fs_project", "featuredb_username", "featuredb_password"):
        if values[key] is None:
            problems.append(f"model_config.{key}: missing; FeatureDB needs it")
    for table in values["tables"]:
        if not table.types:
            problems.append(
                f"model_config.tables: {table.name!r} has no types, which are to tell "
                "all fields of the feature view in their order"
            )


def _check_redis(tables: tuple[Table, ...], problems: list[str]) -> None:
    for table in tables:
        if table.condition:
            problems.append(
                "model_config.tables: condition is SQL, which Redis does not take"
            )
        if table.name is not None and table.name.count("*") != 1:
            problems.append(
                f"model_config.tables: name {table.name!r} is to have one *, which "
                "stands for the item id"
            )


def _warn_of_idle(kind: str, values: dict[str, Any], warnings: list[str]) -> None:
    """Keys that this kind of source does not use."""
    tables: tuple[Table, ...] = values["tables"]
    database = kind in DATABASES
    name = "Parquet" if kind == "parquet" else kind
    idle = {
        "timekey": not database,
        "static": not database,
        "overlap": not database,
        "types": kind not in ("redis", "featuredb"),
    }
    for key, unused in idle.items():
        if unused and any(getattr(table, key) for table in tables):
            detail = (
                ": every load takes all rows" if key in ("timekey", "static") else ""
            )
            warnings.append(
                f"model_config.tables: {key} has no effect on {name}{detail}"
            )
    _warn_of_ttl(kind, values, warnings)
    if values["listen"] and not (database and any(t.timekey for t in tables)):
        warnings.append(
            "model_config.listen: has no effect without a table with a timekey in a "
            "PostgreSQL"
        )


def _warn_of_ttl(kind: str, values: dict[str, Any], warnings: list[str]) -> None:
    """A time to live that goes with nothing that is heard of items."""
    ttl, period = values["item_ttl_minutes"], values["period_minutes"]
    if ttl is None or values["stream"] or values["listen"] or kind == "featuredb":
        return
    if period is None:
        warnings.append(
            "model_config.item_ttl: without period and stream nothing is heard of "
            "items after they are loaded, and none of them ends"
        )
    elif ttl <= period:
        warnings.append(
            "model_config.item_ttl: is not longer than period, so items end before the "
            "source is asked for them again"
        )
