"""One TorchScript module on one device: tensors in, scores out."""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from procserver.errors import BadTensor, ModelError, PredictFailed
from procserver.model.loading import LoadedModel

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

_MISSING_KEY = re.compile(r"KeyError: ['\"]?([^\s'\"]+)")
_OUT_OF_RANGE = re.compile(
    r"index out of range|not in the valid range|out of bounds|< index_size",
    re.IGNORECASE,
)


class ModelRunner:
    """A loaded module, its input convention, and the lock that serialises it.

    A CPU worker computes one request at a time: ``threads`` intra-op threads
    belong to the request that is running, so calls from several request
    threads take turns.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        device: str = "cpu",
        outputs: Sequence[str] = (),
    ) -> None:
        self.package = model.package
        self.device = torch.device(device)
        self._filter = tuple(outputs)
        self._lock = threading.Lock()
        self._module = model.module
        arguments = _arguments(self._module)
        self.takes_dict = bool(arguments) and "Dict" in arguments[0][1]
        self.takes_device = len(arguments) > 1 and arguments[1][1] == "Device"
        self.required = sum(1 for _, _, has_default in arguments if not has_default)
        self.accepted = len(arguments)
        self.input_names = tuple(name for name, _, _ in arguments)
        self.output_names: tuple[str, ...] = ()
        self.empty_outputs: dict[str, np.ndarray] = {}

    def run(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Scores named tensors (spec/export.md section 2).

        :param tensors: name -> array in the tensor contract's dtype and shape
        :returns: output name -> array, those of ``outputs`` in its order
        :raises PredictFailed: if the model fails
        """
        batch = {name: torch.from_numpy(array) for name, array in tensors.items()}
        try:
            result = self._call(batch)
        except (RuntimeError, IndexError) as error:
            raise _translated(error, from_client=False) from error
        return self._named(result)

    def run_map(
        self, tensors: Mapping[str, tuple[int, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Scores tensors that a client named: (wire dtype, array) each.

        :raises BadTensor: if the model takes positional tensors, lacks one of
            these, or refuses them
        """
        if not self.takes_dict:
            raise BadTensor(
                f"the model takes {self._arity()} positional tensors, not named ones"
            )
        batch = {
            name: _tensor(dtype, array) for name, (dtype, array) in tensors.items()
        }
        try:
            result = self._call(batch)
        except (RuntimeError, IndexError) as error:
            raise _translated(error, from_client=True, given=batch) from error
        return self._named(result)

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
        batch = [_tensor(dtype, array) for dtype, array in tensors]
        try:
            result = self._call(*(item.to(self.device) for item in batch))
        except (RuntimeError, IndexError) as error:
            given = {f"inputs[{i}]": item for i, item in enumerate(batch)}
            raise _translated(error, from_client=True, given=given) from error
        arrays = [_array(item) for item in _flatten(result)]
        for index in keep:
            if not 0 <= index < len(arrays):
                raise BadTensor(
                    f"output_filter: index {index} of {len(arrays)} outputs"
                )
        return [arrays[index] for index in keep] if keep else arrays

    def learn_outputs(self, outputs: Mapping[str, np.ndarray], rows: int) -> None:
        """Remembers names, dtypes and row shapes from a warm-up answer."""
        self.output_names = tuple(outputs)
        self.empty_outputs = {
            name: np.zeros((0, *array.shape[1:]), dtype=array.dtype)
            for name, array in outputs.items()
            if array.ndim and array.shape[0] == rows
        }

    def _arity(self) -> str:
        if self.required == self.accepted:
            return str(self.accepted)
        return f"{self.required} to {self.accepted}"

    def _call(self, *inputs: Any) -> Any:
        with self._lock, torch.inference_mode():
            if not self.takes_dict:
                return self._module(*inputs)
            if self.takes_device:
                return self._module(inputs[0], self.device)
            batch = {name: item.to(self.device) for name, item in inputs[0].items()}
            return self._module(batch)

    def _named(self, result: Any) -> dict[str, np.ndarray]:
        if isinstance(result, torch.Tensor):
            named: Mapping[str, Any] = {"default": result}
        elif isinstance(result, Mapping):
            named = result
        else:
            named = {str(i): item for i, item in enumerate(_flatten(result))}
        if self._filter:
            missing = [name for name in self._filter if name not in named]
            if missing:
                raise ModelError(
                    f"outputs: the model returns no {missing[0]!r}, "
                    f"only {', '.join(sorted(named))}"
                )
            named = {name: named[name] for name in self._filter}
        return {
            name: _array(item)
            for name, item in named.items()
            if isinstance(item, torch.Tensor)
        }


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


def _array(tensor: torch.Tensor) -> np.ndarray:
    """Contiguous host memory; half types widened to float32."""
    tensor = tensor.detach()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    array: np.ndarray = tensor.cpu().contiguous().numpy()
    return array


def _flatten(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    items = result.values() if isinstance(result, Mapping) else result
    return [item for item in items if isinstance(item, torch.Tensor)]


def _translated(
    error: Exception,
    *,
    from_client: bool,
    given: Mapping[str, torch.Tensor] | None = None,
) -> BadTensor | PredictFailed:
    """What a client may know of a failure inside the model."""
    # Above this line of the text stands the model's source.
    text = str(error).rpartition("RuntimeError: ")[2]
    missing = _MISSING_KEY.search(text)
    if missing and from_client:
        return BadTensor(f"map_inputs: the model needs {missing.group(1)!r}")
    if _OUT_OF_RANGE.search(text):
        return BadTensor(
            "an id is outside of its embedding table"
            + (f" ({_shapes(given)})" if given else "")
        )
    if from_client and given is not None:
        log.warning("the model refused a request's tensors: %s", text.strip())
        # A failure that repeats with the same tensors is the request's: clients
        # retry 500 at once.
        return BadTensor(f"the model refuses these tensors: {_shapes(given)}")
    log.error("model failed: %s", error)
    return PredictFailed("the model failed on this request; see the service log")


def _shapes(given: Mapping[str, torch.Tensor]) -> str:
    shown = [
        f"{name} {str(item.dtype).removeprefix('torch.')}{list(item.shape)}"
        for name, item in given.items()
    ]
    more = len(shown) - 8
    return ", ".join(shown[:8]) + (f" and {more} more" if more > 0 else "")
