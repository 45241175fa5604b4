"""From the files of an export to a module that can be called."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO

import numpy as np
import torch

from procserver.errors import ModelError
from procserver.model.operators import load_operators
from procserver.model.package import ModelPackage
from procserver.model.tables import read_tables

log = logging.getLogger("procserver.model")


@dataclass(frozen=True)
class LoadedModel:
    """A module on its device, and the tables that it does not hold itself.

    ``tables`` are the sparse tables of a distributed-embedding export, as
    ``tables.read_tables`` gives them. ``shared`` tells whether the weights live in
    memory that other workers map too.
    """

    package: ModelPackage
    module: torch.jit.ScriptModule
    tables: Mapping[str, np.ndarray] = field(default_factory=dict)
    shared: bool = False


def load(package: ModelPackage, *, device: str = "cpu") -> LoadedModel:
    """Reads the model into this process's own memory.

    :raises ModelError: if the script or a table is damaged, or if the script uses
        operators that are not here
    """
    started = time.monotonic()
    module = read_script(package, torch.device(device))
    tables = read_tables(package)
    log.info(
        "model %s loaded on %s in %.2f s",
        package.version,
        device,
        time.monotonic() - started,
    )
    return LoadedModel(package, module, tables)


def read_script(
    package: ModelPackage, device: torch.device, archive: IO[bytes] | None = None
) -> torch.jit.ScriptModule:
    """The package's script in evaluation mode.

    :param archive: another archive of the same script, to be read instead
    :raises ModelError: if it is damaged or uses operators that are not here
    """
    name = package.script.name
    load_operators(name, package.script if archive is None else archive)
    if archive is not None:
        archive.seek(0)
    try:
        module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
            archive or str(package.script), map_location=device
        )
    except (RuntimeError, ValueError) as error:
        text = str(error)
        operator = re.search(r"Unknown builtin op: (\w+)::", text)
        if operator:
            raise ModelError(
                f"{package.script.name} uses operators of the library "
                f"{operator.group(1)!r}, which is not loaded"
            ) from error
        first = text.strip().splitlines()[0] if text.strip() else "unreadable"
        raise ModelError(
            f"{package.script.name} is not a TorchScript archive: {first}"
        ) from error
    module.eval()
    return module
