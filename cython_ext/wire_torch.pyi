from typing import Any

import numpy as np

Tensor = tuple[int, np.ndarray[Any, Any]]

def decode_request(
    body: bytes | bytearray | memoryview,
) -> tuple[list[Tensor] | None, dict[str, Tensor] | None, list[int], int]: ...
