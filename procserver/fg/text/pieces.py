"""Sentencepiece models: the only user of the package sentencepiece."""

from typing import Any

from procserver.fg.entry import Entry
from procserver.fg.text.bpe import Encoder, Output
from procserver.fg.text.extra import missing


def load_sentencepiece(entry: Entry, key: str, data: bytes, output: Output) -> Encoder:
    """A function from texts to the piece ids (or pieces) of each.

    Neither begin nor end of sentence is added (spec section 8.12).

    :param data: content of the ``.model`` file that ``key`` names
    :raises FgConfigError: without the package, or if the content is refused
    """
    processor = _load(entry, key, data)
    kind = int if output == "ids" else str

    def encode(texts: list[str]) -> list[list[int]] | list[list[str]]:
        found: list[list[int]] | list[list[str]] = processor.encode(
            texts, out_type=kind, add_bos=False, add_eos=False, num_threads=1
        )
        return found

    return encode


def count_sentencepiece(entry: Entry, key: str, data: bytes) -> int:
    """Number of pieces of a model."""
    return int(_load(entry, key, data).GetPieceSize())


def _load(entry: Entry, key: str, data: bytes) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise missing(entry, key, "sentencepiece") from error
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(data)
    except (RuntimeError, OSError) as error:
        raise entry.refuse(key, f"is no sentencepiece model: {error!s:.120}") from error
    return processor
