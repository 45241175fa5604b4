from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cython_ext.column import Column

Array = np.ndarray[Any, Any]
Texts = Mapping[str, str] | None

def encode_torch(outputs: Sequence[Array] | Mapping[str, Array]) -> bytes: ...
def encode_torchrec(
    outputs: Mapping[str, Array],
    item_ids: Column | None,
    generate_features: Texts,
    raw_features: Texts,
    pass_through: Texts,
) -> bytes: ...
