# SPDX-License-Identifier: Apache-2.0
"""The tokenizer inside a GGUF file: tokens, merges or scores, kinds of tokens, special ids, chat template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from foundling.errors import WeightsError
from foundling.limits import shown
from foundling.text import Tokenizer
from foundling.weights.convert import gguf_sentencepiece as sentencepiece
from foundling.weights.convert.gguf_file import GGUFFile, library, open_gguf
from foundling.weights.convert.gguf_words import ADDS_BOS, NAMES, OWN, PATTERNS, WHOLE_WORDS, pre_name, pre_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
PARTS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token", "mask": "mask_token"}
"""part of a key in the file -> key of tokenizer_config.json"""
ENDS = ("eos", "eot", "eom")
ENDING = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
     "<EOT>", "<|end_of_text|>", "<end_of_utterance>", "<｜end▁of▁sentence｜>")
)  # fmt: skip
"""Texts of control tokens at which llama.cpp ends an answer, whatever the file says."""
OWN_PRE = "foundling.tokenizer.pre"
"""our own key: the words of a tokenizer for which llama.cpp has no name"""
OWN_NORMALIZER = "foundling.tokenizer.normalizer"
"""our own key: what is done to a text before it is cut into words, for which GGUF has none"""
NFC = "NFC"
NEAREST = "dbrx"
"""llama.cpp's name of the words that are nearest to ours"""
READ = {
    "model", "pre", "tokens", "token_type", "scores", "merges", "add_bos_token", "add_eos_token", "add_space_prefix",
    *(f"{part}_token_id" for part in (*PARTS, *ENDS)),
}  # fmt: skip
INERT = {
    "token_type_count", "cls_token_id", "seperator_token_id", "separator_token_id", "prefix_token_id",
    "suffix_token_id", "middle_token_id", "fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id",
    "fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id", "remove_extra_whitespaces",
}  # fmt: skip
LISTS = ("tokens", "token_type", "scores", "merges")
"""Keys that no decoder here asks for, or that llama.cpp reads for other kinds alone."""


class _Table(NamedTuple):
    file: Path
    values: dict[str, Any]
    """Without the prefix `tokenizer.ggml.`."""
    tokens: list[str]
    kinds: list[int]

    def error(self, what: str) -> WeightsError:
        return WeightsError(f"{self.file}: the tokenizer's {what}")

    def named(self, part: str, default: int | None = None) -> str | None:
        i = self.values.get(f"{part}_token_id", default)
        return self.tokens[i] if isinstance(i, int) and 0 <= i < len(self.tokens) else None


def read_tokenizer(file: str | Path | GGUFFile) -> tuple[Tokenizer, dict[str, Any]] | str:
    """(the tokenizer, what belongs in generation_config.json), or in words why it is left out. WeightsError for tables
    that contradict each other."""
    opened = file if isinstance(file, GGUFFile) else open_gguf(file)
    prefix = "tokenizer.ggml."
    values = {key.removeprefix(prefix): value for key, value in opened.values.items() if key.startswith(prefix)}
    kind = values.get("model")
    if not isinstance(kind, str) or kind not in KINDS:
        return f"a tokenizer of kind {shown(kind)[:40]}; {' and '.join(KINDS)} can be read"
    if other := sorted({*values} - READ - INERT):
        return f"a tokenizer with '{prefix}{other[0][:40]}', which is not known here"
    if OWN_PRE in opened.values:
        values["pre"] = opened.values[OWN_PRE]
    normalizer = opened.values.get(OWN_NORMALIZER, NFC)
    if not isinstance(normalizer, str) or normalizer != NFC:
        return f"a tokenizer with the normalizer {shown(normalizer)[:40]}; {NFC} can be read"
    for key, value in values.items():
        if (key in LISTS) != isinstance(value, list | np.ndarray):
            what = "a list" if key in LISTS else "one value"
            raise WeightsError(f"{opened.path}: '{prefix}{key}' is {shown(value)}; expected {what}")
    table = _table(opened.path, values)
    tokens, kinds = table.tokens, table.kinds
    if not all(isinstance(text, str) for text in tokens) or len(set(tokens)) != len(tokens):
        raise table.error("tokens are not distinct texts")
    backend, defaults = KINDS[kind](table)
    if isinstance(backend, str):
        return backend
    named = {part: text for part in PARTS if (text := table.named(part, defaults.get(part))) is not None}
    if "eos" not in named:
        return "a tokenizer without an end of text"
    special = [text for text, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, UNKNOWN)]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    own = [text for text, kind in zip(tokens, kinds, strict=True) if kind == USER_DEFINED]
    backend.add_tokens([AddedToken(text, normalized=False) for text in own])
    if OWN_NORMALIZER in opened.values:
        backend.normalizer = normalizers.NFC()
    if post := _post_processor(table, defaults, named):
        backend.post_processor = post
    described: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        **{PARTS[part]: text for part, text in named.items()},
    }  # fmt: skip
    if isinstance(template := opened.values.get("tokenizer.chat_template"), str):
        described["chat_template"] = template
    return Tokenizer(backend, described), _generation(table, named)


def _table(path: Path, values: dict[str, Any]) -> _Table:
    """Arrays become lists only where they are as long as the list of tokens, which is bounded."""
    tokens, kinds = values.get("tokens", []), values.get("token_type")
    if kinds is None or not len(kinds):
        kinds = np.full(len(tokens), NORMAL)
    table = _Table(path, values, tokens, [])
    if not isinstance(tokens, list) or isinstance(kinds, list) or len(kinds) != len(tokens):
        raise table.error("tokens and kinds do not go together")
    return table._replace(kinds=kinds.tolist())


def _byte_level(table: _Table) -> tuple[Any, dict[str, Any]]:
    """Byte-level BPE."""
    pre, merges = table.values.get("pre", "default"), table.values.get("merges")
    if not isinstance(pre, str) or pre not in NAMES:
        return f"an unknown pre-tokenizer, {shown(pre)[:40]}", {}
    if not isinstance(merges, list) or not all(isinstance(text, str) for text in merges):
        raise table.error("merges are no texts")
    vocab = {text: i for i, (text, kind) in enumerate(zip(table.tokens, table.kinds, strict=True)) if kind != UNUSED}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    backend = _built(table, lambda: models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre in WHOLE_WORDS))  # pyright: ignore
    backend = tokenizers.Tokenizer(backend)
    backend.pre_tokenizer = pre_tokenizer(PATTERNS[NAMES[pre]])  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    backend.post_processor = processors.ByteLevel(trim_offsets=False)  # pyright: ignore[reportAttributeAccessIssue]
    return backend, {"add_bos": pre in ADDS_BOS}


def _sentencepiece(table: _Table) -> tuple[Any, dict[str, Any]]:
    """SentencePiece's BPE; llama.cpp has special tokens at fixed places where the file names none."""
    scores = table.values.get("scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(table.tokens) or (scores != scores).any():
        raise table.error("tokens and scores do not go together")
    scores = scores.tolist()
    if long := sentencepiece.too_long(table.tokens):
        raise table.error(long)
    merges = sentencepiece.merges_of(table.tokens, scores, table.kinds)
    if merges is None:
        return "a tokenizer with tokens of equal scores, which has no list of merges", {}
    unknown, prefix = table.named("unknown", 0), bool(table.values.get("add_space_prefix", True))
    backend = _built(table, lambda: sentencepiece.backend_of(table.tokens, merges, unknown, prefix=prefix))
    return backend, {"bos": 1, "eos": 2, "unknown": 0, "add_bos": True}


KINDS: dict[str, Callable[[_Table], tuple[Any, dict[str, Any]]]] = {"gpt2": _byte_level, "llama": _sentencepiece}
"""Kind of tokenizer -> (its backend, or why it is left out; what llama.cpp takes for keys that are absent)."""


def _built(table: _Table, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except Exception as error:  # the library raises bare exceptions
        why = (str(error).splitlines() or [""])[0][:200]
        raise table.error(f"merges do not go with its tokens ({why})") from None


def _post_processor(table: _Table, defaults: dict[str, Any], named: dict[str, str]) -> Any:
    """What stands around a text: bos and eos, where the file, or llama.cpp for such a file, adds them."""
    adds = [part for part in ("bos", "eos") if table.values.get(f"add_{part}_token", defaults.get(f"add_{part}"))]
    around = {part: named[part] for part in adds if part in named}
    template = [part for part in ("bos", "$A", "eos") if part == "$A" or part in around]
    return around and processors.TemplateProcessing(
        single=" ".join(template),
        special_tokens=[
            {"id": part, "ids": [table.tokens.index(text)], "tokens": [text]} for part, text in around.items()
        ],
    )


def _generation(table: _Table, named: dict[str, str]) -> dict[str, Any]:
    ids = {text: i for i, text in enumerate(table.tokens)}
    ends = [ids[text] for part in ENDS if (text := table.named(part, ids.get(named["eos"]) if part == "eos" else None))]
    ends += [i for text, i in ids.items() if text in ENDING and table.kinds[i] == CONTROL]
    if {"<|return|>", "<|call|>", "<|end|>"} <= ids.keys():  # there only a part of an answer ends with <|end|>
        ends = [i for i in ends if i != ids["<|end|>"]]
    ends = list(dict.fromkeys(ends))
    found = {"bos": ids.get(named.get("bos", "")), "eos": ends[0] if len(ends) == 1 else ends}
    found["pad"] = ids.get(named.get("padding", ""))
    return {f"{part}_token_id": value for part, value in found.items() if value is not None}


def write_tokenizer(writer: Any, tokenizer: Tokenizer | None, vocab_size: int) -> None:
    """Writes a tokenizer that `unwritable` lets pass, or that there is none. For the words of our own tokenizers
    llama.cpp has no name: it may encode a text to other ids, which decode to the same text."""
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        return
    table = json.loads(tokenizer.backend.to_str())
    added = {t["id"]: t["content"] for t in table["added_tokens"]}
    tokens = {i: text for text, i in table["model"]["vocab"].items()} | added
    texts = [tokens.get(i, f"[unused{i}]") for i in range(vocab_size)]
    kinds = [_kind(i, tokens, added, tokenizer) for i in range(vocab_size)]
    merges = [m.split(" ", 1) if isinstance(m, str) else m for m in table["model"]["merges"]]
    if _is_byte_level(table):
        writer.add_tokenizer_model("gpt2")
        pre = pre_name(tokenizer.backend)
        writer.add_tokenizer_pre(NEAREST if pre == OWN else pre)
        if pre == OWN:
            writer.add_string(OWN_PRE, pre)
        if has_nfc(table):
            writer.add_string(OWN_NORMALIZER, NFC)
        writer.add_token_merges([" ".join(m) for m in merges])
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(sentencepiece.scores_of(texts, kinds, merges))
        writer.add_add_space_prefix(bool(sentencepiece.spaces_of(tokenizer.backend)))
    writer.add_token_list(texts)
    writer.add_token_types([library().TokenType(kind) for kind in kinds])
    writer.add_eos_token_id(tokenizer.eos)
    add = {"bos_token": writer.add_bos_token_id, "pad_token": writer.add_pad_token_id}
    for part, write in (add | {"unk_token": writer.add_unk_token_id}).items():
        name = tokenizer.name(part)
        if name is not None and (i := tokenizer.backend.token_to_id(name)) is not None:
            write(i)
    first, last = tokenizer.frame
    writer.add_add_bos_token(tokenizer.bos is not None and first == [tokenizer.bos])
    writer.add_add_eos_token(last == [tokenizer.eos])
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def unapplied_steps(tokenizer: Tokenizer) -> list[str]:
    """What llama.cpp leaves out of a tokenizer that `unwritable` lets pass, in words."""
    what = "llama.cpp does not compose letters and their marks; texts that are composed are encoded alike"
    return [f"{NFC} of tokenizer.json: {what}"] if has_nfc(json.loads(tokenizer.backend.to_str())) else []


def has_nfc(table: dict[str, Any]) -> bool:
    """Whether it composes letters and their marks, which GGUF has no key for."""
    return (table["normalizer"] or {}).get("type") == NFC


def _is_byte_level(table: dict[str, Any]) -> bool:
    return (table.get("decoder") or {}).get("type") == "ByteLevel"


def _kind(i: int, tokens: dict[int, str], added: dict[int, str], tokenizer: Tokenizer) -> int:
    if i not in tokens:
        return UNUSED
    if tokens[i] == tokenizer.name("unk_token") and i not in (tokenizer.eos, tokenizer.bos):
        return UNKNOWN
    if i in added:
        return CONTROL if i in tokenizer.special else USER_DEFINED
    return BYTE if i in tokenizer.byte_ids else NORMAL


def unwritable(tokenizer: Tokenizer, vocab_size: int) -> str | None:
    """Why llama.cpp would encode texts otherwise; None where the GGUF file of a model of `vocab_size` can hold it."""
    table = json.loads(tokenizer.backend.to_str())
    if tokenizer.vocab_size > vocab_size:
        return f"it has {tokenizer.vocab_size} tokens, the model {vocab_size}"
    if table["model"]["type"] != "BPE":
        return f"its model is {table['model']['type']}; BPE is written"
    first, last = tokenizer.frame
    if first not in ([], [tokenizer.bos]) or last not in ([], [tokenizer.eos]):
        return "it puts other tokens than bos and eos around a text"
    if _is_byte_level(table):
        if table["normalizer"] and not has_nfc(table):
            return "it changes a text before it is cut into words"
        return None if pre_name(tokenizer.backend) else "llama.cpp has no name for how it cuts words"
    if sentencepiece.spaces_of(tokenizer.backend) is None:
        return "it treats spaces otherwise than llama.cpp"
    ids = {i: text for text, i in tokenizer.backend.get_vocab().items()}
    texts = [ids.get(i, f"[unused{i}]") for i in range(tokenizer.vocab_size)]
    added = {t["id"]: t["content"] for t in table["added_tokens"]}
    kinds = [_kind(i, ids, added, tokenizer) for i in range(tokenizer.vocab_size)]
    merges = [m.split(" ", 1) if isinstance(m, str) else m for m in table["model"]["merges"]]
    if long := sentencepiece.too_long(texts):
        return f"its {long}"
    if sentencepiece.scores_of(texts, kinds, merges) is None:
        return "no scores of its tokens join them as its merges do"
    return None if table["model"]["byte_fallback"] else "it has no bytes for what no token holds"
