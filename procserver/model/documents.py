"""The small JSON files beside a model."""

import json
from pathlib import Path
from typing import Any

from procserver.errors import ModelError

# A manifest of a hundred thousand shards is far below; a weight file is far above.
MAX_BYTES = 64 * 2**20


def read_object(file: Path) -> dict[str, Any]:
    """One JSON object in UTF-8.

    :raises ModelError: naming the file and what is wrong with it
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ModelError(f"{file.name} is over {MAX_BYTES} bytes")
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise ModelError(
            f"{file.name} cannot be read: {error.strerror or error}"
        ) from error
    except RecursionError as error:
        raise ModelError(f"{file.name} is not JSON: nested too deeply") from error
    except ValueError as error:
        # json names line and column; UnicodeDecodeError the byte.
        raise ModelError(f"{file.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file.name} is not a JSON object")
    return content
