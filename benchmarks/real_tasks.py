# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct on the real tasks of benchmarks.evaluation_tasks, through `foundling evaluate`.

python -m benchmarks.real_tasks [TASK …] [--minutes 60]

Figures with intervals, seconds and tokens; of MMLU in nine languages the tokens that a question takes beside English.
A call measures what is missing, and begins nothing new after --minutes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import evaluation_tasks
from benchmarks.chat_task import smollm2
from benchmarks.corpora import WORK
from benchmarks.runs import Results, foundling_json
from foundling.text import Tokenizer

OPTIONS = {
    "ifbench": ["--chat"], "humaneval": ["--chat"], "brown": ["--window", "1024", "--stride", "512", "--limit", "10"],
    # in these scripts a question takes five hundred tokens and more
    **{f"mmlu-{language}": ["--limit", "100"] for language in ("hi", "ko", "th")},
}  # fmt: skip


def measure(name: str, path: Path) -> dict[str, Any]:
    out = WORK / "evaluate" / name
    record = foundling_json("evaluate", smollm2(), path, "--out", out, *OPTIONS.get(name, []))
    (result,) = record["results"]
    cost = {key: round(value, 1) for key, value in result["cost"].items()}
    values = {key: result[key] for key in ("metric", "value", "low", "high", "interval", "n", "figures")}
    return {**values, "cost": cost, "backend": result["hashes"]["backend"]}


def fertility(folder: Path) -> dict[str, dict[str, float]]:
    """Of the questions and options of each language: tokens an item, tokens a character."""
    tokenizer, found = Tokenizer.load(smollm2()), dict[str, dict[str, float]]()
    for language in evaluation_tasks.LANGUAGES:
        rows = [json.loads(line) for line in (folder / f"mmlu-{language}.jsonl").open(encoding="utf-8")]
        texts = ["\n".join([row["question"], *row["options"]]) for row in rows]
        n_tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts))
        found[language] = {
            "tokens_per_item": n_tokens / len(texts),
            "tokens_per_character": n_tokens / sum(map(len, texts)),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK")
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    results, paths = Results("real_tasks", minutes=args.minutes), evaluation_tasks.write(WORK / "tasks")
    results.get("fertility", lambda: fertility(WORK / "tasks"))
    for name, path in paths.items():
        if not args.tasks or name in args.tasks:
            results.get(name, lambda name=name, path=path: measure(name, path))


if __name__ == "__main__":
    main()
