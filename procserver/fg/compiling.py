"""From a plan to the compiled plan of the kernels."""

from dataclasses import replace

from cython_ext.column import Column
from cython_ext.fg_plan import CompiledPlan
from procserver.fg.feature import FeatureSpec
from procserver.fg.plan import Plan, PlannedFeature


def compile_plan(
    plan: Plan, *, farm_hash: bool, for_parser: bool = False
) -> CompiledPlan:
    """The plan that generates tensors.

    ``for_parser``: as TorchEasyRec's data parser reads them, which wants
    ``key_lengths`` of every id sequence, and features that read one-row columns
    only to stay at one row.
    """
    compiled = _empty(plan, len(plan.features))
    for feature in plan.features:
        payload = feature.spec.type.payload(feature.spec)
        _add(compiled, feature, payload, farm_hash=farm_hash, for_parser=for_parser)
    return compiled


def compile_unbucketized(
    plan: Plan, *, farm_hash: bool
) -> tuple[CompiledPlan, dict[str, int]]:
    """A plan that yields values before bucketization, and where each one is.

    Every feature stands in it twice: as it is, for those that read it, and
    without its bucketizer.
    """
    compiled = _empty(plan, 2 * len(plan.features))
    for feature in plan.features:
        payload = feature.spec.type.payload(feature.spec)
        _add(compiled, feature, payload, farm_hash=farm_hash)
    numbers = {}
    for feature in plan.features:
        spec = replace(feature.spec, bucketizer=None, stub=True)
        bare = replace(feature, spec=spec, form=spec.form)
        # What an operator does may depend on the bucketizer, even without it.
        payload = spec.type.payload(feature.spec)
        numbers[spec.name] = _add(compiled, bare, payload, farm_hash=farm_hash)
    return compiled, numbers


def _empty(plan: Plan, features: int) -> CompiledPlan:
    literals = [Column.from_texts([text]) for text in plan.literals]
    return CompiledPlan([slot.name for slot in plan.slots], literals, features)


def _add(
    compiled: CompiledPlan,
    feature: PlannedFeature,
    payload: object,
    *,
    farm_hash: bool,
    for_parser: bool = False,
) -> int:
    spec = feature.spec
    prefix = _prefix(spec)
    default = None if spec.default is None else prefix + spec.default.encode()
    default_id = 0
    bucketizer = None
    if spec.bucketizer is not None:
        bucketizer = spec.bucketizer.compiled(farm_hash=farm_hash)
        if default is not None and not _is_number(spec):
            default_id = spec.bucketizer.id_of_default(default, farm_hash=farm_hash)
    return compiled.add(
        spec.operator,
        spec.name,
        [
            (
                one.origin,
                one.index,
                one.ref.sequence,
                not one.ref.sequence
                and spec.type.maps(spec.details, one.ref, spec.weighted),
                f"{one.ref.side}:{one.ref.name}",
            )
            for one in feature.inputs
        ],
        form=feature.form,
        value_dim=spec.value_dim,
        width=spec.width,
        sequence=spec.sequence is not None,
        weighted=spec.weighted,
        separator=spec.separator,
        delim=spec.sequence.delim if spec.sequence is not None else b";",
        limit=spec.sequence.length if spec.sequence is not None else 0,
        prefix=prefix,
        default_text=default,
        default_id=default_id,
        default_numbers=spec.default_numbers,
        bucketizer=bucketizer,
        normalizer=spec.normalizer.compiled() if spec.normalizer is not None else None,
        emit=feature.emitted,
        keys=feature.has_keys or (for_parser and feature.is_id_sequence),
        one_row=for_parser or feature.side == "user",
        details=payload,
    )


def _is_number(spec: FeatureSpec) -> bool:
    """Whether a default becomes an id as a number, else as text."""
    return spec.numeric and (spec.bucketizer is None or spec.bucketizer.is_numeric)


def _prefix(spec: FeatureSpec) -> bytes:
    """``<feature_name>_`` where it is asked for and text is what is bucketized.

    NOTE(4, order of work): a default value is prefixed like any other value.
    """
    numeric = spec.numeric or (
        spec.bucketizer is not None and spec.bucketizer.is_numeric
    )
    if not spec.need_prefix or not spec.type.prefixes or numeric:
        return b""
    return f"{spec.own_name}_".encode()
