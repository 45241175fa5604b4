"""What ``procserver check`` is told about the model: names, files, refusals."""

from collections.abc import Callable
from dataclasses import dataclass, field

from procserver.config.service import ServiceConfig


@dataclass
class Findings:
    """What was seen of the model; nothing was loaded.

    ``summary`` stands behind the path, ``facts`` are lines of their own.
    """

    summary: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


#: Looks at a service's model; the room of models provides it.
Inspect = Callable[[ServiceConfig], Findings]
