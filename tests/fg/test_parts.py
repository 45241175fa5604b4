"""One call over several threads: the same bytes, and threads only where they pay."""

import os
import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procserver.errors import BadFeature
from procserver.fg import FeatureGenerator, parts
from procserver.fg.plan import build_plan
from procserver.fg.spec import read_spec


def feature(kind, name, expression, **more):
    return {
        "feature_type": f"{kind}_feature",
        "feature_name": name,
        "expression": expression,
    } | more


@st.composite
def files(draw):
    """Features of all sorts that refer to each other."""
    features = []
    for i in range(draw(st.integers(1, 9))):
        kind = draw(st.sampled_from(["id", "raw", "combo", "ref", "group", "const"]))
        column = draw(st.sampled_from(["user:u", "item:a", "item:b", "context:c"]))
        if kind == "raw":
            features.append(feature("raw", f"f{i}", "item:n", boundaries=[1, 2]))
        elif kind == "combo":
            features.append(
                feature("combo", f"f{i}", [column, "user:u"], hash_bucket_size=99)
            )
        elif kind == "const":
            features.append(feature("id", f"f{i}", "const:k", hash_bucket_size=9))
        elif kind == "ref" and any("feature_type" in one for one in features):
            names = [one["feature_name"] for one in features if "feature_name" in one]
            refs = [f"feature:{draw(st.sampled_from(names))}", column]
            features.append(
                feature("combo", f"f{i}", refs, hash_bucket_size=99, stub_type=i == 3)
            )
        elif kind == "group":
            inner = feature("id", "x", "item:x", num_buckets=50, value_dim=0)
            features.append({"sequence_name": f"f{i}", "features": [inner]})
        else:
            features.append(
                feature("id", f"f{i}", column, hash_bucket_size=99, weighted=i % 2 == 0)
            )
    order = draw(st.permutations(features))
    return {"features": list(order)}


def plain(tensors):
    return [
        (name, array.dtype, array.shape, array.tobytes())
        for name, array in tensors.items()
    ]


def table(rows, seed):
    chosen = random.Random(seed)
    words = ["", "a", "b\x1dc", "1;2", "3", None]
    columns = {
        name: pa.array(chosen.choices(words, k=rows), pa.string())
        for name in ("u", "a", "b", "c", *(f"f{i}__x" for i in range(9)))
    }
    numbers = chosen.choices([0.5, 1.0, None, 3.0], k=rows)
    return columns | {"n": pa.array(numbers, pa.float32())}


@settings(max_examples=60, deadline=None)
@given(files(), st.integers(2, 6), st.integers(0, 9), st.booleans(), st.integers())
def test_any_number_of_threads_gives_the_same_bytes(fg, threads, rows, parser, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "VALUES_PER_THREAD", 0)
        one = FeatureGenerator(fg, for_parser=parser)
        many = FeatureGenerator(fg, threads=threads, for_parser=parser)
        columns = table(rows, seed)
        for repeat in (True, False):
            assert plain(many.transform(columns, repeat=repeat)) == plain(
                one.transform(columns, repeat=repeat)
            )


@settings(max_examples=60, deadline=None)
@given(files(), st.integers(1, 6))
def test_parts_are_the_plan(fg, most):
    plan = build_plan(read_spec(fg))
    pieces = parts.split(plan, most)
    assert len(pieces) <= most
    names = [one.spec.name for piece in pieces for one in piece.features]
    assert sorted(names) == sorted(one.spec.name for one in plan.features)
    originals = {one.spec.name: one for one in plan.features}

    def read(piece, feature):
        return [
            piece.slots[i.index] if i.origin == "slot"
            else piece.literals[i.index] if i.origin == "const"
            else piece.features[i.index].spec.name
            for i in feature.inputs
        ]  # fmt: skip

    for piece in pieces:
        for number, one in enumerate(piece.features):
            assert read(piece, one) == read(plan, originals[one.spec.name])
            assert all(i.index < number for i in one.inputs if i.origin == "node")


def wide(count=40):
    return {
        "features": [
            feature("id", f"f{i}", "item:x", hash_bucket_size=10) for i in range(count)
        ]
    }


def test_threads_are_used_for_large_runs_only(monkeypatch):
    ran = []
    run = parts.Parts.run
    monkeypatch.setattr(
        parts.Parts, "run", lambda *a, **k: ran.append(1) or run(*a, **k)
    )
    generator = FeatureGenerator(wide(), threads=2)
    generator.transform({"x": pa.array(["a"])})
    assert ran == []
    rows = 2 * parts.VALUES_PER_THREAD // 40 + 1
    generator.transform({"x": pa.array(["a"] * rows)})
    assert ran == [1]


def test_parts_are_about_equal():
    sizes = [len(p.features) for p in parts.split(build_plan(read_spec(wide())), 3)]
    assert sorted(sizes) == [13, 13, 14]


def test_one_connected_plan_is_one_part():
    features = [feature("id", "f0", "item:x", hash_bucket_size=10)] + [
        feature("combo", f"f{i}", [f"feature:f{i - 1}", "item:x"], hash_bucket_size=10)
        for i in range(1, 6)
    ]
    generator = FeatureGenerator({"features": features}, threads=4)
    assert len(parts.split(generator.plan, 4)) == 1
    tensors = generator.transform({"x": pa.array(["a"] * 5000)})
    assert len(tensors["f5.values"]) == 5000


def test_an_error_in_a_part_is_raised_when_all_have_ended():
    fg = {
        "features": [
            feature("raw", f"f{i}", f"item:x{i}", value_dim=2) for i in range(20)
        ]
    }
    generator = FeatureGenerator(fg, threads=4)
    columns = {f"x{i}": pa.array(["1\x1d2"] * 5000) for i in range(20)}
    generator.transform(columns)
    columns["x7"] = pa.array(["1\x1d2\x1d3"] * 5000)
    with pytest.raises(BadFeature, match="f7"):
        generator.transform(columns)
    columns["x7"] = columns["x1"]
    generator.transform(columns)


def test_a_forked_worker_starts_its_own_threads():
    generator = FeatureGenerator(wide(), threads=3)
    column = {"x": pa.array(["a", "b"] * 4000)}
    expected = plain(generator.transform(column))
    child = os.fork()
    if child == 0:
        same = plain(generator.transform(column)) == expected
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
