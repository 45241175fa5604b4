"""Feature generation over Parquet files: checks, batches, threads, one output."""

import glob
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from procserver.errors import BadFeature, SourceError
from procserver.fg import FeatureGenerator
from procserver.offline.frames import column_types, feature_columns
from procserver.offline.progress import Progress

# Rows are taken so that a batch's columns are about this large, within bounds
# that keep row groups useful and narrow tables from being one batch.
BATCH_BYTES = 32 << 20
BATCH_ROWS = (256, 65536)
SUFFIXES = (".parquet", ".parq", ".pq")


class Unusable(Exception):
    """The command cannot be run as given: wrong paths, columns or names."""


@dataclass(frozen=True)
class Job:
    """A checked run: files in order, what is read of them, what is written."""

    files: tuple[Path, ...]
    generator: FeatureGenerator
    reserves: tuple[str, ...]
    schema: pa.Schema
    rows: int
    batch_rows: int

    @property
    def columns(self) -> list[str]:
        """Columns to read."""
        return list(dict.fromkeys([*self.generator.inputs, *self.reserves]))


def find_files(pattern: str) -> tuple[Path, ...]:
    """The Parquet files that a path, a folder or a glob pattern stands for.

    Of a folder, the files in it and below it by name, hidden ones left out.

    :raises Unusable: if there are none
    """
    path = Path(pattern)
    if path.is_dir():
        found = [
            one
            for one in sorted(path.rglob("*"))
            if one.suffix in SUFFIXES and one.is_file() and not _is_hidden(one, path)
        ]
    elif path.exists():
        found = [path]
    else:
        names = sorted(glob.glob(pattern, recursive=True))
        found = [Path(name) for name in names if os.path.isfile(name)]
    if not found:
        raise Unusable(f"no Parquet file at {pattern}")
    return tuple(found)


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.relative_to(root).parts)


def check_output(output: Path, files: Sequence[Path]) -> None:
    """Refuses an output that cannot be written, or that would replace an input.

    :raises Unusable: saying which
    """
    if output.is_dir():
        raise Unusable(f"{output} is a folder; name the file to write")
    if not output.parent.is_dir():
        raise Unusable(f"there is no folder {output.parent}")
    if any(output.resolve() == path.resolve() for path in files):
        raise Unusable(f"{output} is one of the input files")


def prepare(
    files: Sequence[Path], generator: FeatureGenerator, reserves: Sequence[str] = ()
) -> Job:
    """Checks all files' columns before any is read.

    Columns that the features read must be in every file, also those to pass
    through, whose types must agree.

    :raises Unusable: naming the file and its missing columns, or the column that
        is both a feature and passed through
    """
    reserves = tuple(dict.fromkeys([*generator.spec.reserves, *reserves]))
    if not generator.inputs and not reserves:
        raise Unusable("no column is read")
    types = column_types(generator.plan)
    for name in reserves:
        if name in types:
            raise Unusable(f"column {name!r} is both passed through and a feature")
    rows = size = 0
    passed: list[pa.Field] = []
    for path in files:
        metadata, schema = _footer(path)
        missing = [
            name
            for name in dict.fromkeys([*generator.inputs, *reserves])
            if name not in schema.names
        ]
        if missing:
            raise Unusable(f"{path}: columns are missing: {', '.join(missing)}")
        fields = [schema.field(name).remove_metadata() for name in reserves]
        passed = passed or fields
        for one, other in zip(passed, fields, strict=True):
            if one.type != other.type:
                raise Unusable(
                    f"{path}: column {one.name!r} is {other.type}, but {one.type} "
                    f"in {files[0]}"
                )
        rows += metadata.num_rows
        size += _size(metadata, {*generator.inputs, *reserves})
    return Job(
        files=tuple(files),
        generator=generator,
        reserves=reserves,
        schema=pa.schema([*passed, *(pa.field(n, t) for n, t in types.items())]),
        rows=rows,
        batch_rows=_batch_rows(rows, size),
    )


def _footer(path: Path) -> tuple[pq.FileMetaData, pa.Schema]:
    try:
        with pq.ParquetFile(path) as file:
            return file.metadata, file.schema_arrow
    except (OSError, pa.ArrowInvalid) as error:
        raise Unusable(f"{path}: is no readable Parquet file: {error}") from error


def _size(metadata: pq.FileMetaData, names: set[str]) -> int:
    """Bytes of the columns, before compression."""
    total = 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for j in range(group.num_columns):
            column = group.column(j)
            if column.path_in_schema.partition(".")[0] in names:
                total += column.total_uncompressed_size
    return total


def _batch_rows(rows: int, size: int) -> int:
    low, high = BATCH_ROWS
    return min(high, max(low, BATCH_BYTES * rows // size)) if rows and size else high


def transform(job: Job, output: Path, *, threads: int, progress: Progress) -> None:
    """Generates the features of all files into one, rows in the order of reading.

    Memory is bounded by the batches under way, two more than ``threads``. The file
    is written beside ``output`` and renamed when it is whole.

    :raises BadFeature: naming the file, the row's batch and the feature
    :raises SourceError: if a file cannot be read, or the output cannot be written
    """
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        with (
            # PERF: dictionaries of generated values halve the speed and save 5 %.
            pq.ParquetWriter(
                part, job.schema, use_dictionary=list(job.reserves) or False
            ) as writer,
            ThreadPoolExecutor(1) as reader,
            ThreadPoolExecutor(threads) as pool,
        ):
            for batch in _in_order(job, reader, pool, threads + 2):
                writer.write_batch(batch)
                progress.advance(len(batch))
        os.replace(part, output)
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{error}") from error
    finally:
        part.unlink(missing_ok=True)


def _in_order(
    job: Job, reader: ThreadPoolExecutor, pool: ThreadPoolExecutor, most: int
) -> Iterator[pa.RecordBatch]:
    """Generated batches in the order of reading, ``most`` of them under way."""
    batches = _batches(job)
    waiting: deque[Future[pa.RecordBatch]] = deque()
    try:
        ahead = reader.submit(next, batches, None)
        while (read := ahead.result()) is not None:
            ahead = reader.submit(next, batches, None)
            waiting.append(pool.submit(_generate, job, *read))
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _batches(job: Job) -> Iterator[tuple[str, pa.RecordBatch]]:
    for path in job.files:
        first = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(job.batch_rows, columns=job.columns):
                yield f"{path}, rows from {first}", batch
                first += len(batch)


def _generate(job: Job, where: str, batch: pa.RecordBatch) -> pa.RecordBatch:
    generator = job.generator
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    try:
        tensors = generator.transform(columns)
    except BadFeature as error:
        raise BadFeature(f"{where}: {error}") from error
    arrays = [batch.column(name) for name in job.reserves]
    arrays += feature_columns(generator.plan, tensors)
    return pa.RecordBatch.from_arrays(arrays, schema=job.schema)
