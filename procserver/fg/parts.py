"""One run on several threads: a plan cut into parts that need nothing of each other."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from cython_ext.column import Column
from cython_ext.fg_plan import CompiledPlan
from procserver.fg.compiling import compile_plan
from procserver.fg.plan import Plan, PlannedFeature, PlannedInput

Tensors = dict[str, NDArray[np.generic]]

# PERF: handing a part to a thread costs about as much as this many values do
# (measured: loadtest/micro/fg_threads.py); smaller runs stay on their thread.
VALUES_PER_THREAD = 8192
# What a feature costs compared with a plain one: elements of a sequence.
SEQUENCE_COST = 8


class Parts:
    """Runs a plan's features on up to ``threads`` threads, the caller's included.

    A feature is computed by the same kernel over the same columns in whichever
    part it is, so the bytes are those of one thread.
    """

    def __init__(
        self, plan: Plan, threads: int, *, farm_hash: bool, for_parser: bool
    ) -> None:
        numbers = {one.spec.name: i for i, one in enumerate(plan.features)}
        # Compiled, and the numbers of its slots and features in the whole plan.
        self._parts = [
            (
                compile_plan(part, farm_hash=farm_hash, for_parser=for_parser),
                [plan.slots.index(slot) for slot in part.slots],
                [numbers[one.spec.name] for one in part.features],
            )
            for part in split(plan, threads)
        ]
        self._costs = [_cost(one) for one in plan.features]
        self._order = [one.spec.name for one in plan.features if one.emitted]
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def pays(self, rows: int, mask: bytes | None = None) -> bool:
        """Whether a run of ``rows`` rows is large enough to share."""
        costs = self._costs if mask is None else compress(self._costs, mask)
        return len(self._parts) > 1 and rows * sum(costs) >= (
            VALUES_PER_THREAD * len(self._parts)
        )

    def run(
        self,
        columns: Sequence[Column | None],
        rows: int,
        *,
        tile: bool,
        mask: bytes | None = None,
    ) -> Tensors:
        """As :meth:`CompiledPlan.run` of the whole plan; ``mask`` is its ``part``."""

        def run_part(part: tuple[CompiledPlan, list[int], list[int]]) -> Tensors:
            compiled, slots, features = part
            wanted = None if mask is None else bytes(mask[one] for one in features)
            return compiled.run(
                [columns[slot] for slot in slots], rows, tile=tile, part=wanted
            )

        first, *others = self._parts
        futures = [self._threads().submit(run_part, part) for part in others]
        try:
            found = run_part(first)
        finally:
            wait(futures)
        for future in futures:
            found.update(future.result())
        return {
            name: found[name]
            for feature in self._order
            for name in (
                f"{feature}.values",
                f"{feature}.lengths",
                f"{feature}.key_lengths",
                f"{feature}.weights",
            )
            if name in found
        }

    def _threads(self) -> ThreadPoolExecutor:
        # SAFETY: threads do not survive a fork; a worker starts its own.
        if self._pool is None or self._pool[0] != os.getpid():
            workers = ThreadPoolExecutor(len(self._parts) - 1, "procserver-fg")
            self._pool = (os.getpid(), workers)
        return self._pool[1]


def split(plan: Plan, most: int) -> list[Plan]:
    """At most ``most`` plans of about equal cost that together are ``plan``.

    Features that are connected by ``feature:`` references stay together.
    """
    bins: list[list[int]] = [[] for _ in range(most)]
    costs = [0] * most
    groups = _connected(plan)
    groups.sort(key=lambda group: -sum(_cost(plan.features[i]) for i in group))
    for group in groups:
        lightest = costs.index(min(costs))
        bins[lightest] += group
        costs[lightest] += sum(_cost(plan.features[i]) for i in group)
    return [_part(plan, sorted(members)) for members in bins if members]


def _cost(feature: PlannedFeature) -> int:
    spec = feature.spec
    return len(spec.inputs) * (SEQUENCE_COST if spec.sequence is not None else 1)


def _connected(plan: Plan) -> list[list[int]]:
    """Numbers of the features of each connected group, in the order of work."""
    group_of: list[list[int]] = []
    for number, feature in enumerate(plan.features):
        mine = [number]
        for one in feature.inputs:
            if one.origin == "node" and group_of[one.index] is not mine:
                mine += group_of[one.index]
                for member in group_of[one.index]:
                    if member != number:
                        group_of[member] = mine
        group_of.append(mine)
    return list({id(group): group for group in group_of}.values())


def _part(plan: Plan, members: list[int]) -> Plan:
    """The plan of some features, with the columns and literals that they read."""
    numbers = {number: i for i, number in enumerate(members)}
    slots: dict[int, int] = {}
    literals: dict[int, int] = {}

    def moved(one: PlannedInput) -> PlannedInput:
        if one.origin == "node":
            return replace(one, index=numbers[one.index])
        table = slots if one.origin == "slot" else literals
        return replace(one, index=table.setdefault(one.index, len(table)))

    features = tuple(
        replace(plan.features[i], inputs=tuple(map(moved, plan.features[i].inputs)))
        for i in members
    )
    return Plan(
        features,
        tuple(plan.slots[i] for i in slots),
        tuple(plan.literals[i] for i in literals),
    )
