"""The protocol of torch models behind FG: ``PBRequest`` and ``PBResponse``.

Read and written by the kernels of ``cython_ext`` in one go; the generated
classes in ``procserver.wire.pb`` describe the same messages for logs and tests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cython_ext.column import Column
from cython_ext.wire_response import encode_torchrec
from cython_ext.wire_torchrec import decode_request


@dataclass(frozen=True, slots=True)
class TorchRecRequest:
    """A decoded ``PBRequest``.

    ``user`` has one row in each column; ``context`` and ``item`` have as many
    as were sent, which may be more or fewer than there are ``item_ids``.
    A feature without a value is a column of kind ``ABSENT``.
    """

    debug_level: int
    item_ids: Column
    user: dict[str, Column]
    context: dict[str, Column]
    item: dict[str, Column]
    faiss_neigh_num: int
    meta: dict[str, str]

    @property
    def is_empty(self) -> bool:
        """Nothing to score was read: perhaps another protocol's message."""
        return not (len(self.item_ids) or self.user or self.context or self.item)


def decode(body: bytes | bytearray | memoryview) -> TorchRecRequest:
    """Decodes a request body (already decompressed) to columns.

    What upb's ``ParseFromString`` accepts and refuses is accepted and refused
    here, with the same content: unknown fields are skipped, the last value of
    a field and the last entry of a map key win (a map keeps the place of the
    first), messages merge, numbers may be packed or not; a map entry with an
    unknown field in it is left out.

    Rows of one context or item feature may differ in type: int32 and int64,
    float and double, and integers and floats (if every value stays exact)
    widen; integers beside text become decimal text; a scalar beside lists is a
    list of one; maps widen by keys and values. ``""`` in a column that is not
    of text, and a feature with no alternative set, are nulls.

    The columns own their memory, so the body may be reused afterwards; it must
    not change while it is decoded.

    :raises Undecodable: if the bytes are not such a message
    :raises BadFeature: if the types of a feature's rows do not mix
    :raises TooLarge: beyond 2 GiB or 65,536 features and meta data entries
    """
    return TorchRecRequest(*decode_request(body))


def encode(
    outputs: Mapping[str, np.ndarray[Any, Any]],
    item_ids: Column | None,
    *,
    generate_features: Mapping[str, str] | None = None,
    raw_features: Mapping[str, str] | None = None,
    pass_through: Mapping[str, str] | None = None,
) -> bytes:
    """Writes a ``PBResponse``: outputs in the order given, ids echoed.

    :param outputs: by name; see :mod:`procserver.wire.torch` for the dtypes
    :param item_ids: a column of text; None: no ids
    :raises PredictFailed: if an output's dtype has no place in the protocol
    """
    return encode_torchrec(
        outputs, item_ids, generate_features, raw_features, pass_through
    )
