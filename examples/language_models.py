# SPDX-License-Identifier: Apache-2.0
"""All kinds of language model on the same bytes: n-gram, feed-forward, LSTM, Transformer, state space.

python -m examples.language_models bits    bits per byte against compute, on the Python library
python -m examples.language_models cost    seconds of a training token and peak memory, 256 to 16,384 tokens
python -m examples.language_models recall  which of them still know one token, or eight, after many others
                                           [--small] [--minutes 30] [--threads 1]

A second call goes on where the first one ended. `cost` is to be run alone; each of its cells is a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.learning import Setting, TokenizedCorpus, run
from benchmarks.runs import DOCS, Results, causal_batch, train_model
from foundling.contracts.data import Batch
from foundling.data.loader import packed
from foundling.evaluate.baselines.ngram import ByteNGram
from foundling.models import build, count_parameters, family
from foundling.objectives.causal import Causal
from foundling.runtime.device import Runtime, available_threads
from foundling.runtime.rng import generator
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState

KINDS = {"ffn_lm": "feed-forward", "lstm": "LSTM", "gpt2": "Transformer (GPT-2)", "llama": "Transformer (Llama)",
         "mamba2": "state space (Mamba-2)"}  # fmt: skip
VOCAB = 2048
BUDGETS = {"2e11": (64, 2), "8e11": (96, 3), "3.2e12": (128, 4)}
"""FLOPs -> width and depth, the same for all"""
ORDERS = (2, 3, 4, 6)
SEQUENTIAL = ("lstm", "gpt2", "mamba2", "rwkv")
LENGTHS = (256, 1024, 4096, 16384)
TOKENS = 16384
"""of a training step, in rows of each length"""
DISTANCES = (1, 4, 8, 16, 32, 64, 128)
SYMBOLS, FILLERS, ROWS, STEPS = 16, 16, 64, 1500
COPIED = (1, 8)
"""symbols that are asked for, all in their order"""


# --- bits per byte ---------------------------------------------------------------------------------------------------


def bits(data: TokenizedCorpus, name: str, budget: str, threads: int) -> dict[str, Any]:
    size, setting = BUDGETS[budget], Setting(family=name, vocab_size=VOCAB)
    per_token = setting.flops_per_token(*size)
    result = run(data, *size, float(budget) / per_token, 0, threads, setting)
    parameters = count_parameters(build(name, device="meta", **setting.config(*size)))["total"]
    return {
        "parameters": parameters, "bytes read": result["bytes_read"], "bits per byte": result["bits_per_byte"],
        "seconds": result["seconds"],
    }  # fmt: skip


def ngram(data: TokenizedCorpus, order: int, n_bytes: int) -> dict[str, Any]:
    """Of the first `n_bytes` of the training documents, on the held-out bytes that the others are measured on."""
    start, texts, size = time.monotonic(), [], 0
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


def all_bits(results: Results, small: bool, threads: int) -> None:
    data = TokenizedCorpus("stdlib", VOCAB, 200_000)
    for budget in list(BUDGETS)[: 1 if small else None]:
        for name in KINDS:
            results.get(f"{name} {budget}", lambda name=name, budget=budget: bits(data, name, budget, threads))
    most = max((cell["bytes read"] for key, cell in results.values.items() if " " in key), default=0)
    for order in ORDERS:
        results.get(f"{order}-gram", lambda order=order: ngram(data, order, min(most, data.corpus.train_bytes)))


# --- cost of a token ------------------------------------------------------------------------------------------------


def cost(name: str, seq_len: int, threads: int) -> dict[str, Any]:
    """Of one training step over TOKENS tokens in rows of `seq_len`, in this process: the fastest of three."""
    runtime = Runtime(threads=threads)
    runtime.setup()
    model = build(name, **family(name).module.sized(VOCAB, seq_len, 256, 4))
    rows = torch.randint(3, VOCAB, (TOKENS // seq_len, seq_len + 1), generator=generator("cost", seq_len))
    batch = packed(rows, eos=0) | {"sample_ids": torch.arange(len(rows))}
    state, marks = TrainState.build(model, OptimOptions()), [time.perf_counter()]
    for _ in train(state, Causal(), [batch] * 4, Schedule(4), TrainOptions(len(rows)), runtime):
        marks.append(time.perf_counter())
    fastest = min([b - a for a, b in itertools.pairwise(marks)][1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
    return {"µs a token": round(1e6 * fastest / TOKENS, 2), "peak GiB": round(peak / 2**30, 3)}


def cost_apart(name: str, seq_len: int, threads: int) -> dict[str, Any]:
    call = [
        sys.executable,
        "-m",
        "examples.language_models",
        "cost",
        "--cell",
        name,
        str(seq_len),
        "--threads",
        str(threads),
    ]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


# --- recall by distance ---------------------------------------------------------------------------------------------


def recall_rows(n: int, distance: int, copied: int, draw: torch.Generator) -> Tensor:
    """(n, 1 + 2 · copied + distance): symbols, fillers, a mark that asks for the symbols, and these again."""
    symbols = torch.randint(SYMBOLS, (n, copied), generator=draw)
    fillers = SYMBOLS + torch.randint(FILLERS, (n, distance), generator=draw)
    ask = torch.full((n, 1), SYMBOLS + FILLERS)
    return torch.cat((symbols, fillers, ask, symbols), 1)


class Recall:
    """One distance a batch, all by turns."""

    def __init__(self, distances: tuple[int, ...], copied: int) -> None:
        self.distances, self.copied = distances, copied

    def __getitem__(self, n: int) -> Batch:
        distance = self.distances[n % len(self.distances)]
        rows = recall_rows(ROWS, distance, self.copied, generator("recall", 0, n))
        counted = torch.zeros(ROWS, rows.shape[1] - 1, dtype=torch.bool)
        counted[:, -self.copied :] = True
        return causal_batch(rows, counted)


@torch.inference_mode()
def recall(name: str, distances: tuple[int, ...], steps: int, copied: int) -> dict[str, float]:
    """distance -> share of 1,024 new rows whose symbols are all the likeliest, of a model trained on all distances"""
    config = family(name).module.sized(SYMBOLS + FILLERS + 1, max(distances) + 2 * copied + 1, 64, 2)
    with torch.inference_mode(False):
        model = train_model(name, config, Recall(distances, copied), steps)
    found = {}
    for distance in distances:
        rows = recall_rows(1024, distance, copied, generator("held out", 0, distance))
        answers = model.logits(model(rows[:, :-1]).hidden[:, -copied:]).argmax(-1)
        found[str(distance)] = round(float((answers == rows[:, -copied:]).all(1).float().mean()), 4)
    return found


# --- figures ---------------------------------------------------------------------------------------------------------


def figure(values: dict[str, Any], file: Path) -> None:
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 4, figsize=(14, 3.3))
    for name, label in KINDS.items():
        cells = [(float(b), values["bits"].get(f"{name} {b}")) for b in BUDGETS]
        axes[0].plot(*zip(*[(x, c["bits per byte"]) for x, c in cells if c], strict=True), "o-", label=label)
    for order in ORDERS:
        if cell := values["bits"].get(f"{order}-gram"):
            axes[0].axhline(cell["bits per byte"], color="gray", linewidth=0.7)
            axes[0].annotate(f"{order}-gram", (2e11, cell["bits per byte"]), fontsize=6)
    axes[0].set(xscale="log", xlabel="training FLOPs", ylabel="bits per byte")
    axes[0].legend(fontsize=6)
    for name in SEQUENTIAL:
        cells = [(n, values["cost"].get(f"{name} {n}")) for n in LENGTHS]
        for axis, key in ((axes[1], "µs a token"), (axes[2], "peak GiB")):
            points = [(n, cell[key]) for n, cell in cells if cell]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", label=name)
                axis.set(xscale="log", yscale="log", xlabel="tokens in a row", ylabel=key)
    for copied, style in zip(COPIED, ("o-", "s--"), strict=True):
        for name in KINDS:
            if cell := values["recall"].get(f"{name} {copied}"):
                axes[3].plot([int(d) for d in cell], list(cell.values()), style, label=f"{name}, {copied}")
    axes[3].set(xscale="log", xlabel="tokens in between", ylabel="all symbols recalled")
    for axis in axes[1:]:
        axis.legend(fontsize=6)
    fig.tight_layout()
    fig.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("bits", "cost", "recall"))
    parser.add_argument("--small", action="store_true", help="the smallest budget, or a tenth of the steps")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--cell", nargs=2, metavar=("FAMILY", "TOKENS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(cost(args.cell[0], int(args.cell[1]), args.threads)))
        return
    results = Results(f"language_models_{args.part}", minutes=args.minutes)
    if args.part == "bits":
        all_bits(results, args.small, args.threads)
    elif args.part == "cost":
        for n in LENGTHS[: 2 if args.small else None]:
            for name in SEQUENTIAL:
                results.get(f"{name} {n}", lambda name=name, n=n: cost_apart(name, n, args.threads))
    else:
        torch.set_num_threads(args.threads)
        distances, steps = (DISTANCES[:3], STEPS // 10) if args.small else (DISTANCES, STEPS)
        for copied, name in itertools.product(COPIED, KINDS):
            results.get(f"{name} {copied}", lambda name=name, copied=copied: recall(name, distances, steps, copied))
    every = {part: Results(f"language_models_{part}").values for part in ("bits", "cost", "recall")}
    if not args.small:
        figure(every, DOCS / "language_models.svg")


if __name__ == "__main__":
    main()
