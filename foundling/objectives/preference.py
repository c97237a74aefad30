# SPDX-License-Identifier: Apache-2.0
"""Direct preference optimisation (Rafailov et al. 2023): the chosen of two completions becomes more likely, relative to
a reference model whose log-probabilities are columns of the batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foundling.contracts.data import Batch, Batches
from foundling.contracts.model import ModelOutput
from foundling.contracts.objective import Loss, Term
from foundling.errors import ConfigError
from foundling.objectives.causal import read
from foundling.objectives.chunked import chunk_size

SIDES = ("chosen", "rejected")


def completion_logprobs(model: Any, batch: Batch, side: str) -> tuple[Tensor, ModelOutput]:
    """(B,) Σ log p(target) over the tokens of each row's loss mask, and the model's output. Logits are computed in
    chunks, and again in the backward pass, so that (B, T, V) never exists whole."""
    out = read(model, batch, f"{side}_")
    targets = torch.where(batch[f"{side}_loss_mask"], batch[f"{side}_targets"], -100).flatten()

    def logprobs(hidden: Tensor, target: Tensor) -> Tensor:
        return -F.cross_entropy(model.logits(hidden).float(), target, ignore_index=-100, reduction="none")

    size, hidden = chunk_size(model), out.hidden.flatten(0, 1)
    parts = [
        checkpoint(logprobs, h, t, use_reentrant=False) if torch.is_grad_enabled() else logprobs(h, t)
        for h, t in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    return torch.cat(parts).unflatten(0, out.hidden.shape[:2]).sum(1), out  # pyright: ignore


def dpo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """(B,) −log σ(β (chosen − rejected)), where both are log-ratios of policy to reference (equation 7)."""
    return -F.logsigmoid(beta * (chosen - rejected))


class DPO:
    """loss: nats per pair; accuracy: share of pairs whose chosen log-ratio is the larger; margin: β times their mean
    difference. Batch: for each of `chosen_` and `rejected_` tokens, targets, documents, loss_mask (B, T), and
    `reference_chosen_logprob`, `reference_rejected_logprob` (B,). Where the model encodes the prompt, one `source` for
    both, or `chosen_source` and `rejected_source`."""

    def __init__(self, *, beta: float = 0.1) -> None:
        if not beta > 0:
            raise ConfigError(f"beta is {beta}; expected a positive number, such as 0.1")
        self.beta = beta

    def normalizers(self, batch: Batch) -> dict[str, int]:
        rows = len(batch["chosen_tokens"])
        return {"loss": rows, "accuracy": rows, "margin": rows}

    def __call__(self, model: Any, batch: Batch) -> Loss:
        (chosen, first), (rejected, second) = (completion_logprobs(model, batch, side) for side in SIDES)
        chosen, rejected = chosen - batch["reference_chosen_logprob"], rejected - batch["reference_rejected_logprob"]
        margin, rows = (chosen - rejected).detach(), len(chosen)
        aux = {
            name: Term(term.sum / term.count + second.aux[name].sum / second.aux[name].count, 2, term.weight)
            for name, term in first.aux.items()
        }
        return {
            "loss": Term(dpo_loss(chosen, rejected, self.beta).sum(), rows),
            "accuracy": Term((margin > 0).float().sum(), rows, 0.0),
            "margin": Term(self.beta * margin.sum(), rows, 0.0),
            **aux,
        }


class Referenced:
    """Batches with the reference's log-probabilities as columns, computed on the reference's device. The reference is
    frozen here: pass a copy of the policy, not the policy."""

    def __init__(self, batches: Batches, reference: Any) -> None:
        self.batches, self.reference = batches, reference.requires_grad_(False).eval()

    @torch.no_grad()
    def __getitem__(self, n: int) -> Batch:
        batch = self.batches[n]
        device = next(self.reference.parameters()).device
        there = {name: column.to(device) for name, column in batch.items()}
        scores = {side: completion_logprobs(self.reference, there, side)[0] for side in SIDES}
        return batch | {f"reference_{s}_logprob": score.to(batch[f"{s}_tokens"].device) for s, score in scores.items()}
