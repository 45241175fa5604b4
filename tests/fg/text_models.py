"""Small tokenizers, trained where they are used."""

import io

import sentencepiece
import tokenizers

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "a red dress and a blue dress for the summer",
    "running shoes, dress shoes and red shoes",
    "连衣裙 夏季 红色 连衣裙 裙子",
    "手机 壳 手机 红色 12 345 6789",
] * 3


def train_bpe(path, *, size=220, **blocks):
    """Writes a byte-level BPE ``tokenizer.json``; ``blocks``: padding, truncation."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256 + size,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.token_to_id("<eos>"))]
    )
    if "padding" in blocks:
        tokenizer.enable_padding(**blocks["padding"])
    if "truncation" in blocks:
        tokenizer.enable_truncation(**blocks["truncation"])
    tokenizer.save(str(path))
    return tokenizer


def train_pieces(path):
    """Writes a unigram sentencepiece model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=90,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_file=str(path))
