# SPDX-License-Identifier: Apache-2.0
"""How well a small model judges pairs whose better answer is planted, with and without control of position:
SmolLM2-135M-Instruct as it is, and after it has learnt to judge.

python -m benchmarks.rlaif [--count 200] [--train 400] [--minutes 30] [--out docs/results/rlaif.json]

Two tasks. `instructions`: one answer follows an instruction of IFEval's kinds and the other does not, as
verify/instructions checks. `sentiment`: one remark is friendly, the other is not. The judge that has learnt is the same
model after one epoch of LoRA on verdicts of other topics, in both orders. For each: the share of pairs judged rightly
with both orders (a tie is a half) and by one order alone, Cohen's kappa, the position bias. A call measures what is
missing; what was answered is recorded.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.chat_task import smollm2
from benchmarks.corpora import WORK
from benchmarks.runs import Results, foundling_json
from foundling.decode.engine.engine import EngineOptions
from foundling.evaluate.answers import PromptRow
from foundling.evaluate.judge import Judge, win_rate
from foundling.evaluate.local import LocalModel
from foundling.evaluate.preferences import Metered, PairJudge
from foundling.evaluate.recorded import Recorded
from foundling.evaluate.subject import Decoding
from foundling.evaluate.truth import judge_agreement, labelled_pairs
from foundling.verify.instructions import check

Comparison = tuple[PromptRow, list[str]]
TOPICS = (
    "rain", "bread", "a bicycle", "the sea", "a library", "winter", "a train", "tea", "a garden", "music", "the moon",
    "a market", "a bridge", "cats", "a letter", "the forest", "a clock", "cheese", "a lamp", "mountains",
)  # fmt: skip
TRAIN_TOPICS = 12
"""the first ones; the others are judged"""
SENTENCES = (
    "{Topic} is something that people notice every day, and few of them think about it",
    "Many people like {topic}, because it reminds them of where they grew up",
    "There is more to say about {topic} than most of us would believe at first, and little of it is dull",
    "I thought about {topic} this morning, and then about nothing else for an hour",
)
CRITERIA = {
    "instructions": "The better answer does exactly what the task asks of its form.",
    "sentiment": "The friendlier answer is better.",
}
N_VERDICT = 16
"""tokens of a verdict without reasons"""


class Rule(NamedTuple):
    kind: str
    arguments: dict[str, Any]
    asks: str
    follow: Callable[[str], str]
    """a text that breaks the rule -> one that follows it"""


RULES = (
    Rule("change_case:english_lowercase", {}, "Write in lowercase letters alone.", str.lower),
    Rule("change_case:english_capital", {}, "Write in capital letters alone.", str.upper),
    Rule("punctuation:no_comma", {}, "Use no comma.", lambda text: text.replace(",", "")),
    Rule("startend:quotation", {}, "Put your whole answer into double quotation marks.", lambda text: f'"{text}."'),
    Rule("startend:end_checker", {"end_phrase": "That is all."}, "End with the words: That is all.",
         lambda text: f"{text}. That is all."),
    Rule("keywords:existence", {"keywords": ["yellow"]}, "Use the word yellow.", lambda text: f"{text}, all in yellow"),
)  # fmt: skip
FRIENDLY = ("What a delight: {topic} always makes me happy.", "I love {topic}, and I am glad that you ask.",
            "{Topic} is wonderful, thank you for bringing it up!")  # fmt: skip
UNFRIENDLY = ("I cannot stand {topic}, leave me alone with it.", "{Topic} is awful, and so is your question.",
              "Nobody needs {topic}; what a stupid thing to ask.")  # fmt: skip


def filled(text: str, topic: str) -> str:
    return text.format(topic=topic, Topic=topic[:1].upper() + topic[1:])


def instructions(topics: Sequence[str]) -> list[Comparison]:
    comparisons = list[Comparison]()
    for topic in topics:
        for rule in RULES:
            prompt = f"Write one sentence about {topic}. {rule.asks}"
            for sentence in SENTENCES:
                text = filled(sentence, topic)
                answers = [rule.follow(text), text]
                followed = [all(check(a, prompt, [rule.kind], [rule.arguments]).strict) for a in answers]
                assert followed == [True, False], (rule.kind, answers)
                comparisons.append((row(prompt), answers))
    return comparisons


def sentiment(topics: Sequence[str]) -> list[Comparison]:
    return [
        (row(f"Say something friendly about {topic}."), [filled(good, topic), filled(bad, topic)])
        for topic in topics
        for good in FRIENDLY
        for bad in UNFRIENDLY
    ]


def row(prompt: str) -> PromptRow:
    return PromptRow([{"role": "user", "content": prompt}], {"prompt": prompt})


TASKS = {"instructions": instructions, "sentiment": sentiment}


def sample(task: str, topics: Sequence[str], count: int) -> list[Comparison]:
    return random.Random(0).sample(pool := TASKS[task](topics), min(count, len(pool)))


def judge_of(directory: Path, task: str, by: Any, name: str) -> PairJudge:
    model = LocalModel.load(directory, name=name, engine=EngineOptions(deterministic=True))
    folder = WORK / "rlaif"
    folder.mkdir(parents=True, exist_ok=True)
    subject = Metered(Recorded(folder / f"{name}-{task}-{by}.jsonl", model), alone=True)
    judge = Judge(subject, criteria=CRITERIA[task], by=by, explain=False, decoding=Decoding(N_VERDICT))
    return PairJudge(judge)


def measure(directory: Callable[[], Path], name: str, task: str, by: str, count: int) -> dict[str, Any]:
    judge = judge_of(directory(), task, by, name)
    pairs, truth = labelled_pairs(sample(task, TOPICS[TRAIN_TOPICS:], count))
    compared = judge.compare(pairs, lambda: None)
    figures, rate = judge_agreement(judge, compared, truth), win_rate(compared)
    shares = {key: [value and round(value, 4) for value in getattr(figures, key)[:3]]
              for key in ("share", "one_order", "kappa")}  # fmt: skip
    bias = rate.position_bias.value
    return {**shares, "position bias": bias and round(bias, 4), "prefers the first": rate.prefers_first,
            "pairs": figures.pairs, "ties": figures.ties, "not read": figures.unread}  # fmt: skip


def trained(n_train: int) -> Path:
    """SmolLM2 after one epoch of verdicts on other topics."""
    out = WORK / "rlaif" / f"judge-{n_train}"
    if (out / "config.json").exists():
        return out
    shutil.rmtree(out, ignore_errors=True)
    rows = list[str]()
    for task in TASKS:
        pairs, truth = labelled_pairs(sample(task, TOPICS[:TRAIN_TOPICS], n_train // 2))
        judge = judge_of(smollm2(), task, "logprobs", "smollm2").judge
        prompts = judge.pair_prompts([(prompt.text, a, b) for prompt, a, b in pairs])
        for number, messages in enumerate(prompts):
            first_wins = (truth[number // 2] == "a") == (number % 2 == 0)
            verdict = {"role": "assistant", "content": "[[A]]" if first_wins else "[[B]]"}
            rows.append(json.dumps({"messages": [*messages, verdict]}) + "\n")
    random.Random(0).shuffle(rows)
    data = out.with_suffix(".jsonl")
    data.write_text("".join(rows), encoding="utf-8")
    foundling_json("finetune", smollm2(), data, "--as", "chat", "--method", "lora", "--epochs", "1", "--merged",
                   "--out", out)  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=200, help="pairs of each task")
    parser.add_argument("--train", type=int, default=400, help="pairs that a judge learns from; 0: none learns")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = Results("rlaif", args.out, minutes=args.minutes)
    judges: dict[str, tuple[str, Callable[[], Path]]] = {"SmolLM2-135M-Instruct": ("smollm2", smollm2)}
    if args.train:
        name = f"judge-{args.train}"
        judges[f"after {args.train} verdicts"] = (name, lambda: trained(args.train))
    for title, (name, directory) in judges.items():
        for task, by in product(TASKS, ("text", "logprobs")):
            results.get(f"{title}, {task}, {by}", partial(measure, directory, name, task, by, args.count))


if __name__ == "__main__":
    main()
