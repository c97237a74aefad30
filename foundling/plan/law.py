# SPDX-License-Identifier: Apache-2.0
"""The loss law: predicts held-out bits per byte from parameters, bytes read and a proxy run on the corpus.

bpb = c · (E + A / N^alpha + B / (D / D0)^beta) · e^(−late · r · ln²(D / D1)), the form of Hoffmann et al. 2022
(approach 3), where N counts the parameters that multiply, D the bytes of text, and c is the scale of the corpus: the
loss of a small model in a proxy run over about D0 bytes. The proxy run misses long-range repetition, which models learn
late (from D1 on) but xz detects: r = ln(c / xz / 1.6). Repeated text is worth less, and the more parameters, the
sooner. All coefficients are fitted to runs of this code over several corpora (calibration.json; `python -m
benchmarks.calibrate` regenerates it).
"""

from __future__ import annotations

import json
import lzma
import math
from dataclasses import dataclass
from importlib import resources
from typing import Any

PROXY_BYTES = 1e5
"""D0, the approximate number of bytes in a proxy run."""
LATE_FROM, LATE_TO = 1e6, 1e8
"""D1, and the bytes at which the effect of repetition is capped: no calibration run has read more than half of them."""
TYPICAL, MIN_RATIO = 1.6, 1.5
"""c / xz of ordinary text, and its lower bound: below that, the law would predict that more text does harm."""


def compressibility(sample: bytes) -> float:
    """Bits per byte of a sample (some 100 kB suffice) under xz."""
    return 8 * len(lzma.compress(sample, preset=6)) / max(1, len(sample))


def effective_bytes(bytes_read: float, unique_bytes: float, reuse: float) -> float:
    """The equivalent number of unique bytes: D' = U + U·R·(1 − e^(−(epochs−1)/R))
    (Muennighoff et al. 2023, eq. 5, whose R is 15.4 for models and corpora a thousand times as large)."""
    if bytes_read <= unique_bytes:
        return bytes_read
    repeats = bytes_read / unique_bytes - 1
    return unique_bytes * (1 + reuse * (1 - math.exp(-repeats / reuse)))


@dataclass(frozen=True)
class Corpus:
    """Measurements of the corpus that a prediction needs."""

    train_bytes: int
    bytes_per_token: float
    scale: float
    """bits per byte under xz"""
    look: float
    """bits per byte of the proxy run (plan/probe.proxy_run)"""


@dataclass(frozen=True)
class LossLaw:
    E: float
    A: float
    alpha: float
    B: float
    beta: float
    reuse: float
    """The epochs of new text that unlimited repetition is worth, at ten bytes of text per parameter; proportional to
    bytes per parameter."""
    late: float
    error: float
    """Root mean square of ln(measured / predicted), cross-validated over corpora."""
    runs: int

    def bits_per_byte(self, n: float, bytes_read: float, corpus: Corpus) -> float:
        d = effective_bytes(bytes_read, corpus.train_bytes, self.reuse * corpus.train_bytes / (10 * n))
        late = math.log(min(max(d, LATE_FROM), LATE_TO) / LATE_FROM) ** 2
        gain = math.exp(-self.late * math.log(max(corpus.look / corpus.scale, MIN_RATIO) / TYPICAL) * late)
        return corpus.look * (self.E + self.A / n**self.alpha + self.B / (d / PROXY_BYTES) ** self.beta) * gain


def load_law() -> LossLaw:
    table = json.loads((resources.files("foundling.plan") / "calibration.json").read_text(encoding="utf-8"))
    return LossLaw(**table["law"])


def fit(runs: list[dict[str, Any]]) -> LossLaw:
    """Least squares on ln(bpb) over runs with corpus, n, bytes_read, unique_bytes, scale, look, bits_per_byte."""
    theta = _fit(runs)
    corpora, squares = sorted({run["corpus"] for run in runs}), []
    for name in corpora if len(corpora) > 1 else []:
        rest = _fit([run for run in runs if run["corpus"] != name], start=theta)
        out = [run for run in runs if run["corpus"] == name]
        squares += (_predicted(rest, out) - _measured(out)).square().tolist()
    error = math.sqrt(sum(squares) / len(squares)) if squares else math.nan
    e, a, alpha, b, beta, reuse = (math.exp(x) for x in theta[:6])
    return LossLaw(e, a, alpha, b, beta, reuse, theta[6], round(error, 5), len(runs))


def _measured(runs: list[dict[str, Any]]) -> Any:
    import torch

    return torch.tensor([math.log(run["bits_per_byte"]) for run in runs], dtype=torch.float64)


def _predicted(theta: Any, runs: list[dict[str, Any]]) -> Any:
    """ln(bpb), with theta the logarithms of E, A, alpha, B, beta, reuse, and late."""
    import torch

    e, a, alpha, b, beta, reuse, late = torch.as_tensor(theta, dtype=torch.float64)
    columns = [(run["n"], run["bytes_read"], run["unique_bytes"], run["scale"], run["look"]) for run in runs]
    n, read, unique, scale, look = torch.tensor(columns, dtype=torch.float64).T
    repeats, worth = (read / unique - 1).clamp_min(0), reuse.exp() * unique / (10 * n)
    d = read.minimum(unique) + unique * worth * (1 - (-repeats / worth).exp())
    gain = (
        late
        * ((look / scale).clamp_min(MIN_RATIO) / TYPICAL).log()
        * (d.clamp(LATE_FROM, LATE_TO) / LATE_FROM).log() ** 2
    )
    terms = torch.stack([e.expand_as(n), a - alpha.exp() * n.log(), b - beta.exp() * (d / PROXY_BYTES).log()])
    return look.log() + torch.logsumexp(terms, 0) - gain


PRIORS = {
    0: (math.log(0.3), 1e-5),
    2: (math.log(0.34), 1e-4),
    4: (math.log(0.28), 1e-4),
    5: (0.0, 1e-5),
    6: (0.1, 1e-5),
}
"""Weak priors (index: mean, strength) for coefficients that a few small runs cannot identify: the exponents at the
published values, E at 0.3 of the scale, reuse at 1, late at 0.1."""


def _fit(runs: list[dict[str, Any]], start: Any = None) -> list[float]:
    """L-BFGS from a grid of starts (Hoffmann et al. 2022, appendix D.3)."""
    import itertools

    import torch

    starts = [start] if start is not None else [
        [math.log(e), math.log(a), math.log(0.34), math.log(b), math.log(0.28), math.log(reuse), 0.1]
        for e, a, b, reuse in itertools.product((0.2, 0.4), (2.0, 20.0), (0.5, 2.0), (0.5, 5.0))
    ]  # fmt: skip
    measured = _measured(runs)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        prior = sum(strength * (theta[i] - mean).square() for i, (mean, strength) in PRIORS.items())
        return (_predicted(theta, runs) - measured).square().mean() + prior

    best, best_loss = None, math.inf
    for initial in starts:
        theta = torch.tensor(initial, dtype=torch.float64, requires_grad=True)
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
