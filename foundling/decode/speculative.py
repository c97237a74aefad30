# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding (Leviathan et al. 2023): some tokens are guessed, the model checks all in one pass, and what is
drawn has the model's own distribution. Keys and values are cut back, states are put back from snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from foundling.contracts.cache import Conv, State
from foundling.decode.answer import Writing, check_request, filtered, next_tokens
from foundling.decode.prompts import prefill
from foundling.decode.sampling import distribution, draw, uniform
from foundling.errors import GenerationError


class Tally(NamedTuple):
    proposed: int
    accepted: int


class Guess(NamedTuple):
    tokens: list[int]
    q: Tensor | None
    """(len(tokens), V) probabilities that they were drawn from; None where they were not drawn"""


@runtime_checkable
class Guesser(Protocol):
    """Proposes what may come next; `start`, then guess, settle and select by turns."""

    def start(self, writings: Sequence[Writing], room: int) -> None: ...
    def guess(self, writings: Sequence[Writing], most: int) -> list[Guess]:
        """Up to `most` tokens a row; the last token of each answer has not been read yet."""
        ...

    def settle(self, kept: Sequence[int]) -> None:
        """How many tokens of each row hold, of the unread one and the guesses."""
        ...

    def select(self, rows: Tensor) -> None: ...


class Reader:
    """A model with its cache, which can go back to what was accepted."""

    def __init__(self, model: Any, writings: Sequence[Writing], room: int) -> None:
        self.model = model
        self.cache, self.last = prefill(model, [w.request.prompt for w in writings], room)
        self.recurrent = any(isinstance(slot, Conv | State) for slots in model.cache_spec() for slot in slots)

    def mark(self) -> None:
        """Where `settle` counts from."""
        self.lengths, self.seen = self.cache.lengths.clone(), list[Tensor]()
        if self.recurrent:
            self.rows = torch.arange(len(self.lengths), device=self.last.device)
            self.snapshot = self.cache.snapshot(self.rows)

    def read(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """(B, k) -> logits (B, k, V)"""
        self.seen.append(tokens)
        return self.model.logits(self.model(tokens, documents=documents, cache=self.cache).hidden)

    def settle(self, kept: Tensor) -> None:
        """Holds, after the mark, the first `kept` (B,) tokens of each row and nothing else."""
        if not self.recurrent:
            self.cache.truncate(self.lengths + kept)
            return
        self.cache.restore(self.snapshot, self.rows)
        tokens = torch.cat(self.seen, dim=1)[:, : int(kept.max())]
        self.model(tokens, documents=_documents(kept, tokens.shape[1]), cache=self.cache)

    def select(self, rows: Tensor) -> None:
        self.cache = self.cache.select(rows)


def _documents(counts: Tensor, steps: int) -> Tensor:
    """(B,) -> (B, steps): 0 for as many, then -1"""
    return torch.where(torch.arange(steps, device=counts.device) < counts[:, None], 0, -1)


class ModelGuesser:
    """A smaller model of the same vocabulary draws the guesses, after the same temperature, top-k, top-p and min-p."""

    def __init__(self, model: Any, draft: Any) -> None:
        """GenerationError for a draft of another vocabulary."""
        if draft.config.vocab_size != model.config.vocab_size:
            raise GenerationError(
                f"the draft's vocabulary is {draft.config.vocab_size}, the model's {model.config.vocab_size}; both "
                "need the same tokenizer"
            )
        self.draft = draft

    def start(self, writings: Sequence[Writing], room: int) -> None:
        for writing in writings:
            check_request(self.draft.config, writing.request, encodes=hasattr(self.draft, "encode"))
        self.reader = Reader(self.draft, writings, room)

    def guess(self, writings: Sequence[Writing], most: int) -> list[Guess]:
        device = self.reader.last.device
        self.reader.mark()
        newest = torch.tensor([[w.answer.tokens[-1]] for w in writings], device=device)
        seeds, guessed, qs = [w.request.seed for w in writings], [], []
        for ahead in range(most):
            logits = self.reader.read(newest)[:, -1].float()
            q = torch.stack([distribution(row[None], w.shape)[0] for w, row in zip(writings, logits, strict=True)])
            newest = draw(q, seeds, [w.position + ahead for w in writings], stream="draft")[:, None]
            guessed.append(newest)
            qs.append(q)
        self.reader.read(newest)  # all may hold, and the draft should know them all
        tokens, q = torch.cat(guessed, dim=1).tolist(), torch.stack(qs, dim=1)
        return [Guess(row, q[i]) for i, row in enumerate(tokens)]

    def settle(self, kept: Sequence[int]) -> None:
        self.reader.settle(torch.tensor(kept, device=self.reader.last.device))

    def select(self, rows: Tensor) -> None:
        self.reader.select(rows)


class LookupGuesser:
    """What followed the last few tokens where they stood before, in the prompt or the answer (prompt lookup decoding,
    Saxena 2023). Costs nothing, and helps where text repeats."""

    def __init__(self, longest: int = 3, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise GenerationError(f"lookup of {shortest} to {longest} tokens; expected 1 or more, the shorter first")
        self.longest, self.shortest = longest, shortest

    def start(self, writings: Sequence[Writing], room: int) -> None: ...

    def guess(self, writings: Sequence[Writing], most: int) -> list[Guess]:
        return [Guess(self.look([*w.request.prompt, *w.answer.tokens], most), None) for w in writings]

    def look(self, text: list[int], most: int) -> list[int]:
        for size in range(min(self.longest, len(text) - 1), self.shortest - 1, -1):
            tail = text[-size:]
            for at in range(len(text) - size - 1, -1, -1):
                if text[at : at + size] == tail:
                    return text[at + size : at + size + most]
        return []

    def settle(self, kept: Sequence[int]) -> None: ...
    def select(self, rows: Tensor) -> None: ...


def speculate(model: Any, guesser: Guesser, writings: Sequence[Writing], draft_tokens: int) -> Tally:
    """Writes all answers to their ends; how many tokens were proposed and accepted."""
    if draft_tokens < 1:
        raise GenerationError(f"draft_tokens is {draft_tokens}; expected at least 1")
    room = max(w.request.max_tokens for w in writings) + draft_tokens + 1
    target, alive = Reader(model, writings, room), list(writings)
    device, tally = target.last.device, Tally(0, 0)
    guesser.start(alive, room)
    logits = model.logits(target.last).float()
    for writing, token, row in zip(alive, next_tokens(alive, logits), logits, strict=True):
        writing.take(token, row)
    while True:
        stay = [i for i, writing in enumerate(alive) if not writing.ended]
        if not stay:
            return tally
        if len(stay) < len(alive):
            rows, alive = torch.tensor(stay, device=device), [alive[i] for i in stay]
            target.select(rows)
            guesser.select(rows)
        # nothing is read past a model's last position
        most = min(draft_tokens, *(w.request.max_tokens - w.position for w in alive))
        guesses = guesser.guess(alive, most)
        counts = torch.tensor([1 + len(guess.tokens) for guess in guesses], device=device)
        read = torch.zeros(len(alive), int(counts.max()), dtype=torch.int64, device=device)
        for i, (writing, guess) in enumerate(zip(alive, guesses, strict=True)):
            read[i, : counts[i]] = torch.tensor([writing.answer.tokens[-1], *guess.tokens])
        target.mark()
        documents = None if int(counts.min()) == read.shape[1] else _documents(counts, read.shape[1])
        logits = target.read(read, documents).float()
        kept = [1 + take_guesses(w, guess, rows) for w, guess, rows in zip(alive, guesses, logits, strict=True)]
        tally = Tally(tally.proposed + int(counts.sum()) - len(alive), tally.accepted + sum(kept) - len(alive))
        target.settle(torch.tensor(kept, device=device))
        guesser.settle(kept)


def take_guesses(writing: Writing, guess: Guess, logits: Tensor) -> int:
    """Takes the guesses that hold, and the token after them; how many held. Each holds with probability min(1, p/q);
    after the first that does not comes a draw from max(0, p − q), normalised (algorithm 1). logits (k + 1, V)."""
    seed = writing.request.seed
    for ahead, token in enumerate(guess.tokens):
        position = writing.position
        p = distribution(filtered([writing], logits[ahead : ahead + 1]), writing.shape)[0]
        q = 1.0 if guess.q is None else guess.q[ahead][token]
        if uniform(seed, position, "accept") * q >= p[token]:
            if guess.q is None:
                p[token] = 0
            else:
                p = (p - guess.q[ahead]).clamp_min(0)
            writing.take(int(draw(p[None] / p.sum(), [seed], [position])[0]), logits[ahead])
            return ahead
        writing.take(token, logits[ahead])
        if writing.ended:
            return ahead + 1
    last = logits[len(guess.tokens) : len(guess.tokens) + 1]
    writing.take(next_tokens([writing], last)[0], last[0])
    return len(guess.tokens)
