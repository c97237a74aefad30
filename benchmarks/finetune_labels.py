# SPDX-License-Identifier: Apache-2.0
"""all-MiniLM-L6-v2 adapted to labels by every method: e-mails, package sections, parts of speech, names.

python -m benchmarks.finetune_labels [--data spam,sections,pos,names] [--methods …] [--sizes 100,1000] [--minutes 5]
python -m benchmarks.finetune_labels --device cuda --jobs 14      scores alone, into finetune_labels_gpu.json

The score on the same held-out items (accuracy; of names, F1 of whole spans) with 100 and 1,000 labelled texts, beside
the share of the parameters that is trained, minutes and peak memory. 'scratch' is 'full' from random weights, 'head' a
linear probe on cached features. Several jobs at once say nothing of minutes and memory. The figure shows the sections.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import foundling
from benchmarks.baselines import minilm
from benchmarks.corpora import WORK
from benchmarks.datasets import DATASETS, SIZES, part, read, write
from benchmarks.runs import DOCS, Results, foundling_json
from foundling.blocks.init import initialise
from foundling.runtime.files import read_json
from foundling.runtime.rng import generator
from foundling.text import Tokenizer

METHODS = ("full", "head", "top-k", "lora", "prompt", "bias", "scratch")
EPOCHS = {100: 20, 1000: 3}
N_HELD_OUT = 500
KIND = {"spam": "classify", "sections": "classify", "pos": "tag", "names": "tag"}
SEQ_LEN = 128


def held_out(name: str) -> Path:
    """The first N_HELD_OUT items of the test part."""
    file = WORK / "data" / name / f"held_out-{N_HELD_OUT}{DATASETS[name][1]}"
    if not file.exists():
        write(file, read(part(name, "test"))[:N_HELD_OUT])
    return file


def base_of(method: str) -> Path:
    if method != "scratch":
        return minilm()
    directory = WORK / "labels" / "random"
    if not directory.exists():
        model = foundling.load(minilm())
        initialise(model, generator("scratch", 0))
        foundling.save(model, directory, tokenizer=Tokenizer.load(minilm()))
    return directory


def measure(name: str, method: str, size: int, device: str = "cpu", alone: bool = True) -> dict[str, Any]:
    out = WORK / "labels" / f"{name}-{method}-{size}"
    shutil.rmtree(out, ignore_errors=True)
    options: list[str | Path] = ["--as", KIND[name], "--method", "full" if method == "scratch" else method]
    options += ["--epochs", str(EPOCHS[size]), "--seq-len", str(SEQ_LEN), "--held-out", held_out(name), "--out", out]
    options += ["--device", device]
    result = foundling_json("finetune", base_of(method), part(name, f"train-{size}"), *options)
    shutil.rmtree(out, ignore_errors=True)
    actual, predicted = result["actual"], result["predicted"]
    score = {"metric": result["metric"], "score": actual[result["metric"]]}
    if not alone:
        return score
    return score | {
        "minutes": round(actual["seconds"] / 60, 2),
        "peak GiB": round(actual["peak_bytes"] / 2**30, 3),
        "time, actual / planned": round(actual["seconds"] / predicted["seconds"], 3),
        "memory, actual / planned": round(actual["peak_bytes"] / predicted["peak_bytes"], 3),
    }


def shares() -> dict[str, float]:
    """method -> share of the parameters that is trained, by `--plan`"""
    plan = foundling_json("finetune", minilm(), part("sections", "train-100"), "--as", "classify", "--plan")
    return {name: round(row["share"], 5) for name, row in plan["methods"].items()}


def figure(results: Results, name: str = "sections") -> None:
    """Score against what it takes, for both numbers of labels."""
    import matplotlib.pyplot as plt

    trained = results.values["trained share"] | {"scratch": 1.0}
    fig, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True)
    for size, marker in zip(SIZES, "os", strict=True):
        for method in METHODS:
            if (cell := results.values.get(f"{name} {method} {size}")) is None:
                continue
            places = (100 * trained[method], cell.get("minutes"), cell.get("peak GiB"))
            for axis, x in ((axis, x) for axis, x in zip(axes, places, strict=True) if x is not None):
                axis.plot(x, cell["score"], marker, color=f"C{METHODS.index(method)}")
                axis.annotate(
                    f"{method} {size}", (x, cell["score"]), fontsize=6, xytext=(3, 3), textcoords="offset points"
                )
    axes[0].set(xlabel="parameters trained, %", xscale="log", ylabel=f"{name}: score")
    axes[1].set(xlabel="minutes")
    axes[2].set(xlabel="peak memory, GiB")
    peers = read_json(DOCS / "results" / "baselines.json").get(name, {})
    for axis in axes:
        for size in SIZES:
            if f"MiniLM {size}" in peers:
                axis.axhline(peers[f"MiniLM {size}"]["accuracy"], color="gray", linewidth=0.7)
    fig.tight_layout()
    fig.savefig(DOCS / "transfer.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default=",".join(KIND))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    results = Results("finetune_labels" + ("_gpu" if args.device == "cuda" else ""), minutes=args.minutes)
    results.get("trained share", shares)
    for file in (base_of("scratch"), *map(held_out, args.data.split(","))):  # once, before several jobs read them
        assert file.exists()
    cells = itertools.product(args.sizes.split(","), args.data.split(","), args.methods.split(","))

    def one(cell: tuple[str, str, str]) -> None:
        size, name, method = cell
        alone = args.jobs == 1
        results.get(f"{name} {method} {size}", lambda: measure(name, method, int(size), args.device, alone))

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, cells))
    if all(f"sections {method} 100" in results.values for method in METHODS) and args.jobs == 1:
        figure(results)
    for name in KIND:
        cells = {m: results.values.get(f"{name} {m} 100") for m in METHODS}
        if all(cells.values()):
            beaten = {m: cell["score"] for m, cell in cells.items() if cell and m != "scratch"}
            print(json.dumps({name: {"from scratch": cells["scratch"], "beat it": beaten}}))


if __name__ == "__main__":
    main()
