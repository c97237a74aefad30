# SPDX-License-Identifier: Apache-2.0
"""Time series as tokens: one decoder for all of sktime's small series, beside the seasonal-naive forecast.

python -m benchmarks.series [--steps 3000] [--width 64] [--real 0.5,0] [--minutes 5]

After Chronos (Ansari et al. 2024): values are scaled by mean and deviation of the context and put into BINS bins, one
token each, and a decoder is trained to predict the next. A row is a window of the first four fifths of a real series,
or a synthetic one (season + trend + noise). Forecasts of one season in the last fifth, begun at every quarter of one:
medians of PATHS samples. MASE is the mean absolute error over that of the seasonal-naive forecast within the training
part, so the naive column says what it has on the last fifth.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.fetch import fetch
from benchmarks.runs import Results, causal_batch, train_model
from foundling.contracts.data import Batch
from foundling.models import family
from foundling.runtime.rng import generator

BINS, LIMIT = 128, 5.0
"""bins between −LIMIT and LIMIT deviations"""
CONTEXT, ROW = 96, 144
ROWS, PATHS = 32, 20


class Series(NamedTuple):
    period: int
    values: np.ndarray

    @property
    def cut(self) -> int:
        """where the last fifth begins"""
        return len(self.values) * 4 // 5


def column(name: str, key: str | int) -> np.ndarray:
    file = Path("sktime/datasets/data") / name / f"{name}.csv"
    rows = list(csv.reader((fetch("sktime") / file).read_text(encoding="utf-8").splitlines()))
    at = key if isinstance(key, int) else rows[0].index(key)
    return np.array([float(row[at]) for row in rows[1:] if row[at]])


def all_series() -> dict[str, Series]:
    changes = {f"US {name}": Series(4, column("Uschange", name)) for name in ("Consumption", "Unemployment", "Income")}
    return {
        "Airline": Series(12, column("Airline", "Passengers")),
        "PBS": Series(12, column("PBS_dataset", "Scripts")),
        "seatbelts": Series(12, column("seatbelts", "KSI")),
        "Lynx": Series(10, column("Lynx", 1)),
        "solar": Series(48, column("solar", "solar_gen")),
        "yahoo": Series(24, column("yahoo", "data")),
        "ECG": Series(38, column("mitdb", "data")[::8]),
        **changes,
    }  # ECG: 360 values a second, of which each eighth, and some 0.8 s a beat


def tokens(values: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """(B, T) values, (B, 1) scales -> (B, T) bins"""
    scaled = (values - mean) / deviation
    return ((scaled + LIMIT) / (2 * LIMIT) * BINS).floor().clamp(0, BINS - 1).long()


def scales(context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    deviation = context.std(1, keepdim=True)
    return context.mean(1, keepdim=True), torch.where(deviation > 1e-8, deviation, 1.0)


def synthetic(n: int, draw: torch.Generator) -> torch.Tensor:
    """(n, ROW): Fourier series of a random period, a line, and noise that remembers."""

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=draw)

    t = torch.arange(ROW)[None, None]
    period = torch.exp(uniform(math.log(3.5), math.log(50), 1, 1)).round()
    size = torch.randn(n, 4, 1, generator=draw) / torch.arange(1, 5)[None, :, None]
    phase = uniform(0, 2 * math.pi, 4, 1)
    season = (size * torch.sin(2 * math.pi * torch.arange(1, 5)[None, :, None] * t / period + phase)).sum(1)
    noise, memory = torch.randn(n, ROW, generator=draw), uniform(0, 0.95, 1)
    for i in range(1, ROW):
        noise[:, i] = memory[:, 0] * noise[:, i - 1] + (1 - memory[:, 0] ** 2).sqrt() * noise[:, i]
    line = uniform(-2, 2, 1) * torch.linspace(-1, 1, ROW)
    growing = 1 + uniform(-0.5, 0.5, 1) * torch.linspace(-1, 1, ROW)
    return growing * season * uniform(0, 1.5, 1) + line + noise * uniform(0.02, 0.5, 1)


class Windows:
    def __init__(self, series: dict[str, Series], real: float) -> None:
        self.known = [torch.tensor(s.values[: s.cut], dtype=torch.float32) for s in series.values()]
        self.real = real

    def __getitem__(self, n: int) -> Batch:
        draw = generator("windows", 0, n)
        rows = synthetic(ROWS, draw)
        counted = torch.ones(ROWS, ROW, dtype=torch.bool)
        for i in range(round(self.real * ROWS)):
            values = self.known[int(torch.randint(len(self.known), (), generator=draw))]
            length = min(ROW, len(values))
            start = int(torch.randint(len(values) - length + 1, (), generator=draw))
            noise = 1 + 0.02 * torch.randn(length, generator=draw)  # so that no window is read twice
            rows[i, :length] = values[start : start + length] * noise
            counted[i, length:] = False
        used = torch.randint(24, CONTEXT, (), generator=draw)
        ids = tokens(rows, *scales(rows[:, : int(used)]))
        return causal_batch(torch.cat([torch.full((ROWS, 1), BINS), ids], 1), counted)


@torch.inference_mode()
def forecast(model: Any, contexts: torch.Tensor, horizon: int) -> np.ndarray:
    """(n, C) values -> (n, horizon): medians of PATHS samples."""
    n, draw = len(contexts), generator("paths", 0)
    mean, deviation = scales(contexts)
    ids = tokens(contexts, mean, deviation).repeat_interleave(PATHS, 0)
    ids = torch.cat([torch.full((len(ids), 1), BINS), ids], 1)
    cache, new, drawn = model.new_cache(len(ids), ids.shape[1] + horizon), ids, []
    for _ in range(horizon):
        logits = model.logits(model(new, cache=cache).hidden[:, -1:])[:, 0, :BINS]
        new = torch.multinomial(logits.softmax(-1), 1, generator=draw)
        drawn.append(new)
    middle = (torch.cat(drawn, 1).float() + 0.5) / BINS * 2 * LIMIT - LIMIT
    return (middle.unflatten(0, (n, PATHS)).median(1).values * deviation + mean).numpy()


def errors(series: Series, model: Any) -> dict[str, float]:
    """MASE of the model and of the seasonal-naive forecast on the last fifth."""
    period, values = series.period, series.values
    context = min(CONTEXT, series.cut)
    origins = range(series.cut, len(values) - period + 1, max(1, period // 4))
    truth = np.stack([values[o : o + period] for o in origins])
    contexts = torch.tensor(np.stack([values[o - context : o] for o in origins]), dtype=torch.float32)
    known = values[: series.cut]
    unit = np.abs(known[period:] - known[:-period]).mean()
    naive = np.stack([values[o - period : o] for o in origins])
    ours = forecast(model, contexts, period)
    return {
        "MASE": round(float(np.abs(ours - truth).mean() / unit), 3),
        "naive": round(float(np.abs(naive - truth).mean() / unit), 3),
        "forecasts": len(truth),
    }


def measure(steps: int, width: int, real: float) -> dict[str, Any]:
    series = all_series()
    config = family("llama").module.sized(BINS + 1, ROW, width, 4)
    model = train_model("llama", config, Windows(series, real), steps)
    result: dict[str, Any] = {name: errors(s, model) for name, s in series.items()}
    ratios = [value["MASE"] / value["naive"] for value in result.values()]
    return result | {"geometric mean of the ratios": round(math.exp(np.log(ratios).mean()), 3)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument(
        "--real", default="0.5,0", help="share of real windows; 0: the series are never seen in training"
    )
    parser.add_argument("--minutes", type=float, default=5)
    args = parser.parse_args()
    results = Results("series", minutes=args.minutes)
    for real in map(float, args.real.split(",")):
        name = f"{args.steps} steps, width {args.width}, real windows {real:g}"
        results.get(name, lambda real=real: measure(args.steps, args.width, real))


if __name__ == "__main__":
    main()
