# SPDX-License-Identifier: Apache-2.0
"""Optimisers: fused AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from foundling.adapt.freeze import depth_of
from foundling.adapt.prune import masks
from foundling.blocks.init import adam_scale, roles
from foundling.errors import WeightsError
from foundling.train.options import OptimOptions
from foundling.train.parallel import gathered, local, part_of

STACKED = 1 << 24
"""Numbers in the matrices that Muon works on at once, 64 MiB. Its temporary memory is two or three times as much."""


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum (Jordan et al. 2024, Muon): U Vᵀ of the Nesterov momentum by a Newton–Schulz iteration,
    in float32, many matrices of one shape at once. Where `found_inf` (a 0-dim tensor) is 1 a step does nothing."""

    found_inf: Tensor | None = None

    def __init__(self, params: Iterable[Any], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.stacks: dict[tuple[int, torch.Size, int], Tensor] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for number, group in enumerate(self.param_groups):
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, params in shapes.items():
                size = max(1, STACKED // max(1, shape.numel()))
                for first in range(0, len(params), size):
                    part = params[first : first + size]
                    self._step_shape(part, self._momentum((number, shape, first), part), group)

    def _momentum(self, key: tuple[int, torch.Size, int], params: list[nn.Parameter]) -> Tensor:
        """(n, …) the momenta of all `params` in one tensor; each one's state is a view of it."""
        buffers = [self.state[p].get("momentum_buffer") for p in params]
        stack = self.stacks.get(key)
        current = stack is not None and len(stack) == len(params)
        if not current or any(b is None or b.data_ptr() != s.data_ptr() for b, s in zip(buffers, stack, strict=True)):  # pyright: ignore
            parts = [local(p) for p in params]
            stack = torch.stack([torch.zeros_like(p) if b is None else b for b, p in zip(buffers, parts, strict=True)])
            self.stacks[key] = stack
            for p, view in zip(params, stack.unbind(), strict=True):
                self.state[p]["momentum_buffer"] = view
        assert stack is not None
        return stack

    def _step_shape(self, params: list[nn.Parameter], momentum: Tensor, group: dict[str, Any]) -> None:
        """One step for matrices of one shape. A rank with parts of them updates its parts; only the update is gathered
        whole, to be orthogonalised. Temporary memory is two copies of the gradients."""
        parts = [local(p) for p in params]
        update = torch.stack([local(p.grad) for p in params])  # pyright: ignore
        skip = torch.zeros((), device=update.device) if self.found_inf is None else self.found_inf
        keep = 1 - skip
        update.masked_fill_(skip.bool(), 0.0)
        momentum.lerp_(update, (1 - group["momentum"]) * keep)
        update.lerp_(momentum, group["momentum"])
        if isinstance(params[0], DTensor):
            update = torch.stack([gathered(u, p) for u, p in zip(update.unbind(), params, strict=True)])
        rows, columns = update.shape[-2:]  # an axis of experts may come first
        update = orthogonalise(update.view(-1, rows, columns)).view(update.shape)
        lr = group["lr"] * max(1.0, rows / columns) ** 0.5
        torch._foreach_mul_(parts, 1 - keep * (group["lr"] * group["weight_decay"]))
        update.mul_(-lr * keep)
        torch._foreach_add_(parts, [part_of(u, p) for u, p in zip(update.unbind(), params, strict=True)])


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """(n, rows, columns) -> the same matrices with all singular values near 1: each step maps them by the quintic
    x ← a x + b x³ + c x⁵, with the coefficients of Jordan et al. 2024 (chosen for their slope at zero; the values end
    within about 0.7 to 1.2). Overwrites `matrices`."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x.div_(x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def count_state(model: nn.Module, options: OptimOptions) -> int:
    """Numbers in the state of an `Optimizer`: two moments of AdamW for a parameter, one of Muon for a hidden matrix."""
    parameter_roles = roles(model)
    return sum(
        p.numel() * (1 if options.optimizer == "muon" and parameter_roles[name].kind == "hidden" else 2)
        for name, p in model.named_parameters()
        if p.requires_grad
    )


def layer_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """Parameter name -> the factor on its learning rate, decay^(places below the top) (Howard & Ruder 2018, section
    3.2: 'discriminative fine-tuning'); {} where it is 1 for all."""
    if decay == 1:
        return {}
    depths = depth_of(model)
    top = max(depths.values())
    return {name: decay ** (top - depth) for name, depth in depths.items()}


class Optimizer:
    """Muon and AdamW over one model as one optimiser: scaled by a schedule, skipped together, saved by parameter
    name."""

    def __init__(self, model: nn.Module, options: OptimOptions) -> None:
        self.options = options
        self.params: dict[str, nn.Parameter] = {}
        self.parts: list[torch.optim.Optimizer] = []
        self.bind(model)

    def bind(self, model: nn.Module) -> None:
        """Follows the model's parameters as they are now (sharding replaces them); state is kept by name."""
        state, options = self.state_tensors(), self.options
        self.params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        known = {name: role for name, role in roles(model).items() if name in self.params}
        matrices = [n for n, r in known.items() if r.kind == "hidden" and options.optimizer == "muon"]
        # AdamW works element by element, so on this rank's part of a tensor alone
        self.adam_params = {
            n: nn.Parameter(local(p.detach())) if isinstance(p, DTensor) else p
            for n, p in self.params.items()
            if n not in matrices
        }
        factors = layer_factors(model, options.layer_decay)
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, p in self.adam_params.items():
            decay = options.weight_decay if known[name].kind in ("hidden", "conv") else 0.0
            rate = adam_scale(known[name]) * options.learning_rate * factors.get(name, 1.0)
            groups.setdefault((rate, decay), []).append(p)
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
            rates: dict[float, list[nn.Parameter]] = {}
            for name in matrices:
                rate = options.matrix_learning_rate * factors.get(name, 1.0)
                rates.setdefault(rate, []).append(self.params[name])
            self.parts.append(
                Muon(
                    [{"params": ps, "lr": rate} for rate, ps in rates.items()],
                    options.matrix_learning_rate,
                    options.momentum,
                    options.weight_decay,
                )
            )
        self.masks = {name: mask for name, mask in masks(model).items() if name in self.params}
        self.base = [[group["lr"] for group in part.param_groups] for part in self.parts]
        self.load_state_tensors(state)

    def step(self, scale: float, found_inf: Tensor) -> None:
        """`scale` multiplies every learning rate; where found_inf is 1 nothing moves."""
        for name, p in self.adam_params.items():
            if p is not self.params[name] and (grad := self.params[name].grad) is not None:
                p.grad = local(grad)
        for part, base in zip(self.parts, self.base, strict=True):
            for group, lr in zip(part.param_groups, base, strict=True):
                group["lr"] = lr * scale
            part.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]
            part.step()
        self._apply_masks()

    @torch.no_grad()
    def _apply_masks(self) -> None:
        """Pruned weights are zero again: a Muon update, which mixes the numbers of a matrix, moves all of them."""
        for name, mask in self.masks.items():
            p = self.params[name]
            local(p).masked_fill_(part_of(mask, p) == 0, 0.0)

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)
        for p in self.params.values():
            p.grad = None

    def _states(self) -> dict[str, dict[str, Any]]:
        """Parameter name -> the optimiser's state of it, this rank's part."""
        names = {id(p): name for name, p in [*self.params.items(), *getattr(self, "adam_params", {}).items()]}
        return {names[id(p)]: part.state[p] for part in self.parts for g in part.param_groups for p in g["params"]}

    def state_tensors(self) -> dict[str, Tensor]:
        """'<parameter>/<slot>' -> whole tensor; a collective where parameters are sharded."""
        return {
            f"{name}/{slot}": gathered(value, self.params[name]) if value.ndim else value
            for name, state in self._states().items()
            for slot, value in state.items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state_tensors`; WeightsError for a parameter that the model does not train."""
        states = self._states()
        for key, value in tensors.items():
            name, _, slot = key.rpartition("/")
            if name not in states:
                raise WeightsError(f"the checkpoint has optimiser state of '{name}', which this model does not train")
            p = self.params[name]
            states[name][slot] = part_of(value.to(p.device), p).clone() if value.ndim else value
