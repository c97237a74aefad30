# SPDX-License-Identifier: Apache-2.0
"""The stages of alignment on built-in tasks, three seeds each: a small base raised on the text of the task, SFT, a
reward model, DPO, GRPO by checkers, PPO by the reward model.

python -m benchmarks.align_tasks [--tasks arithmetic,formats] [--seeds 0,1,2] [--stages base,sft,reward,dpo,grpo,ppo]
    [--minutes 5] [--out docs/results/align_tasks.json]

Each stage answers the held-out prompts and is judged by the checker of the task. A stage of a seed is a line of the
result, is measured once, and has its model below corpora.WORK; a call measures what is missing, and begins nothing new
after --minutes. A stage is a function in STAGES; what it is compared with stands in AGAINST.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import foundling
from benchmarks.corpora import WORK
from benchmarks.runs import Results, commit
from foundling.data.datasets import BUILTIN, open_rows
from foundling.data.datasets.arithmetic import FORMAT
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.likelihood import continuation_scores
from foundling.decode.request import Request as Prompt
from foundling.decode.sampling import Sampling
from foundling.evaluate.intervals import bootstrap, interval_of
from foundling.evaluate.rewards import build_rewards
from foundling.plan.budget import Budget
from foundling.recipes.kinds import finetune_model, raise_model
from foundling.recipes.progress import Progress
from foundling.recipes.recipe import Request
from foundling.runtime.clock import Clock
from foundling.runtime.files import read_json
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from foundling.weights.text_spec import read_text_spec

N_PROMPTS = 400
"""held-out prompts that each stage answers"""
REWARDED_SECONDS = 240
"""of learning from rewards, its measurements included"""
N_PAIRS = 500
"""held-out comparisons of the reward model"""
Given = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Of one task: which rows, and how long and how fast each stage learns."""

    level: str
    rewards: tuple[str, ...]
    """that decide whether an answer is right: all of them are 1"""
    max_tokens: int
    tokens: float
    """that the base is raised on"""
    n: dict[str, int]
    """stage -> rows that it learns from"""
    epochs: dict[str, float]
    rates: dict[str, float]
    """learning rates"""
    beta: float = 0.3
    """of DPO"""
    fields: Given = field(default_factory=lambda: {"d_model": 64, "n_layers": 2, "n_heads": 2, "max_seq_len": 256})


SETTINGS = {
    "arithmetic": Setting(
        "easy", ("maths", f"matches:{FORMAT}"), 40, 5e5, {"base": 20_000, "sft": 1500, "reward": 4000, "dpo": 2000},
        {"sft": 2, "reward": 2, "dpo": 1}, {"sft": 5e-3, "reward": 3e-3, "dpo": 1e-4, "rewards": 3e-4},
    ),
    "formats": Setting(
        "easy", ("instructions",), 120, 5e5, {"base": 10_000, "sft": 1500, "reward": 4000, "dpo": 2000},
        {"sft": 2, "reward": 2, "dpo": 1}, {"sft": 5e-3, "reward": 3e-3, "dpo": 1e-4, "rewards": 3e-4},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One task with one seed; each stage is a directory below `folder`."""

    task: str
    seed: int

    @property
    def setting(self) -> Setting:
        return SETTINGS[self.task]

    def directory(self, stage: str) -> Path:
        return WORK / "align_tasks" / f"{self.task}-{self.seed}" / stage

    def data(self, part: str, n: int, split: str = "train") -> str:
        """Each seed learns from rows of its own; all are measured on the same."""
        seed = self.seed if split == "train" else 0
        return f"{BUILTIN}{self.task}:{part}:{self.setting.level}:{split}:seed={seed}:n={n}"


# --- the stages ------------------------------------------------------------------------------------------------------


def run(case: Case, stage: str, start: Callable[..., Given], request: Request) -> Given:
    """What the run prints with --json; one that was broken off begins anew."""
    out, record = case.directory(stage), case.directory(stage).with_suffix(".json")
    if not (out / "foundling.json").exists() or not record.exists():
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        result = start(request, out, progress=Progress(False), clock=Clock())
        record.write_text(json.dumps(result), encoding="utf-8")
    return read_json(record)


def raise_base(case: Case) -> Given:
    s = case.setting
    given = {
        "data": {"vocab_size": 512}, "model": {"fields": s.fields}, "runtime": {"compile": False}, "seed": case.seed,
        "train": {"batch_size": 8, "seq_len": 128},
    }  # fmt: skip
    budget = Budget("tokens", s.tokens)
    return run(case, "base", raise_model, Request(case.data("documents", s.n["base"]), budget, None, given))


def finetune(case: Case, stage: str, kind: str, part: str, parent: str, **more: Any) -> Given:
    s = case.setting
    given = {
        "model": {"directory": str(case.directory(parent))},
        "objective": {"kind": kind} | ({"beta": s.beta} if kind == "dpo" else {}),
        "optim": {"learning_rate": s.rates[stage]}, "adapt": {"method": "full"}, "seed": case.seed,
        "train": {"batch_size": 16},
        "data": {"held_out": case.data(part, N_PAIRS, "held-out"), **more},
    }  # fmt: skip
    budget = Budget("epochs", s.epochs[stage])
    return run(case, stage, finetune_model, Request(case.data(part, s.n[stage]), budget, None, given, "finetune"))


def rewarded(case: Case, kind: str, rewards: list[str]) -> Given:
    """GRPO by the checkers of the task, PPO by the reward model; the KL divergence is held near 1 nat an answer."""
    s = case.setting
    rollout: Given = {"reward": rewards, "max_tokens": s.max_tokens}
    rollout |= {"n_prompts": 16, "group_size": 8} if kind == "grpo" else {"n_prompts": 128, "group_size": 1}
    given = {
        "model": {"directory": str(case.directory("sft"))}, "rollout": rollout | {"kl_target": 1.0}, "seed": case.seed,
        "objective": {"kind": kind, "kl_coef": 0.05}, "optim": {"learning_rate": s.rates["rewards"]},
        "adapt": {"method": "full"}, "runtime": {"precision": "float32"},
        "data": {"held_out": case.data("prompts", N_PROMPTS, "held-out")},
    }  # fmt: skip
    budget = Budget("seconds", REWARDED_SECONDS)
    return run(case, kind, finetune_model, Request(case.data("prompts", 4000), budget, None, given, "finetune"))


STAGES: dict[str, Callable[[Case], Given]] = {
    "base": raise_base,
    "sft": lambda case: finetune(case, "sft", "chat", "demonstrations", "base", chat_template="plain"),
    "reward": lambda case: finetune(case, "reward", "reward", "comparisons", "sft"),
    "dpo": lambda case: finetune(case, "dpo", "dpo", "comparisons", "sft"),
    "grpo": lambda case: rewarded(case, "grpo", list(case.setting.rewards)),
    "ppo": lambda case: rewarded(case, "ppo", [str(case.directory("reward"))]),
}
"""in the order in which they build on each other; each writes Case.directory(stage)"""
AGAINST = {"sft": "base", "dpo": "sft", "grpo": "sft", "ppo": "sft"}
"""stage -> whose answers its own are compared with"""


# --- answers and what they are worth ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    rows: list[Given]
    prompts: list[list[int]]
    ids: list[list[int]]
    texts: list[str]


def answers(directory: Path, rows: list[Given], max_tokens: int, *, temperature: float, seed: int) -> Answers:
    """One to each prompt. A base, which knows no chats, goes on from the prompt on a new line."""
    model, framing = load(directory)
    chats = framing.tokenizer.chat_template is not None
    prompts = [
        framing.chat([{"role": "user", "content": row["prompt"]}]) if chats else framing.prompt(row["prompt"] + "\n")
        for row in rows
    ]
    stops = [*framing.ends, *framing.stops(())]
    sampling, first = Sampling(temperature), seed * len(rows)
    requests = [
        Prompt(ids, max_tokens, sampling, seed=first + n, stop=stops, decode=framing.answer(ids), logprobs=0)
        for n, ids in enumerate(prompts)
    ]
    done = list(Engine(model, EngineOptions()).generate(requests))
    ids = [[*one.tokens, *([one.end[0]] if one.end else [])] for one in done]
    return Answers(rows, prompts, ids, [one.text or "" for one in done])


def load(directory: Path) -> tuple[Any, Framing]:
    model = foundling.load(directory)
    return model, Framing(Tokenizer.load(directory), read_text_spec(directory, model))


def marks(setting: Setting, given: Answers) -> tuple[list[float], dict[str, float]]:
    """1 where all rewards are 1, else 0; and the mean of each reward, where there are several."""
    every = build_rewards(setting.rewards).by_part(given.rows, given.texts)
    means = {name.partition(":")[0]: round(sum(values) / len(values), 4) for name, values in every.items()}
    both = [float(all(value == 1 for value in one)) for one in zip(*every.values(), strict=True)]
    return both, means if len(means) > 1 else {}


def mean_kl(policy: Path, reference: Path, given: Answers) -> float:
    """Of the policy from the reference, in nats an answer: the mean of log π(y) − log π_ref(y) over answers y that the
    policy drew at temperature 1, the token that ended each among its tokens, which is unbiased."""
    pairs = [(p, ids) for p, ids in zip(given.prompts, given.ids, strict=True) if ids]
    sums = [
        sum(sum(scores.logprobs) for _, scores in continuation_scores(load(directory)[0], pairs))
        for directory in (policy, reference)
    ]
    return (sums[0] - sums[1]) / len(given.ids)


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> Given:
    """Of paired marks, a tie counting half."""
    wins = [0.5 + 0.5 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    low, high = bootstrap(wins) or (0.0, 1.0)
    return {"win rate": round(sum(wins) / len(wins), 4), "low": round(low, 4), "high": round(high, 4)}


def share(values: Sequence[float], means: dict[str, float]) -> Given:
    low, high, _ = interval_of(values)
    return {"right": round(sum(values) / len(values), 4), "low": low, "high": high, "of": len(values)} | means


def measure(case: Case, stage: str) -> Given:
    """Learns the stage and judges it. `greedy` are its likeliest answers; `sampled`, at temperature 1, are compared
    with those of the stage before, prompt by prompt."""
    result, s = STAGES[stage](case), case.setting
    actual = result["actual"]
    row: Given = {"commit": commit(), "seconds": round(actual["seconds"]), "params": result["params"]}
    if stage == "reward":
        (accuracy,) = (r for r in result["results"] if r["subject"] == "model" and r["metric"] == "accuracy")
        return row | {"accuracy": accuracy["value"], "low": accuracy["low"], "high": accuracy["high"],
                      "of": accuracy["n"]}  # fmt: skip
    rows = open_rows(case.data("prompts", N_PROMPTS, "held-out"))
    greedy = answers(case.directory(stage), rows, s.max_tokens, temperature=0.0, seed=0)
    row |= {"greedy": share(*marks(s, greedy)), "example": {"prompt": rows[0]["prompt"], "answer": greedy.texts[0]}}
    sampled = answers(case.directory(stage), rows, s.max_tokens, temperature=1.0, seed=case.seed)
    ours, means = marks(s, sampled)
    row["sampled"] = share(ours, means)
    if other := AGAINST.get(stage):
        theirs = answers(case.directory(other), rows, s.max_tokens, temperature=1.0, seed=case.seed + 1_000)
        row[f"against {other}"] = win_rate(ours, marks(s, theirs)[0])
        if other != "base":
            row[f"KL from {other}"] = round(mean_kl(case.directory(stage), case.directory(other), sampled), 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", default=",".join(SETTINGS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = Results("align_tasks", args.out, minutes=args.minutes)
    for task in args.tasks.split(","):
        for seed in map(int, args.seeds.split(",")):
            for stage in args.stages.split(","):
                case = Case(task, seed)
                results.get(f"{task} {seed} {stage}", lambda case=case, stage=stage: measure(case, stage))


if __name__ == "__main__":
    main()
