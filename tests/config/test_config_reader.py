"""JSON text, comments, duplicate keys, dotted and aliased places."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procserver.config.reader import Pairs, canonical, plain, read_text
from procserver.errors import ConfigError

KEYS = st.sampled_from(["a", "b", "c", "d"])
LEAVES = st.one_of(st.integers(-5, 5), st.booleans(), st.sampled_from(["x", "y"]))
TREES = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES, lambda inner: st.dictionaries(KEYS, inner, min_size=1), max_leaves=8
    ),
    max_size=4,
)


def test_plain_json_gives_no_warning() -> None:
    document, warnings = read_text('{"a": [1, {"b": "# // , ]"}], "c": null}')
    assert plain(document) == {"a": [1, {"b": "# // , ]"}], "c": None}
    assert warnings == []


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, # remark\n "b": true,}',
        '{"a": 1, // remark "with quotes"\n "b": true}',
        '{"a": 1, /* over\n lines */ "b": true}',
        '{"a": 1, "b": True}',
        '{"a": 1, "b": true, "c": None}',
    ],
)
def test_vendor_samples_beyond_json_are_read_with_a_warning(text: str) -> None:
    document, warnings = read_text(text)
    assert {k: v for k, v in document if v is not None} == {"a": 1, "b": True}
    assert len(warnings) == 1
    assert warnings[0].startswith("line ")


def test_warning_names_the_first_line_that_is_not_json() -> None:
    _, warnings = read_text('{\n"a": 1,\n"b": [1,],\n"c": True}')
    assert warnings[0].startswith("line 3:")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"a": 1\n "b": 2}', "line 2, column 2"),
        ('{"a": "x""}', "line 1, column 10"),
        ('{\n# remark\n"a": }', "line 3, column 6"),
        ("", "line 1, column 1"),
    ],
)
def test_syntax_error_names_line_and_column(text: str, place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        read_text(text)


@pytest.mark.parametrize("text", ["[1]", "3", '"x"', '{"a": NaN}', "[" * 100_000])
def test_not_an_object_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        read_text(text)


def test_a_word_inside_a_text_stays() -> None:
    document, _ = read_text('{"a": "True, None,]", "b": False,}')
    assert plain(document) == {"a": "True, None,]", "b": False}


def _dotted(tree: dict[str, Any], draw: Any) -> Pairs:
    """The same tree with any number of levels folded into dotted keys."""
    pairs = Pairs()
    for key, value in tree.items():
        if isinstance(value, dict):
            inner = _dotted(value, draw)
            if draw(st.booleans()):
                pairs.extend((f"{key}.{name}", leaf) for name, leaf in inner)
            else:
                pairs.append((key, inner))
        else:
            pairs.append((key, value))
    return Pairs(draw(st.permutations(pairs)))


@given(tree=TREES, data=st.data())
def test_dotted_and_nested_are_the_same(tree: dict[str, Any], data: Any) -> None:
    spelled = _dotted(tree, data.draw)
    result = canonical(spelled, {})
    assert result.problems == []
    assert result.tree == canonical(tree, {}).tree == tree
    # The same document twice over says nothing new.
    assert canonical(Pairs([*spelled, *tree.items()]), {}).tree == tree


@given(tree=TREES.filter(bool), data=st.data())
def test_one_changed_leaf_is_a_contradiction(tree: dict[str, Any], data: Any) -> None:
    path, node = [], tree
    while isinstance(node, dict):
        key = data.draw(st.sampled_from(sorted(node)))
        path.append(key)
        node = node[key]
    other = Pairs([*tree.items(), (".".join(path), "quite another value")])
    assert any(
        problem.startswith(f"{'.'.join(path)}: given twice with different values")
        for problem in canonical(other, {}).problems
    )


@pytest.mark.parametrize("both", [{"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}])
def test_value_and_object_at_one_place_contradict(both: dict[str, int]) -> None:
    assert "a" in canonical(both, {}).problems[0]


def test_same_value_in_two_spellings_is_no_contradiction() -> None:
    assert canonical({"a": {"b": 8}, "a.b": "8"}, {}).problems == []
    assert canonical({"a": {"b": True}, "a.b": "true"}, {}).problems == []


def test_contradiction_names_both_spellings_and_no_value() -> None:
    found = canonical({"t": "canary-1", "c": {"t": "canary-2"}}, {("t",): ("c", "t")})
    assert found.problems == [
        'c.t: given twice with different values, as "t" and as "c.t"'
    ]


def test_duplicate_key_warns_when_equal_and_is_refused_when_not() -> None:
    equal, _ = read_text('{"a": 1, "a": 1}')
    found = canonical(equal, {})
    assert (found.problems, found.warnings) == ([], ["a: written twice in one object"])
    different, _ = read_text('{"a": 1, "a": 2}')
    assert canonical(different, {}).problems


def test_alias_of_an_object_counts_for_all_below() -> None:
    table = {("rpc",): ("metadata", "rpc")}
    for document in (
        {"rpc": {"x": 1}},
        {"rpc.x": 1},
        {"metadata": {"rpc.x": 1}},
        {"metadata.rpc.x": 1},
    ):
        assert canonical(document, table).tree == {"metadata": {"rpc": {"x": 1}}}


def test_ignored_places_leave_no_trace_but_their_name() -> None:
    found = canonical(
        {"labels": {"a": 1, "a.b": 2}, "cloud.x": 1, "cloud": {"y": 2}},
        {},
        ignored=[("labels",), ("cloud",)],
    )
    assert found.tree == {}
    assert found.problems == []
    assert list(found.ignored) == [("labels",), ("cloud",)]


def test_object_as_json_text() -> None:
    text = json.dumps({"a": 1, "b.c": 2})
    found = canonical({"m": text, "m.d": 3}, {}, embedded=[("m",)])
    assert found.tree == {"m": {"a": 1, "b": {"c": 2}, "d": 3}}
    broken = canonical({"m": '{"a": }'}, {}, embedded=[("m",)])
    assert broken.problems == ["m: line 1, column 7: not JSON: Expecting value"]


def test_remarks_and_nulls_are_skipped() -> None:
    found = canonical({"_comment": "x", "//": "y", "a": None, "b": {"c": None}}, {})
    assert found.tree == {"b": {}}


def test_depth_is_bounded() -> None:
    found = canonical({".".join("a" * 100): 1}, {})
    assert "nested too deeply" in found.problems[0]
