# SPDX-License-Identifier: Apache-2.0
"""The section `rollout` of a recipe. This file imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from foundling import limits
from foundling.errors import ConfigError


@dataclass(frozen=True)
class RolloutSpec:
    """The answers that a policy draws, is rewarded for and learns from."""

    reward: tuple[str, ...] = ()
    """what rewards an answer: maths, exact, instructions, …, matches:REGEX or the directory of a reward model, each
    with a weight where it is not 1, as in 0.5*maths; several are summed"""
    reward_hashes: dict[str, str] = field(default_factory=dict)
    """directory -> hash of the weights of a reward model; filled in when the recipe is resolved"""
    n_prompts: int | None = None
    """prompts of a rollout (default: 8 for grpo, 32 for ppo)"""
    group_size: int | None = None
    """answers to each prompt (default: 8 for grpo, 1 for ppo)"""
    max_tokens: int = 128
    """of an answer, at most; of a model that reads fewer than 256 tokens half of these"""
    passes: int = 1
    """times that updates read the answers of a rollout"""
    weights: Literal["float32", "bfloat16", "int8", "int4"] | None = None
    """draw answers by native code from a copy of the weights in this type, made anew for each rollout: faster, and what
    it changes in probabilities is corrected (default: by the policy itself, without a copy)"""
    scale_rewards: bool = True
    """grpo: divide by the standard deviation of the rewards to one prompt"""
    gae_lambda: float = 0.95
    """ppo: 1 takes what followed a token as it is, 0 what the value head expects"""
    kl_target: float | None = None
    """nats an answer that the coefficient of the KL divergence is adapted to reach; fixed unless given"""

    def __post_init__(self) -> None:
        limits.REWARDS._replace(low=0).check(len(self.reward), "the number of rewards")
        limits.MAX_TOKENS.check(self.max_tokens, "'max_tokens'")
        for name in ("n_prompts", "group_size", "passes"):
            if getattr(self, name) is not None:
                limits.ROWS.check(getattr(self, name), f"'{name}'")
        if not 0 <= self.gae_lambda <= 1:
            raise ConfigError(f"'gae_lambda' is {self.gae_lambda}, expected 0 to 1")
        if self.kl_target is not None and not 0 < self.kl_target < float("inf"):
            raise ConfigError(f"'kl_target' is {self.kl_target}, expected a positive number of nats")

    @property
    def n_answers(self) -> int:
        """of a rollout"""
        return (self.n_prompts or 0) * (self.group_size or 0)

    def updates(self, batch_size: int) -> int:
        """that learn from one rollout"""
        return self.passes * (self.n_answers // batch_size)
