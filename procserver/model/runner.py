"""One TorchScript module on one device: tensors in, scores out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from procserver.errors import BadTensor, ModelError, RequestError
from procserver.faults import hit
from procserver.model.batching import Outputs, Request, Turns
from procserver.model.contract import Kind, check_batch_size, check_ragged
from procserver.model.failures import device_lost, explain, is_device_lost
from procserver.model.loading import LoadedModel
from procserver.model.merging import Proofs, split
from procserver.model.sparse import SparseEmbeddings, names_read
from procserver.model.suspects import Answered
from procserver.model.transfer import Tensors, Transfer, open_device
from procserver.observe.metrics import BATCHED_REQUESTS, BATCHES, NAN_SCORES

log = logging.getLogger("procserver.model")

# Wire dtype (spec/protocol.md section 2) -> torch dtype, where the array that
# carries the values has another one.
CARRIED: dict[int, torch.dtype] = {
    8: torch.complex64,
    10: torch.bool,
    14: torch.bfloat16,
    18: torch.complex128,
    19: torch.float16,
}

# NOTE: request tensors are views of the request's bytes; no model writes its
# inputs, so torch's reminder about read-only memory is only noise here.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

# What a failing pass raises, by an operator or by a script's own ``raise``;
# anything else is a bug of ours.
_FAILURES: tuple[type[Exception], ...] = (RuntimeError, IndexError, torch.jit.Error)


@dataclass(frozen=True)
class Batching:
    """How concurrent requests are merged: ``rpc.batching`` and its neighbours.

    ``patience`` in seconds is the longest that a request waits for others that are
    under way; one that is alone waits for nobody.
    """

    most_requests: int
    patience: float
    most_rows: int


class ModelRunner:
    """A loaded module, its input convention, and the line in front of it.

    A worker computes one pass at a time: intra-op threads (or the GPU) belong to
    the pass that is running, so requests of several threads take turns, in order.

    :param batching: None: every request is a pass of its own
    :param plain_no_grad: ``NO_GRAD_GUARD``: passes run under ``torch.no_grad``. By
        default they run in inference mode, which keeps no gradients either and no
        version counters
    :param on_device_lost: called once the GPU is lost to this process
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        device: str = "cpu",
        outputs: Sequence[str] = (),
        batching: Batching | None = None,
        plain_no_grad: bool = False,
        on_device_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.package = model.package
        self.shared = model.shared
        self.device = open_device(device)
        self._filter = tuple(outputs)
        self._module = model.module
        self._sparse = (
            None
            if model.package.sparse is None
            else SparseEmbeddings(model.package, model.tables, names_read(model.module))
        )
        arguments = _arguments(self._module)
        self.takes_dict = bool(arguments) and "Dict" in arguments[0][1]
        self.takes_device = len(arguments) > 1 and arguments[1][1] == "Device"
        self.required = sum(1 for _, _, has_default in arguments if not has_default)
        self.accepted = len(arguments)
        self.argument_names = tuple(name for name, _, _ in arguments)
        self.output_names: tuple[str, ...] = ()
        self.empty_outputs: dict[str, np.ndarray] = {}
        # Outputs that have held NaN or infinite values.
        self.non_finite: set[str] = set()
        self._transfer = Transfer(self.device)
        self._no_grad = torch.no_grad if plain_no_grad else torch.inference_mode
        self._on_device_lost = on_device_lost
        # Whether the GPU has failed for good.
        self.lost = False
        if batching is not None and self.package.input_tile:
            log.info(
                "batching: requests of an INPUT_TILE export are not merged, because "
                "each brings one user row of its own"
            )
            batching = None
        self._merges = batching is not None
        self._proofs = Proofs()
        self._answered = Answered()
        self._turns = (
            Turns(self._compute)
            if batching is None
            else Turns(
                self._compute,
                most_requests=batching.most_requests,
                most_rows=batching.most_rows,
                patience=batching.patience,
            )
        )

    def coming(self) -> AbstractContextManager[object]:
        """Around the whole of a request, from decoding on; others may wait for it."""
        return self._turns.coming()

    def run(self, tensors: Mapping[str, np.ndarray]) -> Outputs:
        """Scores named tensors (spec/export.md section 2).

        :param tensors: name -> array in the tensor contract's dtype and shape
        :returns: output name -> array, those of ``outputs`` in its order
        :raises BadTensor: if an id is outside of its embedding table
        :raises PredictFailed: if the model fails
        """
        if self._sparse is not None:
            tensors = self._sparse.join(tensors)
        batch = {name: torch.from_numpy(array) for name, array in tensors.items()}
        return self._queued(batch, from_client=False)

    def run_map(self, tensors: Mapping[str, tuple[int, np.ndarray]]) -> Outputs:
        """Scores tensors that a client named: (wire dtype, array) each.

        :raises BadTensor: if the model takes positional tensors, lacks one of
            these, or refuses them
        """
        if not self.takes_dict:
            raise BadTensor(
                f"the model takes {self._arity()} positional tensors, not named ones"
            )
        given = {name: array for name, (_, array) in tensors.items()}
        check_ragged(given)
        if self.package.input_tile:
            check_batch_size(given)
        joined = given if self._sparse is None else self._sparse.join(given)
        batch = {
            name: _tensor(tensors[name][0], array)
            if given.get(name) is array
            else torch.from_numpy(array)
            for name, array in joined.items()
        }
        return self._queued(batch, from_client=True)

    def run_positional(
        self, tensors: Sequence[tuple[int, np.ndarray]], keep: Sequence[int] = ()
    ) -> list[np.ndarray]:
        """Scores tensors by position and returns outputs by position.

        :param keep: indexes of the outputs to return, in this order; empty: all
        :raises BadTensor: for a wrong number of tensors, an index out of range,
            or tensors that the model refuses
        """
        if self.takes_dict:
            raise BadTensor("the model takes named tensors: send map_inputs")
        if not self.required <= len(tensors) <= self.accepted:
            raise BadTensor(
                f"inputs: the model takes {self._arity()} tensors, got {len(tensors)}"
            )
        batch = {
            f"inputs[{i}]": _tensor(dtype, array)
            for i, (dtype, array) in enumerate(tensors)
        }
        arrays = list(self._queued(batch, from_client=True).values())
        for index in keep:
            if not 0 <= index < len(arrays):
                raise BadTensor(
                    f"output_filter: index {index} of {len(arrays)} outputs"
                )
        return [arrays[index] for index in keep] if keep else arrays

    def learn_outputs(self, outputs: Mapping[str, np.ndarray], rows: int) -> None:
        """Remembers names, dtypes and row shapes from a warm-up answer.

        One of a single row cannot tell an output by rows from one by request, so it
        counts only as long as there is no other.
        """
        if rows != 1 or not self.output_names:
            self.output_names = tuple(outputs)
            self.empty_outputs = {
                name: np.zeros((0, *array.shape[1:]), dtype=array.dtype)
                for name, array in outputs.items()
                if array.ndim and array.shape[0] == rows
            }
        for name, array in outputs.items():
            if not _is_finite(array):
                log.warning("warm-up: output %r holds NaN or infinite values", name)

    def _arity(self) -> str:
        if self.required == self.accepted:
            return str(self.accepted)
        return f"{self.required} to {self.accepted}"

    def _queued(self, batch: dict[str, torch.Tensor], *, from_client: bool) -> Outputs:
        outputs = self._turns.run(
            Request(batch, from_client=from_client, mergeable=self._merges)
        )
        for name, array in outputs.items():
            if not _is_finite(array):
                self.non_finite.add(name)
                nans = int(np.isnan(array).sum())
                NAN_SCORES.add(nans, "nan")
                NAN_SCORES.add(int((~np.isfinite(array)).sum()) - nans, "inf")
        return outputs

    def _compute(self, requests: Sequence[Request]) -> None:
        """Answers requests whose turn it is; called by one thread at a time."""
        kind = requests[0].kind
        if len(requests) > 1 and kind is not None and not self._proofs.forbid(kind):
            self._together(requests, kind)
        else:
            self._apart(requests)

    def _together(self, requests: Sequence[Request], kind: Kind) -> None:
        """One pass for all, or else one for each."""
        try:
            outputs = self._forward([request.tensors for request in requests])
        except _FAILURES as error:
            if self._note_loss(error):
                for request in requests:
                    request.error = device_lost()
                return
            # One request's tensors may be at fault; its neighbours are not.
            if self._apart(requests):
                self._proofs.refute(kind, "the model fails on merged requests")
            return
        except ModelError as error:
            for request in requests:
                request.error = error
            return
        parts = split(outputs, [request.rows for request in requests])
        if parts is None or not self._proofs.suffice(kind):
            if self._apart(requests):
                apart = [request.outputs or {} for request in requests]
                self._proofs.compare(kind, parts, apart)
            return
        BATCHES.add(1)
        BATCHED_REQUESTS.add(len(requests))
        for request, part in zip(requests, parts, strict=True):
            request.outputs = part

    def _apart(self, requests: Sequence[Request]) -> bool:
        """A pass for each; whether all of them succeeded."""
        for request in requests:
            self._alone(request)
        return all(request.error is None for request in requests)

    def _alone(self, request: Request) -> None:
        try:
            request.outputs = self._forward([request.tensors])
            self._answered.learn(request.tensors)
        except _FAILURES as error:
            request.error = self._explained(error, request)
            request.error.__cause__ = error
        except ModelError as error:
            request.error = error

    def _explained(self, error: Exception, request: Request) -> RequestError:
        if self._note_loss(error):
            return device_lost()
        return explain(
            error,
            request.tensors,
            from_client=request.from_client,
            runs=self._runs,
            answered=self._answered,
        )

    def _runs(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        try:
            self._forward([tensors])
        except _FAILURES:
            return False
        return True

    def _note_loss(self, error: Exception) -> bool:
        if not is_device_lost(error, self.device):
            return False
        if not self.lost:
            self.lost = True
            log.error("the GPU is lost to this worker: %s", error)
            self._on_device_lost()
        return True

    def _forward(self, requests: Sequence[Tensors]) -> Outputs:
        hit("model.run")
        gpu = (
            torch.cuda.device(self.device)
            if self.device.type == "cuda"
            else nullcontext()
        )
        with gpu, self._no_grad():
            batch = self._transfer.to_device(requests)
            if not self.takes_dict:
                result = self._module(*batch.values())
            elif self.takes_device:
                result = self._module(batch, self.device)
            else:
                result = self._module(batch)
            return self._transfer.to_host(self._named(result))

    def _named(self, result: Any) -> dict[str, torch.Tensor]:
        """The outputs to return, by name or else by position."""
        if self.takes_dict and isinstance(result, torch.Tensor):
            named: Mapping[str, Any] = {"default": result}
        elif isinstance(result, Mapping):
            named = result
        else:
            items = [result] if isinstance(result, torch.Tensor) else result
            named = {str(i): item for i, item in enumerate(_tensors(items))}
        if self._filter and self.takes_dict:
            missing = [name for name in self._filter if name not in named]
            if missing:
                raise ModelError(
                    f"outputs: the model returns no {missing[0]!r}, "
                    f"only {', '.join(sorted(named))}"
                )
            named = {name: named[name] for name in self._filter}
        return {
            name: item for name, item in named.items() if isinstance(item, torch.Tensor)
        }


def _tensors(items: Iterable[Any]) -> list[torch.Tensor]:
    return [item for item in items if isinstance(item, torch.Tensor)]


def _arguments(module: torch.jit.ScriptModule) -> list[tuple[str, str, bool]]:
    """(name, type, has default) of each argument of ``forward`` but self."""
    schema = module.forward.schema  # type: ignore[attr-defined]
    return [
        (argument.name, str(argument.type), argument.has_default_value())
        for argument in schema.arguments[1:]
    ]


def _tensor(dtype: int, array: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    carried = CARRIED.get(dtype)
    return tensor if carried is None else tensor.to(carried)


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())
