# SPDX-License-Identifier: Apache-2.0
"""Molecules as SMILES: an encoder pretrained on them, then regression of measured values; a decoder that writes some.

python -m benchmarks.molecules [--pretrain 3] [--samples 200] [--minutes 5]      rdkit judges what is a molecule

Beside stand benchmarks.baselines (fingerprints + ridge), and the same encoder from random weights. The encoder and the
decoder are raised on SMILES of drugs, ChEMBL samples and the training parts; no held-out molecule is among them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import foundling
from benchmarks.corpora import WORK
from benchmarks.datasets import part, read
from benchmarks.runs import Results, foundling_json
from foundling.blocks.init import initialise
from foundling.runtime.rng import generator
from foundling.text import Tokenizer

SETS = ("solubility", "freesolv")
FOLDER = WORK / "molecules"


def smiles() -> Path:
    """What may be read: no molecule of a test part."""
    file = FOLDER / "smiles.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    hidden = {row["text"] for name in SETS for row in read(part(name, "test"))}
    rows = [row for row in read(part("smiles", "train")) if row["text"] not in hidden]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def raised(family: str, minutes: float) -> dict[str, Any]:
    out = FOLDER / family
    shutil.rmtree(out, ignore_errors=True)
    options = ["--family", family, "--minutes", str(minutes), "--vocab-size", "320", "--out", out]
    result = foundling_json("raise", smiles(), *options)
    return {key: result["actual"].get(key) for key in ("seconds", "loss", "bits_per_byte")} | {
        "params": result["params"]
    }


def regression(name: str, base: Path) -> dict[str, Any]:
    out = FOLDER / f"{name}-{base.name}"
    shutil.rmtree(out, ignore_errors=True)
    options = ["--as", "regress", "--label", "value", "--method", "full", "--epochs", "10"]
    result = foundling_json(
        "finetune", base, part(name, "train"), *options, "--held-out", part(name, "test"), "--out", out
    )
    return {k: v for k, v in result["actual"].items() if k not in ("joules", "peak_bytes")}


def random_encoder() -> Path:
    directory = FOLDER / "random"
    if not directory.exists():
        model = foundling.load(FOLDER / "bert")
        initialise(model, generator("random", 0))
        foundling.save(model, directory, tokenizer=Tokenizer.load(FOLDER / "bert"))
    return directory


def written(samples: int) -> dict[str, Any]:
    """Shares of what the decoder writes: valid by rdkit, different from one another, and not among what it read."""
    Chem, RDLogger = (importlib.import_module(name) for name in ("rdkit.Chem", "rdkit.RDLogger"))
    RDLogger.DisableLog("rdApp.*")
    known = {Chem.CanonSmiles(row["text"]) for row in read(smiles()) if Chem.MolFromSmiles(row["text"])}
    found: list[str] = []
    for seed in range(0, samples, 50):
        options = ["--n", "50", "--seed", str(seed), "--max-tokens", "100", "--top-p", "0.95"]
        answer = foundling_json("generate", FOLDER / "llama", *options)
        found += [completion["text"].strip() for completion in answer["answers"]]
    valid = [Chem.CanonSmiles(text) for text in found if text and Chem.MolFromSmiles(text)]
    new = set(valid) - known
    return {
        "samples": len(found),
        "valid": len(valid),
        "distinct": len(set(valid)),
        "new": len(new),
        "examples": found[:8],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pretrain", type=float, default=3)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=5)
    args = parser.parse_args()
    results = Results("molecules", minutes=args.minutes)
    results.get("encoder", lambda: raised("bert", args.pretrain))
    results.get("decoder", lambda: raised("llama", args.pretrain))
    results.get("written", lambda: written(args.samples))
    for name in SETS:
        results.get(f"{name}, pretrained", lambda name=name: regression(name, FOLDER / "bert"))
        results.get(f"{name}, random", lambda name=name: regression(name, random_encoder()))


if __name__ == "__main__":
    main()
