# SPDX-License-Identifier: Apache-2.0
"""Feed-forward layers. `dropout` is of what the last projection reads, in training."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.mask import compute_dtype


def gelu_tanh(x: Tensor) -> Tensor:
    """Hendrycks & Gimpel 2016, the tanh approximation that GPT-2 uses."""
    return F.gelu(x, approximate="tanh")


class MLP(nn.Module):
    """down(activation(up(x)))"""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: Callable[[Tensor], Tensor],
        *,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)
        self.activation, self.dropout = activation, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(self.activation(self.up(x))))


class GatedMLP(nn.Module):
    """down(activation(gate(x)) · up(x)) (Shazeer 2020, GLU variants)."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: Callable[[Tensor], Tensor],
        *,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=bias)
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)
        self.activation, self.dropout = activation, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(compute_dtype(x))  # once, not at each product
        return self.down(self.dropout(self.activation(self.gate(x)) * self.up(x)))
