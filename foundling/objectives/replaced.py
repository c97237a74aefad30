# SPDX-License-Identifier: Apache-2.0
"""Replaced-token detection: a small generator fills masked tokens, and a discriminator tells of every token whether it
is the original (Clark et al. 2020, ELECTRA, section 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foundling.contracts.data import Batch
from foundling.contracts.objective import Loss, Term
from foundling.errors import ConfigError
from foundling.objectives.chunked import chunked_cross_entropy, counted
from foundling.objectives.classify import Tag
from foundling.runtime.rng import generator as rng

LABELS = ("original", "replaced")
"""of the discriminator's head"""
GENERATOR_WEIGHT = 1 / 50
"""of the generator's loss; the paper has λ = 50 on the discriminator's, which has weight 1 here"""


class Electra(nn.Module):
    """Two encoders of one vocabulary that are trained together and share the embedding of tokens (section 3.2; the
    reference code shares those of positions and types as well). ConfigError for models that do not fit."""

    def __init__(self, generator: Any, discriminator: Any) -> None:
        """generator: an encoder that fills masked tokens; discriminator: one with a `tag` head of LABELS."""
        super().__init__()
        if not generator.capabilities.fills:
            raise ConfigError(f"the generator {type(generator).__name__} predicts no masked tokens")
        if discriminator.capabilities.task != "tag" or discriminator.score.options.labels != LABELS:
            raise ConfigError(f"the discriminator has no head that tags tokens as {' or '.join(LABELS)}")
        ours, theirs = (tuple(model.embedding.weight.shape) for model in (generator, discriminator))
        if ours != theirs:
            raise ConfigError(f"the generator embeds {ours}, the discriminator {theirs}; they share one embedding")
        tied = generator.head.weight is generator.embedding.weight
        generator.embedding = discriminator.embedding
        if tied:
            generator.head.weight = discriminator.embedding.weight
        self.generator, self.discriminator = generator, discriminator


class ReplacedTokens:
    """loss: cross-entropy in nats per token of original or replaced, all tokens but padding; accuracy of it; generator:
    cross-entropy in nats per masked token. Batch: that of masked language modelling, of whose chosen tokens 80 % are
    masked (the reference code masks 85 %); model: Electra.

    What the generator writes is drawn by (seed, sample id), so it depends neither on micro-batches nor on ranks. No
    gradient goes through the draw. A token that it happens to restore is an original one."""

    def __init__(self, *, seed: int, weight: float = GENERATOR_WEIGHT) -> None:
        self.seed, self.weight, self.tag = seed, weight, Tag()

    def normalizers(self, batch: Batch) -> dict[str, int]:
        tokens = int((batch["documents"] >= 0).sum())
        return {"loss": tokens, "accuracy": tokens, "generator": int(batch["loss_mask"].sum())}

    def __call__(self, model: Electra, batch: Batch) -> Loss:
        masked = batch["loss_mask"]
        hidden = model.generator(batch["tokens"], documents=batch["documents"]).hidden
        nats = chunked_cross_entropy(model.generator, hidden, batch["targets"], masked)
        terms = self.tag(model.discriminator, self.rewritten(model, hidden, batch))
        return terms | {"generator": Term(nats, masked.sum(), self.weight)}

    @torch.no_grad()
    def rewritten(self, model: Electra, hidden: Tensor, batch: Batch) -> Batch:
        """What the discriminator reads: the text with the generator's tokens where it was masked; `targets` are 1 where
        they are not the original's. hidden (B, T, D), of the generator."""
        masked, original = batch["loss_mask"], batch["targets"]
        (states,) = counted(masked, hidden)
        tokens = original.clone()
        tokens[masked] = self.drawn(model.generator.logits(states), batch)
        real = batch["documents"] >= 0
        return batch | {"tokens": tokens, "targets": (tokens != original).long(), "loss_mask": real}

    def drawn(self, logits: Tensor, batch: Batch) -> Tensor:
        """logits (N, V) of the masked tokens -> (N,) tokens from their distribution, by inversion."""
        length = batch["tokens"].shape[1]
        uniform = torch.stack([
            torch.rand(length, generator=rng("replaced", self.seed, sample)) for sample in batch["sample_ids"].tolist()
        ]).to(logits.device)[batch["loss_mask"]]  # fmt: skip
        upto = torch.softmax(logits.double(), -1).cumsum(-1)
        return torch.searchsorted(upto, uniform[:, None].double() * upto[:, -1:], right=True)[:, 0].clamp_max(
            logits.shape[1] - 1
        )
