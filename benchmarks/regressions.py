# SPDX-License-Identifier: Apache-2.0
"""How often `foundling compare` sees a planted loss of 1 point, and how often it calls two equal models different.

OMP_NUM_THREADS=1 python -m benchmarks.regressions     writes docs/results/regressions.json, in some minutes

Simulated pairs: each item has a difficulty of its own, drawn so that the two models differ on a stated share of
the items, as real ones do; answers are right by chance at that difficulty. A loss of 1 point lowers the chance of each
item by the same share. Real pairs: two small models of one recipe and two seeds, and two samplings of one of them.
"""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.runs import Results, causal_batch, train_model
from foundling.contracts.records import EvaluationRecord, Result
from foundling.evaluate.compare import compare_evaluations
from foundling.evaluate.intervals import pairs_needed, wilson

PAIRS = 200
ACCURACY, LOSS = 0.6, 0.01
SETTINGS = {
    "one task, 4 % of the items change": (1, 0.04, 0.8), "one task, 4 % change, 95 % power": (1, 0.04, 0.95),
    "one task, 15 % change": (1, 0.15, 0.8), "five tasks, 4 % change": (5, 0.04, 0.8),
    "twenty tasks, 15 % change": (20, 0.15, 0.8),
}  # fmt: skip
"""name: tasks, discordant share, power that the sample size is for"""
MODEL = {"vocab_size": 256, "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "head_dim": 16, "d_ff": 192,
         "max_seq_len": 64}  # fmt: skip
STEPS, ROWS, LENGTH, N_REAL = 300, 16, 64, 4000


def difficulties(generator: np.random.Generator, n: int, discordant: float, loss: float) -> Any:
    """Chances p to be right with mean μ = ACCURACY, of a beta distribution for which an answer at p and one at
    f p = (1 − loss / μ) p differ on a share `discordant` of the items: loss + f · 2 E[p (1 − p)], where
    2 E[p (1 − p)] = 2 μ (1 − μ) s / (s + 1) with s = α + β."""
    most, own = 2 * ACCURACY * (1 - ACCURACY), (discordant - loss) / (1 - loss / ACCURACY)
    s = own / (most - own)
    return generator.beta(ACCURACY * s, (1 - ACCURACY) * s, n)


def record(name: str, tasks: list[Any], names: list[str] | None = None) -> EvaluationRecord:
    results = [
        Result(names[i] if names else f"t{i}", "accuracy", float(np.mean(scores)), len(scores),
               scores=[float(s) for s in scores], hashes={"task": str(i), "prompt": "", "template": "", "backend": ""})
        for i, scores in enumerate(tasks)
    ]  # fmt: skip
    return EvaluationRecord(name, "", "", results)


def simulated(n_tasks: int, discordant: float, n: int, loss: float, seed: int) -> dict[str, Any]:
    """Verdicts of PAIRS comparisons: overall, and whether any task alone was called other than the same."""
    counts = {"worse": 0, "better": 0, "same": 0, "mean": 0}
    for pair in range(PAIRS):
        generator = np.random.default_rng([seed, pair])
        sides: tuple[list[Any], list[Any]] = ([], [])
        for _ in range(n_tasks):
            chance = difficulties(generator, n, discordant, loss)
            for side, factor in zip(sides, (1.0, 1 - loss / ACCURACY), strict=True):
                side.append(generator.random(n) < factor * chance)
        comparison = compare_evaluations(record("a", sides[0]), record("b", sides[1]))
        counts[comparison.verdict] += 1
        counts["mean"] += comparison.overall is not None and comparison.overall.verdict == "worse"
    return counts


def rate(count: int) -> list[float]:
    """With its 95 % interval."""
    return [round(value, 4) for value in (count / PAIRS, *wilson(count / PAIRS, PAIRS))]


def setting(name: str) -> dict[str, Any]:
    n_tasks, discordant, power = SETTINGS[name]
    alpha = 0.05 if n_tasks == 1 else 0.025  # the mean over tasks has half of the 5 %
    n = -(-pairs_needed(LOSS, discordant, alpha=alpha, power=power) // n_tasks)
    planted, equal = (simulated(n_tasks, discordant, n, loss, seed) for seed, loss in ((1, LOSS), (2, 0.0)))
    return {
        "tasks": n_tasks, "items a task": n, "discordant": discordant, "power": power,
        "detected": rate(planted["worse"]), "called better": rate(planted["better"]),
        "false alarms": rate(equal["worse"] + equal["better"]), "false worse": rate(equal["worse"]),
    }  # fmt: skip


def seeds() -> dict[str, Any]:
    """False alarms of equal models that differ on items by chance, each asked with three seeds that change 2 % of its
    answers."""
    alarms = 0
    for pair in range(PAIRS):
        generator = np.random.default_rng([3, pair])
        first = generator.random(400) < 0.5
        second = np.where(generator.random(400) < 0.12, generator.random(400) < 0.5, first)
        a, b = ([side ^ (generator.random(400) < 0.02) for _ in range(3)] for side in (first, second))
        names = [f"t, seed {i}" for i in range(3)]
        alarms += compare_evaluations(record("a", a, names), record("b", b, names)).verdict != "same"
    return {"seeds": 3, "items a task": 400, "false alarms": rate(alarms)}


def tolerances() -> dict[str, list[float]]:
    """How often "same" comes where the difference is the tolerance, all of it losses: "tasks, items a task, points"."""
    rates = dict[str, list[float]]()
    for n_tasks, n, points in ((1, 100, 2.0), (1, 400, 1.0), (1, 1000, 1.0), (5, 200, 1.0)):
        same = 0
        for pair in range(PAIRS):
            generator = np.random.default_rng([4, pair])
            b = [generator.random(n) >= points / 100 for _ in range(n_tasks)]
            answer = compare_evaluations(record("a", [np.ones(n)] * n_tasks), record("b", b), tolerance=points)
            same += (answer.overall or answer.tasks[0]).verdict == "same"
        rates[f"{n_tasks}, {n}, {points:g}"] = rate(same)
    return rates


# --- real pairs -------------------------------------------------------------------------------------------------------


def windows(n: int, seed: int, *, held_out: bool) -> torch.Tensor:
    """(n, LENGTH + 1) bytes of Python's own library; every tenth file is held out."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    data = b"\n".join(file.read_bytes() for i, file in enumerate(files) if (i % 10 == 0) == held_out)
    text, generator = torch.frombuffer(bytearray(data), dtype=torch.uint8), torch.Generator().manual_seed(seed)
    starts = torch.randperm(len(text) // (LENGTH + 1), generator=generator)[:n] * (LENGTH + 1)
    return torch.stack([text[start : start + LENGTH + 1] for start in starts.tolist()]).long()


@torch.inference_mode()
def logits_of(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """(n, 256) of the last byte of each row."""
    return torch.cat([model.logits(model(part[:, :-1]).hidden[:, -1:])[:, 0] for part in rows.split(256)])


def real() -> dict[str, Any]:
    test = windows(N_REAL, 0, held_out=True)
    models = []
    for seed, steps in ((0, STEPS), (1, STEPS), (0, STEPS // 3)):
        rows = windows(ROWS * steps, 10 + seed, held_out=False)
        batches = [causal_batch(part) for part in rows.split(ROWS)]
        models.append(logits_of(train_model("llama", MODEL, batches, steps, seed=seed, threads=1), test))
    right = [(logits.argmax(-1) == test[:, -1]).numpy() for logits in models]
    shares = models[0].softmax(-1)
    samplings = [
        (torch.multinomial(shares, 1, generator=torch.Generator().manual_seed(s))[:, 0] == test[:, -1]).numpy()
        for s in (1, 2)
    ]
    pairs = {
        "two seeds": right[:2],
        "two samplings of one model": samplings,
        "a third of the steps": [right[0], right[2]],
    }
    answer = dict[str, Any]()
    for name, sides in pairs.items():
        row = compare_evaluations(*(record(side, [scores]) for side, scores in zip("ab", sides, strict=True))).tasks[0]
        numbers = {"a": row.a, "b": row.b, "low": row.low, "high": row.high, "p": row.p_value, "smallest": row.smallest}
        answer[name] = {
            "n": row.n, "verdict": row.verdict, "discordant": round((row.gains + row.losses) / row.n, 4),
            **{key: round(value, 5) for key, value in numbers.items() if value is not None},
        }  # fmt: skip
    return answer


def commit() -> str:
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    results = Results("regressions")
    results.get("command", lambda: "OMP_NUM_THREADS=1 python -m benchmarks.regressions")
    results.get("commit", commit)
    results.get("pairs", lambda: PAIRS)
    for name in SETTINGS:
        results.get(name, lambda name=name: setting(name))
    results.get("three seeds", seeds)
    results.get("same at the tolerance", tolerances)
    results.get("real", real)


if __name__ == "__main__":
    main()
