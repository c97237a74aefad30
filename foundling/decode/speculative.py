# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding (Leviathan et al. 2023): a draft proposes some tokens, the model checks all in one pass, and
what is drawn has the model's own distribution. States that cannot be cut are put back from snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foundling.decode.prompts import check, prefill
from foundling.decode.sampling import Sampling, distribution, draw, uniform
from foundling.errors import GenerationError


class Tally(NamedTuple):
    proposed: int
    accepted: int


class Reader:
    """A model with its cache, which can go back to what was accepted."""

    def __init__(self, model: Any, tokens: Sequence[Sequence[int]], room: int) -> None:
        self.model = model
        self.cache, self.last = prefill(model, tokens, room)

    def read(self, tokens: Tensor) -> Tensor:
        """(B, k) -> logits (B, k, V)"""
        return self.model.logits(self.model(tokens, cache=self.cache).hidden)

    def mark(self) -> None:
        self.rows = torch.arange(len(self.cache.lengths), device=self.last.device)
        self.snapshot = self.cache.snapshot(self.rows)

    def settle(self, tokens: Tensor, kept: Tensor) -> None:
        """Holds, after the mark, the first `kept` (B,) of `tokens` (B, k) and nothing else: rows go back and read again
        only what was accepted, the shorter ones padded."""
        self.cache.restore(self.snapshot, self.rows)
        documents = torch.where(torch.arange(tokens.shape[1], device=tokens.device) < kept[:, None], 0, -1)
        self.model(tokens, documents=documents, cache=self.cache)

    def select(self, rows: Tensor) -> None:
        self.cache = self.cache.select(rows)


def speculate(
    model: Any,
    draft: Any,
    tokens: Sequence[Sequence[int]],
    max_tokens: int,
    sampling: Sampling,
    seeds: list[int],
    stop: Sequence[int],
    draft_tokens: int,
) -> tuple[list[list[int]], Tally]:
    """Answers, one a prompt, and how many proposals were accepted. Both models draw after the same temperature, top-k
    and top-p. GenerationError for a draft of another vocabulary."""
    if draft_tokens < 1:
        raise GenerationError(f"draft_tokens is {draft_tokens}; expected at least 1")
    if draft.config.vocab_size != model.config.vocab_size:
        raise GenerationError(
            f"the draft's vocabulary is {draft.config.vocab_size}, the model's {model.config.vocab_size}; both need "
            "the same tokenizer"
        )
    check(draft, tokens, max_tokens)
    target, small = (Reader(m, tokens, max_tokens + draft_tokens + 1) for m in (model, draft))
    answers: list[list[int]] = [[] for _ in tokens]
    alive, proposed, accepted = list(range(len(tokens))), 0, 0
    first = draw(distribution(model.logits(target.last), sampling), seeds, [0] * len(seeds))
    pending, fresh = first[:, None], [[token] for token in first.tolist()]
    while True:
        stay = [i for i, (row, new) in enumerate(zip(alive, fresh, strict=True))
                if not _take(answers[row], new, stop, max_tokens)]  # fmt: skip
        if not stay:
            return answers, Tally(proposed, accepted)
        if len(stay) < len(alive):
            rows = torch.tensor(stay, device=pending.device)
            target.select(rows)
            small.select(rows)
            pending, alive = pending[rows], [alive[i] for i in stay]
        row_seeds = [seeds[row] for row in alive]
        positions = [len(answers[row]) for row in alive]
        ahead_of = min(draft_tokens, max_tokens - max(positions))  # nothing is read past the model's last position
        target.mark()
        small.mark()
        read, guesses = pending, []
        for ahead in range(ahead_of):
            q = distribution(small.read(read[:, -1:])[:, -1], sampling)
            guess = draw(q, row_seeds, [p + ahead for p in positions], stream="draft")
            guesses.append(q)
            read = torch.cat((read, guess[:, None]), dim=1)
        p = target.read(read)
        p = distribution(p.flatten(0, 1), sampling).view(p.shape)
        kept, fresh = [], []
        for i, row in enumerate(alive):
            guessed = read[i, 1:].tolist()
            taken, token = _verify(p[i], [q[i] for q in guesses], guessed, seeds[row], positions[i])
            kept.append(1 + taken)
            fresh.append([*guessed[:taken], token])
            proposed, accepted = proposed + ahead_of, accepted + taken
        counts = torch.tensor(kept, device=pending.device)
        target.settle(read, counts)
        small.settle(read, counts)
        pending = torch.tensor([[new[-1]] for new in fresh], device=pending.device)


def _take(answer: list[int], new: list[int], stop: Sequence[int], max_tokens: int) -> bool:
    """Appends what was drawn, up to a stop or the limit; whether the answer has ended."""
    for token in new:
        if token in stop:
            return True
        answer.append(token)
        if len(answer) == max_tokens:
            return True
    return False


def _verify(p: Tensor, q: list[Tensor], guessed: list[int], seed: int, position: int) -> tuple[int, int]:
    """How many guesses of one row hold, and the token after them: each holds with probability min(1, p/q); after the
    first that does not, a draw from max(0, p − q), normalised (algorithm 1). p (k + 1, V), q k times (V,)."""
    for ahead, token in enumerate(guessed):
        if uniform(seed, position + ahead, "accept") * q[ahead][token] > p[ahead][token]:
            rest = (p[ahead] - q[ahead]).clamp_min(0)
            return ahead, int(draw(rest[None] / rest.sum(), [seed], [position + ahead])[0])
    return len(guessed), int(draw(p[-1:], [seed], [position + len(guessed)])[0])
