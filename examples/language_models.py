# SPDX-License-Identifier: Apache-2.0
"""All kinds of language model on the same bytes: n-gram, feed-forward, LSTM, Transformer, state space.

python -m examples.language_models bits    bits per byte against compute, on the Python library
python -m examples.language_models cost    seconds of a training token and peak memory, 256 to 16,384 tokens
python -m examples.language_models recall  which of them still know one token, or eight, after many others
                                           [--small] [--minutes 30] [--threads 1]

Each prints its table in Markdown; a second call goes on where the first one ended. Nothing else should run beside
`cost`.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.learning import Setting, TokenizedCorpus
from benchmarks.learning import run as train_and_score
from benchmarks.runs import Results, causal_batch, train_model
from examples.programs import Parser, cost_of, measured, number, require_all, run, save_figure, table
from foundling.contracts.data import Batch
from foundling.data.loader import packed
from foundling.evaluate.baselines.ngram import ByteNGram
from foundling.models import build, count_parameters, family
from foundling.objectives.causal import Causal
from foundling.runtime.device import Runtime, available_threads
from foundling.runtime.files import read_json
from foundling.runtime.rng import generator
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState

KINDS = {
    "ffn_lm": "feed-forward, 8 tokens (Bengio et al. 2003)", "lstm": "LSTM", "gpt2": "Transformer, GPT-2",
    "llama": "Transformer, Llama", "mamba2": "state space, Mamba-2",
}  # fmt: skip
VOCAB = 2048
BUDGETS = {"2e11": (64, 2), "8e11": (96, 3), "3.2e12": (128, 4)}
"""FLOPs -> width and depth, the same for all"""
ORDERS = (2, 3, 4, 6)
COSTED = ("lstm", "gpt2", "mamba2", "rwkv")
LENGTHS = (256, 1024, 4096, 16384)
TOKENS = 16384
"""of a training step, in rows of each length"""
DISTANCES = (1, 4, 8, 16, 32, 64, 128)
SYMBOLS, FILLERS, ROWS, STEPS = 16, 16, 64, 1500
COPIED = (1, 8)
"""symbols that are asked for, all in their order"""


# --- bits per byte ---------------------------------------------------------------------------------------------------


@functools.cache
def corpus() -> TokenizedCorpus:
    return TokenizedCorpus("stdlib", VOCAB, 200_000)


def bits(name: str, budget: str, threads: int) -> dict[str, Any]:
    size, setting = BUDGETS[budget], Setting(family=name, vocab_size=VOCAB)
    per_token = setting.flops_per_token(*size)
    result = train_and_score(corpus(), *size, float(budget) / per_token, 0, threads, setting)
    parameters = count_parameters(build(name, device="meta", **setting.config(*size)))["total"]
    return {
        "parameters": parameters, "bytes read": result["bytes_read"], "bits per byte": result["bits_per_byte"],
        "seconds": result["seconds"],
    }  # fmt: skip


def ngram(order: int, n_bytes: int) -> dict[str, Any]:
    """Of the first `n_bytes` of the training documents, on the held-out bytes that the others are measured on."""
    data, texts, size = corpus(), [], 0
    start = time.monotonic()
    for document in data.corpus.train():
        text = document.text.encode()
        texts.append(text[: n_bytes - size])
        size += len(texts[-1])
        if size >= n_bytes:
            break
    held_out, left = [], data.held_out_bytes
    for document in data.corpus.held_out:
        if left <= 0:
            break
        held_out.append(document.text.encode())
        left -= len(held_out[-1])
    value = ByteNGram.fit(texts, order).bits_per_byte(held_out)
    return {"bytes read": size, "bits per byte": round(value, 5), "seconds": round(time.monotonic() - start, 2)}


def measure_bits(results: Results, budgets: Sequence[str], threads: int) -> None:
    for budget, name in itertools.product(budgets, KINDS):
        results.get(f"{name} {budget}", lambda name=name, budget=budget: measured(bits, name, budget, threads))
    if results.complete:
        most = max(results.values[f"{name} {budget}"]["bytes read"] for budget in budgets for name in KINDS)
        for order in ORDERS:
            results.get(f"{order}-gram", lambda order=order: measured(ngram, order, most, threads=threads))


def bits_tables(values: dict[str, Any]) -> str:
    rows = [["model", *(f"{budget} FLOPs" for budget in BUDGETS)]]
    for name, label in KINDS.items():
        cells = [values.get(f"{name} {budget}") for budget in BUDGETS]
        rows.append(
            [label, *(f"{c['bits per byte']:.3f} ({c['bytes read'] / 1e6:.1f} MB)" if c else "–" for c in cells)]
        )
    grams: list[list[Any]] = [["byte n-gram", "bits per byte", "MB read", "seconds"]]
    for order in ORDERS:
        if c := values.get(f"{order}-gram"):
            grams.append([order, f"{c['bits per byte']:.3f}", f"{c['bytes read'] / 1e6:.1f}", c["seconds"]])
    return table(rows) + "\n\n" + table(grams)


# --- cost of a token ------------------------------------------------------------------------------------------------


def cost(name: str, seq_len: int, threads: int) -> dict[str, Any]:
    """Of one training step over TOKENS tokens in rows of `seq_len`: the fastest of three."""
    runtime = Runtime(threads=threads)
    runtime.setup()
    model = build(name, **family(name).module.sized(VOCAB, seq_len, 256, 4))
    rows = torch.randint(3, VOCAB, (TOKENS // seq_len, seq_len + 1), generator=generator("cost", seq_len))
    batch = packed(rows, eos=0) | {"sample_ids": torch.arange(len(rows))}
    state, marks = TrainState.build(model, OptimOptions()), [time.perf_counter()]
    for _ in train(state, Causal(), [batch] * 4, Schedule(4), TrainOptions(len(rows)), runtime):
        marks.append(time.perf_counter())
    fastest = min([b - a for a, b in itertools.pairwise(marks)][1:])
    return {"µs a token": round(1e6 * fastest / TOKENS, 2)}


def cost_table(values: dict[str, Any]) -> str:
    """Microseconds a token, and GiB."""
    rows = [["model", *(f"{n:,}" for n in LENGTHS)]]
    for name in COSTED:
        cells = [values.get(f"{name} {n}") for n in LENGTHS]
        rows.append([name, *(f"{c['µs a token']:.0f}, {gib(c):.1f}" if c else "–" for c in cells)])
    return table(rows)


def gib(cell: dict[str, Any]) -> float:
    return cell["peak memory (MB)"] * 1e6 / 2**30


# --- recall by distance ---------------------------------------------------------------------------------------------


def recall_rows(n: int, distance: int, copied: int, draw: torch.Generator) -> Tensor:
    """(n, 1 + 2 · copied + distance): symbols, fillers, a mark that asks for the symbols, and these again."""
    symbols = torch.randint(SYMBOLS, (n, copied), generator=draw)
    fillers = SYMBOLS + torch.randint(FILLERS, (n, distance), generator=draw)
    ask = torch.full((n, 1), SYMBOLS + FILLERS)
    return torch.cat((symbols, fillers, ask, symbols), 1)


class Recall:
    """One distance a batch, all by turns."""

    def __init__(self, distances: Sequence[int], copied: int) -> None:
        self.distances, self.copied = distances, copied

    def __getitem__(self, n: int) -> Batch:
        distance = self.distances[n % len(self.distances)]
        rows = recall_rows(ROWS, distance, self.copied, generator("recall", 0, n))
        counted = torch.zeros(ROWS, rows.shape[1] - 1, dtype=torch.bool)
        counted[:, -self.copied :] = True
        return causal_batch(rows, counted)


@torch.inference_mode()
def recall(name: str, distances: Sequence[int], steps: int, copied: int, threads: int = 1) -> dict[str, float]:
    """distance -> share of 1,024 new rows whose symbols are all the likeliest, of a model trained on all distances"""
    config = family(name).module.sized(SYMBOLS + FILLERS + 1, max(distances) + 2 * copied + 1, 64, 2)
    with torch.inference_mode(False):
        model = train_model(name, config, Recall(distances, copied), steps, threads=threads)
    shares = {}
    for distance in distances:
        rows = recall_rows(1024, distance, copied, generator("held out", 0, distance))
        answers = model.logits(model(rows[:, :-1]).hidden[:, -copied:]).argmax(-1)
        shares[str(distance)] = round(float((answers == rows[:, -copied:]).all(1).float().mean()), 4)
    return shares


def recall_table(values: dict[str, Any]) -> str:
    """Of the models that were measured; below it those that were not."""
    distances = values["settings"]["distances"]
    rows: list[list[Any]] = [["model", "symbols", *distances]]
    missing = []
    for copied, (name, label) in itertools.product(COPIED, KINDS.items()):
        if cell := values.get(f"{name} {copied}"):
            rows.append([label, copied, *(f"{cell[str(n)]:.2f}" for n in distances)])
        else:
            missing.append(f"{label}, {copied} symbol{'s' * (copied > 1)}")
    return table(rows) + (f"\n\nNot measured: {'; '.join(missing)}." if missing else "")


PARTS = {"bits": bits_tables, "cost": cost_table, "recall": recall_table}


# --- figures ---------------------------------------------------------------------------------------------------------


def figure(values: dict[str, Any], file: Path) -> None:
    """Of what was measured so far."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 4, figsize=(14, 3.3))

    def draw(axis: Any, points: list[tuple[float, float]], style: str, label: str) -> None:
        if points:
            axis.plot(*zip(*points, strict=True), style, label=label)

    bits_of, cost_of_token, recalled = (values[part] for part in ("bits", "cost", "recall"))
    for name, label in KINDS.items():
        cells = [(float(budget), bits_of.get(f"{name} {budget}")) for budget in BUDGETS]
        draw(axes[0], [(x, cell["bits per byte"]) for x, cell in cells if cell], "o-", label)
        for copied, style in zip(COPIED, ("o-", "s--"), strict=True):
            if cell := recalled.get(f"{name} {copied}"):
                points = [(n, cell[str(n)]) for n in recalled["settings"]["distances"]]
                draw(axes[3], points, style, f"{name}, {copied}")
    for order in ORDERS:
        if cell := bits_of.get(f"{order}-gram"):
            axes[0].axhline(cell["bits per byte"], color="gray", linewidth=0.7)
            axes[0].annotate(f"{order}-gram", (2e11, cell["bits per byte"]), fontsize=6)
    for name in COSTED:
        cells = [(n, cell) for n in LENGTHS if (cell := cost_of_token.get(f"{name} {n}"))]
        draw(axes[1], [(n, cell["µs a token"]) for n, cell in cells], "o-", name)
        draw(axes[2], [(n, gib(cell)) for n, cell in cells], "o-", name)
    titles = (
        ("training FLOPs", "bits per byte", "linear"), ("tokens in a row", "µs a token", "log"),
        ("tokens in a row", "peak GiB", "log"), ("tokens in between", "all symbols recalled", "linear"),
    )  # fmt: skip
    for axis, (below, beside, scale) in zip(axes, titles, strict=True):
        if axis.lines:  # an empty axis has no logarithm
            axis.set(xscale="log", yscale=scale, xlabel=below, ylabel=beside)
            axis.legend(fontsize=6)
    save_figure(fig, file)


def main() -> None:
    parser = Parser(
        "language_models", __doc__, small="the smallest budget, two lengths, or a tenth of the steps", seeds=False
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--threads", type=number(int, 1, 64), default=available_threads())
    args = parser.parse_args()
    part, threads, small = args.part, args.threads, args.small
    budgets = list(BUDGETS)[: 1 if small else None]
    distances, steps = (DISTANCES[:3], STEPS // 10) if small else (DISTANCES, STEPS)
    settings = {
        "bits": {"vocab_size": VOCAB, "budgets": {budget: BUDGETS[budget] for budget in budgets}},
        "cost": {"vocab_size": VOCAB, "tokens a step": TOKENS, "threads": threads},
        "recall": {"distances": distances, "steps": steps, "rows": ROWS, "symbols": SYMBOLS, "fillers": FILLERS},
    }
    results, picture = parser.results(args, settings[part], part)
    if part == "bits":
        measure_bits(results, budgets, threads)
    elif part == "cost":
        for n, name in itertools.product(LENGTHS[: 2 if small else None], COSTED):
            results.get(f"{name} {n}", lambda name=name, n=n: measured(cost, name, n, threads))
    else:
        for copied, name in itertools.product(COPIED, KINDS):
            cell = (name, distances, steps, copied, threads)
            results.get(f"{name} {copied}", lambda cell=cell: measured(recall, *cell))
    print("\n" + PARTS[part](results.values) + "\n\n" + cost_of(results))
    files = {name: results.file.with_name(f"language_models_{name}.json") for name in PARTS}
    every = {name: read_json(file) if file.exists() else {} for name, file in files.items()}
    figure(every | {part: results.values}, picture.with_name("language_models.svg"))
    require_all(results)


if __name__ == "__main__":
    run(main)
