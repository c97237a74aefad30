# SPDX-License-Identifier: Apache-2.0
"""How rotary positions read beyond the length that a model was first trained at: slower rotations, sharper scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from foundling.errors import ConfigError


@dataclass(frozen=True)
class RopeScaling:
    """`linear` slows every rotation by `factor` (Chen et al. 2023).
    `llama3` slows those of less than low_freq_factor turns over original_max_seq_len, interpolating up to
    high_freq_factor turns (Grattafiori et al. 2024, section 3.4.2 and its code).
    `yarn` slows those of less than beta_slow turns, interpolating over the channels up to beta_fast turns, and
    multiplies scores (Peng et al. 2023, section 3).
    `longrope` slows each rotation by a factor of its own: short_factor's in a text of up to original_max_seq_len
    tokens, long_factor's in a longer one, and multiplies scores (Ding et al. 2024, as Phi-3 computes it).
    `dynamic` changes nothing up to the model's max_seq_len, and a longer text is refused: its length would change the
    rotation of keys that a cache already holds."""

    kind: Literal["linear", "dynamic", "yarn", "longrope", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192
    attention_factor: float | None = None
    """What queries and keys are multiplied by; None for what the paper of `yarn` or `longrope` says."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """Whether yarn rounds the ends of its interpolation to whole channels."""
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.factor < math.inf:
            raise ConfigError(f"rope_scaling: factor is {self.factor}; expected a number of at least 1")
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            if not 0 < getattr(self, low) <= getattr(self, high):
                raise ConfigError(
                    f"rope_scaling: {low} is {getattr(self, low)} and {high} is {getattr(self, high)}; expected "
                    f"0 < {low} <= {high}"
                )
        if self.original_max_seq_len < 2:
            raise ConfigError(f"rope_scaling: original_max_seq_len is {self.original_max_seq_len}; expected at least 2")
        if self.attention_factor is not None and not 0 < self.attention_factor < math.inf:
            raise ConfigError(f"rope_scaling: attention_factor is {self.attention_factor}; expected above 0")
        if not all(0 < factor < math.inf for factor in self.short_factor + self.long_factor):
            raise ConfigError("rope_scaling: short_factor and long_factor hold numbers that are not above 0")

    def check(self, width: int, theta: float) -> None:
        """ConfigError where the factors are not those of `width` rotated channels, or nothing turns slower."""
        if self.kind == "yarn" and not theta > 1:
            raise ConfigError(f"rope_theta is {theta}; yarn needs more than 1")
        for name in ("short_factor", "long_factor") if self.kind == "longrope" else ():
            if len(getattr(self, name)) != width // 2:
                raise ConfigError(
                    f"rope_scaling: {name} holds {len(getattr(self, name))} numbers, {width} rotated channels need "
                    f"{width // 2}"
                )

    @property
    def gain(self) -> float:
        """What cos and sin, and so queries and keys, are multiplied by."""
        if self.kind not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.kind == "yarn":
            return 0.1 * math.log(self.factor) + 1.0
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_max_seq_len))

    def slowed(self, rates: Tensor, theta: float, positions: Tensor) -> Tensor:
        """rates (P / 2,), 1 to 1 / theta, of texts with these positions (B or 1, T) -> (P / 2,), or (B or 1, T, P / 2)
        where each text has its own"""
        if self.kind == "linear":
            return rates / self.factor
        if self.kind == "llama3":
            turns = self.original_max_seq_len * rates / (2 * math.pi)
            passage = max(self.high_freq_factor - self.low_freq_factor, 1e-9)
            unscaled = ((turns - self.low_freq_factor) / passage).clamp(0, 1)
            return (1 - unscaled) * rates / self.factor + unscaled * rates
        if self.kind == "yarn":
            unscaled = 1 - self._ramp(rates, theta)
            return rates / self.factor * (1 - unscaled) + rates * unscaled
        if self.kind == "longrope":
            short, long = (rates / rates.new_tensor(factors) for factors in (self.short_factor, self.long_factor))
            is_long = last_positions(positions)[..., None] >= self.original_max_seq_len
            return torch.where(is_long, long, short)
        return rates

    def _ramp(self, rates: Tensor, theta: float) -> Tensor:
        """0 for channels of more than beta_fast turns over original_max_seq_len, 1 for those of less than beta_slow."""
        width = 2 * len(rates)

        def channel(turns: float) -> float:
            """The channel that makes so many turns"""
            return width * math.log(self.original_max_seq_len / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = channel(self.beta_fast), channel(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        high = high + 0.001 if low == high else high
        at = torch.arange(len(rates), dtype=torch.float32, device=rates.device)
        return ((at - low) / (high - low)).clamp(0, 1)


def last_positions(positions: Tensor) -> Tensor:
    """(B or 1, T) -> for each token the last position of its document, of which a position 0 is the first token."""
    documents = (positions == 0).cumsum(-1)
    longest = positions.new_zeros(len(positions), positions.shape[1] + 1)
    return longest.scatter_reduce(1, documents, positions, "amax").gather(1, documents)
