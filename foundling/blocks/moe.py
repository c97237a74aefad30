# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts: a router sends each token to a few of many feed-forward layers (Shazeer et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.library.custom_op("foundling::grouped_mm", mutates_args=())
def grouped_mm(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """x (n, in) sorted by expert, weight (E, out, in), ends (E,) int32: where each expert's rows end -> (n, out).

    A custom operator, since torch's compiles only for bfloat16 (torch 2.13) and its backward pass needs contiguous
    gradients."""
    y = x.new_empty(len(x), weight.shape[1])
    for rows, matrix in _groups(ends, weight):
        torch.mm(x[rows], matrix.T, out=y[rows])
    return y


def _groups(ends: Tensor, weight: Tensor) -> list[tuple[slice, Tensor]]:
    stops = ends.tolist()
    return [(slice(a, b), w) for a, b, w in zip([0, *stops[:-1]], stops, weight, strict=True)]


@grouped_mm.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("foundling::grouped_mm_backward", mutates_args=())
def grouped_mm_backward(grad: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    for (rows, matrix), grad_matrix in zip(_groups(ends, weight), grad_weight, strict=True):
        torch.mm(grad[rows], matrix, out=grad_x[rows])
        torch.mm(grad[rows].T, x[rows], out=grad_matrix)  # zero for an expert without rows
    return grad_x, grad_weight


@grouped_mm_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *grouped_mm_backward(grad.contiguous(), *ctx.saved_tensors), None


grouped_mm.register_autograd(_backward, setup_context=_setup)
for _device in ("cpu", "cuda"):
    grouped_mm.register_autocast(_device, torch.bfloat16)


class GroupedLinear(nn.Module):
    """E linear layers as one parameter (E, out, in). Adapters, quantisation and sharding recognise this class."""

    def __init__(self, n_experts: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.n_experts, self.in_features, self.out_features = n_experts, in_features, out_features
        self.weight = nn.Parameter(torch.empty(n_experts, out_features, in_features))
        nn.init.normal_(self.weight, std=in_features**-0.5)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """x (n, in) sorted by expert, ends (E,) int32 -> (n, out)"""
        return grouped_mm(x, self.weight, ends)


class Routing(NamedTuple):
    """Statistics of one layer's router over its real tokens, for balancing losses."""

    probability: Tensor
    """(E,) sum of the router's probabilities"""
    chosen: Tensor
    """(E,) the number of tokens that chose each expert"""
    tokens: Tensor
    """() the number of tokens"""


class MoE(nn.Module):
    """Σ of probability · expert(x) over the `n_active` most probable experts; no token is dropped (Jiang et al. 2024,
    Mixtral, section 2.1). The router computes in float32. `normalised`: the chosen probabilities sum to one."""

    weighs_input = False
    """Whether to weight an expert's input instead of its output."""

    def __init__(
        self, d_model: int, d_ff: int, n_experts: int, n_active: int, activation: Callable[[Tensor], Tensor],
        *, normalised: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.n_experts, self.n_active, self.activation, self.normalised = n_experts, n_active, activation, normalised
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate = GroupedLinear(n_experts, d_model, d_ff)
        self.up = GroupedLinear(n_experts, d_model, d_ff)
        self.down = GroupedLinear(n_experts, d_ff, d_model)

    def choose(self, logits: Tensor, probability: Tensor) -> tuple[Tensor, Tensor]:
        """The router's logits and their softmax, (n, E) each -> weights and indices of the chosen experts, (n, A)
        each"""
        weight, expert = probability.topk(self.n_active, dim=-1)
        return weight / weight.sum(-1, keepdim=True) if self.normalised else weight, expert

    def experts(self, rows: Tensor, ends: Tensor) -> Tensor:
        """rows (n, D) sorted by expert, ends (E,) int32: where each expert's end -> (n, D)"""
        return self.down(self.activation(self.gate(rows, ends)) * self.up(rows, ends), ends)

    def expert_parameters(self) -> list[Tensor]:
        """Those with one row for each expert, of which a token meets `n_active`; a subclass may own biases."""
        of_matrices = (p for matrix in (self.gate, self.up, self.down) for p in matrix.parameters())
        return [*of_matrices, *self.parameters(recurse=False)]

    def forward(self, x: Tensor, real: Tensor | None = None) -> tuple[Tensor, Routing]:
        """x (B, T, D), real (B, T) bool or None for all -> (B, T, D) and the router's statistics"""
        flat = x.flatten(0, 1)
        # without autocast the weights have x's type
        router_input = flat.float() if torch.is_autocast_enabled(x.device.type) else flat
        with torch.autocast(x.device.type, enabled=False):
            logits = self.router(router_input).float()
        probability = torch.softmax(logits, dim=-1)
        weight, expert = self.choose(logits, probability)
        real_weight = torch.ones_like(flat[:, 0], dtype=torch.float32) if real is None else real.flatten().float()
        chosen = F.one_hot(expert, self.n_experts).sum(1)
        order = expert.flatten().argsort(stable=True)
        ends = chosen.sum(0).cumsum(0).to(torch.int32)
        rows = flat[order // self.n_active]
        if self.weighs_input:
            rows = rows * weight.flatten()[order, None].to(rows.dtype)
        y = self.experts(rows, ends)
        y = torch.empty_like(y).index_copy(0, order, y).unflatten(0, (-1, self.n_active))
        y = (y if self.weighs_input else y * weight[..., None].to(y.dtype)).sum(1).to(x.dtype)
        routing = Routing(
            (probability * real_weight[:, None]).sum(0), (chosen * real_weight[:, None]).sum(0), real_weight.sum()
        )
        return y.unflatten(0, x.shape[:2]), routing


def balance(routings: list[Routing]) -> Tensor:
    """E · Σ over experts of the fraction of choices · mean probability, over all layers at once (Fedus et al. 2021,
    Switch, equations 4–6): n_active where all experts are used equally."""
    probability, chosen, tokens = (torch.stack(parts).sum(0) for parts in zip(*routings, strict=True))
    return len(probability) * (probability / tokens * chosen / tokens).sum()
