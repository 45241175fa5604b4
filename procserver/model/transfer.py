"""Tensors to the device in one copy, and outputs back in one synchronisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from procserver.errors import ModelError

# Vectorised kernels of CPU and GPU like every tensor to begin on a cache line.
ALIGNMENT = 64

Tensors = Mapping[str, torch.Tensor]


def open_device(name: str) -> torch.device:
    """``cpu`` or ``cuda:N``.

    :raises ModelError: for a GPU that is not here
    """
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.version.cuda:
            raise ModelError(f"device {name}: this build of torch knows no GPU")
        if (device.index or 0) >= count:
            raise ModelError(f"device {name}: {count} GPUs are here")
    return device


class Transfer:
    """Moves a pass's tensors between host memory and one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pin = device.type != "cpu"

    def to_device(self, requests: Sequence[Tensors]) -> Tensors:
        """The tensors of requests, on the device; each joined along the rows.

        On the CPU those of a single request stay where they are.
        """
        if self._pin:
            return pack(_parts(requests), self.device, pin=True)
        if len(requests) == 1:
            return requests[0]
        return {name: torch.cat(parts) for name, parts in _parts(requests).items()}

    def to_host(self, outputs: Tensors) -> dict[str, np.ndarray]:
        """Contiguous host arrays; half types are widened to float32.

        NOTE: a copy to the CPU that does not block lands in pinned memory, which
        holds nothing before the stream is synchronised.
        """
        host = {
            name: _widened(tensor).to("cpu", non_blocking=self._pin)
            for name, tensor in outputs.items()
        }
        if self._pin:
            torch.cuda.current_stream(self.device).synchronize()
        return {name: tensor.contiguous().numpy() for name, tensor in host.items()}


def _parts(requests: Sequence[Tensors]) -> dict[str, list[torch.Tensor]]:
    return {name: [tensors[name] for tensors in requests] for name in requests[0]}


def pack(
    parts: Mapping[str, Sequence[torch.Tensor]], device: torch.device, *, pin: bool
) -> dict[str, torch.Tensor]:
    """Lays all tensors into one staging buffer and copies that once.

    :param parts: name -> tensors of one dtype in host memory, which are joined
        along the rows; scalars come alone and stay in host memory: models read
        them there, and reading one back from the device waits for the device
    :returns: name -> view of the one buffer on the device

    PERF: torch keeps pinned blocks for later requests and hands none out again
    before its copy is done, so the buffer needs no pool of ours.
    """
    places = {}
    total = 0
    for name, pieces in parts.items():
        first = pieces[0]
        if first.dim() == 0:
            continue
        rows = sum(piece.size(0) for piece in pieces)
        places[name] = ((rows, *first.shape[1:]), total)
        size = sum(piece.nbytes for piece in pieces)
        total += -(-size // ALIGNMENT) * ALIGNMENT
    staging = torch.empty(total, dtype=torch.uint8, pin_memory=pin)
    target = staging.numpy()
    for name, (_, at) in places.items():
        for piece in parts[name]:
            raw = piece.contiguous().reshape(-1).view(torch.uint8).numpy()
            target[at : at + raw.size] = raw
            at += raw.size
    moved = staging.to(device, non_blocking=pin)
    typed: dict[torch.dtype, torch.Tensor] = {}
    batch = {}
    for name, pieces in parts.items():
        if name not in places:
            batch[name] = pieces[0]
            continue
        shape, offset = places[name]
        dtype = pieces[0].dtype
        if dtype not in typed:
            typed[dtype] = moved.view(dtype)
        batch[name] = typed[dtype].as_strided(
            shape, _strides(shape), offset // dtype.itemsize
        )
    return batch


def _strides(shape: Sequence[int]) -> list[int]:
    """Of contiguous memory."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(1, shape[axis + 1])
    return strides


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    return tensor
