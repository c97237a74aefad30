# SPDX-License-Identifier: Apache-2.0
"""Beam search: the likeliest answers that a bounded search finds, by log-probability per length (Wu et al. 2016,
section 7, without coverage)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from foundling.decode.prompts import prefill


class Beam(NamedTuple):
    logprob: float
    row: int
    """of the cache, at the step before"""
    tokens: list[int]


class Finished(NamedTuple):
    score: float
    """log-probability / length^penalty, the stopping id counted"""
    tokens: list[int]


def beam_search(
    model: Any,
    tokens: Sequence[Sequence[int]],
    max_tokens: int,
    beams: int,
    n: int,
    stop: Sequence[int],
    length_penalty: float,
) -> list[list[int]]:
    """The n best of each prompt, best first, flat. A prompt is done when it has `beams` finished answers and the best
    open one, at its present length, is no better than the worst of them; an answer finishes only if it is among the
    `beams` best at its step, as transformers decides it. Cache rows follow the beams; a memory is shared."""
    cache, last = prefill(model, tokens, max_tokens)
    cache = cache.select(torch.arange(len(tokens), device=last.device).repeat_interleave(beams))
    last = last.repeat_interleave(beams, 0)
    # at first all rows of a prompt are alike: only one may go on
    running = [[Beam(0.0, p * beams, [])] + [Beam(-1e9, p * beams + k, []) for k in range(1, beams)]
               for p in range(len(tokens))]  # fmt: skip
    finished: list[list[Finished]] = [[] for _ in tokens]
    done = [False] * len(tokens)
    wide = max(2, 1 + len(set(stop))) * beams
    for length in range(1, max_tokens + 1):
        logprobs = torch.log_softmax(model.logits(last).float(), dim=-1)
        vocab = logprobs.shape[-1]
        held = torch.tensor([beam.logprob for group in running for beam in group], device=last.device)
        scores = (held[:, None] + logprobs).view(len(tokens), beams * vocab)
        values, places = (t.tolist() for t in scores.topk(min(wide, beams * vocab), dim=-1))
        for p, group in enumerate(running):
            if done[p]:
                continue
            going: list[Beam] = []
            for rank, (value, place) in enumerate(zip(values[p], places[p], strict=True)):
                before, token = group[place // vocab], place % vocab
                if token in stop or length == max_tokens:
                    if rank < beams:
                        kept = before.tokens if token in stop else [*before.tokens, token]
                        finished[p].append(Finished(value / length**length_penalty, kept))
                elif len(going) < beams:
                    going.append(Beam(value, p * beams + place // vocab, [*before.tokens, token]))
            finished[p] = sorted(finished[p], key=lambda f: -f.score)[:beams]
            running[p] = going or group
            best = going[0].logprob / length**length_penalty if going else -1e9
            done[p] = len(finished[p]) == beams and best <= finished[p][-1].score
        if all(done) or length == max_tokens:
            break
        cache = cache.select(torch.tensor([beam.row for group in running for beam in group], device=last.device))
        running = [[b._replace(row=p * beams + k) for k, b in enumerate(group)] for p, group in enumerate(running)]
        newest = [beam.tokens[-1] if beam.tokens else 0 for group in running for beam in group]
        last = model(torch.tensor(newest, device=last.device)[:, None], cache=cache).hidden[:, -1]
    return [f.tokens for group in finished for f in (group + [Finished(-1e9, [])] * n)[:n]]
