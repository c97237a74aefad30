# SPDX-License-Identifier: Apache-2.0
"""The tokenizer inside a GGUF file: tokens, merges, kinds, the name of a pre-tokenizer, special ids, chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from foundling.errors import WeightsError
from foundling.limits import TOKENS
from foundling.text import Tokenizer
from foundling.text.tokenizer import WORDS
from foundling.weights.convert.gguf_file import library, open_gguf

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
PATTERNS = {
    "llama-bpe": rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}{{1,3}}|{REST}",
    "foundling": WORDS,
    "qwen2": rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}|{REST}",
}
"""llama.cpp's name of a pre-tokenizer -> the words that it splits a text into"""
SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "pixtral": "llama-bpe"}
WHOLE_WORDS = ("llama-bpe",)
"""where a word that is a token is not put together by merges (Llama 3)"""
GPT2 = ("default", "gpt-2", "gpt2", "olmo", "jais", "mpt")
"""names whose words are those of GPT-2"""
DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""those of GPT-2, each digit alone"""
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
PARTS = ("bos", "eos", "unknown", "padding")


OWN_PRE = "foundling.tokenizer.pre"
"""our own key: the words of a tokenizer for which llama.cpp has no name"""


def pre_name(backend: Any) -> tuple[str, str]:
    """(llama.cpp's name of the pre-tokenizer, or the nearest, ours): equal where it has one."""
    parts = json.loads(backend.to_str())["pre_tokenizer"] or {}
    parts = parts.get("pretokenizers", [parts])
    kinds = [part.get("type") for part in parts]
    splits = [part["pattern"].get("Regex") for part in parts if part.get("type") == "Split"]
    ours = next((name for name, words in PATTERNS.items() if splits == [words]), None)
    if ours is None and kinds in (["Digits", "ByteLevel"], ["ByteLevel"]):
        ours = "smollm" if kinds[0] == "Digits" else "gpt-2"
    return ("llama-bpe" if ours in (None, "foundling") else ours), ours or "unknown"


def _backend(file: str | Path, pre: str, tokens: list[str], kinds: list[int], merges: list[str]) -> Any:
    """Byte-level BPE; `kinds` are llama.cpp's of the tokens. WeightsError where the merges make no tokens."""
    vocab = {text: i for i, (text, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED}
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
    special = [text for text, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    backend.add_tokens(
        [AddedToken(text, normalized=False) for text, kind in zip(tokens, kinds, strict=True) if kind == USER_DEFINED]
    )
    return backend


def _post_processor(values: dict[str, Any], pre: str, named: dict[str, str], vocab: dict[str, int]) -> Any:
    """What stands around a text: `named` bos and eos, where the file, or llama.cpp for such a file, adds them."""
    adds = {"bos": pre in WHOLE_WORDS, "eos": False}  # what llama.cpp does where the file does not say
    adds |= {part: bool(said) for part in adds if (said := values.get(f"tokenizer.ggml.add_{part}_token")) is not None}
    around = {part: named[part] for part in adds if adds[part] and named.get(part) in vocab}
    template = [part for part in ("bos", "$A", "eos") if part == "$A" or part in around]
    if len(template) == 1:
        return processors.ByteLevel(trim_offsets=False)
    return processors.TemplateProcessing(
        single=" ".join(template),
        special_tokens=[{"id": part, "ids": [vocab[text]], "tokens": [text]} for part, text in around.items()],
    )


def read_tokenizer(file: str | Path) -> tuple[Tokenizer, dict[str, Any]] | str:
    """(the tokenizer, what belongs in generation_config.json), or in words why it is left out. WeightsError for tables
    that contradict each other."""
    values = open_gguf(Path(file), ("tokenizer.", OWN_PRE))[1]
    kind, pre = values.get("tokenizer.ggml.model"), values.get(OWN_PRE, values.get("tokenizer.ggml.pre", "default"))
    if kind != "gpt2":
        return f"a tokenizer of kind {str(kind)[:40]!r}; byte-level BPE ('gpt2') can be read"
    pre = SAME.get(str(pre), str(pre))
    if pre not in (*PATTERNS, *GPT2, *DIGITS):
        return f"an unknown pre-tokenizer, {pre[:40]!r}"
    tokens, merges = (values.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges"))
    kinds = values.get("tokenizer.ggml.token_type") or [1] * len(tokens or [])
    if not isinstance(tokens, list) or not isinstance(merges, list) or len(kinds) != len(tokens):
        raise WeightsError(f"{file}: the tokenizer's tokens, merges and kinds do not go together")
    if len(tokens) > TOKENS.high:
        raise WeightsError(f"{file}: a tokenizer of {len(tokens):,} tokens, over {TOKENS.high:,}")
    if not all(isinstance(text, str) for text in [*tokens, *merges]) or len(set(tokens)) != len(tokens):
        raise WeightsError(f"{file}: the tokenizer's tokens and merges are not distinct texts")
    eos = values.get("tokenizer.ggml.eos_token_id")
    if not isinstance(eos, int) or not 0 <= eos < len(tokens):
        return "a tokenizer without an end of text"
    backend, vocab = _backend(file, pre, tokens, kinds, merges), {text: i for i, text in enumerate(tokens)}
    named = {
        part: tokens[i] for part in PARTS
        if isinstance(i := values.get(f"tokenizer.ggml.{part}_token_id"), int) and 0 <= i < len(tokens)
    }  # fmt: skip
    backend.post_processor = _post_processor(values, pre, named, vocab)
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


def write_tokenizer(writer: Any, tokenizer: Any, vocab_size: int) -> None:
    """Writes a byte-level BPE tokenizer. llama.cpp splits words with patterns of its own, so it may encode a text to
    other ids; decoding gives the same text."""
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        return
    table = json.loads(tokenizer.backend.to_str())
    added = {t["id"]: t["content"] for t in table["added_tokens"]}
    tokens = {i: text for text, i in table["model"]["vocab"].items()} | added
    kinds = library().TokenType
    writer.add_tokenizer_model("gpt2")
    theirs, own = pre_name(tokenizer.backend)
    writer.add_tokenizer_pre(theirs)
    if own != theirs:
        writer.add_string(OWN_PRE, own)
    writer.add_token_list([tokens.get(i, f"[unused{i}]") for i in range(vocab_size)])
    writer.add_token_types(
        [
            kinds.CONTROL if i in tokenizer.special
            else kinds.USER_DEFINED if i in added
            else kinds.NORMAL if i in tokens
            else kinds.UNUSED
            for i in range(vocab_size)
        ]
    )  # fmt: skip
    merges = table["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(tokenizer.eos)
    for part, add in (("bos_token", writer.add_bos_token_id), ("pad_token", writer.add_pad_token_id)):
        name = tokenizer.name(part)
        if name is not None and (i := tokenizer.backend.token_to_id(name)) is not None:
            add(i)
    first, last = tokenizer.frame
    writer.add_add_bos_token(tokenizer.bos is not None and first == [tokenizer.bos])
    writer.add_add_eos_token(last == [tokenizer.eos])
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)
