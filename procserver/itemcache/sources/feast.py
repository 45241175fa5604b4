"""Items of a Feast feature store, which takes the FeatureStore's role.

``fs_project`` is the project, ``fs_model`` a feature service, ``fs_entity`` the
entities whose views hold items. Loads read the offline store, the latest row of
each entity; later ones read the rows whose event is newer. Online stores cannot
list what they hold: from there items come by a table of their ids.

NOTE: the methods of offline stores that this needs are Feast's own between its
parts, so its minor version is pinned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from procserver.errors import SourceError
from procserver.itemcache.sources import (
    ROW_TIME,
    Changes,
    CursorLost,
    Description,
    SourceConfig,
    TableConfig,
    Upsert,
    reveal,
)
from procserver.itemcache.sources.merging import BATCH_ROWS, merge, merged_schema
from procserver.itemcache.sources.parquet import open_table

# How far behind the last load the next one begins, for rows that were late.
OVERLAP = timedelta(minutes=5)
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
# Entities of one call to the online store.
ONLINE_ROWS = 2000
YAML = "feature_store.yaml"


@dataclass(frozen=True)
class View:
    """One feature view of items: its id column, its columns and their types."""

    label: str
    key: str
    columns: tuple[str, ...]
    schema: pa.Schema
    definition: Any
    read: Callable[[], Iterator[pa.RecordBatch]]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The latest row of each item."""
        return self.read()


class FeastSource:
    """``remote_type: feast``: ``url`` is a repository's folder or its YAML file.

    A table's ``name`` is a file of item ids, relative to that folder. A feature
    service's views are merged by item id; of a feature in two the later one counts.
    Views of other entities belong to the requests and are left out.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.skipped: Counter[str] = Counter()
        self._path = reveal(config.url)
        self._project: str | None = getattr(config, "fs_project", None)
        self._service: str | None = getattr(config, "fs_model", None)
        self._entities: tuple[str, ...] = getattr(config, "fs_entity", ())
        self._offline: bool = getattr(config, "load_feature_from_offlinestore", False)
        self._ends = getattr(config, "item_ttl_minutes", None) is not None
        self._ids: TableConfig | None = next(iter(config.tables), None)
        if not self._offline and (self._ids is None or not self._ids.name):
            raise SourceError(
                "Feast: an online store cannot list its items; set "
                "load_feature_from_offlinestore to true, or name a Parquet file of "
                "item ids as the table"
            )
        self._store = open_store(self._path, self._project)

    def describe(self) -> Description:
        """Key and columns as the feature views declare them."""
        views = self._views()
        return Description(views[0].key, merged_schema(views))

    def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
        """The latest row of each item; the cursor is the time of the load."""
        self.skipped = Counter()
        views = self._views()
        cursor = datetime.now(UTC).isoformat()
        if not self._offline:
            return cursor, self._online(views)
        if len(views) == 1:
            return cursor, views[0].batches()
        return cursor, merge(views, self.skipped)

    def changes(self, cursor: object, wait: float = 0.0) -> Changes | None:
        """Rows of later events; None: an online store tells of none.

        :raises CursorLost: if the cursor is not one of ours
        """
        if not self._offline:
            return None
        try:
            since = datetime.fromisoformat(str(cursor)) - OVERLAP
        except ValueError as error:
            raise CursorLost(f"Feast: {cursor!r} is no time of a load") from error
        now = datetime.now(UTC)
        steps: list[Upsert] = []
        newest = 0
        for view in self._views():
            table, times = self._rows(view, latest=False, start=since, end=now)
            if table.num_rows:
                (batch,) = table.combine_chunks().to_batches()
                steps.append(Upsert(batch, times))
                newest = max(newest, int(times.max()))
        return Changes(steps, now.isoformat(), newest / 1e6 if newest else None)

    def close(self) -> None:
        """Feast holds nothing open that it would let go of."""

    def _views(self) -> list[View]:
        """The item views of the service, in its order.

        :raises SourceError: if there is none, or one that cannot be loaded
        """
        try:
            # The registry is read anew: views come and go.
            self._store.refresh_registry()
            return self._find_views()
        except SourceError:
            raise
        except Exception as error:
            raise _failed("its registry", error) from error

    def _find_views(self) -> list[View]:
        store = self._store
        entities = {entity.name: entity for entity in store.list_entities()}
        for name in self._entities:
            if name not in entities:
                there = ", ".join(sorted(entities)) or "none"
                raise SourceError(f"Feast: fs_entity {name!r}: there are {there}")
        found = []
        all_views = {view.name: view for view in store.list_all_feature_views()}
        for name, fields in self._selected(all_views):
            view = all_views[name]
            sources = getattr(view, "source_feature_view_projections", None)
            if sources is not None:
                self._refuse_computed(name, sources.values(), all_views)
            elif self._is_of_items(view):
                found.append(self._view(view, fields, entities[view.entities[0]]))
        if not found:
            raise SourceError(
                "Feast: no feature view is of items; fs_entity names their entities"
            )
        return found

    def _selected(self, views: dict[str, Any]) -> list[tuple[str, list[Any]]]:
        """Names of views, and the fields asked for."""
        if self._service is None:
            return [(name, view.features) for name, view in views.items()]
        service = self._store.get_feature_service(self._service)
        selected = [(p.name, p.features) for p in service.feature_view_projections]
        for name, _ in selected:
            if name not in views:
                raise SourceError(f"Feast: there is no feature view {name!r}")
        return selected

    def _is_of_items(self, view: Any) -> bool:
        if len(view.entities) != 1:
            return False
        return not self._entities or view.entities[0] in self._entities

    def _refuse_computed(self, name: str, sources: Any, views: dict[str, Any]) -> None:
        """Features computed from items' would be missing without a word."""
        origins = [views[source.name] for source in sources if source.name in views]
        if any(self._is_of_items(view) for view in origins):
            raise SourceError(
                f"Feast: view {name!r} computes features on demand, which is done by "
                "fg.json here; leave it out of the feature service"
            )

    def _view(self, definition: Any, fields: Sequence[Any], entity: Any) -> View:
        from feast.types import from_feast_to_pyarrow_type

        label = f"feature view {definition.name!r}"
        declared = {column.name: column for column in definition.entity_columns}
        key = declared[entity.join_key]
        try:
            types = [
                pa.field(column.name, from_feast_to_pyarrow_type(column.dtype))
                for column in (key, *fields)
            ]
        except (ValueError, AssertionError) as error:
            raise SourceError(f"Feast: {label}: {error}") from error
        columns = tuple(column.name for column in fields)
        view = View(label, key.name, columns, pa.schema(types), definition, _nothing)
        return replace(view, read=lambda: self._latest(view))

    def _latest(self, view: View) -> Iterator[pa.RecordBatch]:
        now = datetime.now(UTC)
        lifetime = view.definition.ttl
        start = now - lifetime if lifetime else BEGINNING
        table, times = self._rows(view, latest=True, start=start, end=now)
        if self._ends:
            table = table.append_column(ROW_TIME, pa.array(times, pa.int64()))
        yield from table.to_batches(BATCH_ROWS)

    def _rows(
        self, view: View, *, latest: bool, start: datetime, end: datetime
    ) -> tuple[pa.Table, np.ndarray]:
        """Rows of the offline store, and their event times in microseconds."""
        from feast.infra.offline_stores.offline_utils import (
            get_offline_store_from_config,
        )

        source = view.definition.batch_source
        if source is None:
            raise SourceError(f"Feast: {view.label} has no batch source")
        # Names as the offline store has them.
        original = {new: old for old, new in (source.field_mapping or {}).items()}
        names = {original.get(name, name): name for name in view.schema.names}
        time_column = original.get(source.timestamp_field, source.timestamp_field)
        created = source.created_timestamp_column or None
        try:
            offline = get_offline_store_from_config(self._store.config.offline_store)
            pull = (
                offline.pull_latest_from_table_or_query
                if latest
                else offline.pull_all_from_table_or_query
            )
            job = pull(
                config=self._store.config,
                data_source=source,
                join_key_columns=[original.get(view.key, view.key)],
                feature_name_columns=[
                    original.get(name, name) for name in view.columns
                ],
                timestamp_field=time_column,
                created_timestamp_column=original.get(created, created),
                start_date=start,
                end_date=end,
            )
            table = job.to_arrow()
        except Exception as error:
            raise _failed(view.label, error) from error
        times = table[time_column].cast(pa.timestamp("us", "UTC")).cast(pa.int64())
        return _typed(table, names, view), times.to_numpy()

    def _online(self, views: list[View]) -> Iterator[pa.RecordBatch]:
        """Items of the table of ids, as the online store has them."""
        assert self._ids is not None
        key = views[0].key
        place = str(self._ids.name)
        if "://" not in place:
            place = str(repository_file(self._path).parent / place)
        ids = open_table(place, self._ids, "table of item ids")
        features = [f"{v.definition.name}:{name}" for v in views for name in v.columns]
        for name, count in Counter(f.partition(":")[2] for f in features).items():
            if count > 1:
                raise SourceError(f"Feast: {count} feature views have a {name!r}")
        schema = pa.schema([f for v in views for f in v.schema if f.name != v.key])
        keys = {view.key for view in views}
        for batch in ids.batches():
            column = batch.column(ids.key)
            for start in range(0, len(column), ONLINE_ROWS):
                chosen = column.slice(start, ONLINE_ROWS).drop_null()
                self.skipped["null_key"] += min(ONLINE_ROWS, len(column) - start) - len(
                    chosen
                )
                entities = {name: chosen.to_pylist() for name in keys}
                try:
                    response = self._store.get_online_features(
                        features=features, entity_rows=entities
                    )
                    table = response.to_arrow()
                except Exception as error:
                    raise _failed("its online store", error) from error
                yield self._present(key, chosen, table, schema)

    def _present(
        self, key: str, ids: pa.Array, table: pa.Table, schema: pa.Schema
    ) -> pa.RecordBatch:
        """Items of which the online store knows anything."""
        cells = {
            field.name: _cast(table[field.name], field, "online store")
            for field in schema
        }
        known = np.zeros(len(ids), dtype=bool)
        for column in cells.values():
            known |= pc.is_valid(column).to_numpy()
        self.skipped["not_online"] += int((~known).sum())
        whole = pa.table({key: ids, **cells}).filter(pa.array(known)).combine_chunks()
        return pa.RecordBatch.from_arrays(
            [_whole(column) for column in whole.columns], names=whole.column_names
        )


def repository_file(path: str) -> Path:
    """Where the YAML file of a repository is to be."""
    place = Path(path.removeprefix("file://"))
    return place / YAML if place.is_dir() else place


def open_store(path: str, project: str | None) -> Any:
    """Feast's view of a repository.

    :raises SourceError: without the extra, without a repository there, or if it is
        of another project
    """
    try:
        from feast import FeatureStore
    except ImportError as error:
        raise SourceError("Feast is not installed: procserver[feast]") from error
    file = repository_file(path)
    if not file.is_file():
        raise SourceError(f"Feast: there is no {file}")
    try:
        store = FeatureStore(fs_yaml_file=file)
    except Exception as error:
        raise _failed(str(file), error) from error
    if project is not None and store.project != project:
        raise SourceError(
            f"Feast: fs_project is {project!r}, the repository's is {store.project!r}"
        )
    return store


def _nothing() -> Iterator[pa.RecordBatch]:
    return iter(())


def _typed(table: pa.Table, names: dict[str, str], view: View) -> pa.Table:
    """The columns of ``view`` by its names and types.

    NOTE: file stores read by pandas, where an integer with a null is a float.
    """
    columns = {}
    for old, new in names.items():
        if old not in table.column_names:
            raise SourceError(f"Feast: {view.label} has no column {old!r}")
        columns[new] = _cast(table[old], view.schema.field(new), view.label)
    return pa.table(columns)


def _cast(column: Any, field: pa.Field, label: str) -> Any:
    if pa.types.is_floating(column.type) and pa.types.is_integer(field.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise SourceError(f"Feast: {label}, feature {field.name!r}: {error}") from error


def _whole(column: Any) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _failed(what: str, error: Exception) -> SourceError:
    """Whatever a store's driver raised."""
    text = " ".join(str(error).split())
    return SourceError(f"Feast, {what}: {type(error).__name__}: {text:.500}")
