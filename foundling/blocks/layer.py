# SPDX-License-Identifier: Apache-2.0
"""Residual layers, each called as `layer(x, ctx)`, and how a stack of them is run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from foundling.blocks.context import Context
from foundling.blocks.moe import Routing, balance
from foundling.contracts.cache import Slot
from foundling.contracts.objective import Term


class MixerBlock(nn.Module):
    """x + mixer(norm(x)), where the stack has mixers only. `dropout` is of what each part adds to the residual stream,
    in training."""

    def __init__(self, mixer_norm: nn.Module, mixer: nn.Module, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.mixer_norm, self.mixer, self.dropout = mixer_norm, mixer, nn.Dropout(dropout)

    def slots(self) -> list[tuple[Slot, ...]]:
        """The slots of each of its mixers, in the order that they are called."""
        return [self.mixer.slots()]  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor, ctx: Context) -> Any:
        """x (B, T, D) -> (B, T, D)"""
        return x + self.dropout(self.mixer(self.mixer_norm(x), ctx))


class Block(MixerBlock):
    """x + mixer(norm(x)), then x + ffn(norm(x)) (Xiong et al. 2020, pre-norm)."""

    def __init__(
        self, mixer_norm: nn.Module, mixer: nn.Module, ffn_norm: nn.Module, ffn: nn.Module, *, dropout: float = 0.0,
        ffn_dropout: float | None = None,
    ) -> None:  # fmt: skip
        """`ffn_dropout` is of what ffn adds, `dropout` too where it is None."""
        super().__init__(mixer_norm, mixer, dropout=dropout)
        self.ffn_norm, self.ffn = ffn_norm, ffn
        self.ffn_dropout = nn.Dropout(dropout if ffn_dropout is None else ffn_dropout)

    def forward(self, x: Tensor, ctx: Context) -> Any:
        x = x + self.dropout(self.mixer(self.mixer_norm(x), ctx))
        return x + self.ffn_dropout(self.ffn(self.ffn_norm(x)))


class PostNormBlock(Block):
    """norm(x + mixer(x)), then norm(x + ffn(x)) (Vaswani et al. 2017, section 3.1)."""

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        x = self.mixer_norm(x + self.dropout(self.mixer(x, ctx)))
        return self.ffn_norm(x + self.ffn_dropout(self.ffn(x)))


class SandwichBlock(Block):
    """x + norm(mixer(norm(x))), then the same with ffn (Ding et al. 2021, CogView, section 2.4)."""

    def __init__(
        self, mixer_norm: nn.Module, mixer: nn.Module, mixer_post_norm: nn.Module,
        ffn_norm: nn.Module, ffn: nn.Module, ffn_post_norm: nn.Module,
    ) -> None:  # fmt: skip
        super().__init__(mixer_norm, mixer, ffn_norm, ffn)
        self.mixer_post_norm, self.ffn_post_norm = mixer_post_norm, ffn_post_norm

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        x = x + self.mixer_post_norm(self.mixer(self.mixer_norm(x), ctx))
        return x + self.ffn_post_norm(self.ffn(self.ffn_norm(x)))


class MoEBlock(Block):
    """A pre-norm block whose ffn is a mixture of experts; it also gives what the router did."""

    def forward(self, x: Tensor, ctx: Context) -> tuple[Tensor, Routing]:
        x = x + self.dropout(self.mixer(self.mixer_norm(x), ctx))
        y, routing = self.ffn(self.ffn_norm(x), None if ctx.documents is None else ctx.documents >= 0)
        return x + self.ffn_dropout(y), routing


class CrossAttentionBlock(Block):
    """A pre-norm block that reads a memory between mixer and ffn."""

    def __init__(
        self, mixer_norm: nn.Module, mixer: nn.Module, cross_norm: nn.Module, cross: nn.Module,
        ffn_norm: nn.Module, ffn: nn.Module, *, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(mixer_norm, mixer, ffn_norm, ffn, dropout=dropout)
        self.cross_norm, self.cross = cross_norm, cross

    def slots(self) -> list[tuple[Slot, ...]]:
        return [self.mixer.slots() + self.cross.slots()]  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        x = x + self.dropout(self.mixer(self.mixer_norm(x), ctx))
        x = x + self.dropout(self.cross(self.cross_norm(x), ctx))
        return x + self.ffn_dropout(self.ffn(self.ffn_norm(x)))


class PostNormCrossAttentionBlock(CrossAttentionBlock):
    """The same with each norm after its sum."""

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        x = self.mixer_norm(x + self.dropout(self.mixer(x, ctx)))
        x = self.cross_norm(x + self.dropout(self.cross(x, ctx)))
        return self.ffn_norm(x + self.ffn_dropout(self.ffn(x)))


def forward_layers(layers: Iterable[nn.Module], x: Tensor, ctx: Context) -> tuple[Tensor, list[Routing]]:
    """x (B, T, D) through the layers -> (B, T, D), and what the routers of mixtures of experts did."""
    routings, index = [], 0
    for layer in layers:
        x = layer(x, ctx.at(index))
        if isinstance(x, tuple):
            x, routing = x
            routings.append(routing)
        if ctx.cache is not None:
            index += len(layer.slots())  # pyright: ignore[reportCallIssue, reportArgumentType]
    return x, routings


def balance_terms(routings: list[Routing], config: Any) -> dict[str, Term]:
    """The losses that routers add, weighted by `config.balance_weight`; {} without experts."""
    return {"router_balance": Term(balance(routings), 1, config.balance_weight)} if routings else {}
