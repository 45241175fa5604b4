"""The parts of a service put together: model, FG, cache, pipeline, app."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from procserver.app import Service
from procserver.config import ServiceConfig
from procserver.errors import ModelError, ProcserverError
from procserver.fg import FeatureGenerator
from procserver.itemcache.reader import CacheReader
from procserver.model.integrity import total_bytes
from procserver.model.loading import LoadedModel
from procserver.model.package import ModelPackage
from procserver.model.runner import Batching, ModelRunner
from procserver.model.transfer import open_device
from procserver.observe import metrics
from procserver.observe.reqlog import RequestLog, open_logs
from procserver.pipeline import BypassPipeline, Pipeline, RankingPipeline
from procserver.wire.auth import Authenticator

log = logging.getLogger("procserver.lifecycle")

WARM_UP_ROUNDS = 5
WARM_UP_SUFFIXES = (".bin", ".pb")


def build_service(
    service: ServiceConfig,
    package: ModelPackage,
    control_name: str | None,
    device: str,
    obtain: Callable[[ModelPackage, str], LoadedModel],
    *,
    workers: int = 1,
    on_device_lost: Callable[[], None] = lambda: None,
) -> Service:
    """Loads everything that one worker needs and warms it up.

    :param package: the model version that all workers serve
    :param control_name: the cache's control segment; None without item source
    :param device: ``cpu`` or ``cuda:N``
    :param obtain: gives the model of a package, for a device
    :param workers: how many share what is configured for the service
    :param on_device_lost: called when the GPU fails for good
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
    request_log = logs.requests if service.allow_debug else None
    pipeline = _pipeline(service, package, control_name, runner, request_log)
    started = time.monotonic()
    pipeline.warm_up()
    _replay(pipeline, service.warm_up_data_path)
    if runner.lost:
        raise ModelError(f"device {device} failed during the warm-up")
    log.info("warmed up in %.2f s", time.monotonic() - started)
    metrics.MODEL.set(package.version, str(pipeline.describe_model()["weights"]))
    metrics.MODEL_BYTES.set(total_bytes(package))
    token = service.token.reveal() if service.token is not None else None
    return Service(
        name=service.name,
        model_version=package.version,
        pipeline=pipeline,
        auth=Authenticator(token),
        max_body_bytes=service.host.max_body_bytes,
        logs=logs,
    )


def _pipeline(
    service: ServiceConfig,
    package: ModelPackage,
    control_name: str | None,
    runner: ModelRunner,
    request_log: RequestLog | None,
) -> Pipeline:
    if service.model.fg_mode == "bypass":
        return BypassPipeline(runner, request_log=request_log)
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
        request_log=request_log,
    )


def _batching(service: ServiceConfig) -> Batching | None:
    rpc = service.rpc
    if not rpc.batching or rpc.max_batch_size == 1:
        return None
    return Batching(
        most_requests=rpc.max_batch_size,
        patience=rpc.max_batch_timeout_ms / 1000,
        most_rows=service.host.max_items,
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
            metrics.WARM_UP.add(1, "replayed")
        except ProcserverError as error:
            metrics.WARM_UP.add(1, "failed")
            log.warning("warm-up request %s failed: %s", file.name, error)
