# SPDX-License-Identifier: Apache-2.0
"""The loss law: held-out bits per byte from parameters, bytes read and what a first look at the corpus says.

bpb = c · (E + A / N^alpha + B / (D / D0)^beta) · e^(−late · r · ln²(D / D1)), the form of Hoffmann et al. 2022
(approach 3), where N counts parameters that multiply, D bytes of text and c is the corpus's own scale: what a small
model reaches on it in a first look, for which it reads some D0 bytes. A look sees nothing of what repeats over long
distances, which is learnt late (from D1 on) and which xz does see: r = ln(c / xz / 1.6). Text read again is worth
less, the sooner so the more parameters there are to hold it. All is fitted to runs of this code over several corpora
(calibration.json; `python -m benchmarks.calibrate` makes it again).
"""

from __future__ import annotations

import json
import lzma
import math
from dataclasses import dataclass
from importlib import resources
from typing import Any

LOOK_READS = 1e5
"""D0, bytes that a first look reads, about."""
LATE_FROM, LATE_TO = 1e6, 1e8
"""D1, and the bytes beyond which nothing more is made of repetition: no run has read more than half as many."""
TYPICAL, LEAST = 1.6, 1.5
"""c / xz of ordinary text, and the least that is told apart: below it more text would be foreseen to do harm"""


def compressibility(sample: bytes) -> float:
    """Bits per byte of a sample (some 100 kB suffice) under xz: the corpus's own scale."""
    return 8 * len(lzma.compress(sample, preset=6)) / max(1, len(sample))


def effective_bytes(bytes_read: float, unique_bytes: float, reuse: float) -> float:
    """What the bytes read are worth, given how many of them are new: D' = U + U·R·(1 − e^(−(epochs−1)/R))
    (Muennighoff et al. 2023, eq. 5, whose R is 15.4 for models and corpora a thousand times as large)."""
    if bytes_read <= unique_bytes:
        return bytes_read
    repeats = bytes_read / unique_bytes - 1
    return unique_bytes * (1 + reuse * (1 - math.exp(-repeats / reuse)))


@dataclass(frozen=True)
class Corpus:
    """What a prediction needs to know of the data."""

    train_bytes: int
    bytes_per_token: float
    scale: float
    """bits per byte under xz"""
    look: float
    """bits per byte of a first look (plan/probe.proxy_run)"""


@dataclass(frozen=True)
class LossLaw:
    E: float
    A: float
    alpha: float
    B: float
    beta: float
    reuse: float
    """epochs of new text that all repetition together comes to be worth, at ten bytes of text for each parameter; in
    proportion at others"""
    late: float
    error: float
    """root mean square of ln(measured / predicted) over the runs it was fitted to, each corpus left out in turn"""
    runs: int

    def bits_per_byte(self, n: float, bytes_read: float, corpus: Corpus) -> float:
        d = effective_bytes(bytes_read, corpus.train_bytes, self.reuse * corpus.train_bytes / (10 * n))
        late = math.log(min(max(d, LATE_FROM), LATE_TO) / LATE_FROM) ** 2
        gain = math.exp(-self.late * math.log(max(corpus.look / corpus.scale, LEAST) / TYPICAL) * late)
        return corpus.look * (self.E + self.A / n**self.alpha + self.B / (d / LOOK_READS) ** self.beta) * gain


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
    of = [(run["n"], run["bytes_read"], run["unique_bytes"], run["scale"], run["look"]) for run in runs]
    n, read, unique, scale, look = torch.tensor(of, dtype=torch.float64).T
    repeats, worth = (read / unique - 1).clamp_min(0), reuse.exp() * unique / (10 * n)
    d = read.minimum(unique) + unique * worth * (1 - (-repeats / worth).exp())
    gain = (
        late * ((look / scale).clamp_min(LEAST) / TYPICAL).log() * (d.clamp(LATE_FROM, LATE_TO) / LATE_FROM).log() ** 2
    )
    terms = torch.stack([e.expand_as(n), a - alpha.exp() * n.log(), b - beta.exp() * (d / LOOK_READS).log()])
    return look.log() + torch.logsumexp(terms, 0) - gain


PULL = {0: (math.log(0.3), 1e-5), 2: (math.log(0.34), 1e-4), 4: (math.log(0.28), 1e-4), 5: (0.0, 1e-5), 6: (0.1, 1e-5)}
"""Where a handful of small runs cannot tell coefficients apart they are held, weakly: the exponents at the published
ones, E at 0.3 of the scale, reuse at 1, late at 0.1."""


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
        pull = sum(strength * (theta[i] - to).square() for i, (to, strength) in PULL.items())
        return (_predicted(theta, runs) - measured).square().mean() + pull

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
