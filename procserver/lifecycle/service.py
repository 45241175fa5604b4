"""The parts of a service put together: model, FG, cache, pipeline, app."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from procserver.app import Service
from procserver.config import ServiceConfig
from procserver.errors import ModelError, ProcserverError
from procserver.fg import FeatureGenerator
from procserver.itemcache.reader import CacheReader
from procserver.model.integrity import total_bytes
from procserver.model.loading import LoadedModel
from procserver.model.package import ModelPackage
from procserver.model.runner import ModelRunner
from procserver.model.shared import Probe
from procserver.observe.metrics import MODEL, MODEL_BYTES
from procserver.pipeline import BypassPipeline, Pipeline, RankingPipeline
from procserver.wire.auth import Authenticator

log = logging.getLogger("procserver.lifecycle")

WARM_UP_ROUNDS = 5
PROBE_ROWS = 8
WARM_UP_SUFFIXES = (".bin", ".pb")


class ModelSource(Protocol):
    """How a worker comes by its model: loaded, or attached to shared weights."""

    def __call__(
        self, package: ModelPackage, device: str, probe: Probe, /
    ) -> LoadedModel: ...


def build_service(
    service: ServiceConfig,
    package: ModelPackage,
    control_name: str | None,
    device: str,
    obtain: ModelSource,
) -> Service:
    """Loads everything that one worker needs and warms it up.

    :param package: the model version that all workers serve
    :param control_name: the cache's control segment; None without item source
    :param device: ``cpu`` or ``cuda:N``
    :param obtain: gives the model of a package
    :raises ServiceError: naming what is wrong with model, fg.json or cache
    """
    pipeline = _pipeline(service, package, control_name, device, obtain)
    started = time.monotonic()
    pipeline.warm_up()
    _replay(pipeline, service.warm_up_data_path)
    log.info("warmed up in %.2f s", time.monotonic() - started)
    MODEL.set(package.version, str(pipeline.describe_model()["weights"]))
    MODEL_BYTES.set(total_bytes(package))
    token = service.token.reveal() if service.token is not None else None
    return Service(
        name=service.name,
        model_version=package.version,
        pipeline=pipeline,
        auth=Authenticator(token),
        max_body_bytes=service.host.max_body_bytes,
    )


def _pipeline(
    service: ServiceConfig,
    package: ModelPackage,
    control_name: str | None,
    device: str,
    obtain: ModelSource,
) -> Pipeline:
    outputs = service.model.outputs
    if service.model.fg_mode == "bypass":
        # Nobody knows what it takes before the first request.
        model = obtain(package, device, _no_batch)
        return BypassPipeline(ModelRunner(model, device=device, outputs=outputs))
    if package.fg_json is None:
        raise ModelError(f"fg_mode is normal, but {package.directory} holds no fg.json")
    fg = FeatureGenerator(
        package.fg_json,
        threads=service.model.fg_threads,
        farm_hash=service.envs.farm_hash,
    )

    def probe(model: LoadedModel) -> Mapping[str, np.ndarray]:
        tile = package.input_tile != 0
        return ModelRunner(model).run(fg.generate({}, {}, {}, PROBE_ROWS, tile=tile))

    model = obtain(package, device, probe)
    runner = ModelRunner(model, device=device, outputs=outputs)
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


def _no_batch(model: LoadedModel) -> Mapping[str, np.ndarray]:
    raise ModelError("a model without features does not say what it takes")


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
