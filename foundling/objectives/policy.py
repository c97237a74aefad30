# SPDX-License-Identifier: Apache-2.0
"""Learning from rewards of a policy's own completions: clipped policy gradients (Schulman et al. 2017, PPO; Ouyang et
al. 2022; Shao et al. 2024, GRPO), their advantages, and the penalty for leaving the reference.

A batch has completions packed into rows as texts are, and for each token of `loss_mask` (B, T) float32 columns:
`sampler_logprobs`, its log-probability as it was drawn; `advantages`; `share`, 1 / tokens of its completion; `rewards`,
that of its completion; where updates follow that are not the first on these completions, `old_logprobs`, by the policy
before all of them; where the objective reads them, `reference_logprobs`, `kl_coef` and `returns`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.init import Role
from foundling.contracts.data import Batch
from foundling.contracts.objective import Loss, Term
from foundling.errors import ConfigError
from foundling.objectives.causal import read
from foundling.objectives.chunked import chunked_cross_entropy, chunked_sum, filled, token_logprobs

Normalisation = Literal["token", "sequence", "constant"]
"""token: the mean over all tokens (Yu et al. 2025, DAPO); sequence: the mean over the tokens of each completion, then
over completions (Shao et al. 2024), which weighs a token of a long answer less; constant: the sum over tokens by the
same number for all, the most that a completion may have (Liu et al. 2025, Dr. GRPO)"""
COLUMNS = ("sampler_logprobs", "advantages", "share", "rewards", "old_logprobs", "reference_logprobs", "kl_coef",
           "returns")  # fmt: skip
"""of each token, float32"""
LOGGED = "logged:"
"""Columns that begin so are numbers of completions that are only logged, by the rest of their names."""
PRETRAINING = "pretraining_tokens"
VALUE_HEAD = "value_head"
"""the name under which a policy has one while PPO trains it"""


@dataclass(frozen=True)
class PolicyGradient:
    """loss: −min(ratio · A, clip(ratio, 1 − clip_low, 1 + clip_high) · A) + kl_coef · KL, where ratio = π(token) /
    π_old(token) and KL is `k3` to the reference; a column `kl_coef` takes the place of the setting. What engine and
    training pass disagree on in the probability of a token, as where they differ in precision, is corrected by the
    ratio of the two, truncated at `correction_cap` (Yao et al. 2025).

    Other terms, of weight 0: `reward` and `length` of a completion, `kl_per_token` (nats, k3, to the reference),
    `entropy` (nats a token, −log p of those drawn), `clipped` (share of tokens), `mismatch` (mean |log π_old − log
    π_sampler|, nats). With `value_coef` the `value` term is half the squared error of the value head (its unit is the
    reward's, squared). A batch with `pretraining_tokens` and `pretraining_targets` (B, S) has the term `pretraining`,
    their cross-entropy in nats a token (Ouyang et al. 2022, PPO-ptx)."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    normalise: Normalisation = "token"
    max_tokens: int = 1
    """that a completion may have: what "constant" divides by"""
    value_coef: float = 0.0
    pretraining_coef: float = 0.0
    correction_cap: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.clip_low < 1 or not 0 < self.clip_high < math.inf:
            raise ConfigError(f"clip_low {self.clip_low}, clip_high {self.clip_high}: expected 0 to 1, and above 0")
        for name in ("kl_coef", "value_coef"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"'{name}' is {getattr(self, name)}; expected 0 or more")

    def normalizers(self, batch: Batch) -> dict[str, int]:
        tokens, completions = int(batch["loss_mask"].sum()), n_completions(batch)
        counts = dict.fromkeys(("entropy", "clipped", "mismatch"), tokens)
        counts |= {"loss": tokens if self.normalise == "token" else completions}
        counts |= dict.fromkeys(("reward", "length", *logged(batch)), completions)
        if "reference_logprobs" in batch:
            counts["kl_per_token"] = tokens
        if self.value_coef:
            counts["value"] = tokens
        if PRETRAINING in batch:
            counts["pretraining"] = batch[PRETRAINING].numel()
        return counts

    def __call__(self, model: Any, batch: Batch) -> Loss:
        out, mask = read(model, batch), batch["loss_mask"]
        names = [name for name in COLUMNS if name in batch]
        columns = torch.stack([batch[name] for name in names], -1)
        targets, hidden, columns = filled(mask, batch["targets"], out.hidden, columns)
        column = dict(zip(names, columns.unbind(-1), strict=True))
        sums = dict[str, Tensor]()

        def loss_of(logits: Tensor, rows: slice) -> Tensor:
            logprobs = logprobs_of(logits, targets[rows])
            loss, metrics = self.of_tokens(logprobs, {name: values[rows] for name, values in column.items()})
            for name, value in metrics.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
            return loss

        loss, counts = chunked_sum(model, hidden, loss_of), self.normalizers(batch)
        terms = {"loss": Term(loss, counts["loss"])}
        if self.value_coef:
            terms["value"] = Term(self.value_loss(model, hidden, column), counts["value"], self.value_coef)
        if PRETRAINING in batch:
            texts, following = model(batch[PRETRAINING]), batch["pretraining_targets"]
            nats = chunked_cross_entropy(model, texts.hidden, following, torch.ones_like(following, dtype=torch.bool))
            terms["pretraining"] = Term(nats, counts["pretraining"], self.pretraining_coef)
        sums |= {"reward": (batch["share"] * batch["rewards"]).sum(), "length": mask.sum().float()}
        sums |= {name: (batch["share"] * batch[LOGGED + name]).sum() for name in logged(batch)}
        return terms | {name: Term(value, counts[name], 0.0) for name, value in sums.items()} | out.aux

    def of_tokens(self, logprobs: Tensor, column: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """logprobs (n,) with gradient, columns (n,), whose `share` is 0 where a token counts nothing -> () the loss,
        summed as it is normalised, and the sums of what is only logged."""
        advantages, real = column["advantages"], column["share"] > 0
        drawn = column["sampler_logprobs"]
        old = column.get("old_logprobs", logprobs.detach())
        ratio = (logprobs - old).exp()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss = -torch.minimum(ratio * advantages, clipped * advantages)
        loss = loss * (old - drawn).exp().clamp_max(self.correction_cap)
        metrics = {
            "entropy": -(logprobs.detach() * real).sum(),
            "clipped": ((clipped.detach() * advantages < ratio.detach() * advantages) & real).sum().float(),
            "mismatch": ((old - drawn).abs() * real).sum(),
        }
        if "reference_logprobs" in column:
            kl = k3(logprobs, column["reference_logprobs"])
            loss = loss + column.get("kl_coef", self.kl_coef) * kl
            metrics["kl_per_token"] = (kl.detach() * real).sum()
        if self.normalise == "token":
            weights = real.float()
        else:
            weights = column["share"] if self.normalise == "sequence" else real / self.max_tokens
        return (loss * weights).sum(), metrics

    def value_loss(self, model: Any, hidden: Tensor, column: dict[str, Tensor]) -> Tensor:
        """() Σ over tokens of half the squared error."""
        errors = (model.value_head(hidden) - column["returns"]).square()
        return 0.5 * (errors * (column["share"] > 0)).sum()


def logged(batch: Batch) -> list[str]:
    """Names of what is only logged."""
    return [name.removeprefix(LOGGED) for name in batch if name.startswith(LOGGED)]


def n_completions(batch: Batch) -> int:
    """Of the packed rows of a batch: documents are numbered from 0 in each row."""
    return int((batch["documents"].amax(1) + 1).sum())


def logprobs_of(logits: Tensor, targets: Tensor) -> Tensor:
    """(n, V), (n,) -> (n,) float32; a negative target has any. Not by log_softmax, whose float32 sums over a large
    vocabulary are off by some 1e-5 on a CPU, always to one side."""
    logits = logits.float()
    return logits.gather(1, targets.clamp_min(0)[:, None])[:, 0] - logits.logsumexp(1)


@torch.no_grad()
def score_tokens(model: Any, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """(B, T) log-probabilities of the targets and, where the model has a value head, values of the states before them;
    0 where `loss_mask` is not."""
    out, mask, head = read(model, batch), batch["loss_mask"], getattr(model, VALUE_HEAD, None)
    logprobs = token_logprobs(model, out.hidden, batch["targets"], mask)
    return logprobs, None if head is None else head(out.hidden) * mask


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Of draws from the policy an unbiased and never negative estimate of KL(policy ‖ reference): r − 1 − log r with r
    = π_reference / π (Schulman 2020, "Approximating KL divergence"). Nats."""
    log_ratio = reference - logprobs
    return log_ratio.exp() - 1 - log_ratio


def group_advantages(rewards: Tensor, *, scale: bool = True) -> Tensor:
    """(P, K) rewards of K completions of each prompt -> (P, K) reward − mean of the group and, with `scale`, by its
    standard deviation (of a sample; Shao et al. 2024). Without, an easy and a hard prompt keep their weights (Liu et
    al. 2025). A group of equal rewards has advantages of 0."""
    centred = rewards - rewards.mean(1, keepdim=True)
    if not scale or rewards.shape[1] < 2:
        return centred
    return centred / (rewards.std(1, keepdim=True) + 1e-4)


def generalised_advantages(
    rewards: Tensor, values: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """(…, T) rewards of the tokens of a completion, (…, T) values of the states before them -> advantages A_t = Σ_k (γ
    λ)^k δ_{t+k} with δ_t = r_t + γ V_{t+1} − V_t, where V after the last token is 0, and returns A + V (Schulman et al.
    2016, equation 16)."""
    following = torch.cat((values[..., 1:], torch.zeros_like(values[..., :1])), -1)
    deltas = (rewards + gamma * following - values).unbind(-1)
    advantage, parts = torch.zeros_like(deltas[0]), list[Tensor]()
    for delta in reversed(deltas):
        advantage = delta + gamma * lam * advantage
        parts.append(advantage)
    advantages = torch.stack(parts[::-1], -1)
    return advantages, advantages + values


def whitened(advantages: Sequence[Tensor]) -> list[Tensor]:
    """With mean 0 and standard deviation 1 over all tokens."""
    every = torch.cat(list(advantages))
    return [(part - every.mean()) / (every.std(correction=0) + 1e-8) for part in advantages]


def adapted_kl_coef(coef: float, kl: float, target: float, rate: float = 0.1) -> float:
    """The coefficient of the next rollout: proportional control in the logarithm, by an error within ±0.2 (Ziegler et
    al. 2019, section 2.2)."""
    return coef * (1 + rate * min(0.2, max(-0.2, kl / target - 1)))


class ValueHead(nn.Module):
    """states (…, D) -> (…,) float32: the reward that is expected from here on. It begins at 0, is trained with the
    policy, on the policy's own states, and is no part of what is published."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(1, d_model)), nn.Parameter(torch.zeros(1))

    def roles(self) -> dict[str, Role]:
        return {"weight": Role("head", self.weight.shape[1]), "bias": Role("vector", 1)}

    def forward(self, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return F.linear(states.float(), self.weight, self.bias)[..., 0]
