"""The split of a plan: which features can be generated ahead, and parts of a plan.

Features of the item side alone give the same values in every request, so they are
generated once, when the item cache is built (``procserver.fg.pregenerated``); a
request then runs the part of the plan that is left. The split changes cost, never
results.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from procserver.fg.assets import asset_path
from procserver.fg.feature import FeatureSpec
from procserver.fg.plan import Plan, PlannedFeature

# NOTE: to be raised with every change of what kernels generate or of the forms in
# which it is stored: what an older procserver generated is not read any more.
KERNELS = 1

# What a part says of a feature, see CompiledPlan.run; 0: left out.
READ, EMITTED = 1, 2


@dataclass(frozen=True)
class Part:
    """Some features of a plan, and what has to be run for them.

    ``mask`` is for the compiled plan; ``item_inputs``: item columns that are read.
    """

    features: tuple[str, ...]
    mask: bytes
    item_inputs: tuple[str, ...]


def part_of(plan: Plan, names: Collection[str]) -> Part:
    """The part of ``plan`` that emits the features ``names``."""
    return _part(plan, names, bytearray(len(plan.features)))


def remainder_of(plan: Plan, names: Collection[str]) -> Part:
    """The part that does all that the plan does but for the features ``names``.

    NOTE: features that nothing comes of (text without a bucketizer, stubs that no
    feature reads) are run in it too, since they may refuse a request.
    """
    mask = bytearray(len(plan.features))
    read = {
        one.index for f in plan.features for one in f.inputs if one.origin == "node"
    }
    for number, feature in enumerate(plan.features):
        if not feature.emitted and number not in read:
            mask[number] = READ
    others = {f.spec.name for f in plan.features if f.spec.name not in names}
    return _part(plan, others, mask)


def _part(plan: Plan, names: Collection[str], mask: bytearray) -> Part:
    """Adds ``names``, and what is read, to the features run by ``mask``."""
    for number, feature in enumerate(plan.features):
        if feature.emitted and feature.spec.name in names:
            mask[number] = EMITTED
    # A feature stands behind all that it reads.
    for number in reversed(range(len(mask))):
        for one in plan.features[number].inputs if mask[number] else ():
            if one.origin == "node":
                mask[one.index] = mask[one.index] or READ
    run = [f for f, wanted in zip(plan.features, mask, strict=True) if wanted]
    slots = {one.index for f in run for one in f.inputs if one.origin == "slot"}
    return Part(
        features=tuple(
            feature.spec.name
            for feature, wanted in zip(plan.features, mask, strict=True)
            if wanted == EMITTED
        ),
        mask=bytes(mask),
        item_inputs=tuple(
            slot.name
            for index, slot in enumerate(plan.slots)
            if index in slots and slot.side == "item"
        ),
    )


def pregenerable(plan: Plan, columns: Collection[str]) -> tuple[str, ...]:
    """Features that can be generated ahead from an item table with ``columns``.

    They depend on these columns alone, give the same values each time, and have
    rows of ids or of a known number of floats. A feature that another one reads
    in each request is left out: it is generated there anyway.
    """
    fit: dict[int, PlannedFeature] = {}
    for number, feature in enumerate(plan.features):
        if feature.side == "item" and _is_repeatable(feature.spec):
            sources = (
                one.index in fit
                if one.origin == "node"
                else one.origin == "const" or plan.slots[one.index].name in columns
                for one in feature.inputs
            )
            if all(sources):
                fit[number] = feature
    names = {f.spec.name for f in fit.values() if _is_storable(f)}
    while True:
        mask = remainder_of(plan, names).mask
        run = {f.spec.name for f, m in zip(plan.features, mask, strict=True) if m}
        if not names & run:
            return tuple(f.spec.name for f in plan.features if f.spec.name in names)
        names -= run


def _is_storable(feature: PlannedFeature) -> bool:
    spec = feature.spec
    if not feature.emitted or spec.sequence is not None:
        return False
    return feature.form == "ids" or spec.width > 0


def _is_repeatable(spec: FeatureSpec) -> bool:
    """Whether values depend on inputs alone.

    NOTE: ``rnd()`` of a formula draws anew for each request. A plug-in's operator
    (its details hold the function to call) promises nothing, unless it says
    ``repeatable``.
    """
    for one in (spec.details, spec.normalizer):
        says = getattr(one, "repeatable", None)
        if says is None:
            says = not hasattr(one, "process") and not re.search(r"\brnd\b", repr(one))
        if not says:
            return False
    return True


# -------------------------------------------------------------------- digest


def digest_of(
    fg_json: Mapping[str, Any] | str | os.PathLike[str],
    asset_dir: str | os.PathLike[str] | None,
    modes: tuple[bool, ...],
) -> str:
    """Everything that generated values depend on, as 64 hexadecimal digits.

    The content of ``fg.json`` (not its layout), the files that it names, how it is
    read and hashed, and the version of the kernels.
    """
    if isinstance(fg_json, Mapping):
        content: Any = fg_json
        assets = Path(asset_dir or ".")
    else:
        content = json.loads(Path(fg_json).read_bytes())
        assets = Path(asset_dir) if asset_dir is not None else Path(fg_json).parent
    told = hashlib.sha256()
    told.update(f"{KERNELS} {modes} ".encode())
    told.update(json.dumps(content, sort_keys=True).encode())
    for name in sorted(set(_values(content))):
        file = _file_digest(assets, name)
        if file is not None:
            told.update(f"{json.dumps(name)} {file}".encode())
    return told.hexdigest()


def _values(tree: Any) -> Iterator[str]:
    """Strings that may name a file: values of keys, at any depth."""
    open_trees = [tree]
    while open_trees:
        top = open_trees.pop()
        for value in top.values() if isinstance(top, Mapping) else top:
            if isinstance(value, Mapping | list):
                open_trees.append(value)
            elif isinstance(value, str) and isinstance(top, Mapping):
                yield value


def _file_digest(folder: Path, name: str) -> str | None:
    """The digest of a file's content; None: the string names no file."""
    if not name:
        return None
    try:
        with asset_path(folder, name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None
