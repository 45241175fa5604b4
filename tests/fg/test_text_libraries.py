"""Tokenizers, RE2 replacing and text normalization by themselves."""

import builtins
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_models import train_bpe, train_pieces

import procserver
from procserver.errors import FgConfigError
from procserver.fg.entry import Entry
from procserver.fg.text.bpe import load_bpe
from procserver.fg.text.chinese import load_simplifier
from procserver.fg.text.normalizing import (
    FILTER,
    HALF_WIDTH,
    LOWER,
    SPLIT_CHINESE,
    UPPER,
    TextNormalizer,
    half_width,
    read_stop_characters,
)
from procserver.fg.text.pieces import load_sentencepiece
from procserver.fg.text.regex import load_replacer

PACKAGE = Path(procserver.__file__).parent
ENTRY = Entry({}, "f")
TEXTS = ["the red dress", "红色 连衣裙", "x", " "]


def replace(patterns, replacement, text, *, replace_all=True, icase=False):
    function = load_replacer(
        ENTRY, "regex_pattern", patterns, replacement,
        replace_all=replace_all, icase=icase,
    )  # fmt: skip
    return function(text)


# --------------------------------------------------------------------- tokens


def test_bpe_adds_no_special_tokens(tmp_path):
    tokenizer = train_bpe(tmp_path / "t.json")
    data = (tmp_path / "t.json").read_bytes()
    ids = load_bpe(ENTRY, "vocab_file", data, "ids")
    words = load_bpe(ENTRY, "vocab_file", data, "text")
    eos = tokenizer.token_to_id("<eos>")
    assert tokenizer.encode("x").ids[-1] == eos
    assert ids(TEXTS) == [
        tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS
    ]
    assert not any(eos in found for found in ids(TEXTS))
    # An added token that stands in the text is recognised.
    assert ids(["x<eos>"])[0][-1] == eos
    assert words(TEXTS) == [
        [tokenizer.id_to_token(one) for one in found] for found in ids(TEXTS)
    ]


def test_truncation_and_fixed_padding_of_the_file_count(tmp_path):
    padding = {"length": 8, "pad_id": 1, "pad_token": "<pad>"}
    train_bpe(tmp_path / "t.json", padding=padding, truncation={"max_length": 5})
    encode = load_bpe(ENTRY, "vocab_file", (tmp_path / "t.json").read_bytes(), "ids")
    plain = train_bpe(tmp_path / "plain.json")
    for text, found in zip(TEXTS, encode(TEXTS), strict=True):
        kept = plain.encode(text, add_special_tokens=False).ids[:5]
        assert found == kept + [1] * (8 - len(kept))


@pytest.mark.parametrize("multiple", [None, 4])
def test_padding_to_the_longest_is_of_one_text(tmp_path, multiple):
    """Texts are encoded one at a time, so others do not lengthen them."""
    padding = {"pad_to_multiple_of": multiple, "pad_id": 1, "pad_token": "<pad>"}
    train_bpe(tmp_path / "t.json", padding=padding)
    encode = load_bpe(ENTRY, "vocab_file", (tmp_path / "t.json").read_bytes(), "ids")
    plain = train_bpe(tmp_path / "plain.json")
    for text, found in zip(TEXTS, encode(TEXTS), strict=True):
        ids = plain.encode(text, add_special_tokens=False).ids
        assert found == ids + [1] * (-len(ids) % (multiple or 1))


def test_sentencepiece(tmp_path):
    processor = train_pieces(tmp_path / "p.model")
    data = (tmp_path / "p.model").read_bytes()
    ids = load_sentencepiece(ENTRY, "vocab_file", data, "ids")
    words = load_sentencepiece(ENTRY, "vocab_file", data, "text")
    assert ids(TEXTS) == [processor.encode(text) for text in TEXTS]
    assert words(TEXTS) == [processor.encode(text, out_type=str) for text in TEXTS]
    marks = {processor.bos_id(), processor.eos_id()}
    assert not any(marks & set(found) for found in ids(TEXTS))


@pytest.mark.parametrize("load", [load_bpe, load_sentencepiece])
@pytest.mark.parametrize("data", [b"", b"{}", b"\0\xff" * 20])
def test_files_that_are_no_tokenizers_are_refused(load, data):
    with pytest.raises(FgConfigError) as caught:
        load(ENTRY, "vocab_file", data, "ids")
    assert (caught.value.feature, caught.value.key) == ("f", "vocab_file")


@pytest.mark.parametrize(
    ("package", "load"),
    [
        ("tokenizers", lambda: load_bpe(ENTRY, "vocab_file", b"", "ids")),
        ("sentencepiece", lambda: load_sentencepiece(ENTRY, "vocab_file", b"", "ids")),
        ("opencc", lambda: load_simplifier(ENTRY, "parameter")),
        ("re2", lambda: replace(["a"], "b", "c")),
    ],
)
def test_a_missing_library_names_the_extra(monkeypatch, package, load):
    original = builtins.__import__

    def without(name, *rest, **options):
        if name == package:
            raise ImportError(name)
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FgConfigError, match=r"procserver\[text\]") as caught:
        load()
    assert package in caught.value.reason
    assert caught.value.feature == "f"


@pytest.mark.parametrize(
    ("package", "module"),
    [
        ("tokenizers", "bpe"),
        ("sentencepiece", "pieces"),
        ("opencc", "chinese"),
        ("re2", "regex"),
    ],
)
def test_a_library_is_imported_in_one_module_and_only_when_used(package, module):
    imports = re.compile(rf"^( *)(?:import|from) {package}\b", re.MULTILINE)
    found = {
        path.relative_to(PACKAGE).as_posix(): imports.findall(path.read_text())
        for path in PACKAGE.rglob("*.py")
    }
    using = {name: indents for name, indents in found.items() if indents}
    assert list(using) == [f"fg/text/{module}.py"]
    assert all(using[f"fg/text/{module}.py"])


# -------------------------------------------------------------------- replacing


@pytest.mark.parametrize(
    ("patterns", "replacement", "text", "expected"),
    [
        (["b"], "x", "abcb", "axcx"),
        (["b", "c"], "", "abcb", "a"),
        (["(a)|(b)"], r"[\2\1\0]", "abc", "[aa][bb]c"),
        (["(?s)^(.{0,3}).*$"], r"\1!", "中华人\n民共和国", "中华人!"),
        # Of empty matches none stands right behind another match.
        (["b*"], "-", "abbc", "-a-c-"),
        ([""], "-", "a中c", "-a-中-c-"),
        (["$"], "!", "a", "a!"),
        (["^a"], "", "aaa", "aa"),
        ([r"\b"], "|", "ab cd", "|ab| |cd|"),
        (["."], "x", "中é😀", "xxx"),
        (["(?i)A", "b"], "x", "aAbB", "xxxx"),
        (["a"], r"\\", "a", "\\"),
        (["a"], "\\\\1", "a", "\\1"),
        ([r"\pP"], "", "a，b.c", "abc"),
        (["a"], "é", "", ""),
    ],
)
def test_replacing(patterns, replacement, text, expected):
    assert replace(patterns, replacement, text) == expected


def test_first_match_only_and_letter_case():
    assert replace(["a"], "x", "banana", replace_all=False) == "bxnana"
    assert replace(["A"], "x", "aAé", icase=True) == "xxé"
    assert replace(["É"], "x", "éÉ", icase=True) == "xx"
    assert replace(["A"], "x", "aA") == "ax"


@given(st.text(max_size=30), st.text(alphabet="ab中", min_size=1, max_size=3))
def test_literals_are_replaced_as_by_python(text, literal):
    assert replace([literal], "x", text) == text.replace(literal, "x")


@given(st.text(alphabet="aé中😀", max_size=12))
def test_an_empty_pattern_stands_between_all_characters(text):
    assert replace(["(?:)"], "|", text) == "|" + "".join(c + "|" for c in text)


@pytest.mark.parametrize("replacement", ["\\", "a\\", "\\x", "\\2", "\\٣"])
def test_bad_replacements_are_refused(replacement):
    with pytest.raises(FgConfigError) as caught:
        replace(["(a)"], replacement, "a")
    assert caught.value.key == "replacement"


@pytest.mark.parametrize("pattern", ["(a", "a)|(b", r"(a)\1", "(?=a)", "a{2000}"])
def test_patterns_that_re2_lacks_are_refused(pattern):
    for patterns in ([pattern], ["a", pattern]):
        with pytest.raises(FgConfigError) as caught:
            replace(patterns, "", "a")
        assert (caught.value.feature, caught.value.key) == ("f", "regex_pattern")


def test_a_pattern_that_ruins_other_engines_is_quick():
    assert replace(["(a*)*b"], "", "a" * 50_000 + "c") == "a" * 50_000 + "c"


# ------------------------------------------------------------------- normalizing


def test_full_width():
    for code in range(0xFF01, 0xFF5F):
        assert half_width(chr(code)) == chr(code - 0xFEE0)
    assert half_width("\u3000") == " "
    assert half_width("￥") == "¥"
    # Half-width forms, compatibility characters and letters stay.
    for character in "ｱﾊﾟ①ⅣａA中é".replace("ａ", ""):
        assert half_width(character) == character


def test_options_one_by_one():
    assert TextNormalizer(options=UPPER)("aé中ß1Ａ") == "AÉ中ß1Ａ"
    assert TextNormalizer(options=LOWER)("AÉ中İ1") == "aé中İ1"
    assert TextNormalizer(options=HALF_WIDTH)("Ａ１　！") == "A1 !"
    assert TextNormalizer(options=FILTER)("a-b_c！，。d\t\0e$€😀é") == "abcd\teé"
    split = TextNormalizer(options=SPLIT_CHINESE)
    assert split("红色dress2件 大") == "红 色 dress2 件 大"
    assert split("plain text") == "plain text"


def test_the_default_is_upper_half_width_simplified_and_filtered():
    normalize = TextNormalizer(simplify=load_simplifier(ENTRY, "parameter"))
    assert normalize("ｈｅｌｌｏ，漢字 Ｗorld！") == "HELLO汉字 WORLD"


def test_spaces_and_length():
    assert TextNormalizer(options=0, remove_space=True)(" a\u3000b\tc\n") == "abc"
    upper = TextNormalizer(options=UPPER, max_length=3)
    assert upper("abc") == "ABC"
    assert upper("中中中") == "中中中"
    assert upper("abcd") == "abcd"
    both = TextNormalizer(options=SPLIT_CHINESE, remove_space=True)
    assert both("红 色 x") == "红 色 x"


def test_stop_characters():
    stops = read_stop_characters("\ufeff！\n，\r\nx\n".encode())
    assert stops == {"！", "，", "x"}
    normalize = TextNormalizer(options=FILTER | HALF_WIDTH | UPPER, stops=stops)
    # Before width and case change it, and after.
    assert normalize("！a，!x。X-") == "A!。X-"
    assert TextNormalizer(options=FILTER | LOWER, stops=stops)("aXx") == "a"
    with pytest.raises(ValueError, match="utf-8"):
        read_stop_characters("，".encode("gbk"))
