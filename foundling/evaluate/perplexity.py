# SPDX-License-Identifier: Apache-2.0
"""How well a model predicts text that it has not seen: the mean loss of whatever objective it was trained with.

`score` serves every objective that counts tokens; `corrupted_score` corrupts held-out batches as training does, the
same way every time. `pseudo_perplexity` asks a masked model for one token at a time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from foundling.contracts.data import Batch, Batches
from foundling.contracts.objective import Objective
from foundling.contracts.records import Result
from foundling.decode.prompts import pad_prompts
from foundling.errors import ConfigError, DataError
from foundling.evaluate.intervals import BOOTSTRAP, bootstrap
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator


class Score(NamedTuple):
    loss: float
    """nats per counted token"""
    bits_per_byte: float
    """NaN where the bytes of the text are not known or not all of it is predicted"""
    tokens: int
    low: float | None = None
    high: float | None = None
    """95 % interval of the loss by bootstrap over batches, that is blocks of neighbouring text; None for one batch"""


def score(
    model: Any,
    objective: Objective,
    batches: Iterable[Batch],
    n_bytes: int | None,
    runtime: Runtime,
    on_batch: Callable[[], None] | None = None,
) -> Score:
    """Total nats over all counted tokens, divided by the tokens and, where every token of a text of `n_bytes` UTF-8
    bytes counts once, by these. `on_batch` is called after each.

    Runs uncompiled: a layer would be compiled anew for evaluation, which costs more than it saves."""
    model.eval()
    nats, tokens = list[float](), list[int]()
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"), runtime.autocast():
        for batch in batches:
            term = objective(model, {k: v.to(runtime.device) for k, v in batch.items()})["loss"]
            nats.append(float(term.sum))
            tokens.append(int(term.count))
            if on_batch:
                on_batch()
    total = sum(nats)
    low, high = (bootstrap(nats, tokens) if min(tokens, default=0) > 0 else None) or (None, None)
    bits = math.nan if n_bytes is None else total / math.log(2) / max(1, n_bytes)
    return Score(total / max(1, sum(tokens)), bits, sum(tokens), low, high)


def corrupted_score(
    model: Any,
    objective: Objective,
    transform: Callable[[Batches], Batches],
    batches: Sequence[Batch],
    runtime: Runtime,
) -> Score:
    """Nats per token that is asked for, of a model that restores corrupted text: hidden tokens, or the target of a
    source. `transform` corrupts as in training (data/transforms); what it hides depends on the number of the row.
    `batches`: evaluation_batches with a stride of seq_len, each token of which counts once."""
    corrupted = transform(batches)
    if batches and "source" in corrupted[0]:  # the last window overlaps the one before it: read what is new alone
        new = [b | {"documents": torch.where(b["loss_mask"], b["documents"], -1)} for b in batches]
        corrupted = transform(new)
        return score(model, objective, (corrupted[n] for n in range(len(new))), None, runtime)

    def once(n: int) -> Batch:
        batch = corrupted[n]
        return batch | {"loss_mask": batch["loss_mask"] & batches[n]["loss_mask"]}

    return score(model, objective, map(once, range(len(batches))), None, runtime)


@torch.inference_mode()
def pseudo_perplexity(
    model: Any,
    sequences: Sequence[Sequence[int]],
    mask: int,
    *,
    runtime: Runtime | None = None,
    max_positions: int = 2000,
    kept: Iterable[int] = (),
    seed: int = 0,
    batch_size: int = 32,
    model_hash: str | None = None,
) -> Result:
    """exp(−1/N Σ ln p(token | all others)), each token masked in turn (Salazar et al. 2020, "Masked Language Model
    Scoring", equation 2), with a 95 % interval.

    `sequences` hold ids as the model reads them, framed ([CLS] …); ids in `kept`, such as the frame's, are never
    masked. Each position costs one forward pass of its sequence, so at most `max_positions` of all are drawn, without
    replacement, by `seed`: the figure is then an estimate. The result's scores are nats, one a position, so that
    `compare` gives the difference of two models in nats. Raises ConfigError for a model without a masked head,
    DataError where there is nothing to mask or a sequence is longer than the model reads.
    """
    runtime = runtime or Runtime(str(next(model.parameters()).device))
    if not model.capabilities.fills:
        raise ConfigError(f"{type(model).__name__} does not predict masked tokens; measure it with score")
    positions = _positions(sequences, set(kept), max_positions, seed)
    if not positions:
        raise DataError("the sequences hold no token to mask; give at least one")
    longest = max(len(sequences[row]) for row, _ in positions)
    if longest > model.config.max_seq_len:
        raise DataError(f"a sequence has {longest} tokens, the model reads {model.config.max_seq_len}; cut it")
    positions.sort(key=lambda p: (len(sequences[p[0]]), p))  # rows of one length need little padding
    nats = masked_nats(model, sequences, positions, mask, runtime, batch_size)
    low, high = bootstrap(nats) or (None, None)
    return Result(
        task="each held-out token masked in turn",
        metric="pseudo-perplexity",
        value=math.exp(sum(nats) / len(nats)),
        n=len(nats),
        low=None if low is None else math.exp(low),
        high=None if high is None else math.exp(high),
        interval=BOOTSTRAP,
        lower_is_better=True,
        scores=nats,
        hashes={
            **({"model": model_hash} if model_hash else {}),
            "task": hashlib.sha256(repr([positions, [list(ids) for ids in sequences]]).encode()).hexdigest(),
        },
    )


@torch.inference_mode()
def masked_nats(
    model: Any,
    sequences: Sequence[Sequence[int]],
    positions: Sequence[tuple[int, int]],
    mask: int,
    runtime: Runtime,
    batch_size: int = 32,
) -> list[float]:
    """−ln p(token | all others) of each (sequence, place), which alone is masked."""
    model.eval()
    nats: list[float] = []
    with torch.compiler.set_stance("force_eager"), runtime.autocast():
        for start in range(0, len(positions), batch_size):
            chosen = positions[start : start + batch_size]
            ids, documents = pad_prompts([sequences[row] for row, _ in chosen], runtime.device)
            at = torch.tensor([place for _, place in chosen], device=runtime.device)
            row = torch.arange(len(chosen), device=runtime.device)
            targets = ids[row, at]
            ids[row, at] = mask
            hidden = model(ids, documents=documents).hidden[row, at]
            logprobs = model.logits(hidden).float().log_softmax(-1)
            nats += (-logprobs.gather(-1, targets[:, None])[:, 0]).tolist()
    return nats


def _positions(sequences: Sequence[Sequence[int]], kept: set[int], most: int, seed: int) -> list[tuple[int, int]]:
    """(sequence, place) of all that may be masked, or of `most` drawn from them."""
    every = [(row, at) for row, ids in enumerate(sequences) for at, token in enumerate(ids) if token not in kept]
    if len(every) <= most:
        return every
    drawn = torch.randperm(len(every), generator=generator("pseudo_perplexity", seed))[:most]
    return [every[i] for i in drawn.tolist()]
