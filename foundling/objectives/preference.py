# SPDX-License-Identifier: Apache-2.0
"""Learning from comparisons: rewards of completions (Ouyang et al. 2022), and a policy without a reward model: direct
preference optimisation (Rafailov et al. 2023) and identity preference optimisation (Azar et al. 2024).

A batch has K completions of each of B prompts, the best first: `tokens`, `targets`, `documents`, `loss_mask`
(B, K, T), and `n_completions` (B,), how many of the K are real; the others repeat one. Where the model encodes the
prompt, `source` and `source_documents` (B, S) are shared by all. All pairs of a prompt are compared in one pass, and
count as one prompt.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from foundling.blocks.heads import scores_and_losses
from foundling.contracts.data import Batch, Batches
from foundling.contracts.model import ModelOutput
from foundling.contracts.objective import Loss, Term
from foundling.errors import ConfigError
from foundling.objectives.causal import read
from foundling.objectives.chunked import token_logprobs

COLUMNS = ("tokens", "targets", "documents", "loss_mask")


def as_rows(batch: Batch) -> Batch:
    """Each completion a row: (B, K, T) -> (B·K, T), a source for each."""
    n = batch["tokens"].shape[1]
    rows = {name: batch[name].flatten(0, 1) for name in COLUMNS if name in batch}
    return rows | {
        name: batch[name].repeat_interleave(n, 0) for name in ("source", "source_documents") if name in batch
    }


def completion_logprobs(model: Any, batch: Batch) -> tuple[Tensor, ModelOutput]:
    """(B, K) Σ log p(target) over the tokens of each completion's loss mask, and the model's output."""
    rows = as_rows(batch)
    out = read(model, rows)
    logprobs = token_logprobs(model, out.hidden, rows["targets"], rows["loss_mask"])
    return logprobs.sum(-1).view(batch["tokens"].shape[:2]), out


def pairs(scores: Tensor, n_completions: Tensor) -> tuple[Tensor, Tensor]:
    """scores (B, K), the best first -> (B, P) the better one's minus the worse one's, of all P pairs, and the weight of
    each: those of a prompt sum to 1, and those of completions that are not real have 0."""
    better, worse = torch.triu_indices(scores.shape[1], scores.shape[1], 1, device=scores.device)
    real = (worse < n_completions[:, None]).float()
    return scores[:, better] - scores[:, worse], real / real.sum(1, keepdim=True)


def n_pairs(batch: Batch) -> int:
    n = batch["n_completions"]
    return int((n * (n - 1) // 2).sum())


def bradley_terry(difference: Tensor, beta: float = 1.0) -> Tensor:
    """−log σ(β difference): nats of the better one being preferred."""
    return -F.logsigmoid(beta * difference)


def ipo(difference: Tensor, beta: float) -> Tensor:
    """(difference − 1 / 2β)²: unlike −log σ it is not least at infinity where all comparisons agree (Azar et al. 2024,
    equation 17)."""
    return (difference - 1 / (2 * beta)).square()


def _terms(nats: Tensor, difference: Tensor, weights: Tensor, scale: float) -> Loss:
    real = weights > 0
    correct, n = ((difference.detach() > 0) & real).sum().float(), real.sum()
    return {
        "loss": Term((nats * weights).sum(), len(nats)),
        "accuracy": Term(correct, n, 0.0),
        "margin": Term(scale * (difference.detach() * weights).sum(), len(nats), 0.0),
    }


class _Compared:
    def normalizers(self, batch: Batch) -> dict[str, int]:
        rows = len(batch["tokens"])
        return {"loss": rows, "accuracy": n_pairs(batch), "margin": rows}


class Reward(_Compared):
    """loss: nats per prompt, the mean over its pairs; accuracy: share of pairs whose better completion has the larger
    reward; margin: mean difference. The model has a head of one value (adapt/heads.py)."""

    def __call__(self, model: Any, batch: Batch) -> Loss:
        scores, aux = scores_and_losses(model, as_rows(batch))
        difference, weights = pairs(scores.view(batch["tokens"].shape[:2]), batch["n_completions"])
        return _terms(bradley_terry(difference), difference, weights, 1.0) | aux


class DPO(_Compared):
    """loss: nats per prompt (`ipo`: squared nats), the mean over its pairs; accuracy: share of pairs whose better
    completion has the larger log-ratio of policy to reference; margin: β times the mean difference of these. Batch:
    also `reference_logprobs` (B, K)."""

    def __init__(self, *, beta: float = 0.1, loss: Literal["dpo", "ipo"] = "dpo") -> None:
        if not 0 < beta < float("inf"):
            raise ConfigError(f"beta is {beta}; expected a positive number, such as 0.1")
        if loss not in ("dpo", "ipo"):
            raise ConfigError(f"the loss is {loss!r}; expected dpo or ipo")
        self.beta, self.of_difference = beta, bradley_terry if loss == "dpo" else ipo

    def __call__(self, model: Any, batch: Batch) -> Loss:
        logprobs, out = completion_logprobs(model, batch)
        difference, weights = pairs(logprobs - batch["reference_logprobs"], batch["n_completions"])
        return _terms(self.of_difference(difference, self.beta), difference, weights, self.beta) | out.aux


class Referenced:
    """Batches with the reference's log-probabilities as a column, computed on the reference's device as each is read. A
    run computes them once for all (recipes/preferences.py). The reference is frozen here: pass a copy of the policy,
    not the policy."""

    def __init__(self, batches: Batches, reference: Any) -> None:
        self.batches, self.reference = batches, reference.requires_grad_(False).eval()

    @torch.no_grad()
    def __getitem__(self, n: int) -> Batch:
        batch = self.batches[n]
        device = next(self.reference.parameters()).device
        there = {name: column.to(device) for name, column in batch.items()}
        logprobs, _ = completion_logprobs(self.reference, there)
        return batch | {"reference_logprobs": logprobs.to(batch["tokens"].device)}
