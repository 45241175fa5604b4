"""The parts of a service put together: model, FG, cache, pipeline, app."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from procserver.app import Service
from procserver.config import ServiceConfig
from procserver.errors import ModelError, ProcserverError
from procserver.fg import FeatureGenerator
from procserver.itemcache.reader import CacheReader
from procserver.model.loading import load
from procserver.model.package import ModelPackage, open_package
from procserver.model.runner import ModelRunner
from procserver.pipeline import BypassPipeline, Pipeline, RankingPipeline
from procserver.wire.auth import Authenticator

log = logging.getLogger("procserver.lifecycle")

WARM_UP_ROUNDS = 5
WARM_UP_SUFFIXES = (".bin", ".pb")


def build_service(
    service: ServiceConfig, control_name: str | None, device: str
) -> Service:
    """Loads everything that one worker needs and warms it up.

    :param control_name: the cache's control segment; None without item source
    :param device: ``cpu`` or ``cuda:N``
    :raises ServiceError: naming what is wrong with model, fg.json or cache
    """
    package = open_package(service.model_dir, input_tile=service.envs.input_tile)
    pipeline = _pipeline(service, package, control_name, device)
    started = time.monotonic()
    pipeline.warm_up()
    _replay(pipeline, service.warm_up_data_path)
    log.info("warmed up in %.2f s", time.monotonic() - started)
    token = service.token.reveal() if service.token is not None else None
    return Service(
        name=service.name,
        model_version=package.version,
        pipeline=pipeline,
        auth=Authenticator(token),
        max_body_bytes=service.host.max_body_bytes,
        decompressor=service.rpc.decompressor,
    )


def _pipeline(
    service: ServiceConfig,
    package: ModelPackage,
    control_name: str | None,
    device: str,
) -> Pipeline:
    model = load(package, device=device)
    runner = ModelRunner(model, device=device, outputs=service.model.outputs)
    if service.model.fg_mode == "bypass":
        return BypassPipeline(runner)
    if package.fg_json is None:
        raise ModelError(f"fg_mode is normal, but {package.directory} holds no fg.json")
    fg = FeatureGenerator(
        package.fg_json,
        threads=service.model.fg_threads,
        farm_hash=service.envs.farm_hash,
    )
    cache = None
    if control_name is not None:
        cache = CacheReader(control_name, digest=fg.digest)
        known = cache.current().schema
        for name in fg.item_inputs:
            if name not in known:
                log.warning(
                    "item input %r is in no item table: requests must send it", name
                )
    return RankingPipeline(
        fg,
        runner,
        cache,
        item_empty_score=service.model.item_empty_score,
        max_items=service.host.max_items,
    )


def _replay(pipeline: Pipeline, path: Path | None) -> None:
    """Runs recorded request bodies (EAS ``warm_up_data_path``).

    :raises ModelError: if the path is missing or holds no request; a request
        that fails is logged and passed over
    """
    if path is None:
        return
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in files if file.suffix in WARM_UP_SUFFIXES]
    if not all(file.is_file() for file in files) or not files:
        raise ModelError(f"warm_up_data_path: no request files (.bin, .pb) at {path}")
    for file in files:
        body = file.read_bytes()
        try:
            for _ in range(WARM_UP_ROUNDS):
                pipeline.predict(body)
        except ProcserverError as error:
            log.warning("warm-up request %s failed: %s", file.name, error)
