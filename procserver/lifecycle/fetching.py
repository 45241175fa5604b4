"""Remote folders of a service, copied before anything is looked for."""

from __future__ import annotations

import logging
from pathlib import Path

from procserver.config import ServiceConfig
from procserver.config.fetch import fetch
from procserver.config.storage import Mount
from procserver.errors import FetchError

log = logging.getLogger("procserver.lifecycle")


def fetch_copies(service: ServiceConfig) -> None:
    """In a child of the master: brings everything here.

    :raises FetchError: if something that is needed cannot be copied
    """
    for mount in service.copies:
        try:
            fetch(mount, service.state_dir)
        except FetchError as error:
            # Before the first start nobody has captured anything.
            if not _holds_captures_only(mount, service):
                raise
            log.warning("no captured requests to warm up with: %s", error)


def _holds_captures_only(mount: Mount, service: ServiceConfig) -> bool:
    folder = mount.folder(service.state_dir)
    needed = [service.model_dir, service.warm_up_data_path]
    source = service.item_source
    if source is not None and source.url is not None:
        needed.append(Path(source.url.reveal()))
    captures = service.model.warmup_data_path
    return (
        captures is not None
        and captures.is_relative_to(folder)
        and not any(path and path.is_relative_to(folder) for path in needed)
    )
