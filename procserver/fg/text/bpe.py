"""Tokenizers of a ``tokenizer.json``: the only user of the package tokenizers."""

import os
from collections.abc import Callable
from typing import Any, Literal

from procserver.fg.entry import Entry
from procserver.fg.text.extra import missing

Output = Literal["ids", "text"]
Encoder = Callable[[list[str]], list[list[int]] | list[list[str]]]


def load_bpe(entry: Entry, key: str, data: bytes, output: Output) -> Encoder:
    """A function from texts to the token ids (or token texts) of each.

    Special tokens are not added; the truncation and padding of the file count
    (spec section 8.12).

    :param data: content of the ``tokenizer.json`` that ``key`` names
    :raises FgConfigError: without the package, or if the content is refused
    """
    tokenizer = _load(entry, key, data)
    padding = tokenizer.padding
    one_by_one = False
    if padding is not None and padding.get("length") is None:
        # NOTE(8.12): texts are encoded one at a time, so "the longest of the
        # batch" is the text itself, rounded up where a multiple is asked for.
        one_by_one = padding.get("pad_to_multiple_of") is not None
        if not one_by_one:
            tokenizer.no_padding()

    # PERF: the fast one leaves out offsets, and with them the texts of tokens.
    batch = tokenizer.encode_batch_fast if output == "ids" else tokenizer.encode_batch

    def encode(texts: list[str]) -> list[list[int]] | list[list[str]]:
        if one_by_one:
            found = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        else:
            found = batch(texts, add_special_tokens=False)
        if output == "ids":
            return [one.ids for one in found]
        return [one.tokens for one in found]

    return encode


def count_bpe(entry: Entry, key: str, data: bytes) -> int:
    """Number of token ids of a ``tokenizer.json``, added tokens included."""
    return int(_load(entry, key, data).get_vocab_size(with_added_tokens=True))


def _load(entry: Entry, key: str, data: bytes) -> Any:
    # NOTE: a request is one worker's core, and threads do not survive the fork
    # of a worker; who wants parallel tokenization sets the variable.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError as error:
        raise missing(entry, key, "tokenizers") from error
    try:
        return tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the package raises no narrower class
        raise entry.refuse(key, f"is no tokenizer.json: {error!s:.120}") from error
