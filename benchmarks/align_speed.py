# SPDX-License-Identifier: Apache-2.0
"""Alignment with LoRA beside TRL: seconds of a step, memory and losses of SFT, DPO and GRPO on SmolLM2-135M-Instruct.

python -m benchmarks.align_speed [--cases sft,dpo] [--precision float32] [--minutes 15]

It needs TRL, which no extra of ours installs; in a folder of its own it changes nothing else:
    pip install --no-deps --target DIR trl==1.16.0 && export PYTHONPATH=DIR

Both sides train adapters of rank 16 on every projection of the layers with fused AdamW, without dropout, on the same
rows of 128 tokens in the same order, from the same adapters. Ours is `foundling align` itself (recipes/finetune), whose
steps are timed as they end. TRL is measured at each of its settings first, and the fastest is compared. Whole processes
take turns: TRL, ours, TRL, ours, … The memory is the most that a process had resident, loading and planning included.
A call measures what is missing. `--small` only shows that all of it works.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.align_peer import ALPHA, FOR_MEMORY, RANK, settings_of, share_of_e, versions
from benchmarks.chat_task import smollm2
from benchmarks.lora import WORDS
from benchmarks.runs import Results, commit, resident_peak
from benchmarks.sides import Side, answer_calls
from foundling.adapt.added import adapter_tensors
from foundling.adapt.method import apply
from foundling.adapt.options import AdaptOptions
from foundling.evaluate.rewards import Part, Rewards
from foundling.plan.budget import Budget
from foundling.plan.probe import product_rate
from foundling.recipes import policy, policy_plan, rollouts, training
from foundling.recipes.kinds import finetune_model
from foundling.recipes.recipe import Request
from foundling.runtime.device import available_threads
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from foundling.train.loop import train
from foundling.train.options import OptimOptions
from foundling.train.schedule import Schedule
from foundling.train.state import MODEL, TrainState
from foundling.weights.directory import load

LENGTH, PROMPT = 128, 64
"""tokens of a row, and of its prompt with the words of the template"""
WARMUP = 2
"""steps that are not counted"""
TRIAL_SECONDS = 180
"""for a setting of TRL, from the start of its process to the end of its last step: one that compiles for longer is not
tried to the end"""


@dataclass(frozen=True)
class Case:
    kind: str
    """sft, dpo or grpo"""
    rows: int
    """of a step: chats, comparisons of two rows each, or completions"""
    rate: float
    beta: float = 0.0
    group: int = 8
    """completions of a prompt"""
    weights: str | None = None
    """of our rollouts: by native code from a copy in this type; TRL has no such setting on a CPU"""
    precision: str = "float32"
    steps: int = WARMUP + 4
    trial_steps: int = WARMUP + 2
    turns: int = 3


CASES = {
    "sft": Case("sft", 8, 2e-4),
    "dpo": Case("dpo", 4, 1e-4, beta=0.1),
    "grpo": Case("grpo", 16, 1e-4),
    "grpo with KL": Case("grpo", 16, 1e-4, beta=0.04),
    "grpo, native": Case("grpo", 16, 1e-4, weights="float32"),
    "grpo, int8": Case("grpo", 16, 1e-4, weights="int8"),
}
SMALL: dict[str, int] = {"rows": 2, "group": 2, "steps": WARMUP + 1, "trial_steps": WARMUP + 1, "turns": 1}


def examples(kind: str, tokenizer: Tokenizer, n: int) -> list[dict[str, Any]]:
    """n rows of data, whose prompts and answers all have as many tokens as the others': nothing is padded, and every
    answer has the same length."""
    draw, framing = random.Random(0), Framing(tokenizer)
    words = [w for w in WORDS if len(tokenizer.encode(f" {w}")) == 1]

    def text(first: str, n_words: int) -> str:
        return " ".join([first, *draw.choices(words, k=n_words)])

    n_prompt = PROMPT - len(framing.chat([{"role": "user", "content": "Words:"}]))
    asked = [{"role": "user", "content": text("Words:", n_prompt)}]
    replied = [*asked, {"role": "assistant", "content": "Sorted:"}]
    n_answer = LENGTH + 1 - len(framing.chat(replied, add_generation_prompt=False))
    rows = []
    for _ in range(n):
        prompt = text("Words:", n_prompt)
        if kind == "sft":
            reply = {"role": "assistant", "content": text("Sorted:", n_answer)}
            rows.append({"messages": [{"role": "user", "content": prompt}, reply]})
        elif kind == "dpo":
            answers = {name: text("Sorted:", n_answer) for name in ("chosen", "rejected")}
            rows.append({"prompt": [{"role": "user", "content": prompt}], **answers})
        else:
            rows.append({"prompt": [{"role": "user", "content": prompt}]})
    return rows


def peft_name(name: str) -> str:
    """'layers.0.mixer.q.a' -> the name that peft gives it in a Llama"""
    _, layer, part, leaf, which = name.split(".")
    place = f"self_attn.{leaf}_proj" if part == "mixer" else f"mlp.{leaf}_proj"
    return f"base_model.model.model.layers.{layer}.{place}.lora_{which.upper()}.default.weight"


def write_start(folder: Path, case: Case, state: TrainState, schedule: Schedule, batches: Any = None) -> None:
    """What TRL's side begins with; see align_peer.Start."""
    of_ours = adapter_tensors(state.models[MODEL])
    names = {id(p): peft_name(n) for n, p in of_ours.items()}
    groups = [group for part in state.optimizers[MODEL].parts for group in part.param_groups]
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    columns = ("tokens", "targets", "documents", "loss_mask")
    read = [] if batches is None else [batches[n] for n in range(case.steps)]
    save_file({c: torch.stack([b[c] for b in read]) for c in columns} if read else {}, folder / "batches.safetensors")
    save_file({peft_name(n): p.detach().clone() for n, p in of_ours.items()}, folder / "adapters.safetensors")
    about = {"rates": rates, "scales": [schedule(n) for n in range(case.steps)]}
    (folder / "start.json").write_text(json.dumps(about), encoding="utf-8")


def prepare(case: Case, folder: Path) -> None:
    """Data of both sides, and what TRL begins with."""
    folder.mkdir(parents=True, exist_ok=True)
    n = case.steps * (case.rows // case.group if case.kind == "grpo" else case.rows)
    rows = examples(case.kind, Tokenizer.load(smollm2()), max(8, n) + 2)  # finetune takes no fewer than 8
    for name, part in {"train": rows[:-2], "held_out": rows[-2:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    if case.kind != "grpo":
        run(case, folder, None)  # which writes it
        return
    model = load(smollm2())
    apply(model, AdaptOptions("lora", rank=RANK, alpha=ALPHA), generator("adapt", 0))
    state = TrainState.build(model, OptimOptions("adamw", learning_rate=case.rate, weight_decay=0.0))
    write_start(folder, case, state, Schedule(case.steps, warmup_steps=1))


def ours(directory: str, folder: str, **fields: Any) -> dict[str, Any]:
    """`foundling align` in this process: seconds, loss and gradient of each step, and the most bytes that it had."""
    case, data, marks, records = Case(**fields), Path(folder), list[float](), list[Any]()

    def timed(state: TrainState, objective: Any, batches: Any, schedule: Schedule, *rest: Any) -> Iterator[Any]:
        if not (data / "start.json").exists():
            write_start(data, case, state, schedule, batches)
        marks.append(time.perf_counter())
        for record in train(state, objective, batches, schedule, *rest):
            records.append((record.loss, record.grad_norm))
            marks.append(time.perf_counter())
            yield record

    training.train = timed  # pyright: ignore[reportPrivateImportUsage]
    objectives: dict[str, dict[str, Any]] = {
        "sft": {"kind": "chat"}, "dpo": {"kind": "dpo", "beta": case.beta},
        "grpo": {"kind": "grpo", "kl_coef": case.beta},
    }  # fmt: skip
    given = {
        "objective": objectives[case.kind],
        "data": {"held_out": str(data / "held_out.jsonl")},
        "model": {"directory": directory},
        "adapt": {"method": "lora", "rank": RANK, "alpha": ALPHA},
        "optim": {"learning_rate": case.rate, "weight_decay": 0.0},
        "train": {
            "total_steps": case.steps, "batch_size": case.rows, "seq_len": LENGTH, "checkpoint_every": case.steps,
        },
        "runtime": {"precision": case.precision, "device": "cpu"},
    }  # fmt: skip
    if case.kind == "grpo":
        reward_like_trl()
        given["rollout"] = {
            "n_prompts": case.rows // case.group, "group_size": case.group, "max_tokens": LENGTH - PROMPT,
            "reward": ["matches:e"], "weights": case.weights,
        }  # fmt: skip
    request = Request(str(data / "train.jsonl"), Budget("epochs", 1), None, given, "finetune")
    with tempfile.TemporaryDirectory(prefix="foundling-align-") as out:
        finetune_model(request, Path(out) / "model")
    return {
        "seconds": [b - a for a, b in pairwise(marks)], "losses": [loss for loss, _ in records],
        "gradients": [norm for _, norm in records], "peak": resident_peak(),
    }  # fmt: skip


def reward_like_trl() -> None:
    """The same reward as TRL's side has; and answers do not end before the length that is fixed."""
    rewards = Rewards([Part("share of e", 1.0, lambda rows, texts: share_of_e(list(texts)))])
    for module in (policy, policy_plan):
        module.rewards_of = lambda recipe: rewards
    request = rollouts.Request
    rollouts.Request = lambda *args, stop, **kwargs: request(*args, **kwargs)  # pyright: ignore


def run(case: Case, folder: Path, setting: str | None, steps: int | None = None, limit: float = 3600) -> dict[str, Any]:
    """One process, from its start to its end; `setting`: TRL's, None for ours. SystemExit where it fails, or takes more
    than `limit` seconds."""
    arguments: dict[str, Any] = {"directory": str(smollm2()), "folder": str(folder), **asdict(case)}
    process = Side("benchmarks.align_speed" if setting is None else "benchmarks.align_peer", quiet=False)
    timer = threading.Timer(limit, process.process.kill)
    timer.start()
    try:
        if setting is None:
            return process(**arguments)
        length = LENGTH - PROMPT if case.kind == "grpo" else LENGTH + 1
        arguments = {
            name: arguments[name] for name in ("directory", "folder", "kind", "rows", "group", "beta", "precision")
        }
        return process(**arguments, setting=setting, steps=steps or case.steps, length=length)
    finally:
        timer.cancel()
        process.end()


def trial(case: Case, folder: Path) -> dict[str, Any]:
    """TRL at each setting: seconds of a step after the first ones, memory and losses; or how it ended."""
    results = {}
    for name in settings_of(case.kind, case.precision):
        try:
            done = run(case, folder, name, case.trial_steps, TRIAL_SECONDS)
        except SystemExit as error:  # "… ended with -9" after TRIAL_SECONDS
            results[name] = {"ended": str(error).rpartition(" ended ")[2]}
        else:
            seconds = statistics.median(done["seconds"][WARMUP:])
            results[name] = {
                "seconds": round(seconds, 3), "peak_mib": done["peak"] >> 20, "losses": rounded(done["losses"]),
            }  # fmt: skip
        print(f"{case.kind}, TRL {name}: {results[name]}", file=sys.stderr, flush=True)
    return results


def best_of(settings: dict[str, Any]) -> str:
    timed = {n: v["seconds"] for n, v in settings.items() if "seconds" in v and n not in FOR_MEMORY}
    return min(timed, key=lambda name: timed[name])


def measure(case: Case, folder: Path, setting: str) -> dict[str, Any]:
    """Whole processes in turn."""
    runs: dict[str, list[dict[str, Any]]] = {"trl": [], "ours": []}
    for _ in range(case.turns):
        runs["trl"].append(run(case, folder, setting))
        runs["ours"].append(run(case, folder, None))
    seconds = {side: [one["seconds"][WARMUP:] for one in of] for side, of in runs.items()}
    middle = {side: statistics.median(s for one in of for s in one) for side, of in seconds.items()}
    ratios = [statistics.median(a) / statistics.median(b) for a, b in zip(*seconds.values(), strict=True)]
    peak = {side: max(one["peak"] for one in of) for side, of in runs.items()}
    return {
        "case": asdict(case), "setting": setting, "length": LENGTH, "rank": RANK, "threads": available_threads(),
        "seconds_of_a_step": {side: round(value, 3) for side, value in middle.items()},
        "speed_to_trl": round(middle["trl"] / middle["ours"], 3), "of_each_turn": [round(r, 3) for r in ratios],
        "peak_mib": {side: value >> 20 for side, value in peak.items()},
        "memory_to_trl": round(peak["ours"] / peak["trl"], 3),
        "all_seconds": {side: [rounded(one) for one in of] for side, of in seconds.items()},
        "losses": {side: rounded(of[0]["losses"]) for side, of in runs.items()},
        "gradient_norms": {side: rounded(of[0]["gradients"]) for side, of in runs.items()},
        "commit": commit(), "date": datetime.date.today().isoformat(), "versions": versions(),
    }  # fmt: skip


def rounded(numbers: list[float]) -> list[float]:
    return [round(number, 5) for number in numbers]


def products() -> float:
    return round(product_rate("bfloat16", "cpu") / product_rate("float32", "cpu"), 2)


def compare(results: Results, name: str, case: Case) -> None:
    label = f"{name}, {case.precision}"
    if label in results.values:
        return
    with tempfile.TemporaryDirectory(prefix="foundling-align-data-") as data:
        prepare(case, Path(data))
        settings = results.get(f"{label}, TRL's settings", lambda: trial(case, Path(data)))
        if settings is not None:
            results.get(label, lambda: measure(case, Path(data), best_of(settings)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", default="sft,dpo", help=f"of {', '.join(CASES)}")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--minutes", type=float, default=15, help="nothing new begins afterwards")
    parser.add_argument("--out", type=Path, help="default: docs/results/align_speed.json")
    parser.add_argument("--small", action="store_true", help="few short steps, whose times say nothing; needs --out")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return answer_calls(ours)
    if args.small and not args.out:
        parser.error("--small needs --out")
    results = Results("align_speed", args.out, minutes=args.minutes)
    results.get("products a second, bfloat16 / float32", products)
    for name in args.cases.split(","):
        case = replace(CASES[name], precision=args.precision, **(SMALL if args.small else {}))
        compare(results, name, case)
    return None


if __name__ == "__main__":
    main()
