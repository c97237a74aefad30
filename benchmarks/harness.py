# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M under lm-evaluation-harness, by its Hugging Face backend and by our model class, and under our own
runner: scores, log-probabilities and seconds of the same items, in one run.

python -m benchmarks.harness [--batch-sizes 8,16] [--items 140,50,100]

text     MMLU's development questions, answered by the text of an option
shots    the same with five solved questions before each, as benchmarks of this kind are run
movies   queries of 48 tokens about a database, generated

The harness' backend is measured with each batch size, and its fastest run counts. Each is warmed up on a few items.
Seconds are those in the model, without the harness' own; of our runner they are all.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lm_eval
import torch
import yaml
from lm_eval.models.huggingface import HFLM

from benchmarks import evaluation_tasks
from benchmarks.chat_task import smollm2
from benchmarks.corpora import WORK
from benchmarks.runs import Results
from foundling.decode.engine.engine import EngineOptions
from foundling.evaluate.harness import HarnessModel
from foundling.evaluate.local import LocalModel
from foundling.evaluate.runners import run
from foundling.evaluate.task_file import load_task

WARM, N_SHOTS, N_TOKENS = 8, 5, 48
QUESTION = "Question: {}\nAnswer:"


def items(folder: Path, name: str, count: int) -> list[dict[str, Any]]:
    if name == "movies":
        return evaluation_tasks.movies()[:count]
    return evaluation_tasks.mmlu("en")[:count]


def our_task(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """As `foundling evaluate` reads it."""
    spec: dict[str, Any] = {"name": name, "data": f"{name}.jsonl"}
    if name == "movies":
        spec |= {"prompt": "Question: {question}\nSQL:", "answer": "{query}", "max_tokens": N_TOKENS, "stop": ["\n"]}
    else:
        spec |= {
            "kind": "choice",
            "prompt": QUESTION.format("{question}"),
            "options": "{options}",
            "answer": "{answer}",
        }
    if name == "shots":
        spec |= {"few_shot": {"n": N_SHOTS, "chosen": "first", "data": "solved.jsonl"}}
        (folder / "solved.jsonl").write_text(lines(rows[-N_SHOTS:]), encoding="utf-8")
        rows = rows[:-N_SHOTS]
    (folder / f"{name}.jsonl").write_text(lines(rows), encoding="utf-8")
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    return folder / f"{name}.yaml"


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def their_task(folder: Path, name: str, count: int | None = None) -> dict[str, Any]:
    """As a user of the harness writes it, with its own templates and its own few-shot examples."""
    file = folder / f"{name}.jsonl"
    if count is not None:
        file = folder / f"{name}-warm.jsonl"
        file.write_text("".join((folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(True)[:count]))
    task: dict[str, Any] = {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": str(file)}, "test_split": "train",
    }  # fmt: skip
    if name == "movies":
        return task | {
            "output_type": "generate_until", "doc_to_text": "Question: {{question}}\nSQL:", "doc_to_target": "query",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": N_TOKENS},
            "metric_list": [{"metric": "exact_match"}],
        }  # fmt: skip
    task |= {
        "output_type": "multiple_choice", "doc_to_text": QUESTION.format("{{question}}"),
        "doc_to_choice": "{{options}}", "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    if name == "shots":
        shots = [json.loads(line) for line in (folder / "solved.jsonl").read_text(encoding="utf-8").splitlines()]
        task |= {"num_fewshot": N_SHOTS, "fewshot_config": {"sampler": "first_n", "samples": shots}}
    return task


def timed(measure: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    value = measure()
    return value, time.perf_counter() - start


def under_harness(model: Any, folder: Path, name: str) -> tuple[Any, float]:
    """The results, and the seconds in the model alone: without what the harness itself takes."""

    def evaluate(task: dict[str, Any]) -> Any:
        return lm_eval.simple_evaluate(model=model, tasks=[task], log_samples=True, bootstrap_iters=0)

    evaluate(their_task(folder, name, WARM))
    method, seconds = "generate_until" if name == "movies" else "loglikelihood", list[float]()
    ask = getattr(model, method)

    def timed_ask(requests: Any, **options: Any) -> Any:
        answers, took = timed(lambda: ask(requests, **options))
        seconds.append(took)
        return answers

    setattr(model, method, timed_ask)
    return evaluate(their_task(folder, name)), sum(seconds)


def scores(results: Any, name: str) -> dict[str, float]:
    return {key.split(",")[0]: value for key, value in results["results"][name].items()
            if key.endswith(",none") and isinstance(value, float)}  # fmt: skip


def largest_difference(a: Any, b: Any, name: str) -> float | int:
    """Of log-probabilities, in nats; of texts, how many differ."""
    pairs = list(zip(a["samples"][name], b["samples"][name], strict=True))
    if name == "movies":
        return sum(x["resps"] != y["resps"] for x, y in pairs)
    return max(abs(x[0][0] - y[0][0]) for s, t in pairs for x, y in zip(s["resps"], t["resps"], strict=True))


def measure(name: str, count: int, batch_sizes: list[int]) -> dict[str, Any]:
    folder = WORK / "harness"
    folder.mkdir(parents=True, exist_ok=True)
    path = our_task(folder, name, items(folder, name, count))
    theirs: dict[int, tuple[Any, float]] = {}
    for size in batch_sizes:
        model: Any = HFLM(pretrained=str(smollm2()), dtype="float32", device="cpu", batch_size=size)
        theirs[size] = under_harness(model, folder, name)
        del model
    best = min(theirs, key=lambda size: theirs[size][1])
    expected, seconds = theirs[best]
    ours = HarnessModel(str(smollm2()), engine=EngineOptions(native=name == "movies" or None))
    adapted, seconds_adapted = under_harness(ours, folder, name)
    subject = LocalModel.load(smollm2(), engine=EngineOptions(native=name == "movies" or None))
    task = load_task(path)
    run(load_task(path, limit=WARM), subject)
    evaluated, seconds_own = timed(lambda: run(task, subject))
    return {
        "items": len(task.examples), "theirs": scores(expected, name), "ours under the harness": scores(adapted, name),
        "our runner": evaluated.result.value,
        "largest difference of a log-probability" if name != "movies" else "texts that differ":
            largest_difference(expected, adapted, name),
        "seconds": {
            "theirs": {str(size): round(value, 1) for size, (_, value) in theirs.items()},
            "ours under the harness": round(seconds_adapted, 1), "our runner": round(seconds_own, 1),
        },
        "ratio": round(seconds / seconds_own, 2), "ratio under the harness": round(seconds / seconds_adapted, 2),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK")
    parser.add_argument("--batch-sizes", default="8,16")
    parser.add_argument("--items", default="140,50,100", help="of each task (default 140,50,100)")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    results, sizes = Results("harness"), [int(size) for size in args.batch_sizes.split(",")]
    counts = dict(zip(("text", "shots", "movies"), map(int, args.items.split(","))))
    for name in args.tasks or counts:
        results.get(name, lambda name=name: measure(name, counts[name], sizes))


if __name__ == "__main__":
    main()
