# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M with its smallest weights set to zero: loss and file size, before and after recovery.

python -m benchmarks.pruning [--shares 0.3,0.5,0.7,0.9,2:4] [--tokens 60000] [--minutes 5]

Recovery is continued pretraining of the weights that are left, on prose and package descriptions; bits per byte are of
held-out texts of both kinds. Sizes are those of `foundling prune`: all values, and a bit a weight with the values left.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import foundling
from benchmarks.chat_task import smollm2
from benchmarks.corpora import WORK
from benchmarks.domain import BYTES_PER_TOKEN, texts_of
from benchmarks.runs import Results, bits_per_byte, foundling_json
from foundling.text import Tokenizer

KINDS = ("general", "descriptions")
BYTES = 15_000


def loss(directory: Path) -> dict[str, float]:
    model, tokenizer = foundling.load(directory), Tokenizer.load(directory)
    return {kind: round(bits_per_byte(model, tokenizer, texts_of(kind, "test", BYTES)), 4) for kind in KINDS}


def zeros(directory: Path) -> float:
    """Share of zeros among the weights of the layers' projections."""
    weights = [p for name, p in foundling.load(directory).named_parameters() if "layers" in name and p.ndim > 1]
    return round(sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights), 4)


def corpus(tokens: int) -> Path:
    file = WORK / "pruning" / f"{tokens}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    texts = [text for kind in KINDS for text in texts_of(kind, "train", tokens * BYTES_PER_TOKEN / len(KINDS))]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


def pruned(share: str) -> dict[str, Any]:
    out = WORK / "pruning" / f"pruned-{share.replace(':', '-')}"
    shutil.rmtree(out, ignore_errors=True)
    result = foundling_json("prune", smollm2(), "--share", share, "--out", out)
    return {"zeros": round(result["zeros"], 4), "bytes": result["bytes"], **loss(out)}


def recovered(share: str, tokens: int, rate: float) -> dict[str, Any]:
    source = WORK / "pruning" / f"pruned-{share.replace(':', '-')}"
    out = source.with_name(source.name.replace("pruned", f"recovered-{tokens}"))
    shutil.rmtree(out, ignore_errors=True)
    options = ["--tokens", str(tokens), "--optimizer", "adamw", "--learning-rate", str(rate)]
    result = foundling_json("raise", corpus(tokens), "--from", source, *options, "--out", out)
    figures = {"zeros": zeros(out), "minutes": round(result["actual"]["seconds"] / 60, 2), **loss(out)}
    shutil.rmtree(out)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shares", default="0.3,0.5,0.7,0.9,2:4")
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--minutes", type=float, default=5)
    args = parser.parse_args()
    results = Results("pruning", minutes=args.minutes)
    results.values["settings"] = {"tokens of recovery": args.tokens, "rate": args.rate}
    results.get("0", lambda: loss(smollm2()))
    for share in args.shares.split(","):
        results.get(share, lambda share=share: pruned(share))
    for share in args.shares.split(","):
        results.get(f"{share} recovered", lambda share=share: recovered(share, args.tokens, args.rate))


if __name__ == "__main__":
    main()
