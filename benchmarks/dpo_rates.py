# SPDX-License-Identifier: Apache-2.0
"""Learning rates and β of DPO and IPO on comparisons with a planted truth.

python -m benchmarks.dpo_rates [--stages dpo] [--shares 0.03,0.1,0.3,1] [--betas 0.05,0.1,0.3] [--minutes 15]

A small model learns by `foundling align sft` to answer each prompt with a few random words. The planted reward of an
answer is the number of its GOOD words less that of its BAD ones. Comparisons are of two such answers, the better one
chosen as Bradley and Terry's model of the reward does, so that some labels are wrong; held-out ones are labelled by the
reward itself. A cell is `foundling align STAGE`: two epochs, LoRA, one seed, a share of finetuning's learning rate.

accuracy: how often the policy's log-ratio prefers the better answer of held-out comparisons. KL: mean log-ratio of the
policy to the reference on the policy's own samples, in nats an answer. reward: the planted one of these samples, beside
that of the reference's. The default shares of `align` are POLICY_RATE (recipes/finetune_plan.py). A call measures what
is missing, and begins nothing new after --minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import statistics
from pathlib import Path
from typing import Any

import torch

import foundling
from benchmarks.corpora import WORK
from benchmarks.runs import Results, foundling_json
from foundling.decode import plain
from foundling.decode.request import Request
from foundling.models import build, family
from foundling.recipes.finetune_plan import LEARNING_RATES
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from foundling.weights.text_spec import read_text_spec

GOOD, BAD = ("river", "stone", "cloud", "light"), ("dust", "smoke", "rust", "ash")
PLAIN = ("table", "chair", "paper", "glass", "clock", "shelf", "door", "lamp")
CITIES = ("Oslo", "Rome", "Lima", "Cairo", "Quito", "Hanoi")
N_WORDS = (3, 7)
N_DEMONSTRATIONS, N_COMPARISONS, N_HELD_OUT, N_SAMPLES = 3000, 1000, 300, 256
SIZES = {"max_seq_len": 128, "d_model": 96, "n_layers": 3}
ROWS, MAX_ANSWER = 64, 48


def answer(chance: random.Random) -> str:
    return " ".join(chance.choices(GOOD + BAD + PLAIN, k=chance.randint(*N_WORDS)))


def planted_reward(text: str) -> float:
    words = text.split()
    return float(sum(word in GOOD for word in words) - sum(word in BAD for word in words))


def prompt(number: int) -> str:
    return f"{number}: {CITIES[number % len(CITIES)]}"


def comparison(number: int, chance: random.Random, *, exact: bool) -> dict[str, str] | None:
    """None for two answers of one reward, of which neither is better."""
    better, worse = sorted((answer(chance) for _ in range(2)), key=planted_reward, reverse=True)
    margin = planted_reward(better) - planted_reward(worse)
    if not margin:
        return None
    if not exact and chance.random() > 1 / (1 + math.exp(-margin)):
        better, worse = worse, better
    return {"prompt": prompt(number), "chosen": better, "rejected": worse}


def write_rows(file: Path, rows: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows if row), encoding="utf-8")
    return file


def data() -> dict[str, Path]:
    chance, folder = random.Random(0), WORK / "dpo_rates" / "data"
    first = N_DEMONSTRATIONS
    rows = {
        "demonstrations": [{"prompt": prompt(i), "completion": answer(chance)} for i in range(first)],
        "comparisons": [comparison(first + i, chance, exact=False) for i in range(N_COMPARISONS)],
        "held_out": [comparison(first + N_COMPARISONS + i, chance, exact=True) for i in range(N_HELD_OUT)],
    }
    return {name: write_rows(folder / f"{name}.jsonl", these) for name, these in rows.items()}


def reference(files: dict[str, Path]) -> Path:
    """The model that has learnt from the demonstrations."""
    folder = WORK / "dpo_rates"
    if not (folder / "sft" / "foundling.json").exists():
        for name in ("base", "sft"):
            shutil.rmtree(folder / name, ignore_errors=True)
        lines = files["demonstrations"].read_text(encoding="utf-8").splitlines()
        tokenizer = Tokenizer.train([" ".join(json.loads(line).values()) for line in lines], 384)
        torch.manual_seed(0)
        model = build("llama", **family("llama").module.sized(tokenizer.vocab_size, *SIZES.values()))
        foundling.save(model, folder / "base", tokenizer=tokenizer)
        options = ["--method", "full", "--epochs", "4", "--chat-template", "plain", "--learning-rate", "0.002"]
        foundling_json("align", "sft", folder / "base", files["demonstrations"], *options, "--out", folder / "sft")
    return folder / "sft"


@torch.inference_mode()
def answer_logprob(model: Any, ids: list[int], n_prompt: int) -> float:
    """Σ log p of the ids after the first `n_prompt`."""
    tokens = torch.tensor([ids])
    logprobs = model.logits(model(tokens[:, :-1]).hidden).float().log_softmax(-1)
    return float(logprobs.gather(-1, tokens[:, 1:, None])[0, n_prompt - 1 :].sum())


def samples(directory: Path, reference: Path) -> dict[str, float]:
    """Of the model's own answers at temperature 1: KL to the reference, planted reward, tokens."""
    policy, base = foundling.load(directory, merged=True), foundling.load(reference)
    framing = Framing(Tokenizer.load(directory), read_text_spec(directory, policy))
    numbers = range(N_DEMONSTRATIONS + N_COMPARISONS, N_DEMONSTRATIONS + N_COMPARISONS + N_SAMPLES)
    asked = [framing.chat([{"role": "user", "content": prompt(number)}]) for number in numbers]
    ratios, rewards, lengths = list[float](), list[float](), list[int]()
    for at in range(0, len(asked), ROWS):
        prompts = asked[at : at + ROWS]
        drawn = plain.complete(
            policy,
            [
                Request(ids, MAX_ANSWER, seed=at + n, stop=framing.ends, decode=framing.answer(ids), logprobs=0)
                for n, ids in enumerate(prompts)
            ],
        )
        for ids, done in zip(prompts, drawn, strict=True):
            whole = [*ids, *done.tokens, *([done.end[0]] if done.end else [])]
            ratios.append(answer_logprob(policy, whole, len(ids)) - answer_logprob(base, whole, len(ids)))
            rewards.append(planted_reward(done.text or ""))
            lengths.append(len(done.tokens))
    means = {"KL": ratios, "reward": rewards, "tokens": lengths}
    return {name: round(statistics.fmean(values), 3) for name, values in means.items()}


def measure(stage: str, share: float, beta: float) -> dict[str, Any]:
    files, out = data(), WORK / "dpo_rates" / f"{stage}-{share:g}-{beta:g}"
    start = reference(files)
    shutil.rmtree(out, ignore_errors=True)
    options = ["--learning-rate", str(share * LEARNING_RATES["lora"]), "--objective.beta", str(beta), "--epochs", "2"]
    result = foundling_json(
        "align", stage, start, files["comparisons"], "--held-out", files["held_out"], *options, "--out", out
    )
    actual = result["actual"]
    figures = {"accuracy": actual["accuracy"], "margin": actual["margin"], "loss": actual["loss"]}
    return {
        **{name: round(value, 4) for name, value in figures.items()}, **samples(out, start),
        "best step": result["best_step"], "steps": result["steps"], "seconds": round(actual["seconds"], 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stages", default="dpo")
    parser.add_argument("--shares", default="0.03,0.1,0.3,1", help="of the learning rate of finetuning by LoRA")
    parser.add_argument("--betas", default="0.05,0.1,0.3")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--out", type=Path, help="file of the results (default: docs/results/dpo_rates.json)")
    args = parser.parse_args()
    results = Results("dpo_rates", args.out, minutes=args.minutes)
    results.get("reference", lambda: samples(start := reference(data()), start))
    for stage in args.stages.split(","):
        for share in map(float, args.shares.split(",")):
            for beta in map(float, args.betas.split(",")):
                name = f"{stage}, {share:g} of the rate, beta {beta:g}"
                results.get(name, lambda s=stage, r=share, b=beta: measure(s, r, b))


if __name__ == "__main__":
    main()
