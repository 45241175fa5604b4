"""Features generated ahead: the Feature Generator at work for the item cache."""

import json
from pathlib import Path

from procserver.config import ServiceConfig
from procserver.fg import FeatureGenerator
from procserver.fg.pregenerated import Pregenerator
from procserver.model.package import ModelPackage


def open_maker(service: ServiceConfig, package: ModelPackage) -> Pregenerator | None:
    """Generates the features of the service's export; None: there are none.

    :param package: the model version that the workers serve
    :raises ServiceError: if the export cannot be read
    """
    if service.model.fg_mode != "normal" or package.fg_json is None:
        return None
    return _maker(package.fg_json, farm_hash=service.envs.farm_hash)


def open_told(what: str) -> Pregenerator | None:
    """The same for what a master tells its refresher during a reload."""
    told = json.loads(what)
    if told["fg_json"] is None:
        return None
    return _maker(Path(told["fg_json"]), farm_hash=told["farm_hash"])


def _maker(fg_json: Path, *, farm_hash: bool) -> Pregenerator:
    return Pregenerator(FeatureGenerator(fg_json, farm_hash=farm_hash))
