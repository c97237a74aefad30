# SPDX-License-Identifier: Apache-2.0
"""The tokenizer inside a GGUF file: tokens, merges, kinds, the name of a pre-tokenizer, special ids, chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from foundling.errors import WeightsError
from foundling.text import Tokenizer
from foundling.weights.convert.gguf import open_gguf

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
PATTERNS = {
    "llama-bpe": rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}{{1,3}}|{REST}",
    "qwen2": rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}|{REST}",
}
"""llama.cpp's name of a pre-tokenizer -> the words that it splits a text into"""
SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "pixtral": "llama-bpe"}
WHOLE_WORDS = ("llama-bpe",)
"""where a word that is a token is not put together by merges (Llama 3)"""
GPT2 = ("default", "gpt-2", "gpt2", "olmo", "dbrx", "jais", "mpt")
"""names whose words are those of GPT-2"""
DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""those of GPT-2, each digit alone"""
CONTROL, USER_DEFINED = 3, 4
MAX_TOKENS = 1 << 21
PARTS = ("bos", "eos", "unknown", "padding")


def read_tokenizer(file: str | Path) -> tuple[Tokenizer, dict[str, Any]] | str:
    """(the tokenizer, what belongs in generation_config.json), or in words why it is left out. WeightsError for tables
    that contradict each other."""
    values = open_gguf(Path(file), ("tokenizer.",))[1]
    kind, pre = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        return f"a tokenizer of kind {str(kind)[:40]!r}; byte-level BPE ('gpt2') can be read"
    pre = SAME.get(pre, pre)
    if pre not in (*PATTERNS, *GPT2, *DIGITS):
        return f"an unknown pre-tokenizer, {str(pre)[:40]!r}"
    tokens, merges = (values.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges"))
    kinds = values.get("tokenizer.ggml.token_type") or [1] * len(tokens or [])
    if not isinstance(tokens, list) or not isinstance(merges, list) or len(kinds) != len(tokens):
        raise WeightsError(f"{file}: the tokenizer's tokens, merges and kinds do not go together")
    if len(tokens) > MAX_TOKENS:
        raise WeightsError(f"{file}: a tokenizer of {len(tokens):,} tokens, over {MAX_TOKENS:,}")
    vocab = {text: i for i, text in enumerate(tokens)}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    try:
        model = models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre in WHOLE_WORDS)  # pyright: ignore
    except Exception as error:  # the library raises bare exceptions
        why = (str(error).splitlines() or [""])[0][:200]
        raise WeightsError(f"{file}: the tokenizer's merges do not go with its tokens ({why})") from None
    backend = tokenizers.Tokenizer(model)
    words: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if pre in DIGITS else []
    if pre in PATTERNS:
        words.append(pre_tokenizers.Split(Regex(PATTERNS[pre]), "isolated"))
    words.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in PATTERNS))
    backend.pre_tokenizer = pre_tokenizers.Sequence(words)  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    named = {
        part: tokens[i] for part in PARTS
        if isinstance(i := values.get(f"tokenizer.ggml.{part}_token_id"), int) and 0 <= i < len(tokens)
    }  # fmt: skip
    special = [text for text, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    backend.add_tokens(
        [AddedToken(text, normalized=False) for text, kind in zip(tokens, kinds, strict=True) if kind == USER_DEFINED]
    )
    around = [
        named[part] if part in named and values.get(f"tokenizer.ggml.add_{part}_token") else None
        for part in ("bos", "eos")
    ]
    template = [text for text in (around[0], "$A", around[1]) if text]
    backend.post_processor = (  # pyright: ignore[reportAttributeAccessIssue]
        processors.TemplateProcessing(
            single=" ".join(template), special_tokens=[(text, vocab[text]) for text in around if text]
        )
        if len(template) > 1
        else processors.ByteLevel(trim_offsets=False)
    )
    keys = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    described: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        **{keys[part]: text for part, text in named.items()},
    }  # fmt: skip
    if isinstance(template_text := values.get("tokenizer.chat_template"), str):
        described["chat_template"] = template_text
    ends = [values.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    ends = list(dict.fromkeys(i for i in ends if isinstance(i, int) and 0 <= i < len(tokens)))
    generation = {
        "bos_token_id": vocab[named["bos"]] if "bos" in named else None,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": vocab[named["padding"]] if "padding" in named else None,
    }
    return Tokenizer(backend, described), {key: value for key, value in generation.items() if value is not None}
