"""Looked-up embeddings as slow, readable numpy."""

from __future__ import annotations

import numpy as np


def plain_rows(table: np.ndarray) -> np.ndarray:
    """The float32 values of a table in whatever form it is stored."""
    if table.dtype != np.uint8:
        return table.astype(np.float32)
    codes = table[:, :-4].astype(np.float32)
    trailer = np.ascontiguousarray(table[:, -4:]).view(np.float16).astype(np.float32)
    return codes * trailer[:, :1] + trailer[:, 1:]


def int8_rows(values: np.ndarray) -> np.ndarray:
    """Codes, float16 scale and float16 offset of each row."""
    low = values.min(1, keepdims=True).astype(np.float16)
    span = values.max(1, keepdims=True) - low
    scale = np.maximum(span / 255, 1e-6).astype(np.float16)
    codes = np.clip(np.round((values - low) / scale), 0, 255).astype(np.uint8)
    return np.concatenate(
        [codes, scale.view(np.uint8), low.view(np.uint8)], axis=1
    ).copy()


def pooled(
    rows: np.ndarray, ids: np.ndarray, lengths: np.ndarray, pooling: str
) -> np.ndarray:
    """float32 sums or means in the order of the ids; -1 adds nothing."""
    out = np.zeros((len(lengths), rows.shape[1]), np.float32)
    at = 0
    for bag, length in enumerate(lengths.tolist()):
        for id_ in ids[at : at + length]:
            if id_ >= 0:
                out[bag] += rows[id_]
        if pooling == "MEAN" and length > 1:
            out[bag] /= np.float32(length)
        at += length
    return out


def keyed(
    keys: np.ndarray, values: np.ndarray, default: np.ndarray, ids: np.ndarray
) -> np.ndarray:
    """Rows of a table with keys of its own; ``default`` for unknown ones."""
    at = {key: row for row, key in enumerate(keys.tolist())}
    rows = [values[at[i]] if i in at else default for i in ids.tolist()]
    return np.array(rows, np.float32).reshape(len(ids), values.shape[1])
