"""The service JSON and its environment as one frozen, typed tree."""

from procserver.config.envs import EnvConfig
from procserver.config.host import HostConfig
from procserver.config.load import Loaded, load, load_text, parse
from procserver.config.model import ModelConfig
from procserver.config.rpc import EasConfig, RpcConfig
from procserver.config.secret import Secret, Url, mask_url
from procserver.config.service import ServiceConfig
from procserver.config.source import SourceConfig, StreamConfig, TableConfig
from procserver.config.storage import Mount

__all__ = [
    "EasConfig",
    "EnvConfig",
    "HostConfig",
    "Loaded",
    "ModelConfig",
    "Mount",
    "RpcConfig",
    "Secret",
    "ServiceConfig",
    "SourceConfig",
    "StreamConfig",
    "TableConfig",
    "Url",
    "load",
    "load_text",
    "mask_url",
    "parse",
]
