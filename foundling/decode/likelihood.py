# SPDX-License-Identifier: Apache-2.0
"""The log-probability of continuations, with everything that several of them share computed once.

Few-shot examples stand before all questions of a task, and a question before all its options: the tokens of such a
tree of texts are fewer than those of all its paths. A shared beginning is read into a cache of one row, the contexts
into a row each, and the continuations go on from there. Axis letters: B rows, T tokens, V vocabulary."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foundling.blocks.position import short_limit
from foundling.decode.prompts import pad_prompts
from foundling.decode.request import check_generates
from foundling.errors import DataError
from foundling.runtime.mode import evaluation_mode

BATCH_TOKENS, BATCH_ROWS = 2048, 128
"""of one forward pass, padding included"""
BATCH_KEYS = 1 << 14
"""tokens in the cache of one batch whose rows go on from shared beginnings"""
PASS_TOKENS = 128
"""what a forward pass costs beside its tokens, in tokens"""
MIN_SHARED = 16
"""tokens of a beginning that are worth a pass of their own"""
_LOGIT_ROWS = 256  # positions whose logits are held at once
_AT_ONCE = 512  # rows among which beginnings are looked for, which bounds the recursion

Ids = tuple[int, ...]


class TokenScores(NamedTuple):
    """Of the tokens of one continuation."""

    logprobs: list[float]
    """natural logarithms, each token given all before it"""
    greedy: bool
    """whether each is the likeliest token"""


Scores = Iterator[tuple[int, TokenScores]]


class _Row(NamedTuple):
    """A context and the pairs (index, continuation) that follow it."""

    context: Ids
    pairs: list[tuple[int, Ids]]


@torch.inference_mode()
def continuation_scores(
    model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_tokens: int = BATCH_TOKENS
) -> Scores:
    """(index, scores) of each (context, continuation) in ids, in the order in which they are computed. For an
    encoder–decoder the context is the source. An empty continuation has no scores.

    Raises GenerationError for a model that does not predict the next token, DataError for a pair that is longer than
    the model reads or without a context."""
    check_generates(model)
    by_context = dict[Ids, list[tuple[int, Ids]]]()
    for index, (before, after) in enumerate(pairs):
        _check_length(model, before, after)
        by_context.setdefault(tuple(before), []).append((index, tuple(after)))
    rows = [_Row(context, options) for context, options in sorted(by_context.items())]
    with evaluation_mode(model), torch.compiler.set_stance("force_eager"):
        if model.capabilities.reads_source:
            for chosen in _batches([len(row.context) for row in rows], batch_tokens):
                yield from _from_sources(model, [rows[i] for i in chosen], batch_tokens)
            return
        if short_limit(model) is not None:  # a cache of a short text does not serve a long one: share nothing
            rows = [_Row(row.context, [pair]) for row in rows for pair in row.pairs]
            yield from _from_prefix(model, rows, 0, batch_tokens)
            return
        for start, stop, n_shared in shared_prefixes([row.context for row in rows]):
            yield from _from_prefix(model, rows[start:stop], n_shared, batch_tokens)


def count_tokens(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], reads_source: bool = False) -> int:
    """Tokens that `continuation_scores` computes for these pairs, padding aside."""
    by_context = dict[Ids, list[int]]()
    for before, after in pairs:
        by_context.setdefault(tuple(before), []).append(len(after))
    contexts = sorted(by_context)
    tails = sum(max(0, n - (not reads_source)) for lengths in by_context.values() for n in lengths)
    if reads_source:
        return sum(map(len, contexts)) + tails
    saved = sum((stop - start - 1) * n for start, stop, n in shared_prefixes(contexts))
    return sum(map(len, contexts)) - saved + tails


def _check_length(model: Any, before: Sequence[int], after: Sequence[int]) -> None:
    if not before:
        raise DataError("a continuation needs a context; give at least one token")
    source = model.capabilities.reads_source
    length, longest = len(after) if source else len(before) + len(after) - 1, model.config.max_seq_len
    if length > longest:
        raise DataError(f"an example takes {length} tokens, the model reads at most {longest}; shorten its prompt")


def shared_prefixes(rows: Sequence[Ids]) -> list[tuple[int, int, int]]:
    """Sorted, distinct rows → (start, stop, tokens that rows[start:stop] share), so that as many tokens as possible are
    saved when each group's beginning is read once. A row keeps a token of its own: n is less than its length."""
    # of neighbours; a range shares the least of these
    shared = [_n_common(a, b) for a, b in itertools.pairwise(rows)]

    def split(start: int, stop: int) -> tuple[int, list[tuple[int, int, int]]]:
        """(tokens saved, groups) of rows[start:stop]"""
        if stop - start < 2:
            return 0, [(start, stop, 0)]
        at = min(range(start, stop - 1), key=shared.__getitem__)
        n = min(shared[at], min(len(rows[i]) for i in range(start, stop)) - 1)
        whole = (stop - start - 1) * n if n >= MIN_SHARED else 0
        if n == shared[at] and all(value == n for value in shared[start : stop - 1]):
            return whole, [(start, stop, n if whole else 0)]
        (saved_left, left), (saved_right, right) = split(start, at + 1), split(at + 1, stop)
        if whole > saved_left + saved_right or saved_left + saved_right == 0:
            return whole, [(start, stop, n if whole else 0)]
        return saved_left + saved_right, left + right

    groups = list[tuple[int, int, int]]()
    for start in range(0, len(rows), _AT_ONCE):  # bounds the depth of the recursion
        groups += split(start, min(start + _AT_ONCE, len(rows)))[1]
    return groups


def _n_common(a: Ids, b: Ids) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _batches(lengths: Sequence[int], batch_tokens: int, batch_rows: int = BATCH_ROWS) -> Iterator[list[int]]:
    """Indices in batches, those of about one length together: of all ways to cut the sorted lengths, the one with the
    fewest tokens, padding and PASS_TOKENS for each batch included."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    best, cuts = [0] * (len(order) + 1), [0] * (len(order) + 1)
    for stop in range(1, len(order) + 1):
        longest = max(1, lengths[order[stop - 1]])
        first = max(0, stop - max(1, min(batch_rows, batch_tokens // longest)))
        best[stop], cuts[stop] = min((best[at] + (stop - at) * longest + PASS_TOKENS, at) for at in range(first, stop))
    batches, stop = list[list[int]](), len(order)
    while stop:
        batches.append(order[cuts[stop] : stop])
        stop = cuts[stop]
    yield from reversed(batches)


def _from_prefix(model: Any, rows: Sequence[_Row], n_shared: int, batch_tokens: int) -> Scores:
    """Rows whose contexts share their first n_shared tokens."""
    device = next(model.parameters()).device
    alone = [row.pairs[0][1] if len(row.pairs) == 1 else () for row in rows]  # is read together with its context
    texts = [(*row.context[n_shared:], *after[:-1]) for row, after in zip(rows, alone, strict=True)]
    lengths = [len(row.context) + max(len(after) for _, after in row.pairs) for row in rows]
    prefix = None
    if n_shared:
        prefix = _Prefix(model, rows[0].context[:n_shared], max(lengths), batch_tokens)
        batch_tokens = min(batch_tokens, BATCH_KEYS * max(map(len, texts)) // max(lengths))
    for chosen in _batches([len(text) for text in texts], batch_tokens):
        branches = any(len(rows[i].pairs) > 1 and any(len(after) > 1 for _, after in rows[i].pairs) for i in chosen)
        cache = None
        if prefix is not None:
            cache = prefix.rows(len(chosen))
        elif branches:
            cache = model.new_cache(len(chosen), max(lengths[i] for i in chosen))
        ids, documents = pad_prompts([texts[i] for i in chosen], device)
        hidden = model(ids, documents=documents, cache=cache).hidden
        starts = [len(rows[i].context) - n_shared - 1 for i in chosen]
        # of the continuation of a context with one, all tokens; of several, the first of each
        targets = [
            (place, starts[place] + step, index, token)
            for place, i in enumerate(chosen)
            for index, after in rows[i].pairs
            for step, token in enumerate(after if len(rows[i].pairs) == 1 else after[:1])
        ]
        scores = _score(model, hidden, targets)
        if branches:
            tails = [(place, index, after) for place, i in enumerate(chosen) if len(rows[i].pairs) > 1
                     for index, after in rows[i].pairs if len(after) > 1]  # fmt: skip
            _add(scores, _branches(model, cache, tails, [len(rows[i].context) for i in chosen], batch_tokens))
        yield from ((index, scores.get(index, TokenScores([], True))) for i in chosen for index, _ in rows[i].pairs)


class _Prefix:
    """A beginning that is read once; `rows` gives a cache of that many rows, each of which goes on from it."""

    def __init__(self, model: Any, ids: Ids, length: int, batch_tokens: int) -> None:
        self.device = next(model.parameters()).device
        self.one = model.new_cache(1, length)
        for at in range(0, len(ids), batch_tokens):
            model(torch.tensor([ids[at : at + batch_tokens]], device=self.device), cache=self.one)
        self.n, self.cache, self.snapshot = 0, self.one, None

    def rows(self, n: int) -> Any:
        if n != self.n:
            self.n, self.cache = n, self.one.select(torch.zeros(n, dtype=torch.int64, device=self.device))
            self.snapshot = self.cache.snapshot(torch.arange(n, device=self.device))
        else:  # the keys of the batch before are written over
            self.cache.restore(self.snapshot, torch.arange(n, device=self.device))
        return self.cache


def _branches(
    model: Any, cache: Any, tails: Sequence[tuple[int, int, Ids]], lengths: Sequence[int], batch_tokens: int
) -> dict[int, TokenScores]:
    """Of (row of the cache, index, continuation), the tokens after the first one: the row goes on once for each.
    `lengths`: the tokens of each row of the cache."""
    device, scores = next(model.parameters()).device, dict[int, TokenScores]()
    sizes = [lengths[row] + len(after) for row, _, after in tails]
    most = BATCH_KEYS // max(sizes, default=1)
    for part in _batches([len(after) - 1 for _, _, after in tails], batch_tokens, max(1, most)):
        here, size = [tails[i] for i in part], max(sizes[i] for i in part)
        ids, documents = pad_prompts([after[:-1] for _, _, after in here], device)
        branched = cache.select(torch.tensor([row for row, _, _ in here], device=device), size)
        hidden = model(ids, documents=documents, cache=branched).hidden
        targets = [(row, step, index, token) for row, (_, index, after) in enumerate(here)
                   for step, token in enumerate(after[1:])]  # fmt: skip
        scores |= _score(model, hidden, targets)
    return scores


def _from_sources(model: Any, rows: Sequence[_Row], batch_tokens: int) -> Scores:
    """A batch of sources, each encoded once; its continuations begin with the start id."""
    device = next(model.parameters()).device
    ids, documents = pad_prompts([row.context for row in rows], device)
    memory = model.encode(ids, documents=documents)
    longest = max(len(after) for row in rows for _, after in row.pairs)
    cache = model.new_cache(len(rows), longest + 1, memory=memory)
    start = model.config.start_id
    tails = [(place, index, (start, *after)) for place, row in enumerate(rows) for index, after in row.pairs if after]
    scores = _branches(model, cache, tails, [0] * len(rows), batch_tokens)
    yield from ((index, scores.get(index, TokenScores([], True))) for row in rows for index, _ in row.pairs)


def _score(model: Any, hidden: Tensor, targets: Sequence[tuple[int, int, int, int]]) -> dict[int, TokenScores]:
    """hidden (B, T, D) and (row, step, index, token) of what is predicted there → scores by index. The logits of a
    state are computed once, however many tokens are looked up in them."""
    if not targets:
        return {}
    states = list(dict.fromkeys((row, step) for row, step, _, _ in targets))
    place = {state: i for i, state in enumerate(states)}
    at = torch.tensor(states, device=hidden.device).T
    lookups = sorted((place[row, step], n) for n, (row, step, _, _) in enumerate(targets))
    logprobs, likeliest = [0.0] * len(targets), [False] * len(targets)
    done = 0
    for begin in range(0, len(states), _LOGIT_ROWS):
        rows, steps = at[:, begin : begin + _LOGIT_ROWS]
        logits = model.logits(hidden[rows, steps]).float()
        end = done
        while end < len(lookups) and lookups[end][0] < begin + len(rows):
            end += 1
        here = lookups[done:end]
        row = torch.tensor([state - begin for state, _ in here], device=logits.device)
        token = torch.tensor([targets[n][3] for _, n in here], device=logits.device)
        values = (logits[row, token] - logits.logsumexp(-1)[row]).tolist()
        best = (logits.argmax(-1)[row] == token).tolist()
        for (_, n), value, is_best in zip(here, values, best, strict=True):
            logprobs[n], likeliest[n] = value, is_best
        done = end
    scores = dict[int, TokenScores]()
    for n, (_, _, index, _) in enumerate(targets):
        before = scores.get(index, TokenScores([], True))
        scores[index] = TokenScores([*before.logprobs, logprobs[n]], before.greedy and likeliest[n])
    return scores


def _add(scores: dict[int, TokenScores], more: dict[int, TokenScores]) -> None:
    for index, (logprobs, greedy) in more.items():
        before = scores[index]
        scores[index] = TokenScores(before.logprobs + logprobs, before.greedy and greedy)
