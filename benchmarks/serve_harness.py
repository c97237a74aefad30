# SPDX-License-Identifier: Apache-2.0
"""lm-evaluation-harness asks our server (`lm_eval --model local-completions`) and our model in its own process
(foundling.evaluate.harness): scores that differ by at most 1e-4, and log-probabilities of options (sums over up to some
50 tokens; native code against torch, both in float32) that differ by at most 1e-3 nats.

python -m benchmarks.serve_harness [--items 50] [--shots 20]

The model is SmolLM2-135M-Instruct in float32; the tasks are those of benchmarks.harness: `text`, MMLU's development
questions answered by the text of an option, and `shots`, the same with five solved questions before each. The harness
sends token ids (tokenized_requests=True) or texts. `movies`, queries about a database, is generated: its texts are
compared. Not timed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lm_eval

from benchmarks.chat_task import smollm2
from benchmarks.corpora import WORK
from benchmarks.harness import items, largest_difference, our_task, scores, their_task
from benchmarks.runs import Results
from benchmarks.serve_speed import free_port, running
from foundling.evaluate.harness import HarnessModel

TOLERANCE, SUM_TOLERANCE = 1e-4, 1e-3


def evaluate(model: Any, task: dict[str, Any], **options: Any) -> Any:
    return lm_eval.simple_evaluate(model=model, tasks=[task], log_samples=True, bootstrap_iters=0, **options)


def by_server(address: str, task: dict[str, Any], *, tokenized: bool) -> Any:
    arguments = {
        "model": "smollm2", "base_url": f"http://{address}/v1/completions", "tokenizer": str(smollm2()),
        "tokenizer_backend": "huggingface", "tokenized_requests": tokenized, "num_concurrent": 1, "max_length": 2048,
    }  # fmt: skip
    return evaluate("local-completions", task, model_args=arguments, batch_size=8)


def compare(name: str, count: int, address: str, ours: HarnessModel) -> dict[str, Any]:
    """SystemExit where a log-probability or a text differs."""
    folder = WORK / "serve_harness"
    folder.mkdir(parents=True, exist_ok=True)
    our_task(folder, name, items(folder, name, count))
    expected = evaluate(ours, their_task(folder, name))
    limit = 0 if name == "movies" else SUM_TOLERANCE
    what = "texts that differ" if name == "movies" else "largest difference of a log-probability"
    result: dict[str, Any] = {"items": len(expected["samples"][name]), "in process": scores(expected, name)}
    for tokenized in (True, False):
        served = by_server(address, their_task(folder, name), tokenized=tokenized)
        difference = largest_difference(expected, served, name)
        result["served, token ids" if tokenized else "served, texts"] = scores(served, name) | {what: difference}
        theirs, ours_are = scores(served, name), scores(expected, name)
        if difference > limit or any(abs(theirs[key] - value) > TOLERANCE for key, value in ours_are.items()):
            raise SystemExit(f"{name}: the server differs from the process: {json.dumps(result)}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=50, help="of `text` (default 50)")
    parser.add_argument("--shots", type=int, default=20, help="items of `shots` (default 20)")
    parser.add_argument("--movies", type=int, default=20, help="items of `movies` (default 20)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    results, port = Results("serve_harness", args.out), free_port()
    command = [sys.executable, "-m", "foundling", "serve", f"smollm2={smollm2()}", "--port", str(port)]
    with running([*command, "--weights", "float32"], port) as address:
        ours = HarnessModel(str(smollm2()))
        for name, count in (("text", args.items), ("shots", args.shots), ("movies", args.movies)):
            if count:
                results.get(name, lambda name=name, count=count: compare(name, count, address, ours))


if __name__ == "__main__":
    main()
