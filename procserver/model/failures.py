"""What a client may know of a failure inside the model, and which tensor it was.

TorchScript's messages carry the model's source; only their last line is read, and
none of it is passed on but numbers and names that the client itself sent.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from procserver.errors import BadTensor, DeviceLost, PredictFailed
from procserver.model.suspects import Answered, described, suspects, wrong_batch_size

log = logging.getLogger("procserver.model")

Tensors = Mapping[str, torch.Tensor]

_MISSING_KEY = re.compile(r"KeyError: ['\"]?([^\s'\"]+)")
_OUT_OF_RANGE = re.compile(
    r"not in the valid range|out of bounds?\b|(?<!Dimension )out of range"
    r"|< index_size|Class values must be",
    re.IGNORECASE,
)
# torch's and fbgemm's ways of saying which number it was, and what the bound is.
_NUMBERS = (
    re.compile(
        r"takes value (?P<id>-?\d+) which is not in the valid range \[0, (?P<bound>\d+)"
    ),
    re.compile(
        r"index (?P<id>-?\d+) is out of bounds for dimension \d+ with size "
        r"(?P<bound>\d+)"
    ),
    re.compile(r"access index (?P<id>-?\d+) on a tensor of (?P<bound>\d+) elements"),
    re.compile(r"Index \d+ is out of bounds: (?P<id>-?\d+), range 0 to (?P<bound>\d+)"),
)
_DEVICE_LOST = re.compile(r"CUDA error|device-side assert|cudaError\w+|NVML error")
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
# Ragged shapes are checked before the model runs, so no lengths are ids.
_COUNTS = (".lengths", ".key_lengths", "__lengths", "batch_size")


def is_device_lost(error: BaseException, device: torch.device) -> bool:
    """Whether a GPU error has left this process unable to use its GPU again.

    NOTE: after a failed assertion in a kernel every later call fails too, until
    the process ends. Running out of memory is not among these errors.
    """
    if device.type == "cpu":
        return False
    if isinstance(error, torch.OutOfMemoryError):
        return False
    lost = isinstance(error, torch.AcceleratorError)
    return lost or bool(_DEVICE_LOST.search(str(error)))


def explain(
    error: Exception,
    given: Tensors,
    *,
    from_client: bool,
    runs: Callable[[Tensors], bool],
    answered: Answered,
) -> BadTensor | PredictFailed:
    """The error to answer with.

    :param from_client: the client made the tensors, else the Feature Generator did
    :param runs: whether the model takes other tensors; called a few times
    :param answered: a request that the model took
    """
    # Above this line of the text stands the model's source.
    text = str(error).rpartition("RuntimeError: ")[2].strip()
    if not from_client:
        log.error("model failed: %s", error)
        return PredictFailed("the model failed on this request; see the service log")
    missing = _MISSING_KEY.search(text)
    if missing and missing.group(1) not in given:
        return BadTensor(f"map_inputs: the model needs {missing.group(1)!r}")
    size = wrong_batch_size(given)
    if size is not None:
        return BadTensor(size)
    if _OUT_OF_RANGE.search(text):
        return BadTensor(_outside(text, given, runs))
    log.warning("the model refused a request's tensors: %s", text)
    # A failure that repeats with the same tensors is the request's: clients
    # retry 500 at once.
    odd = suspects(given, answered)
    if odd is not None:
        return BadTensor(f"the model refuses these tensors; {odd}")
    return BadTensor(f"the model refuses these tensors: {_shapes(given)}")


def device_lost() -> DeviceLost:
    return DeviceLost("the GPU failed on this request; this worker is replaced")


def _outside(text: str, given: Tensors, runs: Callable[[Tensors], bool]) -> str:
    ids = [name for name, tensor in _ids(given) if tensor.numel()]
    for pattern in _NUMBERS:
        numbers = pattern.search(text)
        if numbers is None:
            continue
        found = int(numbers["id"])
        holders = [name for name in ids if bool((given[name] == found).any())]
        if holders:
            culprit = holders[0]
            if len(holders) > 1:
                found_out = _culprit(given, holders, runs)
                culprit = found_out[0] if found_out else culprit
            return (
                f"{_at(culprit, given[culprit], found)}: id {found} is outside of its "
                f"table of {numbers['bound']} rows"
            )
    found_out = _culprit(given, ids, runs)
    if found_out is None:
        return f"the model refuses an index; given: {_shapes(given)}"
    name, others = found_out
    tensor = given[name]
    worst = int(tensor.max())
    if int(tensor.min()) < 0 and runs({**others, name: tensor.clamp(min=0)}):
        worst = int(tensor.min())
    return f"{_at(name, tensor, worst)}: id {worst} is outside of its table"


def _culprit(
    given: Tensors, names: Sequence[str], runs: Callable[[Tensors], bool]
) -> tuple[str, Tensors] | None:
    """A tensor whose ids alone make the model fail, and all others without fault.

    Halving: with the ids of the first k tensors set to 0, a row that every table
    has, the model runs for exactly those k that leave no culprit out.
    """

    def without(count: int) -> Tensors:
        zeroed = {name: torch.zeros_like(given[name]) for name in names[:count]}
        return {**given, **zeroed}

    if not names or not runs(without(len(names))):
        return None
    low, high = 0, len(names)
    while high - low > 1:
        middle = (low + high) // 2
        if runs(without(middle)):
            high = middle
        else:
            low = middle
    return names[low], without(low)


def _ids(given: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in given.items():
        if tensor.dtype in _INTEGERS and not name.endswith(_COUNTS):
            yield name, tensor


def _at(name: str, tensor: torch.Tensor, value: int) -> str:
    position = int((tensor.reshape(-1) == value).nonzero()[0, 0])
    return f"{name}[{position}]"


def _shapes(given: Tensors) -> str:
    shown = [f"{name} {described(item)}" for name, item in given.items()]
    more = len(shown) - 8
    return ", ".join(shown[:8]) + (f" and {more} more" if more > 0 else "")
