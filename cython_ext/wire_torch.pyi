from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Tensor = tuple[int, np.ndarray[Any, Any]]

def decode_request(
    body: bytes | bytearray | memoryview,
) -> tuple[list[Tensor] | None, dict[str, Tensor] | None, list[int], int]: ...
def encode_response(
    outputs: Sequence[np.ndarray[Any, Any]] | Mapping[str, np.ndarray[Any, Any]],
) -> bytes: ...
