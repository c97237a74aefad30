# SPDX-License-Identifier: Apache-2.0
"""SentencePiece's BPE in a GGUF file (kind `llama`): tokens with scores. llama.cpp joins the two neighbours whose joint
token has the highest score; the tokenizers library has a list of merges, which follows from the scores and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import tokenizers
from tokenizers import decoders, models, normalizers

from foundling.limits import PAIR_CHARS, TOKEN_CHARS, shown

SPACE = "▁"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
NORMAL, UNUSED = 1, 5
MERGED = (NORMAL, UNUSED)
"""Types of tokens that characters are joined to."""


def too_long(tokens: Sequence[str]) -> str | None:
    """Names a token whose pairs would take too long to find, or says that those of all would: the number and the
    lengths of a token's pairs both grow with its own."""
    found = next((text for text in tokens if len(text) > TOKEN_CHARS.high), None)
    if found is None:
        total = sum(len(text) ** 2 for text in tokens)
        what = f"tokens are too long together: {total:,} {PAIR_CHARS.unit.partition(' together')[0]}"
        return f"{what}; at most {PAIR_CHARS.high:,} are supported" if total > PAIR_CHARS.high else None
    return f"token {shown(found)} has {len(found):,} characters; at most {TOKEN_CHARS.high:,} are supported"


def merges_of(tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int]) -> list[tuple[str, str]] | None:
    """All pairs of tokens whose joint text is a token, the highest score of that one first; None where two of them have
    one score, so that llama.cpp takes the left one: no list of merges does."""
    vocab = {text: i for i, (text, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind in MERGED}
    pairs = []
    for text, i in vocab.items():
        cuts = [(text[:at], text[at:]) for at in range(1, len(text)) if text[:at] in vocab and text[at:] in vocab]
        pairs += [(scores[i], text, left, right) for left, right in cuts]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], -len(pair[2])))
    if any(a[0] == b[0] and a[1] != b[1] for a, b in pairwise(pairs)):
        return None
    return [(left, right) for _, _, left, right in pairs]


def backend_of(
    tokens: Sequence[str], merges: list[tuple[str, str]], unknown: str | None, *, prefix: bool
) -> tokenizers.Tokenizer:
    """Spaces become ▁; with `prefix` one is put before a text; what no token holds is written as bytes."""
    vocab = {text: i for i, text in enumerate(tokens)}
    falls_back = all(text in vocab for text in BYTES)
    model = models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=falls_back)
    backend, before = tokenizers.Tokenizer(model), [normalizers.Prepend(SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", SPACE)])  # pyright: ignore
    after = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
    return backend


def spaces_of(backend: tokenizers.Tokenizer) -> bool | None:
    """Whether a space is put before a text; None where spaces are treated otherwise than in llama.cpp (Metaspace puts
    none before a text that begins with one)."""
    table = json.loads(backend.to_str())
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    normalizer, pre = table["normalizer"] or {}, table["pre_tokenizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    replaced = steps in ([replace], [{"type": "Prepend", "prepend": SPACE}, replace])
    if replaced and (not pre or (pre["type"], pre.get("pattern")) == ("Split", replace["pattern"])):
        return len(steps) == 2
    plain = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False}
    return False if pre == plain and not normalizer else None


def scores_of(tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[Sequence[str]]) -> list[float] | None:
    """Scores by which llama.cpp joins as `merges` do; None where none do, as for merges that were learnt one by one:
    there a token is joined from one pair only, with scores from any."""
    rank: dict[str, int] = {}
    for left, right in merges:
        rank.setdefault(left + right, len(rank))
    scores = [float(-rank[text]) if text in rank else -float(len(rank) + 1) for text in tokens]
    expected = merges_of(tokens, scores, kinds)
    same = expected is not None and {tuple(pair) for pair in merges} == set(expected)
    joined = [left + right for left, right in merges]
    ordered = all(rank[a] <= rank[b] for a, b in pairwise(joined))
    return scores if same and ordered else None
