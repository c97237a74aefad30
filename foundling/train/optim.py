# SPDX-License-Identifier: Apache-2.0
"""Optimisers: fused AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from foundling.blocks.init import adam_scale, roles
from foundling.errors import WeightsError
from foundling.train.parallel import gathered, local, part_of


@dataclass(frozen=True)
class OptimOptions:
    """Learning rates are stated at blocks/init.BASE_WIDTH and transferred to the model's own width."""

    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: float = 0.01
    """of AdamW: embeddings, head, gains, biases — and the matrices too when it is the only optimiser"""
    matrix_learning_rate: float = 0.02
    """of Muon: the size of a step in the spectral norm, before the shape's factor"""
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.95
    weight_decay: float = 0.01


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024, Muon): U Vᵀ of the momentum by a Newton–Schulz iteration, in
    float32, all matrices of one shape at once. Where `found_inf` (a 0-dim tensor) is 1 a step does nothing."""

    found_inf: Tensor | None = None

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for params in shapes.values():
                self._step_shape(params, group)

    def _step_shape(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        """All matrices of one shape; a rank that holds parts updates its parts, and knows the whole only of what is
        orthogonalised."""
        held = [local(p) for p in params]
        grads = torch.stack([local(p.grad) for p in params])  # pyright: ignore
        keep = torch.ones((), device=grads.device) if self.found_inf is None else 1 - self.found_inf
        grads = torch.where(keep.bool(), grads, 0.0)
        for p, own in zip(params, held, strict=True):
            self.state[p].setdefault("momentum_buffer", torch.zeros_like(own))
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        momentum = torch.stack(buffers)
        moved = momentum.lerp(grads, 1 - group["momentum"])
        moved = torch.where(keep.bool(), moved, momentum)
        torch._foreach_copy_(buffers, list(moved.unbind()))
        direction = grads.lerp(moved, group["momentum"])
        whole = torch.stack([gathered(d, p) for d, p in zip(direction, params, strict=True)])
        rows, columns = whole.shape[-2:]  # experts, where there are any, come before
        update = orthogonalise(whole.view(-1, rows, columns)).view(whole.shape)
        lr = group["lr"] * max(1.0, rows / columns) ** 0.5
        torch._foreach_mul_(held, 1 - keep * (group["lr"] * group["weight_decay"]))
        parts = [part_of(u, p) for u, p in zip((update * (-lr * keep)).unbind(), params, strict=True)]
        torch._foreach_add_(held, parts)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """(n, rows, columns) -> the same with all singular values near 1: the quintic x ← a x + b x³ + c x⁵ on them,
    coefficients of Jordan et al. 2024 (chosen for slope at zero; the values end within about 0.7 to 1.2)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Optimizer:
    """The optimisers of a run as one: scaled by a schedule, skipped as one, saved by parameter name."""

    def __init__(self, model: nn.Module, options: OptimOptions) -> None:
        self.options = options
        self.params: dict[str, nn.Parameter] = {}
        self.parts: list[torch.optim.Optimizer] = []
        self.bind(model)

    def bind(self, model: nn.Module) -> None:
        """Takes the model's parameters as they are now, keeping what is known of each name."""
        kept, options = self.state_tensors(), self.options
        self.params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        found = {name: role for name, role in roles(model).items() if name in self.params}
        matrices = [n for n, r in found.items() if r.kind == "hidden" and options.optimizer == "muon"]
        # AdamW works element by element, so on what a rank holds alone
        self.held = {
            n: nn.Parameter(local(p.detach())) if isinstance(p, DTensor) else p
            for n, p in self.params.items()
            if n not in matrices
        }
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, p in self.held.items():
            decay = options.weight_decay if found[name].kind in ("hidden", "conv") else 0.0
            groups.setdefault((adam_scale(found[name]) * options.learning_rate, decay), []).append(p)
        self.parts = []
        if groups:
            self.parts.append(
                torch.optim.AdamW(
                    [{"params": ps, "lr": lr, "weight_decay": decay} for (lr, decay), ps in groups.items()],
                    betas=options.betas,
                    fused=True,
                )
            )
        if matrices:
            self.parts.append(
                Muon(
                    [self.params[n] for n in matrices],
                    options.matrix_learning_rate,
                    options.momentum,
                    options.weight_decay,
                )
            )
        self.base = [[group["lr"] for group in part.param_groups] for part in self.parts]
        self.load_state_tensors(kept)

    def step(self, scale: float, found_inf: Tensor) -> None:
        """`scale` multiplies every learning rate; where found_inf is 1 nothing moves."""
        for name, p in self.held.items():
            if p is not self.params[name] and (grad := self.params[name].grad) is not None:
                p.grad = local(grad)
        for part, base in zip(self.parts, self.base, strict=True):
            for group, lr in zip(part.param_groups, base, strict=True):
                group["lr"] = lr * scale
            part.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)
        for p in self.params.values():
            p.grad = None

    def _states(self) -> dict[str, dict[str, Any]]:
        """Parameter name -> what the optimiser keeps of it, as this rank holds it."""
        names = {id(p): name for name, p in [*self.params.items(), *getattr(self, "held", {}).items()]}
        return {names[id(p)]: part.state[p] for part in self.parts for g in part.param_groups for p in g["params"]}

    def state_tensors(self) -> dict[str, Tensor]:
        """'<parameter>/<slot>' -> whole tensor; where parameters are sharded, a collective."""
        return {
            f"{name}/{slot}": gathered(value, self.params[name]) if value.ndim else value
            for name, state in self._states().items()
            for slot, value in state.items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        states = self._states()
        for key, value in tensors.items():
            name, _, slot = key.rpartition("/")
            if name not in states:
                raise WeightsError(f"the checkpoint's optimiser knows '{name}', this model does not")
            p = self.params[name]
            states[name][slot] = part_of(value.to(p.device), p).clone() if value.ndim else value
