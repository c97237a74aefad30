# SPDX-License-Identifier: Apache-2.0
"""Beam search: the most likely completions that a bounded search finds, by log-probability per length (Wu et al. 2016,
section 7, without coverage)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from foundling.decode.prompts import prefill


class Beam(NamedTuple):
    logprob: float
    row: int
    """of the cache, at the previous step"""
    tokens: list[int]


class FinishedBeam(NamedTuple):
    score: float
    """log-probability / length^penalty; the length includes the stop id"""
    tokens: list[int]


def beam_search(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    n_beams: int,
    n: int,
    stop: Sequence[int],
    length_penalty: float,
) -> list[list[int]]:
    """The n best completions of each prompt, best first, as one flat list.

    As in transformers: a completion finishes only if it is among the `n_beams` best of its step, and a prompt is done
    when it has `n_beams` finished completions and the best unfinished one, at its present length, scores no better than
    the worst of them. Cache rows follow the beams; encoder outputs are shared.
    """
    cache, last = prefill(model, prompts, max_tokens)
    cache = cache.select(torch.arange(len(prompts), device=last.device).repeat_interleave(n_beams))
    last = last.repeat_interleave(n_beams, 0)
    # at first all rows of a prompt are equal: only one of them may continue
    running = [[Beam(0.0, p * n_beams, [])] + [Beam(-1e9, p * n_beams + k, []) for k in range(1, n_beams)]
               for p in range(len(prompts))]  # fmt: skip
    finished: list[list[FinishedBeam]] = [[] for _ in prompts]
    done = [False] * len(prompts)
    n_candidates = max(2, 1 + len(set(stop))) * n_beams
    for length in range(1, max_tokens + 1):
        logprobs = torch.log_softmax(model.logits(last).float(), dim=-1)
        vocab = logprobs.shape[-1]
        previous = torch.tensor([beam.logprob for group in running for beam in group], device=last.device)
        scores = (previous[:, None] + logprobs).view(len(prompts), n_beams * vocab)
        values, indices = (t.tolist() for t in scores.topk(min(n_candidates, n_beams * vocab), dim=-1))
        for p, group in enumerate(running):
            if done[p]:
                continue
            going: list[Beam] = []
            for rank, (value, index) in enumerate(zip(values[p], indices[p], strict=True)):
                parent, token = group[index // vocab], index % vocab
                if token in stop or length == max_tokens:
                    if rank < n_beams:
                        tokens = parent.tokens if token in stop else [*parent.tokens, token]
                        finished[p].append(FinishedBeam(value / length**length_penalty, tokens))
                elif len(going) < n_beams:
                    going.append(Beam(value, p * n_beams + index // vocab, [*parent.tokens, token]))
            finished[p] = sorted(finished[p], key=lambda f: -f.score)[:n_beams]
            running[p] = going or group
            best = going[0].logprob / length**length_penalty if going else -1e9
            done[p] = len(finished[p]) == n_beams and best <= finished[p][-1].score
        if all(done) or length == max_tokens:
            break
        cache = cache.select(torch.tensor([beam.row for group in running for beam in group], device=last.device))
        running = [[b._replace(row=p * n_beams + k) for k, b in enumerate(group)] for p, group in enumerate(running)]
        newest = [beam.tokens[-1] if beam.tokens else 0 for group in running for beam in group]
        last = model(torch.tensor(newest, device=last.device)[:, None], cache=cache).hidden[:, -1]
    return [f.tokens for group in finished for f in (group + [FinishedBeam(-1e9, [])] * n)[:n]]
