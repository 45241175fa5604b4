"""The parts of a service put together: model, FG, cache, pipeline, app."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from procserver.app import Service
from procserver.config import ServiceConfig
from procserver.errors import FgConfigError, ModelError
from procserver.fg import FeatureGenerator
from procserver.itemcache.reader import CacheReader
from procserver.lifecycle.synthesis import (
    FeatureRequests,
    Synthesis,
    TensorRequests,
)
from procserver.lifecycle.warmup import warm_up
from procserver.model.loading import LoadedModel
from procserver.model.package import ModelPackage, open_served
from procserver.model.runner import ModelRunner
from procserver.model.shared import Probe
from procserver.observe.capture import start_capture
from procserver.pipeline import BypassPipeline, Pipeline, RankingPipeline
from procserver.wire.auth import Authenticator

log = logging.getLogger("procserver.lifecycle")

PROBE_ROWS = 8


class ModelSource(Protocol):
    """How a worker comes by its model: loaded, or attached to shared weights."""

    def __call__(
        self, package: ModelPackage, device: str, probe: Probe, /
    ) -> LoadedModel: ...


def build_service(
    service: ServiceConfig,
    control_name: str | None,
    device: str,
    obtain: ModelSource,
) -> Service:
    """Loads everything that one worker needs and warms it up.

    :param control_name: the cache's control segment; None without item source
    :param device: ``cpu`` or ``cuda:N``
    :param obtain: gives the model of a package
    :raises ServiceError: naming what is wrong with model, fg.json or cache
    """
    package = open_served(service)
    for notice in package.notices:
        log.info("model: %s", notice)
    pipeline, synthesis = _pipeline(service, package, control_name, device, obtain)
    started = time.monotonic()
    done = warm_up(pipeline, synthesis, service)
    log.info("warmed up in %.2f s with %s", time.monotonic() - started, done)
    token = service.token.reveal() if service.token is not None else None
    return Service(
        name=service.name,
        model_version=package.version,
        pipeline=pipeline,
        auth=Authenticator(token),
        max_body_bytes=service.host.max_body_bytes,
        capture=start_capture(service),
    )


def _pipeline(
    service: ServiceConfig,
    package: ModelPackage,
    control_name: str | None,
    device: str,
    obtain: ModelSource,
) -> tuple[Pipeline, Synthesis | None]:
    """The pipeline, and what makes requests for it."""
    outputs = service.model.outputs
    if service.model.fg_mode == "bypass":
        # Nobody knows what it takes before the first request.
        model = obtain(package, device, _no_batch)
        runner = ModelRunner(model, device=device, outputs=outputs)
        return BypassPipeline(runner), _tensor_requests(service, package, runner)
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
    pipeline = RankingPipeline(
        fg,
        runner,
        cache,
        item_empty_score=service.model.item_empty_score,
        max_items=service.host.max_items,
    )
    return pipeline, FeatureRequests(fg, cache, service.host.max_items)


def _no_batch(model: LoadedModel) -> Mapping[str, np.ndarray]:
    raise ModelError("a model without features does not say what it takes")


def _tensor_requests(
    service: ServiceConfig, package: ModelPackage, runner: ModelRunner
) -> Synthesis | None:
    """What the export's ``fg.json`` says of its tensors, if there is one."""
    reason = "no fg.json beside it"
    if not runner.takes_dict:
        reason = "its tensors are positional"
    elif package.fg_json is not None:
        try:
            fg = FeatureGenerator(package.fg_json, farm_hash=service.envs.farm_hash)
            return TensorRequests(fg, tile=package.input_tile != 0)
        except FgConfigError as error:
            reason = str(error)
    log.info(
        "nothing is known of the tensors that the model takes (%s): "
        "only recorded requests warm it up",
        reason,
    )
    return None
