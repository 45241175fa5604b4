"""From a spec to a plan: order, sides, input columns, forms and tensor names."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from procserver.errors import FgConfigError
from procserver.fg.feature import FeatureSpec, FgSpec, Form, InputRef, Side

FeatureSide = Literal["user", "item", "crossing"]


@dataclass(frozen=True)
class Slot:
    """An input column of a run: the mapping it comes from, and its name there."""

    side: Side
    name: str


@dataclass(frozen=True)
class PlannedInput:
    """Where a feature's input comes from: a slot, an earlier feature, a literal."""

    origin: Literal["slot", "node", "const"]
    index: int
    ref: InputRef


@dataclass(frozen=True)
class PlannedFeature:
    """A feature in the order of work.

    ``side``: ``user`` and ``item`` features depend on that side alone (and on
    literals); every other one is ``crossing``.
    """

    spec: FeatureSpec
    inputs: tuple[PlannedInput, ...]
    side: FeatureSide
    form: Form

    @property
    def emitted(self) -> bool:
        """Whether tensors of it exist: no stub, and no un-bucketized text."""
        return not self.spec.stub and self.form != "text"

    @property
    def is_id_sequence(self) -> bool:
        """Whether its tensors are a sequence of ids."""
        return self.emitted and self.spec.sequence is not None and self.form == "ids"

    @property
    def has_keys(self) -> bool:
        """Whether ``key_lengths`` belong to its tensors (spec section 5)."""
        return self.is_id_sequence and self.spec.value_dim != 1

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of its tensors."""
        if not self.emitted:
            return ()
        parts = ["values"]
        if self.form == "ids" or self.spec.sequence is not None:
            parts.append("lengths")
        if self.has_keys:
            parts.append("key_lengths")
        if self.spec.weighted:
            parts.append("weights")
        return tuple(f"{self.spec.name}.{part}" for part in parts)


@dataclass(frozen=True)
class Plan:
    """All features in an order in which each follows those it reads."""

    features: tuple[PlannedFeature, ...]
    slots: tuple[Slot, ...]
    literals: tuple[str, ...]


def build_plan(spec: FgSpec) -> Plan:
    """Orders the features and finds their sides.

    :raises FgConfigError: for a ``feature:`` that does not exist, or a cycle
    """
    slots: dict[Slot, int] = {}
    literals: dict[str, int] = {}
    planned: dict[str, PlannedFeature] = {}
    numbers: dict[str, int] = {}
    for feature in _ordered(spec):
        inputs: list[PlannedInput] = []
        for ref in feature.inputs:
            if ref.side == "feature":
                inputs.append(PlannedInput("node", numbers[ref.column], ref))
            elif ref.side == "const":
                index = literals.setdefault(ref.name, len(literals))
                inputs.append(PlannedInput("const", index, ref))
            else:
                slot = _slot(feature, ref)
                index = slots.setdefault(slot, len(slots))
                inputs.append(PlannedInput("slot", index, ref))
        numbers[feature.name] = len(numbers)
        planned[feature.name] = PlannedFeature(
            feature, tuple(inputs), _side(feature, planned), feature.form
        )
    return Plan(tuple(planned.values()), tuple(slots), tuple(literals))


def _slot(feature: FeatureSpec, ref: InputRef) -> Slot:
    # The request's user part holds the sequences of a group, whatever the side
    # of their elements: the item features among them are joined in by id.
    group = feature.sequence is not None and feature.sequence.group
    if ref.sequence and group and not ref.spread:
        return Slot("user", ref.column)
    return Slot(ref.side, ref.column)


def _side(feature: FeatureSpec, planned: dict[str, PlannedFeature]) -> FeatureSide:
    sides: set[str] = set()
    for ref in feature.inputs:
        if ref.side == "feature":
            sides.add(planned[ref.column].side)
        elif ref.side != "const":
            slot = _slot(feature, ref)
            sides.add("crossing" if slot.side == "context" else slot.side)
    if not sides or sides == {"user"}:
        return "user"
    return "item" if sides == {"item"} else "crossing"


def _ordered(spec: FgSpec) -> Iterable[FeatureSpec]:
    """Features in file order, each after those that it reads (no recursion)."""
    by_name = {feature.name: feature for feature in spec.features}
    done: set[str] = set()
    for feature in spec.features:
        stack = [feature]
        open_names = {feature.name}
        while stack:
            top = stack[-1]
            waiting = _first_unmet(top, by_name, done)
            if waiting is None:
                stack.pop()
                open_names.discard(top.name)
                if top.name not in done:
                    done.add(top.name)
                    yield top
            elif waiting.name in open_names:
                raise FgConfigError(
                    top.name, "expression", f"cycle through feature:{waiting.name}"
                )
            else:
                stack.append(waiting)
                open_names.add(waiting.name)


def _first_unmet(
    feature: FeatureSpec, by_name: dict[str, FeatureSpec], done: set[str]
) -> FeatureSpec | None:
    for ref in feature.inputs:
        if ref.side != "feature" or ref.column in done:
            continue
        if ref.column not in by_name:
            raise FgConfigError(
                feature.name, "expression", f"there is no feature {ref.column!r:.80}"
            )
        return by_name[ref.column]
    return None
