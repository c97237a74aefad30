# SPDX-License-Identifier: Apache-2.0
"""Continued pretraining of SmolLM2-135M on biomedical entries and package descriptions: what the domain gains, what
other text loses, and what replay of general text saves.

python -m benchmarks.domain [--tokens 60000] [--replay 0,10,30] [--rate 3e-4] [--minutes 5]

`foundling raise --from` on the same number of domain tokens for each share of replay, in per cent of all tokens; the
rest is prose of the Brown corpus. Bits per byte of held-out texts of the domain, of Brown (what was replayed) and of
package descriptions of other fields (neither). A second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import foundling
from benchmarks.chat_task import smollm2
from benchmarks.corpora import WORK
from benchmarks.datasets import part, read
from benchmarks.runs import DOCS, Results, bits_per_byte, foundling_json
from foundling.text import Tokenizer

BYTES = 30_000
"""of each kind of held-out text"""
BYTES_PER_TOKEN = 3.5
KINDS = ("biomedical", "general", "descriptions")


def texts_of(kind: str, which: str, n_bytes: float) -> list[str]:
    texts, size = [], 0
    for row in read(part(kind, which)):
        if size >= n_bytes:
            break
        texts.append(row["text"])
        size += len(row["text"].encode())
    return texts


def loss(directory: Path) -> dict[str, float]:
    model, tokenizer = foundling.load(directory), Tokenizer.load(directory)
    return {k: round(bits_per_byte(model, tokenizer, texts_of(k, "test", BYTES)), 4) for k in KINDS}


def corpus(tokens: int, replay: int) -> Path:
    """Domain text of some `tokens`, and general text that is `replay` per cent of the whole."""
    file = WORK / "domain" / f"{tokens}-{replay}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    general = tokens * replay / (100 - replay)
    sizes = {"biomedical": tokens * BYTES_PER_TOKEN, "general": general * BYTES_PER_TOKEN}
    texts = [text for kind, n in sizes.items() for text in texts_of(kind, "train", n)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


def measure(tokens: int, replay: int, rate: float) -> dict[str, Any]:
    out = WORK / "domain" / f"model-{tokens}-{replay}-{rate}"
    total = round(tokens * 100 / (100 - replay))
    options = ["--tokens", total, "--optimizer", "adamw", "--learning-rate", rate, "--out", out]
    start = (
        ["--resume", "--out", out]
        if (out / "run").exists()
        else [corpus(tokens, replay), "--from", smollm2(), *options]
    )
    result = foundling_json("raise", *map(str, start)) if not (out / "model.safetensors").exists() else {}
    return loss(out) | {"seconds": result.get("actual", {}).get("seconds"), "tokens": total}


def figure(results: Results) -> None:
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(6, 3.2))
    before = results.values["before"]
    runs = sorted((int(name.split()[1]), value) for name, value in results.values.items() if name.startswith("replay"))
    for kind in KINDS:
        change = [100 * (value[kind] / before[kind] - 1) for _, value in runs]
        axis.plot([share for share, _ in runs], change, marker="o", label=kind)
    axis.axhline(0, color="gray", linewidth=0.8)
    axis.set(xlabel="general text, % of the tokens", ylabel="change of bits per byte, %")
    axis.legend()
    fig.tight_layout()
    fig.savefig(DOCS / "domain.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--replay", default="0,10,30")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--minutes", type=float, default=5)
    args = parser.parse_args()
    results = Results("domain", minutes=args.minutes)
    results.values["settings"] = {"domain tokens": args.tokens, "rate": args.rate, "bytes of held-out text": BYTES}
    results.get("before", lambda: loss(smollm2()))
    for share in map(int, args.replay.split(",")):
        results.get(f"replay {share} %", lambda share=share: measure(args.tokens, share, args.rate))
    if results.complete:
        figure(results)


if __name__ == "__main__":
    main()
