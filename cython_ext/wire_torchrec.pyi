from cython_ext.column import Column

Columns = dict[str, Column]

def decode_request(
    body: bytes | bytearray | memoryview,
) -> tuple[int, Column, Columns, Columns, Columns, int, dict[str, str]]: ...
