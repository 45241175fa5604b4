from typing import Any

from cython_ext.column import Column

Buffer = bytes | bytearray | memoryview

def decode_request(
    body: Buffer,
) -> tuple[
    int,
    Column,
    dict[str, Column],
    dict[str, Column],
    dict[str, Column],
    int,
    dict[str, str],
]: ...
def encode_response(
    outputs: Any,
    item_ids: Column | None,
    generate_features: Any,
    raw_features: Any,
    pass_through: Any,
) -> bytes: ...
