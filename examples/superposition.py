# SPDX-License-Identifier: Apache-2.0
"""Superposition: more features than dimensions (Elhage et al. 2022, "Toy Models of Superposition").

python -m examples.superposition [--minutes 5] [--out FILE]

x (n features, each 0 but with probability `density`, then uniform on [0, 1]) is written into m dimensions and read
again: ReLU(Wᵀ W x + b), trained by Adam on Σ importance · (x − x̂)². Many models are trained at once, each from several
starts, of which the one of the lowest loss counts.

Pentagon: five features in two dimensions: dense, of importance 0.9ⁱ (of equal importance any two directions would do),
and sparse, of equal importance. Phase diagram: two features in one dimension, by density and importance of the second;
beside it the one of three options with the lowest loss on paper. Features against dimensions: how many of 20 features
have a direction, in 2, 5 and 10 dimensions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.runs import Results
from examples.programs import Parser, cost_of, measured, require_all, run, save_figure
from foundling.runtime.rng import generator

BATCH, RATE = 256, 0.01
GRID, STARTS = 16, 4
PHASES = ("not represented", "own dimension", "superposition")
REPRESENTED = 0.5
"""a feature has a direction where the length of its column of W is above this"""
PENTAGON_STEPS, PHASE_STEPS, COUNT_STEPS = 4000, 1500, 3000


class Fitted:
    """W (M, m, n), b (M, n) and loss (M,) of M models."""

    def __init__(self, n: int, m: int, density: Tensor, importance: Tensor, steps: int, seed: int = 0) -> None:
        """density (M,), importance (M, n)"""
        draw, models = generator("superposition", seed), len(density)
        self.w = (torch.randn(models, m, n, generator=draw) * 0.3).requires_grad_()
        self.b = torch.zeros(models, n).requires_grad_()
        optimizer = torch.optim.Adam([self.w, self.b], lr=RATE)
        for step in range(steps):
            for group in optimizer.param_groups:  # to nothing in the last half
                group["lr"] = RATE * min(1.0, 2 * (1 - step / steps))
            optimizer.zero_grad()
            self.losses(features(density, n, BATCH, draw), importance).sum().backward()
            optimizer.step()
        with torch.no_grad():
            held_out = [self.losses(features(density, n, 2048, draw), importance) for _ in range(8)]
            self.loss = torch.stack(held_out).mean(0)
        self.w, self.b = self.w.detach(), self.b.detach()

    def losses(self, x: Tensor, importance: Tensor) -> Tensor:
        """x (M, B, n) -> (M,)"""
        out = torch.relu(x @ self.w.mT @ self.w + self.b[:, None])
        return ((x - out).square().mean(1) * importance).sum(-1)


def features(density: Tensor, n: int, batch: int, draw: torch.Generator) -> Tensor:
    """(M, B, n)"""
    shape = len(density), batch, n
    active = torch.rand(shape, generator=draw) < density[:, None, None]
    return torch.rand(shape, generator=draw) * active


def best_of(values: Tensor, loss: Tensor, starts: int) -> Tensor:
    """values (cases · starts, …) -> (cases, …), those of the lowest loss"""
    chosen = loss.view(-1, starts).argmin(1)
    return values.unflatten(0, (-1, starts))[torch.arange(len(chosen)), chosen]


def pentagon(density: float, decay: float = 1.0, starts: int = 32, steps: int = PENTAGON_STEPS) -> dict[str, Any]:
    """Five features in two dimensions, of importance 1, `decay`, decay², …: columns of W, the angles between neighbours
    that have a direction, and their lengths."""
    importance = (decay ** torch.arange(5)).expand(starts, 5)
    fitted = Fitted(5, 2, torch.full((starts,), density), importance, steps)
    w = best_of(fitted.w, fitted.loss, starts)[0]
    angles = torch.atan2(w[1], w[0])[w.norm(dim=0) > REPRESENTED].rad2deg() % 360
    ordered = angles.sort().values
    steps_between = torch.diff(ordered, append=ordered[:1] + 360)
    return {
        "columns": [[round(v, 4) for v in column] for column in w.T.tolist()],
        "angles between neighbours": [round(v, 2) for v in steps_between.tolist()],
        "lengths": [round(v, 3) for v in w.norm(dim=0).tolist()],
        "loss": round(float(fitted.loss.min()), 5),
    }


def phase_grid() -> tuple[Tensor, Tensor]:
    """density and importance of the second feature, (GRID · GRID,) each: 1 to 0.01, and 0.1 to 10"""
    density = 10 ** torch.linspace(0, -2, GRID)
    importance = 10 ** torch.linspace(-1, 1, GRID)
    return density.repeat_interleave(GRID), importance.repeat(GRID)


def phases(steps: int = PHASE_STEPS, starts: int = STARTS) -> dict[str, Any]:
    """Of the second of two features in one dimension, trained and on paper: rows by density, columns by importance."""
    density, importance = phase_grid()
    weights = torch.stack([torch.ones_like(importance), importance], 1)
    fitted = Fitted(2, 1, density.repeat_interleave(starts), weights.repeat_interleave(starts, 0), steps)
    first, second = (best_of(fitted.w, fitted.loss, starts)[:, 0].abs() > REPRESENTED).unbind(1)
    trained = torch.where(second, torch.where(first, 2, 1), 0)
    expected = expected_phases(density, importance)
    return {
        "trained": trained.view(GRID, GRID).tolist(),
        "on paper": expected.view(GRID, GRID).tolist(),
        "agreement": round(float((trained == expected).float().mean()), 4),
    }


def expected_phases(density: Tensor, importance: Tensor) -> Tensor:
    """The one of three options with the lowest loss; weights between them may have a lower one. One feature alone: the
    other is predicted by its mean, and costs its variance p/3 − p²/4. Both, as 1 and −1: min(x₁, x₂) is lost of each
    where both are active, and E min² = 1/6 (Elhage et al. 2022, section "The phase change", with the bias)."""
    variance = density / 3 - density**2 / 4
    losses = torch.stack([importance * variance, variance, (1 + importance) * density**2 / 6], 1)
    return losses.argmin(1)


def counts(m: int, n: int = 20, starts: int = 4, steps: int = COUNT_STEPS) -> dict[str, Any]:
    """By density: how many of n features have a direction in m dimensions."""
    densities = [1.0, 0.3, 0.1, 0.03, 0.01]
    density = torch.tensor(densities).repeat_interleave(starts)
    fitted = Fitted(n, m, density, (0.9 ** torch.arange(n)).expand(len(density), n), steps)
    w = best_of(fitted.w, fitted.loss, starts)
    represented = (w.norm(dim=1) > REPRESENTED).sum(-1).tolist()
    per_feature = (m / w.square().sum((1, 2))).tolist()
    return {
        str(d): {"features": k, "dimensions per feature": round(p, 3)}
        for d, k, p in zip(densities, represented, per_feature, strict=True)
    }


def check(results: Results) -> None:
    """The pentagon is there within 2°, dense features get no superposition, and the phases are those on paper."""
    values = results.values
    sparse, dense = values["pentagon, density 0.05"], values["pentagon, density 1.0"]
    assert len(sparse["angles between neighbours"]) == 5, sparse
    assert max(abs(angle - 72) for angle in sparse["angles between neighbours"]) < 2, sparse
    assert len(dense["angles between neighbours"]) == 2, dense
    assert values["phases"]["agreement"] > 0.9, values["phases"]["agreement"]
    for m in (2, 5, 10):
        by_density = values[f"features in {m} dimensions"]
        assert by_density["1.0"]["features"] == m < by_density["0.01"]["features"], by_density


def figure(results: Results, file: Path) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    fig, axes = plt.subplots(1, 5, figsize=(13, 3.0), width_ratios=[1, 1, 1, 1.1, 1.1])
    for axis, density in zip(axes, (1.0, 0.2, 0.05), strict=False):
        for x, y in results.values[f"pentagon, density {density}"]["columns"]:
            axis.plot([0, x], [0, y], marker="o", markevery=[1], color="#1f6f78")
        axis.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", title=f"5 features in 2, density {density:g}")
    colours = ListedColormap(["#dedcd4", "#b0562a", "#1f6f78"])
    for axis, name in zip(axes[3:], ("trained", "on paper"), strict=True):
        axis.imshow(results.values["phases"][name], cmap=colours, vmin=0, vmax=2, extent=(-1, 1, -2, 0), aspect="auto")
        axis.set(xlabel="log10 importance of the second", ylabel="log10 density", title=f"2 features in 1, {name}")
    for colour, name in zip(colours(range(3)), PHASES, strict=True):
        axes[4].plot([], [], "s", color=colour, label=name)
    axes[4].legend(fontsize=7, loc="upper left")
    save_figure(fig, file)


def main() -> None:
    parser = Parser("superposition", __doc__, small="", seeds=False)
    args = parser.parse_args()
    settings = {"pentagon steps": PENTAGON_STEPS, "phase steps": PHASE_STEPS, "count steps": COUNT_STEPS, "grid": GRID}
    results, picture = parser.results(args, settings)
    for density, decay in ((1.0, 0.9), (0.2, 1.0), (0.05, 1.0)):
        name = f"pentagon, density {density}"
        results.get(name, lambda density=density, decay=decay: measured(pentagon, density, decay, threads=1))
    for m in (2, 5, 10):
        results.get(f"features in {m} dimensions", lambda m=m: measured(counts, m, threads=1))
    results.get("phases", lambda: measured(phases, threads=1))
    require_all(results)
    print(cost_of(results))
    figure(results, picture)
    check(results)


if __name__ == "__main__":
    run(main)
