# SPDX-License-Identifier: Apache-2.0
"""A small tokenizer of every kind that published models use, trained here by the tokenizers library."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from foundling.text import Tokenizer

TEXTS = [
    "the cat sat on the mat and the dog sat on the log.\n",
    "  indented\tlines, 12345 numbers; déjà vu, naïve café\n\n",
    "こんにちは 世界 — Привет, мир! 🙂👍🏽 ✈️\n",
    "it's the dog's, isn't it ? we 've 'm !\n",
    "def area(r):\n    return 3.14 * r ** 2\n",
] * 4
BOS, EOS, UNK = "<s>", "</s>", "<unk>"
SPACE = "▁"


def _trained(model: Any, trainer: Any, pre: Any = None, normalizer: Any = None, decoder: Any = None) -> Any:
    backend = tokenizers.Tokenizer(model)
    if pre is not None:
        backend.pre_tokenizer = pre
    if normalizer is not None:
        backend.normalizer = normalizer
    if decoder is not None:
        backend.decoder = decoder
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def _around(backend: Any, first: str = "", last: str = "") -> Any:
    """With special tokens around a text, as the file of a published tokenizer has them."""
    names = [name for name in (first, last) if name]
    single = " ".join(part for part in (first, "$A", last) if part)
    ids = [(name, backend.token_to_id(name)) for name in names]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return backend


def _bpe(size: int, special: list[str], **more: Any) -> Any:
    return trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False, **more)


def _byte_level(prefix: bool) -> Any:
    pre = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    trainer = _bpe(330, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], initial_alphabet=pre.alphabet())
    return _trained(models.BPE(), trainer, pre, decoder=decoders.ByteLevel())


def _sentencepiece_bpe() -> Any:
    """Llama 2's layout: spaces become ▁, one is put before the text, unknown characters are bytes."""
    backend = _trained(
        models.BPE(unk_token=UNK, fuse_unk=True), _bpe(160, [UNK, BOS, EOS]),
        normalizer=normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]),
        decoder=decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )  # fmt: skip
    table = json.loads(backend.to_str())
    vocab = table["model"]["vocab"]
    for byte in range(256):  # the trainer makes no tokens of bytes
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    table["model"]["byte_fallback"] = True
    return _around(tokenizers.Tokenizer.from_str(json.dumps(table)), BOS)


def _metaspace(scheme: str) -> Any:
    pre = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    backend = _trained(models.BPE(unk_token=UNK), _bpe(300, [UNK, BOS, EOS]), pre, decoder=decoder)
    return _around(backend, BOS)


def _unigram() -> Any:
    """T5's layout: a source ends with </s>."""
    pre, decoder = (part.Metaspace(replacement=SPACE, prepend_scheme="always") for part in (pre_tokenizers, decoders))
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", EOS, UNK], unk_token=UNK, show_progress=False
    )
    return _around(_trained(models.Unigram(), trainer, pre, decoder=decoder), last=EOS)


def _wordpiece() -> Any:
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    backend = _trained(
        models.WordPiece(unk_token="[UNK]"), trainer, pre_tokenizers.BertPreTokenizer(),
        normalizers.BertNormalizer(lowercase=True), decoders.WordPiece(prefix="##"),
    )  # fmt: skip
    return _around(backend, "[CLS]", "[SEP]")


def _llama_3() -> Any:
    """Byte-level with a bos that the post-processor adds."""
    return _around(_byte_level(False), "<|endoftext|>")


KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "gpt2": (lambda: _byte_level(False), {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    "prefix space": (lambda: _byte_level(True), {"eos_token": "<|endoftext|>"}),
    "llama 3": (_llama_3, {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}),
    "llama 2": (_sentencepiece_bpe, {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK}),
    "metaspace always": (lambda: _metaspace("always"), {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK}),
    "metaspace first": (lambda: _metaspace("first"), {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK}),
    "metaspace never": (lambda: _metaspace("never"), {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK}),
    "t5": (_unigram, {"eos_token": EOS, "unk_token": UNK, "pad_token": "<pad>"}),
    "t5 cleaned": (
        _unigram,
        {"eos_token": EOS, "unk_token": UNK, "pad_token": "<pad>", "clean_up_tokenization_spaces": True},
    ),
    "bert": (_wordpiece, {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "unk_token": "[UNK]"}),
}
"""name -> (how its backend is made, its part of tokenizer_config.json)"""


@cache
def tokenizer(kind: str) -> Tokenizer:
    if kind == "ours":
        return Tokenizer.train(TEXTS, 384)
    make, config = KINDS[kind]
    return Tokenizer(make(), {"tokenizer_class": "PreTrainedTokenizerFast", **config})
