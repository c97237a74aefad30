# SPDX-License-Identifier: Apache-2.0
"""What weights of fewer bits cost in quality: perplexity of a raised model on held-out text, for each type of weights.

python -m benchmarks.rounding DIR [--data builtin:stdlib] [--tokens 50000]

DIR is a model that `foundling raise` made from the same data (`make quickstart` writes runs/quickstart). The text is
cut into windows of max_seq_len tokens and scored by the engine's prompt_logprobs; the first token of a window does not
count.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import foundling
from foundling.data.datasets import open_data
from foundling.data.ingest import ingest
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.native.program import FORMS
from foundling.decode.request import Request
from foundling.text import Tokenizer


def perplexity(engine: Engine, windows: list[list[int]]) -> float:
    requests = [Request(window, 1, prompt_logprobs=0) for window in windows]
    logprobs = [p for c in engine.generate(requests) for p in c.prompt_logprobs or [] if p is not None]
    return math.exp(-sum(logprobs) / len(logprobs))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dir", help="model directory")
    parser.add_argument("--data", default="builtin:stdlib")
    parser.add_argument("--tokens", type=int, default=50_000, help="about so many of the held-out text")
    args = parser.parse_args()
    model, tokenizer = foundling.load(args.dir), Tokenizer.load(args.dir)
    with tempfile.TemporaryDirectory() as directory:
        held_out = ingest(open_data(args.data), Path(directory) / "corpus").held_out
    tokens: list[int] = []
    for document in held_out:
        tokens += [tokenizer.eos, *tokenizer.encode(document.text)]
        if len(tokens) >= args.tokens:
            break
    length = model.config.max_seq_len - 1
    windows = [tokens[at : at + length] for at in range(0, len(tokens) - length + 1, length)]
    plain = perplexity(Engine(model, EngineOptions(native=False)), windows)
    result = {"tokens": len(windows) * length, "torch float32": round(plain, 4)}
    for form in FORMS:
        value = perplexity(Engine(model, EngineOptions(weights=form, native=True)), windows)
        result[form] = {"perplexity": round(value, 4), "change_percent": round(100 * (value / plain - 1), 3)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
