"""Tensors in, scores out: decode -> run -> encode."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from procserver.debug import (
    level_of,
    log_times,
)
from procserver.errors import (
    BadRequest,
)
from procserver.model.runner import ModelRunner
from procserver.model.signature import signature
from procserver.observe.reqlog import RequestLog
from procserver.observe.trace import DECODE, ENCODE, RUN, Trace
from procserver.pipeline.answer import Reply, describe_model, describe_outputs
from procserver.wire import torch as torch_wire
from procserver.wire.torch import TorchRequest

log = logging.getLogger("procserver.pipeline")


class BypassPipeline:
    """Tensors from the client straight into the model (``fg_mode: bypass``)."""

    def __init__(self, runner: ModelRunner, *, allow_debug: bool = False) -> None:
        self._runner = runner
        self._allow_debug = allow_debug
        self.request_log: RequestLog | None = None

    def predict(
        self, body: bytes | bytearray | memoryview, trace: Trace | None = None
    ) -> Reply:
        with self._runner.coming():
            return self._predict(body, trace or Trace())

    def keep_up(self) -> None:
        """Tensors need no item cache."""

    def _predict(self, body: bytes | bytearray | memoryview, trace: Trace) -> Reply:
        trace.begin()
        request = torch_wire.decode(body)
        trace.debug_level = request.debug_level
        trace.done(DECODE)
        # Levels that look at features have no meaning without feature generation.
        level = level_of(request.debug_level, allowed=self._allow_debug)
        outputs = self._run(request)
        trace.done(RUN)
        answer = torch_wire.encode(outputs)
        trace.done(ENCODE)
        if level.saved and self.request_log is not None:
            # There are no features and no request id; the body is saved as it is.
            copy = bytes(body)
            self.request_log.offer("", len(copy), lambda: copy)
        if level.timed:
            log_times(trace, len(body))
        return Reply(answer, debug_level=request.debug_level)

    def _run(
        self, request: TorchRequest
    ) -> Sequence[np.ndarray] | Mapping[str, np.ndarray]:
        if request.map_inputs:
            named = {n: (a.dtype, a.values) for n, a in request.map_inputs.items()}
            # NOTE: output_filter holds positions; with named tensors there are
            # none, and real clients send a filter that they expect ignored.
            return self._runner.run_map(named)
        if not request.inputs:
            raise BadRequest("the request has neither inputs nor map_inputs")
        arrays = [(array.dtype, array.values) for array in request.inputs]
        return self._runner.run_positional(arrays, request.output_filter)

    def describe(self) -> dict[str, object]:
        # A script says neither dtype nor shape of the tensors that it takes, and
        # nothing of those in a dictionary.
        names = () if self._runner.takes_dict else self._runner.argument_names
        return {
            "inputs": [
                {"name": name, "shape": [-1], "type": "DT_INVALID"} for name in names
            ],
            "outputs": describe_outputs(self._runner),
            "takes": "map_inputs" if self._runner.takes_dict else "inputs",
        }

    def describe_model(self) -> dict[str, object]:
        # A bare model does not say which named tensors it reads.
        names = () if self._runner.takes_dict else self._runner.argument_names
        return describe_model(self._runner, signature({}, names))
