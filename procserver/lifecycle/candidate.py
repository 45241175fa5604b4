"""Whether a model that is to replace another one can: what its clients count on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from procserver.errors import ModelError

if TYPE_CHECKING:
    from procserver.lifecycle.warmup import WarmUp
    from procserver.model.runner import ModelRunner


@dataclass(frozen=True)
class Contract:
    """How a model is called and what it returns.

    ``named``: it takes a dictionary of tensors; else between ``required`` and
    ``accepted`` tensors by position. ``outputs`` as the warm-up saw them, none if
    there was nothing to warm up with.
    """

    named: bool
    required: int
    accepted: int
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, runner: ModelRunner) -> Contract:
        """What a warmed-up model keeps to."""
        return cls(
            runner.takes_dict,
            runner.required,
            runner.accepted,
            tuple(runner.output_names),
        )

    @classmethod
    def read(cls, message: dict[str, Any]) -> Contract:
        """What :meth:`as_message` became on its way."""
        return cls(**{**message, "outputs": tuple(message["outputs"])})

    def as_message(self) -> dict[str, Any]:
        """For a report."""
        return asdict(self)

    def broken_by(self, new: Contract, *, clients_send_tensors: bool) -> str | None:
        """What clients of this model would miss in the new one; None: nothing."""
        if clients_send_tensors and self.named != new.named:
            ways = {True: "named tensors", False: "positional tensors"}
            return f"the model takes {ways[new.named]}, clients send {ways[self.named]}"
        if clients_send_tensors and not self.named:
            fits = new.required <= self.required and self.accepted <= new.accepted
            if not fits:
                return (
                    f"the model takes {_span(new)} tensors, clients send {_span(self)}"
                )
        lost = [name for name in self.outputs if name not in new.outputs]
        if lost and new.outputs:
            return (
                f"the model returns no {lost[0]!r} any more, only "
                f"{', '.join(new.outputs)}; to serve other outputs, restart the service"
            )
        return None


def _span(contract: Contract) -> str:
    if contract.required == contract.accepted:
        return str(contract.accepted)
    return f"{contract.required} to {contract.accepted}"


@dataclass
class Examination:
    """Asked of every worker after its warm-up, of a reload's canary strictly.

    :param before: the contract of the model that is served now
    :param allow_nan: values that are no finite numbers are no reason to refuse
    """

    strict: bool = False
    before: Contract | None = None
    allow_nan: bool = False
    contract: Contract | None = None

    def hold(
        self, runner: ModelRunner, warm_up: WarmUp, *, clients_send_tensors: bool
    ) -> None:
        """Notes the contract of a warmed-up model.

        :raises ModelError: why it must not replace the one that is served
        """
        self.contract = Contract.of(runner)
        if not self.strict:
            return
        failed = warm_up.files["failed"]
        if failed and not warm_up.replayed:
            raise ModelError(
                f"not one recorded request of {failed} files was answered: do they "
                "belong to another model?"
            )
        if runner.non_finite and not self.allow_nan:
            name = min(runner.non_finite)
            raise ModelError(
                f"output {name!r} holds NaN or infinite values in warm-up requests "
                "(procserver.allow_nan would let it pass)"
            )
        if self.before is not None:
            broken = self.before.broken_by(
                self.contract, clients_send_tensors=clients_send_tensors
            )
            if broken is not None:
                raise ModelError(broken)
