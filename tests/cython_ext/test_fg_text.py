"""Numbers as text: shortest, exact, independent of the locale."""

import ctypes
import locale
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cython_ext.fg_text import integer_text, number_text, read_integer, read_number

sys.path.insert(0, str(Path(__file__).parent.parent / "reference"))

import fg_oracle


@settings(deadline=None)
@given(st.integers(-(2**63), 2**63 - 1))
def test_integers(value):
    assert integer_text(value) == str(value).encode()
    assert read_integer(integer_text(value)) == value


@pytest.mark.parametrize("value", [-(2**63), 2**63 - 1, 0, -1, 9, 10, 99, 100, 101])
def test_integer_edges(value):
    assert integer_text(value) == str(value).encode()


@settings(deadline=None)
@given(st.floats())
def test_doubles_are_shortest(value):
    text = number_text(value)
    assert text == repr(value).removesuffix(".0").encode()
    back = read_number(text)
    assert back == value or (math.isnan(back) and math.isnan(value))


@settings(deadline=None)
@given(st.floats(width=32))
def test_singles_are_shortest(value):
    text = number_text(value, single=True)
    assert text == fg_oracle.float_text(value, True)


@pytest.mark.parametrize("power", range(-1074, 1024))
def test_powers_of_two_of_doubles(power):
    value = math.ldexp(1.0, power)
    assert number_text(value) == repr(value).removesuffix(".0").encode()


@pytest.mark.parametrize("power", range(-149, 128))
def test_powers_of_two_of_singles(power):
    value = math.ldexp(1.0, power)
    assert number_text(value, single=True) == fg_oracle.float_text(value, True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5.2, b"5.2"),
        (5.0, b"5"),
        (-0.0, b"-0"),
        (1e16, b"10000000000000000"),
        (1e-5, b"1e-05"),
        (math.inf, b"inf"),
        (-math.inf, b"-inf"),
        (math.nan, b"nan"),
    ],
)
def test_chosen_layouts(value, text):
    assert number_text(value) in (text, repr(value).removesuffix(".0").encode())
    assert read_number(number_text(value)) == value or math.isnan(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"0.202392938293829442", 0.202392938293829442),
        (b"+1.5", 1.5),
        (b" 7\t", 7.0),
        (b".5", 0.5),
        (b"5.", 5.0),
        (b"1e400", math.inf),
        (b"-1E-400", -0.0),
        (b"Infinity", math.inf),
        (b"-INF", -math.inf),
        (b"9007199254740993", 9007199254740993.0),
        (b"0" * 400 + b"1.5", 1.5),
        (b"1" * 400, math.inf),
        (b"2.2250738585072011e-308", 2.2250738585072011e-308),
        (b"1e99999999999999999999", math.inf),
        (b"0e99999999999999999999", 0.0),
    ],
)
def test_numbers_that_are_read(text, value):
    assert read_number(text) == value


@pytest.mark.parametrize(
    "text",
    [b"", b" ", b".", b"+", b"-.e1", b"1e", b"1e+", b"1_0", b"0x10", b"1 2", b"infin",
     b"1\x00", b"nan(1)", b"--1", b"1,5", "１".encode()],
)  # fmt: skip
def test_texts_that_are_no_numbers(text):
    assert read_number(text) is None


@settings(deadline=None)
@given(st.text(alphabet="0123456789.eE+-", max_size=40))
def test_random_numerals(text):
    expected = None
    if fg_oracle.NUMBER.fullmatch(text.encode()):
        expected = float(text)
    assert read_number(text.encode()) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"+01", 1),
        (b"00099", 99),
        (b" 4", 4),
        (b"-9223372036854775808", -(2**63)),
        (b"9223372036854775808", 2**63 - 1),
        (b"-9223372036854775809", -(2**63)),
        (b"9" * 100, 2**63 - 1),
        (b"", None),
        (b"-", None),
        (b"4 ", None),
        (b"1|2", None),
        (b"1.0", None),
        (b"99999999999999999999x", None),
    ],
)
def test_integers_that_are_read(text, value):
    assert read_integer(text) == value


def test_a_locale_with_a_decimal_comma_changes_nothing():
    libc = ctypes.CDLL(None)
    libc.setlocale.restype = ctypes.c_char_p
    names = (b"de_DE.UTF-8", b"fr_FR.UTF-8", b"de_DE.utf8")
    if not any(libc.setlocale(locale.LC_NUMERIC, name) for name in names):
        pytest.skip("no locale with a decimal comma is installed")
    try:
        assert number_text(1 / 3) == b"0.3333333333333333"
        assert read_number(b"0.33333333333333331483") == 1 / 3
    finally:
        libc.setlocale(locale.LC_NUMERIC, b"C")


def test_float32_fixed_notation():
    assert number_text(float(np.float32(1000927)), single=True) == b"1000927"
    assert number_text(float(np.float32(0.1)), single=True) == b"0.1"
