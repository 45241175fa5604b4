"""The whole configuration of one service."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from procserver.config.envs import EnvConfig
from procserver.config.host import HostConfig
from procserver.config.kinds import SecretText, Text, UrlText
from procserver.config.model import ModelConfig
from procserver.config.rpc import EasConfig, RpcConfig
from procserver.config.secret import Secret
from procserver.config.settings import setting
from procserver.config.source import SourceConfig
from procserver.config.storage import Mount


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """A service as it runs on this machine; every path is absolute.

    ``model_dir`` may be a single TorchScript file; ``model.model_entry`` is a path
    below it, or below the version of it that is served. ``copies`` are the mounts
    that :func:`procserver.config.fetch.fetch` has to copy before the start;
    paths that lie in them exist only afterwards.
    """

    SECTION: ClassVar[str] = ""

    name: str = setting(
        "metadata.name",
        Text(
            r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}",
            "a name of letters, digits, _, - and .",
        ),
        "Name of the service, in the URL `/api/predict/<name>`.",
        required=True,
        aliases=("name",),
    )
    processor: str = setting(
        "processor",
        Text(r"easyrec(-.+)?", "easyrec-torch-VERSION or easyrec-VERSION"),
        "`easyrec-torch-VERSION` speaks the torch protocols, `easyrec-VERSION` the "
        "TensorFlow ones; every version is taken.",
        required=True,
    )
    token: Secret | None = setting(
        "credential.token",
        SecretText(),
        "Clients must show it, as it is or as a signature.",
        shown_default="no authentication",
        aliases=("token", "metadata.token"),
    )
    warm_up_data_path: Path | None = setting(
        "warm_up_data_path",
        UrlText(),
        "Requests replayed 5 times each before a worker is ready: a file or a folder "
        "of files. `.bin`, `.pb`: one request body, or its base64; `.txt`: base64 "
        "of one on each line. A path or a URL.",
    )
    oss_endpoint: str | None = setting(
        "oss_endpoint", Text(), "Endpoint for `oss://` URLs that name no own one."
    )
    engine: str
    rpc: RpcConfig
    model: ModelConfig
    source: SourceConfig | None
    envs: EnvConfig
    storage: tuple[Mount, ...]
    copies: tuple[Mount, ...]
    model_dir: Path
    state_dir: Path
    eas: EasConfig
    host: HostConfig

    @property
    def item_source(self) -> SourceConfig | None:
        """The source to fill the item cache from, if features do not come along.

        None in `bypass` mode, for `remote_type: none`, and for a source that
        this version cannot open (`check` warns about that).
        """
        if self.model.fg_mode == "bypass" or self.source is None:
            return None
        return self.source if self.source.available else None

    @property
    def allow_debug(self) -> bool:
        """Whether debug levels are answered."""
        if self.host.allow_debug is None:
            return self.token is not None
        return self.host.allow_debug


def engine_of(processor: str) -> str:
    """``torch`` or ``tensorflow``."""
    return "torch" if re.match(r"easyrec-torch(-|$)", processor) else "tensorflow"
