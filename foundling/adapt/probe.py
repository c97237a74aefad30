# SPDX-License-Identifier: Apache-2.0
"""A linear probe: the projection of a head, solved on the features of a frozen model, which are computed once (Alain &
Bengio 2016). It is what training the head alone converges to, without dropout, in a fraction of the time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foundling.blocks.heads import head_states
from foundling.contracts.data import Batch
from foundling.errors import AdaptError
from foundling.runtime.mode import evaluation_mode
from foundling.runtime.rng import generator

STRENGTHS = tuple(10.0**power for power in range(-4, 3))
"""C of scikit-learn: the loss is Σ nats + ‖W‖² / 2C; for values Σ error² + ‖W‖² / C"""
FLAT, ROUNDING = 1e-3, 1e-5
"""Features that vary less than FLAT of the one that varies most, or than ROUNDING of their own size, are left as small
as they are: standardised, the rounding of a constant would be learnt from, by weights that are huge."""
HISTORY = 20
"""steps that L-BFGS remembers, two vectors each"""
HELD_OUT = 0.2
"""of the examples, on which the strength is chosen"""
FEWEST = 10
"""examples below which the strength is 1"""


class OneClassError(AdaptError):
    """There is nothing to tell apart."""


class Features(NamedTuple):
    x: Tensor
    """(N, D) float64, what the projection of the head reads"""
    y: Tensor
    """(N,) int64 classes, or (N, n) float64 standardised values"""


class Probe(NamedTuple):
    weight: Tensor
    """(n, D) float64"""
    bias: Tensor | None
    """(n,), None for a head without"""
    strength: float
    """the one of STRENGTHS that was chosen"""
    losses: dict[float, float]
    """strength -> its mean loss on the part that was held out to choose it; {} where it was not chosen"""


def fit_probe(model: Any, batches: Iterable[Batch], *, strengths: Sequence[float] = STRENGTHS, seed: int = 0) -> Probe:
    """Solves the projection of the model's head on these batches, each example once, and puts it into the head. The
    model, a dense layer in the head included, stays as it is: a dense layer that nobody has trained gives poor
    features, so a head on such a model should have the pool 'mean' (HeadOptions).

    The regularisation is chosen by the loss on a fifth of the examples, then all of them are fitted. The same examples
    give the same bits. AdaptError for a model without a head and for no example, OneClassError for a
    single class."""
    features = probe_features(model, batches)
    probe = solve(features, model.score, strengths, seed)
    with torch.no_grad():
        model.score.weight.copy_(probe.weight)
        if probe.bias is not None:
            model.score.bias.copy_(probe.bias)
    return probe


@torch.no_grad()
def probe_features(model: Any, batches: Iterable[Batch]) -> Features:
    """What the projection of the model's head reads of each text, or of each token of `loss_mask`, and its labels."""
    if not model.capabilities.task:
        raise AdaptError(f"this {type(model).__name__} has no head; put one on it with add_head")
    head, task, xs, ys = model.score, model.capabilities.task, list[Tensor](), list[Tensor]()
    device = next(model.parameters()).device
    with evaluation_mode(model):
        for batch in batches:
            there = {name: column.to(device) for name, column in batch.items()}
            states = head_states(model, there, head.layout.pool, every=task == "tag").hidden
            mask = batch["loss_mask"] if task == "tag" else slice(None)
            xs.append(head.features(states)[mask].double().cpu())
            ys.append(batch["targets" if task == "tag" else "labels"][mask])
    if not sum(map(len, xs)):
        raise AdaptError("there is no example to fit a probe on")
    y = torch.cat(ys)
    if task == "regress":
        y = (y.double().view(len(y), -1) - head.options.mean) / head.options.std
    elif len(y.unique()) < 2:
        only = head.options.labels[int(y[0])]
        raise OneClassError(f"all {len(y)} examples have the label '{only}'; it takes two classes")
    return Features(torch.cat(xs), y)


def solve(features: Features, head: Any, strengths: Sequence[float] = STRENGTHS, seed: int = 0) -> Probe:
    """The projection of such a head: multinomial logistic regression, or ridge regression for values. Features are
    standardised first, and the scaling is multiplied into the result."""
    fit, loss = (_ridge, _squares) if features.y.is_floating_point() else (_logistic, _nats)
    n, n_out, has_bias = len(features.x), len(head.options.labels), head.bias is not None

    def solved(rows: Tensor, strength: float) -> tuple[Tensor, Tensor | None]:
        x, y = features.x[rows], features.y[rows]
        centre = x.mean(0) if has_bias else torch.zeros_like(x[0])
        x -= centre
        scale = x.norm(dim=0) / len(x) ** 0.5
        flat = scale <= torch.maximum(FLAT * scale.max(), ROUNDING * centre.abs())
        scale[flat] = torch.maximum(scale.max(), ROUNDING * centre.abs().max()).clamp_min(1e-12)
        x /= scale
        weight, bias = fit(x, y, n_out, strength, has_bias)
        weight = weight / scale
        return weight, None if bias is None else bias - weight @ centre

    order = torch.randperm(n, generator=generator("probe", seed))
    first, second = order[int(HELD_OUT * n) :], order[: int(HELD_OUT * n)]
    losses = dict[float, float]()
    if n >= FEWEST and len(strengths) > 1:
        for strength in strengths:
            weight, bias = solved(first, strength)
            losses[strength] = float(loss(_scores(features.x[second], weight, bias), features.y[second]) / len(second))
    chosen = min(losses, key=losses.__getitem__) if losses else (1.0 if len(strengths) > 1 else strengths[0])
    weight, bias = solved(torch.arange(n), chosen)
    return Probe(weight, bias, chosen, losses)


def _scores(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias)


def _nats(scores: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(scores, y, reduction="sum")


def _squares(scores: Tensor, y: Tensor) -> Tensor:
    return (scores - y).square().sum()


def _logistic(x: Tensor, y: Tensor, n: int, strength: float, has_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Minimises Σ nats + ‖W‖² / 2C by L-BFGS; convex, so that there is one solution."""
    sides = 2 if n == 2 else 1  # of two classes one vector is penalised, the difference, as in scikit-learn
    weight = torch.zeros(n, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(n, dtype=torch.float64, requires_grad=True) if has_bias else None
    optimizer = torch.optim.LBFGS(
        [weight] if bias is None else [weight, bias], max_iter=500, tolerance_grad=1e-6,
        tolerance_change=1e-9, history_size=HISTORY, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = (_nats(_scores(x, weight, bias), y) + sides * weight.square().sum() / (2 * strength)) / len(x)
        value.backward()
        return value

    closure: Callable[[], float] = objective  # pyright: ignore[reportAssignmentType]
    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), None if bias is None else bias.detach()


def _ridge(x: Tensor, y: Tensor, n: int, strength: float, has_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Minimises Σ error² + ‖W‖² / C in closed form."""
    centre = y.mean(0) if has_bias else torch.zeros(n, dtype=torch.float64)
    gram = x.T @ x + torch.eye(x.shape[1], dtype=torch.float64) / strength
    weight = torch.linalg.solve(gram, x.T @ (y - centre)).T
    return weight, centre if has_bias else None
