"""The parts of a service put together: model, FG, cache, pipeline, app."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from procserver.app import Readiness, Service
from procserver.config import ServiceConfig
from procserver.errors import FgConfigError, ModelError
from procserver.fg import FeatureGenerator
from procserver.itemcache.reader import CacheReader
from procserver.lifecycle.candidate import Examination
from procserver.lifecycle.inheriting import FreshEnough
from procserver.lifecycle.synthesis import (
    FeatureRequests,
    Synthesis,
    TensorRequests,
)
from procserver.lifecycle.warmup import warm_up
from procserver.model.integrity import total_bytes
from procserver.model.loading import LoadedModel
from procserver.model.package import ModelPackage
from procserver.model.runner import Batching, ModelRunner
from procserver.model.transfer import open_device
from procserver.observe import metrics
from procserver.observe.capture import start_capture
from procserver.observe.reqlog import open_logs
from procserver.pipeline import BypassPipeline, Pipeline, RankingPipeline
from procserver.wire.auth import Authenticator

log = logging.getLogger("procserver.lifecycle")


def build_service(
    service: ServiceConfig,
    package: ModelPackage,
    control_name: str | None,
    device: str,
    obtain: Callable[[ModelPackage, str], LoadedModel],
    *,
    workers: int = 1,
    on_device_lost: Callable[[], None] = lambda: None,
    examination: Examination | None = None,
) -> Service:
    """Loads everything that one worker needs and warms it up.

    :param package: the model version that all workers serve
    :param control_name: the cache's control segment; None without item source
    :param device: ``cpu`` or ``cuda:N``
    :param obtain: gives the model of a package, for a device
    :param workers: how many share what is configured for the service
    :param on_device_lost: called when the GPU fails for good
    :param examination: what the model must pass after its warm-up
    :raises ServiceError: naming what is wrong with model, fg.json or cache
    """
    logs = open_logs(service, workers)
    open_device(device)
    model = obtain(package, device)
    runner = ModelRunner(
        model,
        device=device,
        outputs=service.model.outputs,
        batching=_batching(service),
        plain_no_grad=service.envs.no_grad_guard,
        on_device_lost=on_device_lost,
    )
    pipeline, synthesis = _pipeline(service, package, control_name, runner)
    started = time.monotonic()
    done = warm_up(pipeline, synthesis, service)
    if runner.lost:
        raise ModelError(f"device {device} failed during the warm-up")
    log.info("warmed up in %.2f s with %s", time.monotonic() - started, done)
    if examination is not None:
        is_bypass = service.model.fg_mode == "bypass"
        examination.hold(runner, done, clients_send_tensors=is_bypass)
    pipeline.request_log = logs.requests if service.allow_debug else None
    metrics.MODEL.set(package.version, str(pipeline.describe_model()["weights"]))
    metrics.MODEL_BYTES.set(total_bytes(package))
    token = service.token.reveal() if service.token is not None else None
    return Service(
        name=service.name,
        model_version=package.version,
        pipeline=pipeline,
        auth=Authenticator(token),
        max_body_bytes=service.host.max_body_bytes,
        decompressor=service.rpc.decompressor,
        logs=logs,
        capture=start_capture(service),
        readiness=_readiness(service),
        health_path=service.rpc.health_check_path,
    )


def _readiness(service: ServiceConfig) -> tuple[Readiness, ...]:
    most = service.host.max_cache_age_seconds
    if most is None or service.item_source is None:
        return ()
    return (FreshEnough(most),)


def _pipeline(
    service: ServiceConfig,
    package: ModelPackage,
    control_name: str | None,
    runner: ModelRunner,
) -> tuple[Pipeline, Synthesis | None]:
    """The pipeline, and what makes requests for it."""
    if service.model.fg_mode == "bypass":
        bypass = BypassPipeline(runner, allow_debug=service.allow_debug)
        return bypass, _tensor_requests(service, package, runner)
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
    pipeline = RankingPipeline(
        fg,
        runner,
        cache,
        item_empty_score=service.model.item_empty_score,
        max_items=service.host.max_items,
        allow_debug=service.allow_debug,
        strict_debug_keys=service.host.strict_debug_keys,
        pass_through=_pass_through(service, package),
    )
    return pipeline, FeatureRequests(fg, cache, service.host.max_items)


def _pass_through(
    service: ServiceConfig, package: ModelPackage
) -> dict[str, str] | None:
    """What every answer carries along."""
    data = service.host.pass_through_data
    if data is None:
        return None
    return {
        key: value.replace("{model_version}", package.version)
        for key, value in data.items()
    }


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


def _batching(service: ServiceConfig) -> Batching | None:
    rpc = service.rpc
    if not rpc.batching or rpc.max_batch_size == 1:
        return None
    return Batching(
        most_requests=rpc.max_batch_size,
        patience=rpc.max_batch_timeout_ms / 1000,
        most_rows=service.host.max_items,
    )
