# SPDX-License-Identifier: Apache-2.0
"""The role of each parameter, derived from the modules, and its initial value and learning rate.

Widths transfer as in µP (Yang et al. 2022, Tensor Programs V, table 8): a hidden matrix starts at 1/√fan_in and its
learning rate under Adam scales by 1/fan_in; the head starts at zero and scales by 1/fan_in; embeddings, gains and
biases do not scale. Projections into the residual stream start at zero, so models of every depth start alike.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from foundling.blocks.moe import GroupedLinear

BASE_WIDTH = 128
"""The width for which a learning rate is given."""
EMBEDDING_STD = 0.02
EMBEDDING_GAIN = 10.0
"""`start_gain` of an embedding that no norm follows, which a recurrent layer would hardly notice otherwise"""
INTO_RESIDUAL = ("mixer.o", "cross.o", "ffn.down", "ffn.shared.down")

Kind = Literal["embedding", "hidden", "head", "vector", "conv", "adapter"]
"""hidden: a matrix, or the matrices of experts; adapter: low-rank, so its fan-in does not depend on the width."""


class Role(NamedTuple):
    kind: Kind
    fan_in: int


def roles(model: nn.Module) -> dict[str, Role]:
    """Parameter name -> role. A tied weight is listed once, as embedding. A module with a `roles` method declares
    its own."""
    by_name: dict[str, Role] = {}
    named = {id(p): name for name, p in model.named_parameters()}
    for path, module in model.named_modules():
        for leaf, p in module.named_parameters(recurse=False):
            name = named[id(p)]
            if name in by_name:
                continue
            if hasattr(module, "roles"):
                by_name[name] = module.roles()[leaf]  # pyright: ignore[reportCallIssue]
            elif isinstance(module, nn.Embedding):
                by_name[name] = Role("embedding", module.embedding_dim)
            elif p.ndim < 2:
                by_name[name] = Role("vector", 1)
            elif path == "head" and leaf == "weight":
                by_name[name] = Role("head", p[0].numel())
            elif isinstance(module, GroupedLinear):
                by_name[name] = Role("hidden", module.in_features)
            else:
                by_name[name] = Role("hidden" if p.ndim == 2 else "conv", p[0].numel())
    return by_name


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draws every parameter from the generator, in name order on the CPU, so a seed gives the same model everywhere.

    A module with special initial values has `initialise(generator)`, which is called after all others."""
    modules = dict(model.named_modules())
    params = dict(model.named_parameters())
    for name, role in sorted(roles(model).items()):
        p, path = params[name], name.rpartition(".")[0]
        if role.kind == "vector":
            norm = modules[path]
            gain = getattr(norm, "start", 1.0) - getattr(norm, "offset", 0.0)
            p.fill_(gain if name.endswith("weight") else 0.0)
        elif role.kind == "head" or (path.endswith(INTO_RESIDUAL) and not _norm_starts_at_zero(modules, path)):
            p.zero_()
        else:
            std = EMBEDDING_STD if role.kind == "embedding" else role.fan_in**-0.5
            p.copy_(_normal(p, generator) * std * getattr(modules[path], "start_gain", 1.0))
    if "head" in modules and modules["head"].weight is params.get("embedding.weight"):
        # like a zero head: logits start small, whatever the width
        gain = (BASE_WIDTH / modules["embedding"].embedding_dim) ** 0.5  # pyright: ignore
        if norm := _last_norm(modules):
            norm.weight.fill_(gain - getattr(norm, "offset", 0.0))  # pyright: ignore
    for _, module in sorted(modules.items()):
        if hasattr(module, "initialise"):
            module.initialise(generator)  # pyright: ignore[reportCallIssue]


def _last_norm(modules: dict[str, nn.Module]) -> nn.Module | None:
    """The norm before the head: the final norm, or that of the last post-norm layer; None where states are bounded and
    none is needed, as those of an LSTM."""
    if hasattr(modules["norm"], "weight"):
        return modules["norm"]
    return modules.get(f"layers.{len(modules['layers']) - 1}.ffn_norm")  # pyright: ignore[reportArgumentType]


def _norm_starts_at_zero(modules: dict[str, nn.Module], path: str) -> bool:
    """Whether a norm of gain 0 follows the projection into the residual stream, so that its output starts at zero."""
    layer, _, part = path.rpartition(".")[0].rpartition(".")
    return any(getattr(modules.get(f"{layer}.{part}{name}"), "start", 1.0) == 0 for name in ("_norm", "_post_norm"))


def _normal(parameter: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(parameter.shape, generator=generator, dtype=torch.float32)


def adam_scale(role: Role) -> float:
    """The factor on a learning rate given for BASE_WIDTH. The fan-in of a small convolution, such as a depthwise one,
    does not depend on the width."""
    scale = BASE_WIDTH / role.fan_in
    return {"hidden": scale, "head": scale, "conv": min(1.0, scale)}.get(role.kind, 1.0)
