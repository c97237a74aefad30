# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding (Leviathan et al. 2023): a proposer drafts several tokens and the model verifies them in one
pass. What is drawn has the model's own distribution. Keys and values are truncated, recurrent states are restored from
snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from foundling.contracts.cache import Conv, State
from foundling.decode.prompts import prefill
from foundling.decode.request import check_request
from foundling.decode.sampling import compute_probs, draw_tokens, draw_uniform
from foundling.decode.sequence_state import SequenceState, choose_next_tokens, process_logits
from foundling.errors import GenerationError
from foundling.limits import DRAFT_TOKENS


class SpeculationStats(NamedTuple):
    proposed: int
    accepted: int


class Draft(NamedTuple):
    tokens: list[int]
    probs: Tensor | None
    """(len(tokens), V): the distributions that the tokens were drawn from; None where they were not drawn"""


@runtime_checkable
class DraftProposer(Protocol):
    """Proposes the next tokens. `start` comes first, then `propose`, `commit` and `select` in turn."""

    def start(self, sequences: Sequence[SequenceState], max_new_tokens: int) -> None: ...
    def propose(self, sequences: Sequence[SequenceState], max_tokens: int) -> list[Draft]:
        """Up to `max_tokens` tokens per row. The model has not computed the last token of each row yet."""
        ...

    def commit(self, counts: Sequence[int]) -> None:
        """How many tokens of each row are final: its last one and the accepted draft tokens."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, in this order."""
        ...


class RewindableModel:
    """A model and its cache, which can return to a checkpoint plus the tokens accepted since."""

    def __init__(self, model: Any, sequences: Sequence[SequenceState], max_new_tokens: int) -> None:
        self.model = model
        self.cache, self.last_hidden = prefill(model, [s.request.prompt for s in sequences], max_new_tokens)
        self.recurrent = any(isinstance(slot, Conv | State) for slots in model.cache_spec() for slot in slots)

    @property
    def device(self) -> torch.device:
        return self.last_hidden.device

    def checkpoint(self) -> None:
        """Where `commit` counts from."""
        self.lengths, self.tokens_since = self.cache.lengths.clone(), list[Tensor]()
        if self.recurrent:
            self.rows = torch.arange(len(self.lengths), device=self.device)
            self.snapshot = self.cache.snapshot(self.rows)

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """(B, k) → logits (B, k, V)"""
        self.tokens_since.append(tokens)
        return self.model.logits(self.model(tokens, documents=documents, cache=self.cache).hidden)

    def commit(self, counts: Tensor) -> None:
        """Keeps the first `counts` (B,) tokens of each row after the checkpoint and discards the others."""
        if not self.recurrent:
            self.cache.truncate(self.lengths + counts)
            return
        self.cache.restore(self.snapshot, self.rows)
        tokens = torch.cat(self.tokens_since, dim=1)[:, : int(counts.max())]
        self.model(tokens, documents=_documents(counts, tokens.shape[1]), cache=self.cache)

    def select(self, rows: Tensor) -> None:
        self.cache = self.cache.select(rows)


def _documents(counts: Tensor, steps: int) -> Tensor:
    """(B,) → (B, steps): 0 for the first `counts` of each row, then −1"""
    return torch.where(torch.arange(steps, device=counts.device) < counts[:, None], 0, -1)


class DraftModelProposer:
    """A smaller model of the same vocabulary draws the drafts, with the request's temperature, top-k, top-p, min-p."""

    def __init__(self, model: Any, draft_model: Any) -> None:
        """Raises GenerationError for a draft model of another vocabulary size."""
        if draft_model.config.vocab_size != model.config.vocab_size:
            raise GenerationError(
                f"the draft model has a vocabulary of {draft_model.config.vocab_size}, the model "
                f"{model.config.vocab_size}; both need the same tokenizer"
            )
        self.draft_model = draft_model

    def start(self, sequences: Sequence[SequenceState], max_new_tokens: int) -> None:
        for sequence in sequences:
            check_request(self.draft_model, sequence.request)
        self.model = RewindableModel(self.draft_model, sequences, max_new_tokens)

    def propose(self, sequences: Sequence[SequenceState], max_tokens: int) -> list[Draft]:
        self.model.checkpoint()
        newest = torch.tensor([[s.completion.tokens[-1]] for s in sequences], device=self.model.device)
        seeds, tokens, probs = [s.request.seed for s in sequences], [], []
        for ahead in range(max_tokens):
            logits = self.model.forward(newest)[:, -1].float()
            q = torch.cat([compute_probs(row[None], s.params) for s, row in zip(sequences, logits, strict=True)])
            newest = draw_tokens(q, seeds, [s.position + ahead for s in sequences], stream="draft")[:, None]
            tokens.append(newest)
            probs.append(q)
        self.model.forward(newest)  # all tokens may be accepted, and the cache must then contain the last one
        rows, q = torch.cat(tokens, dim=1).tolist(), torch.stack(probs, dim=1)
        return [Draft(row, q[i]) for i, row in enumerate(rows)]

    def commit(self, counts: Sequence[int]) -> None:
        self.model.commit(torch.tensor(counts, device=self.model.device))

    def select(self, rows: Tensor) -> None:
        self.model.select(rows)


class PromptLookupProposer:
    """Prompt lookup decoding (Saxena 2023): proposes what followed the last few tokens at their previous occurrence in
    the prompt or the completion. Needs no model, and helps where text repeats."""

    def __init__(self, max_ngram: int = 3, min_ngram: int = 2) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise GenerationError(
                f"min_ngram is {min_ngram}, max_ngram {max_ngram}; expected 1 ≤ min_ngram ≤ max_ngram"
            )
        self.max_ngram, self.min_ngram = max_ngram, min_ngram

    def start(self, sequences: Sequence[SequenceState], max_new_tokens: int) -> None: ...

    def propose(self, sequences: Sequence[SequenceState], max_tokens: int) -> list[Draft]:
        return [Draft(self.find([*s.request.prompt, *s.completion.tokens], max_tokens), None) for s in sequences]

    def find(self, tokens: list[int], max_tokens: int) -> list[int]:
        """The continuation of the latest occurrence of the longest matching n-gram; [] where there is none."""
        for size in range(min(self.max_ngram, len(tokens) - 1), self.min_ngram - 1, -1):
            tail = tokens[-size:]
            for at in range(len(tokens) - size - 1, -1, -1):
                if tokens[at : at + size] == tail:
                    return tokens[at + size : at + size + max_tokens]
        return []

    def commit(self, counts: Sequence[int]) -> None: ...
    def select(self, rows: Tensor) -> None: ...


def speculate(
    model: Any, proposer: DraftProposer, sequences: Sequence[SequenceState], draft_tokens: int
) -> SpeculationStats:
    """Generates all sequences to their ends, up to `draft_tokens` + 1 tokens per pass of the model."""
    DRAFT_TOKENS.check(draft_tokens, "draft_tokens", GenerationError)
    max_new_tokens = max(s.request.max_tokens for s in sequences) + draft_tokens + 1
    target, active = RewindableModel(model, sequences, max_new_tokens), list(sequences)
    device, proposed, accepted = target.device, 0, 0
    proposer.start(active, max_new_tokens)
    logits = model.logits(target.last_hidden).float()
    for sequence, token, row in zip(active, choose_next_tokens(active, logits), logits, strict=True):
        sequence.append_token(token, row)
    while True:
        unfinished = [i for i, sequence in enumerate(active) if not sequence.finished]
        if not unfinished:
            return SpeculationStats(proposed, accepted)
        if len(unfinished) < len(active):
            rows, active = torch.tensor(unfinished, device=device), [active[i] for i in unfinished]
            target.select(rows)
            proposer.select(rows)
        # no token is computed beyond the model's max_seq_len
        max_tokens = min(draft_tokens, *(s.request.max_tokens - s.position for s in active))
        drafts = proposer.propose(active, max_tokens)
        counts = torch.tensor([1 + len(draft.tokens) for draft in drafts], device=device)
        tokens = torch.zeros(len(active), int(counts.max()), dtype=torch.int64, device=device)
        for i, (sequence, draft) in enumerate(zip(active, drafts, strict=True)):
            tokens[i, : counts[i]] = torch.tensor([sequence.completion.tokens[-1], *draft.tokens])
        target.checkpoint()
        documents = None if int(counts.min()) == tokens.shape[1] else _documents(counts, tokens.shape[1])
        logits = target.forward(tokens, documents).float()
        n_final = [1 + verify_draft(s, draft, rows) for s, draft, rows in zip(active, drafts, logits, strict=True)]
        proposed, accepted = proposed + int(counts.sum()) - len(active), accepted + sum(n_final) - len(active)
        target.commit(torch.tensor(n_final, device=device))
        proposer.commit(n_final)


def verify_draft(sequence: SequenceState, draft: Draft, logits: Tensor) -> int:
    """Appends the accepted draft tokens and one token after them; returns the number accepted. A token is accepted with
    probability min(1, p/q). The first rejected one is replaced by a draw from max(0, p − q), normalised (algorithm 1).
    logits (k + 1, V)."""
    seed = sequence.request.seed
    for ahead, token in enumerate(draft.tokens):
        position = sequence.position
        p = compute_probs(process_logits([sequence], logits[ahead : ahead + 1]), sequence.params)[0]
        q = 1.0 if draft.probs is None else draft.probs[ahead][token]
        if draw_uniform(seed, position, "accept") * q >= p[token]:
            if draft.probs is None:
                p[token] = 0
            else:
                p = (p - draft.probs[ahead]).clamp_min(0)
            sequence.append_token(int(draw_tokens(p[None] / p.sum(), [seed], [position])[0]), logits[ahead])
            return ahead
        sequence.append_token(token, logits[ahead])
        if sequence.finished:
            return ahead + 1
    last = logits[len(draft.tokens) : len(draft.tokens) + 1]
    sequence.append_token(choose_next_tokens([sequence], last)[0], last[0])
    return len(draft.tokens)
