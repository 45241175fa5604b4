"""What every pipeline answers, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from procserver.model.runner import ModelRunner
from procserver.model.signature import PLATFORM, Signature, facts, signature
from procserver.observe.reqlog import RequestLog
from procserver.observe.trace import Trace

DTYPE_NAMES = {"float32": "FLOAT", "float64": "DOUBLE"} | {
    name: name.upper()
    for name in ("int64", "int32", "int16", "int8", "uint8", "complex64", "complex128")
}


@dataclass(frozen=True)
class Reply:
    """An encoded answer, the cache generation it was made from, its request.

    ``rows``: items scored, 0 if the request does not say; ``debug_level``: what the
    request asked for beside scores; ``deltas``: how many changes since that generation
    was built had been taken in.
    """

    body: bytes
    generation: int | None = None
    rows: int = 0
    debug_level: int = 0
    deltas: int | None = None


class Pipeline(Protocol):
    """One way of answering a predict request.

    ``request_log`` is set when the warm-up is over, whose requests are not to be
    logged; None: requests of debug level 100 are not saved.
    """

    request_log: RequestLog | None

    def predict(
        self, body: bytes | bytearray | memoryview, trace: Trace | None = None
    ) -> Reply:
        """Answers one request body; ``trace`` takes the time of each stage.

        :raises RequestError: whatever the client is to be told
        """

    def keep_up(self) -> None:
        """Takes up what is current in the item cache, also while no request comes.

        The memory of what was before is the machine's again then.

        :raises ServiceError: if there is nothing that could be taken up
        """

    def describe(self) -> dict[str, object]:
        """What the service takes and returns, for ``GET``.

        ``inputs`` and ``outputs`` are lists of name, shape (-1: any) and type.
        """

    def describe_model(self) -> dict[str, object]:
        """The model behind the service, for ``/v2/models``."""


def describe_model(runner: ModelRunner, inputs: Signature) -> dict[str, object]:
    return {
        "platform": PLATFORM,
        "inputs": inputs,
        "outputs": signature(runner.empty_outputs, runner.output_names),
        **facts(runner.package, shared=runner.shared),
    }


def describe_outputs(runner: ModelRunner) -> list[dict[str, object]]:
    """Outputs as the warm-up saw them; none are known before."""
    described: list[dict[str, object]] = []
    for name in runner.output_names:
        sample = runner.empty_outputs.get(name)
        shape = [-1] if sample is None else [-1, *sample.shape[1:]]
        dtype = (
            "FLOAT" if sample is None else DTYPE_NAMES.get(sample.dtype.name, "FLOAT")
        )
        described.append({"name": name, "shape": shape, "type": f"DT_{dtype}"})
    return described
