# SPDX-License-Identifier: Apache-2.0
"""The loss law: held-out bits per byte from parameters, bytes read and how compressible the corpus is.

bpb = c · (E + A / N^alpha + B / D^beta), the form of Hoffmann et al. 2022 (approach 3), where N counts parameters that
multiply, D bytes of text and c the corpus's own bits per byte under xz, which stands for how predictable it is.
Coefficients are fitted to runs of this code (calibration.json; `python -m benchmarks.calibrate` makes it again).
"""

from __future__ import annotations

import json
import lzma
import math
from dataclasses import dataclass
from importlib import resources
from typing import Any

REUSE_HALF = 15.4
"""Repeated text is worth less: D' = U + U·R·(1 − e^(−(epochs−1)/R)) with R = 15.4 (Muennighoff et al. 2023, eq. 5)."""


def compressibility(sample: bytes) -> float:
    """Bits per byte of a sample (some 100 kB suffice) under xz: the corpus's own scale."""
    return 8 * len(lzma.compress(sample, preset=6)) / max(1, len(sample))


def effective_bytes(bytes_read: float, unique_bytes: float) -> float:
    """What the bytes read are worth, given how many of them are new."""
    if bytes_read <= unique_bytes:
        return bytes_read
    repeats = bytes_read / unique_bytes - 1
    return unique_bytes * (1 + REUSE_HALF * (1 - math.exp(-repeats / REUSE_HALF)))


@dataclass(frozen=True)
class LossLaw:
    E: float
    A: float
    alpha: float
    B: float
    beta: float
    error: float
    """root mean square of ln(measured / predicted) over the runs it was fitted to, each left out in turn"""
    runs: int

    def bits_per_byte(self, n: float, bytes_read: float, unique_bytes: float, scale: float) -> float:
        d = effective_bytes(bytes_read, unique_bytes)
        return scale * (self.E + self.A / n**self.alpha + self.B / d**self.beta)


def load_law() -> LossLaw:
    table = json.loads((resources.files("foundling.plan") / "calibration.json").read_text(encoding="utf-8"))
    return LossLaw(**table["law"])


def fit(runs: list[dict[str, Any]]) -> LossLaw:
    """Least squares on ln(bpb / scale) over runs with n, bytes_read, unique_bytes, scale, bits_per_byte."""
    theta = _fit(runs)
    left_out = []
    for i, run in enumerate(runs):
        rest = runs[:i] + runs[i + 1 :]
        predicted = _predict(_fit(rest, start=theta), run)
        left_out.append(math.log(run["bits_per_byte"] / run["scale"]) - predicted)
    error = math.sqrt(sum(e * e for e in left_out) / len(left_out))
    e, a, alpha, b, beta = theta
    return LossLaw(math.exp(e), math.exp(a), math.exp(alpha), math.exp(b), math.exp(beta), round(error, 5), len(runs))


def _predict(theta: Any, run: dict[str, Any]) -> Any:
    """ln(bpb / scale), with theta the logarithms of E, A, alpha, B, beta."""
    import torch

    e, a, alpha, b, beta = torch.as_tensor(theta, dtype=torch.float64)
    d = effective_bytes(run["bytes_read"], run["unique_bytes"])
    return torch.logsumexp(torch.stack([e, a - alpha.exp() * math.log(run["n"]), b - beta.exp() * math.log(d)]), 0)


def _fit(runs: list[dict[str, Any]], start: Any = None) -> list[float]:
    """L-BFGS from a grid of starts (Hoffmann et al. 2022, appendix D.3), with a weak pull of the exponents to the
    published 0.34 and 0.28, since a handful of small runs cannot tell them apart from E."""
    import itertools

    import torch

    starts = [start] if start is not None else [
        [math.log(e), math.log(a), math.log(0.34), math.log(b), math.log(0.28)]
        for e, a, b in itertools.product((0.2, 0.4), (2.0, 20.0), (10.0, 60.0))
    ]  # fmt: skip
    x = [(math.log(r["n"]), math.log(effective_bytes(r["bytes_read"], r["unique_bytes"]))) for r in runs]
    y = torch.tensor([math.log(r["bits_per_byte"] / r["scale"]) for r in runs], dtype=torch.float64)
    ln_n, ln_d = torch.tensor(x, dtype=torch.float64).T
    prior = torch.tensor([math.log(0.34), math.log(0.28)], dtype=torch.float64)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        e, a, alpha, b, beta = theta
        guess = torch.logsumexp(torch.stack([e.expand_as(y), a - alpha.exp() * ln_n, b - beta.exp() * ln_d]), 0)
        pull = (theta[[2, 4]] - prior).square().sum()
        return (guess - y).square().mean() + 1e-4 * pull

    best, best_loss = None, math.inf
    for guess in starts:
        theta = torch.tensor(guess, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([theta], max_iter=300, line_search_fn="strong_wolfe", tolerance_change=1e-12)

        def closure(theta: torch.Tensor = theta, optimiser: Any = optimiser) -> torch.Tensor:
            optimiser.zero_grad()
            value = loss(theta)
            value.backward()
            return value

        optimiser.step(closure)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            value = float(loss(theta))
        if value < best_loss:
            best, best_loss = theta.detach().tolist(), value
    assert best is not None
    return best
