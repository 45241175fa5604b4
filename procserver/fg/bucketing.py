"""Bucketize-only mode: what is left of a plan over columns that FG made before."""

from collections.abc import Iterable
from dataclasses import replace

from procserver.fg.bucketizer import Bucketizer
from procserver.fg.entry import INT64_MAX
from procserver.fg.feature import FeatureSpec, FgSpec, InputRef
from procserver.fg.plan import Plan, PlannedFeature
from procserver.fg.types import TYPES

# Types that yield ids without a bucketizer: their columns hold ids already.
IDS = Bucketizer("number", INT64_MAX)
# Types of which value_dim bounds nothing, see section 8.6 of the specification.
UNBOUNDED = frozenset({"lookup", "match"})


def bucketize_only(plan: Plan) -> FgSpec:
    """The spec that turns un-bucketized output into tensors (spec section 11).

    Each feature reads the one column that has its name and holds its values from
    before bucketization. The bucketizer runs, and what converts values to the
    tensor's dtype; crossing, normalizers, prefixes and ``feature:`` references
    had their turn. A column may still lack values: the default takes their place.
    """
    return FgSpec(tuple(_features(plan)), (), ())


def _features(plan: Plan) -> Iterable[FeatureSpec]:
    return (_feature(one) for one in plan.features if one.emitted)


def _feature(planned: PlannedFeature) -> FeatureSpec:
    spec = planned.spec
    sequence = spec.sequence
    if sequence is not None:
        sequence = replace(sequence, group="", prefix="", pk="")
    # NOTE(11): a raw feature's rows have its width; of the other types, a row may
    # have bucketized any number of values.
    fixed = planned.form == "numbers" or spec.operator == "raw"
    unbounded = spec.operator in UNBOUNDED and not fixed
    default = spec.default
    if spec.bucketizer is None and not fixed:
        # The default of a tokenizer is text to tokenize, which was done before.
        default = None if sequence is None else "0"
    return replace(
        spec,
        type=TYPES["raw_feature" if fixed else "id_feature"],
        inputs=(InputRef("item", spec.name, spec.name, sequence is not None),),
        sequence=sequence,
        default=default,
        bucketizer=spec.bucketizer if fixed else spec.bucketizer or IDS,
        normalizer=None,
        need_prefix=False,
        numeric=fixed,
        value_dim=len(spec.default_numbers)
        if fixed
        else spec.value_dim * (not unbounded),
        width=len(spec.default_numbers) if fixed else 1,
        details=None,
    )
