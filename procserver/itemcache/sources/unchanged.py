"""Which of the rows read again are as they were."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def changed_rows(
    rows: pa.Table, key: str, before: pa.Table | None
) -> NDArray[np.bool_]:
    """True for rows of which ``before`` has none of the same id and content.

    PERF: an overlap is read again and again; rows applied again would only fill the
    delta.
    """
    changed = np.ones(rows.num_rows, dtype=np.bool_)
    if before is None or before.schema != rows.schema:
        return changed
    known = pa.array(pc.index_in(rows[key], before[key].combine_chunks()))
    seen = np.flatnonzero(known.is_valid().to_numpy(zero_copy_only=False))
    if not len(seen):
        return changed
    new = rows.take(pa.array(seen))
    old = before.take(known.drop_null())
    same = np.ones(len(seen), dtype=np.bool_)
    for name in rows.column_names:
        same &= _equal(new[name], old[name])
    changed[seen[same]] = False
    return changed


def _equal(one: pa.ChunkedArray, other: pa.ChunkedArray) -> NDArray[np.bool_]:
    if pa.types.is_nested(one.type):
        pairs = zip(one.to_pylist(), other.to_pylist(), strict=True)
        return np.fromiter((a == b for a, b in pairs), np.bool_, len(one))
    equal = pc.equal(one, other).fill_null(False)
    both = pc.and_(one.is_null(), other.is_null())
    return np.asarray(pc.or_(equal, both).to_numpy(zero_copy_only=False), np.bool_)
