# SPDX-License-Identifier: Apache-2.0
"""What hardware and words change in a model's answers: dtype, threads and batch size against float32 on one thread, and
the same task in other words and formats.

python -m benchmarks.consistency [--model SmolLM2] [--count 60] [--out FILE]

Tasks: held-out records of benchmarks.chat_task. Answers are greedy, N_ANSWER tokens; log-probabilities are those of the
right record and of the next one's.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.chat_task import held_out_items, line_of, smollm2
from benchmarks.judge_retest import rounded
from benchmarks.runs import Results
from foundling.decode.engine.engine import EngineOptions
from foundling.evaluate.conditions import conditions
from foundling.evaluate.consistency import Consistency, agreement, measure, variants
from foundling.evaluate.local import LocalModel
from foundling.evaluate.subject import Decoding, GenerateRequest, LikelihoodRequest

N_ANSWER = 48


def shares(consistency: Consistency) -> dict[str, list[float | None]]:
    return {name: rounded(figure[:3]) for name, figure in consistency.by_condition.items()}


def hardware(directory: Path, count: int) -> dict[str, Any]:
    """Against float32 on one thread."""
    items = held_out_items(count + 1)
    prompts = [[{"role": "user", "content": item["prompt"]}] for item in items]
    requests: list[GenerateRequest | LikelihoodRequest] = [
        GenerateRequest(prompt, Decoding(N_ANSWER)) for prompt in prompts[:count]
    ]
    for i, prompt in enumerate(prompts[:count]):
        requests += [LikelihoodRequest(prompt, line_of(item["answer"])) for item in (items[i], items[i + 1])]
    subjects = conditions(directory)
    report = measure(subjects, requests)
    assert report.answers and report.preferred
    changes = {
        name: {
            "mean": rounded(change.mean[:3]), "largest": float(f"{change.largest:.3g}"),
            "covers": round(change.covered, 4),
        }
        for name, change in report.logprobs.items()
    }  # fmt: skip
    return {
        "requests": count, "answers that differ": shares(report.answers), "|Δ log-probability|, nats": changes,
        "preferred records that differ": shares(report.preferred),
    }  # fmt: skip


def torch_batches(directory: Path, count: int) -> dict[str, Any]:
    """Answers one at a time against those of batches of up to 32. By torch, whose rounding depends on the batch: native
    code, which `hardware` takes where it is built, sums in one order whatever the batch."""
    requests = [
        GenerateRequest([{"role": "user", "content": item["prompt"]}], Decoding(N_ANSWER))
        for item in held_out_items(count)
    ]
    subjects = conditions(directory, engine=EngineOptions(native=False))
    names = ("float32, 1 thread", "one request at a time")
    report = measure({name: subjects[name] for name in names}, requests)
    assert report.answers
    return {"requests": count, "answers that differ": shares(report.answers)}


def words(directory: Path, count: int) -> dict[str, Any]:
    """The share of answers that are not those to the prompt as it is; a space more or less in the answer counts."""
    model, items = LocalModel.load(directory), held_out_items(count)
    torch.set_num_threads(1)
    prompts = [variants([{"role": "user", "content": item["prompt"]}]) for item in items]
    requests = [GenerateRequest(prompt, Decoding(N_ANSWER)) for by_name in prompts for prompt in by_name.values()]
    answers, names = dict(model.generate(requests)), list(prompts[0])
    texts = {name: [answers[i * len(names) + j].text for i in range(count)] for j, name in enumerate(names)}
    return {"requests": count, "answers that differ": shares(agreement(texts))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = Results("consistency", args.out)
    results.get("hardware", lambda: hardware(args.model or smollm2(), args.count))
    results.get("batches of torch", lambda: torch_batches(args.model or smollm2(), args.count))
    results.get("words", lambda: words(args.model or smollm2(), args.count))
