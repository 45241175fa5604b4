"""Parts of a plan, what can be generated ahead, and digests."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from cython_ext.column import Column
from procserver.fg import FeatureGenerator
from procserver.fg.pregenerated import Pregenerated
from procserver.fg.split import part_of, pregenerable, remainder_of


def entry(name, expression, **more):
    known = {"feature_type": "id_feature", "hash_bucket_size": 97}
    return {**known, "feature_name": name, "expression": expression, **more}


def text(name, expression, **more):
    return entry(name, expression, hash_bucket_size=0, **more)


def plan_of(*entries):
    return FeatureGenerator({"features": list(entries)}).plan


MIX = (
    entry("city", "user:city"),
    entry("brand", "item:brand"),
    entry("price", "item:price", feature_type="raw_feature", hash_bucket_size=0),
    text("words", "item:words", stub_type=True),
    entry("first", "feature:words"),
    entry("second", "feature:words", weighted=True),
    entry("cross", ["user:city", "item:brand"], feature_type="combo_feature"),
    entry("place", "context:place"),
)


def test_item_features_are_generated_ahead():
    columns = {"brand", "price", "words"}
    assert pregenerable(plan_of(*MIX), columns) == ("brand", "price", "first", "second")


def test_features_of_columns_that_no_table_has_are_not():
    assert pregenerable(plan_of(*MIX), {"brand"}) == ("brand",)
    assert pregenerable(plan_of(*MIX), ()) == ()


@pytest.mark.parametrize(
    "other",
    [
        entry("f", "item:a", feature_type="sequence_id_feature"),
        entry("f", "item:a", is_sequence=True),
        text("f", "item:a"),
        entry("f", "item:a", stub_type=True),
        entry("f", "const:a"),
        entry("f", ["item:a", "context:x"], feature_type="combo_feature"),
        {
            "sequence_name": "clicks",
            "features": [entry("f", "item:a")],
        },
    ],
)
def test_what_is_not_generated_ahead(other):
    assert pregenerable(plan_of(other), {"a", "x"}) == ()


def test_what_each_request_generates_anyway_is_not_generated_ahead():
    brand = entry("brand", "item:brand")
    crossed = ["feature:brand", "user:city"]
    cross = entry("cross", crossed, feature_type="combo_feature")
    again = entry("again", "feature:brand")
    assert pregenerable(plan_of(brand, again), {"brand"}) == ("brand", "again")
    assert pregenerable(plan_of(brand, cross, again), {"brand"}) == ("again",)


@pytest.mark.parametrize(
    ("details", "ahead"),
    [
        (None, True),
        ("a + b", True),
        (("program", (("rnd", ()),)), False),
        (SimpleNamespace(repeatable=False), False),
        (SimpleNamespace(repeatable=True, process=len), True),
        (SimpleNamespace(process=len), False),
    ],
)
def test_features_that_do_not_repeat_themselves_are_not(details, ahead):
    plan = plan_of(entry("f", "item:a"), entry("g", "feature:f"))
    first, second = plan.features
    spec = replace(first.spec, details=details)
    plan = replace(plan, features=(replace(first, spec=spec), second))
    assert pregenerable(plan, {"a"}) == (("f", "g") if ahead else ())


@pytest.mark.parametrize(
    ("formula", "ahead"),
    [("a + 1", True), ("a + rnd()", False), ("a > 2 ? rnd() * 0 : 1", False)],
)
def test_formulas_that_draw_numbers_are_not(formula, ahead):
    more = {"hash_bucket_size": 0, "variables": ["item:a"], "value_dim": 1}
    one = entry("f", formula, feature_type="expr_feature", **more)
    assert pregenerable(plan_of(one), {"a"}) == (("f",) if ahead else ())
    raw = entry("f", "item:a", feature_type="raw_feature", hash_bucket_size=0)
    raw["normalizer"] = f"method=expression,expr={formula.replace('a', 'x')}"
    assert pregenerable(plan_of(raw), {"a"}) == (("f",) if ahead else ())


def test_parts_run_what_their_features_read():
    plan = plan_of(*MIX)
    names = [feature.spec.name for feature in plan.features]
    part = part_of(plan, {"second", "cross"})
    assert part.features == ("second", "cross")
    assert part.item_inputs == ("brand", "words")
    assert dict(zip(names, part.mask, strict=True)) == {
        "city": 0,
        "brand": 0,
        "price": 0,
        "words": 1,
        "first": 0,
        "second": 2,
        "cross": 2,
        "place": 0,
    }
    rest = remainder_of(plan, {"first", "second"})
    assert rest.features == ("city", "brand", "price", "cross", "place")
    assert rest.item_inputs == ("brand", "price")


def test_the_remainder_refuses_what_the_plan_refuses():
    plan = plan_of(text("dead", "item:a"), entry("f", "item:b"))
    assert remainder_of(plan, {"f"}).mask == b"\1\0"


@pytest.mark.parametrize("tile", [True, False])
def test_two_parts_make_the_whole(tile):
    generator = FeatureGenerator({"features": list(MIX)})
    user = {"city": Column.from_texts(["ulm"])}
    item = {
        name: Column.from_texts(["3", "x\x1dy:2", ""])
        for name in ("brand", "price", "words")
    }
    item["price"] = Column.from_texts(["3", "4", "5"])
    whole = generator.generate(user, item, {}, 3, tile=tile)
    names = ("first", "brand", "price")
    parts = [part_of(generator.plan, names), remainder_of(generator.plan, names)]
    made = [generator.generate(user, item, {}, 3, tile=tile, part=p) for p in parts]
    assert made[0].keys() | made[1].keys() == whole.keys()
    assert made[0].keys() & made[1].keys() == ({"batch_size"} if tile else set())
    for part in made:
        for name, array in part.items():
            assert array.tobytes() == whole[name].tobytes()
            assert array.shape == whole[name].shape


@pytest.mark.parametrize(("part", "told"), [(b"\2", "1 of 2"), (b"\0\2", "lacks what")])
def test_a_plan_refuses_parts_that_it_cannot_run(part, told):
    generator = FeatureGenerator(
        {"features": [entry("a", "item:a"), entry("b", "feature:a")]}
    )
    with pytest.raises(ValueError, match=told):
        generator.compiled.run([None], 1, tile=False, part=part)


def test_what_is_served_is_kept_for_a_few_kinds_of_requests():
    names = [f"c{i}" for i in range(8)]
    generator = FeatureGenerator(
        {"features": [entry(name, f"item:{name}") for name in names]}
    )
    stored = [f"{name}.values" for name in names]
    ready = Pregenerated(
        generator, stored, names, lambda wanted: dict.fromkeys(wanted, Column.null(1))
    )
    for number in range(256):
        given = {name for i, name in enumerate(names) if number >> i & 1}
        served = ready.served(given | {"other"})
        assert len(served.columns) == 8 - len(given)
        assert ready.served(given) is served
        assert served.part.features == tuple(n for n in names if n in given)
        assert len(ready._served) <= ready.MOST_SERVED
    rows = np.array([-1, -1], dtype=np.int64)
    assert ready.served(names).tensors(rows, {}) == {}


# -------------------------------------------------------------------- digests


def test_a_digest_tells_content_from_layout(tmp_path):
    first = {"features": [entry("a", "item:a")]}
    digest = FeatureGenerator(first).digest
    assert len(digest) == 64
    (tmp_path / "fg.json").write_text(json.dumps(first, indent=3))
    assert FeatureGenerator(tmp_path / "fg.json").digest == digest
    assert FeatureGenerator(first, threads=2).digest == digest
    assert FeatureGenerator(first, farm_hash=True).digest != digest
    other = {"features": [entry("a", "item:b")]}
    assert FeatureGenerator(other).digest != digest


def test_a_digest_covers_the_files_that_are_named(tmp_path):
    content = {
        "features": [
            entry("a", "item:a", vocab_file="words.txt", hash_bucket_size=0)
            | {"default_bucketize_value": 0}
        ]
    }
    digests = set()
    for words in ("x\ny\n", "y\nx\n", "x\ny\n"):
        (tmp_path / "words.txt").write_text(words)
        digests.add(FeatureGenerator(content, asset_dir=tmp_path).digest)
    assert len(digests) == 2
