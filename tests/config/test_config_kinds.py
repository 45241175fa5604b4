"""Lenient values, their limits, and what messages show of them."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procserver.config.kinds import (
    Boolean,
    Choice,
    Devices,
    Integer,
    Names,
    Number,
    SecretText,
    Text,
    Texts,
    UrlText,
    Wrong,
    shown,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
KINDS = [
    Integer(1, 9),
    Number(0, 1),
    Boolean(),
    Text(),
    Choice(("a", "b")),
    Names(),
    Devices(),
    SecretText(),
    UrlText(),
    Texts(),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
@given(value=JSON)
def test_any_json_is_either_read_or_wrong(kind: Any, value: Any) -> None:
    read = wrong = None
    try:
        read = kind.read(value)
    except Wrong as error:
        wrong = str(error)
    assert wrong != ""
    if wrong is None:
        if isinstance(kind, Integer):
            assert type(read) is int
            assert 1 <= read <= 9
        if isinstance(kind, Number):
            assert type(read) is float
            assert 0 <= read <= 1
            assert math.isfinite(read)


@pytest.mark.parametrize("value", [True, 1, 1.0, "1", "true", "True", " YES ", "on"])
def test_true_in_every_spelling(value: object) -> None:
    assert Boolean().read(value) is True


@pytest.mark.parametrize("value", [False, 0, 0.0, "0", "false", "False", "no", "OFF"])
def test_false_in_every_spelling(value: object) -> None:
    assert Boolean().read(value) is False


@pytest.mark.parametrize("value", [2, -1, "", "maybe", [], {}, 0.5])
def test_not_a_boolean(value: object) -> None:
    with pytest.raises(Wrong, match="true or false"):
        Boolean().read(value)


@pytest.mark.parametrize("value", [8, "8", " 8 ", 8.0, "+8"])
def test_integers(value: object) -> None:
    assert Integer().read(value) == 8


@pytest.mark.parametrize("value", [True, 8.5, "8.5", "many", "", [8], "9" * 40])
def test_not_integers(value: object) -> None:
    with pytest.raises(Wrong, match="an integer"):
        Integer().read(value)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (Integer(1, 4), 5, "an integer from 1 to 4"),
        (Integer(low=1), 0, "an integer of at least 1"),
        (Number(high=1), 2, "a number of at most 1"),
        (Number(), "nan", "a finite number"),
        (Number(), 1e999, "a finite number"),
    ],
)
def test_ranges(kind: Any, value: object, text: str) -> None:
    with pytest.raises(Wrong) as caught:
        kind.read(value)
    assert str(caught.value) == text


@pytest.mark.parametrize("value", ["a, b,,a ", ["a", "b"], ["a", " b", "a"]])
def test_names(value: object) -> None:
    assert Names().read(value) == ("a", "b")


@pytest.mark.parametrize(
    ("value", "devices"),
    [
        ("cpu", ("cpu",)),
        ("cuda", ("cuda:0",)),
        ("CUDA:3", ("cuda:3",)),
        ("cuda:0,cuda:1", ("cuda:0", "cuda:1")),
        (["cuda:1", "cuda:1"], ("cuda:1",)),
    ],
)
def test_devices(value: object, devices: tuple[str, ...]) -> None:
    assert Devices().read(value) == devices


@pytest.mark.parametrize("value", ["tpu", "", [], "cuda:x", ["cpu", "cuda:0"], 0])
def test_not_devices(value: object) -> None:
    with pytest.raises(Wrong):
        Devices().read(value)


def test_choice_lists_its_words() -> None:
    with pytest.raises(Wrong, match="one of gzip, zstd"):
        Choice(("gzip", "zstd"), none_words=("none",)).read("brotli")
    assert Choice(("gzip",), none_words=("none",)).read("None") is None
    assert Choice(("gzip",)).read(" GZIP ") == "gzip"


@pytest.mark.parametrize("text", ["\ud800", "a\0b"])
def test_texts_that_no_path_or_message_can_hold(text: str) -> None:
    for kind in (Text(), SecretText(), UrlText()):
        with pytest.raises(Wrong):
            kind.read(text)


def test_messages_are_short_and_never_show_secrets() -> None:
    assert shown("many") == '"many"'
    assert len(shown("x" * 1000)) == 60
    assert "canary" not in shown({"k": "canary"}) + shown(["canary"])
    assert "canary" not in shown("canary", secret=True)
    assert "canary" not in shown("oss://key:canary@bucket/x")


def test_objects_of_texts() -> None:
    kind = Texts()
    assert kind.read({"a": "x", "n": 3, "yes": True}) == {
        "a": "x",
        "n": "3",
        "yes": "true",
    }
    assert kind.read({}) is None
    for wrong in ([], "a", 1, {"a": None}, {"a": {}}, {"a": ["x"]}, {"a": "\ud800"}):
        with pytest.raises(Wrong):
            kind.read(wrong)
