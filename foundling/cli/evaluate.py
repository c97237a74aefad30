# SPDX-License-Identifier: Apache-2.0
"""Evaluate a model on tasks: small YAML files, texts, or tasks of the standard harness."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from foundling.cli.common import progress_for
from foundling.cli.stdio import note, say

EXAMPLES = [
    "foundling evaluate runs/notes questions.yaml",
    "foundling evaluate runs/notes questions.yaml sums.yaml --shots 5 --seed 1 --out runs/notes-eval",
    "foundling evaluate runs/notes held_out.txt --window 1024 --stride 512",
    "foundling evaluate runs/chat questions.yaml --chat --plan",
    "foundling evaluate gpt-4o-mini@https://api.openai.com/v1 questions.yaml --out runs/theirs",
]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", help="model or adapter directory, hf://ORG/NAME, or MODEL@URL of an API")
    parser.add_argument(
        "tasks", nargs="+", metavar="TASK", help="task file (.yaml), or a text or rows with texts: bits per byte"
    )
    parser.add_argument("--out", metavar="DIR", help="directory of the results (default: runs/NAME-eval-N)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N items of each task")
    parser.add_argument("--shots", type=int, metavar="N", help="solved examples before an item (default: the task's)")
    parser.add_argument("--seed", type=int, help="of the examples and of sampling (default: as the task)")
    parser.add_argument("--chat", action="store_true", help="frame each prompt by the chat template")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--weights", choices=["float32", "bfloat16", "int8", "int4"],
                        help="generate by native code with weights of this type")  # fmt: skip
    parser.add_argument("--window", type=int, metavar="N", help="tokens of a long text that are read at once")
    parser.add_argument("--stride", type=int, metavar="N",
                        help="tokens that each window scores anew (default: all)")  # fmt: skip
    parser.add_argument("--positions", type=int, metavar="N",
                        help="tokens of a text that a masked model fills in turn (default 64)")  # fmt: skip
    parser.add_argument("--truncate", action="store_true", help="cut the beginning of prompts that are too long")
    parser.add_argument("--plan", action="store_true", help="only say how many tokens and minutes it will take")
    parser.add_argument("--base-model", metavar="DIR", help="of an adapter's directory: where its base is now")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.evaluate.estimate import estimate
    from foundling.evaluate.subjects import LocalSubject

    tasks = [_task(name, args) for name in args.tasks]
    subject = _subject(args)
    if args.plan:
        if not isinstance(subject, LocalSubject):
            from foundling.errors import ConfigError

            raise ConfigError("--plan measures this machine; a model behind an API has no plan")
        plan = estimate(subject, tasks)
        if not args.json:
            for row in plan:
                new = f", at most {row.new_tokens:,} generated" if row.new_tokens else ""
                say(f"{row.task}: {row.items:,} items, {row.tokens:,} tokens{new}, about {_minutes(row.seconds)}")
        return {"subject": subject.name, "tasks": [row._asdict() for row in plan]}
    return _evaluate(args, subject, tasks)


def _evaluate(args: argparse.Namespace, subject: Any, tasks: list[Any]) -> dict[str, Any]:
    from dataclasses import asdict, replace

    from foundling.evaluate.evaluation import ANSWERS, evaluate
    from foundling.evaluate.store import write_evaluation
    from foundling.runtime.files import lock
    from foundling.runtime.machine import machine

    out = Path(args.out) if args.out else _free(subject.name)
    progress = progress_for(args)
    with lock(out):
        record = evaluate(
            subject, tasks, out / ANSWERS, bar=lambda name, total: progress.bar(name, total),
            command=" ".join(["foundling", *sys.argv[1:]]), machine=machine(), about=_about(args, subject),
            settings={"shots": args.shots, "seed": args.seed, "limit": args.limit, "chat": args.chat},
        )  # fmt: skip
        write_evaluation(record, out)
    for text in record.notes:
        note(f"note: {text}")
    if not args.json:
        for result in record.results:
            say(_line(result))
        say(f"results: {out}/index.html")
    results = [asdict(replace(result, scores=[], weights=[])) for result in record.results]
    return {"subject": subject.name, "out": str(out), "results": results, "notes": record.notes}


def _subject(args: argparse.Namespace) -> Any:
    if "@" in args.subject and "://" in args.subject.partition("@")[2]:
        from foundling.evaluate.upstream import subject_of

        return subject_of(args.subject)
    from foundling.decode.engine.engine import EngineOptions
    from foundling.evaluate.subjects import load_subject

    return load_subject(
        args.subject, base=args.base_model, dtype=args.dtype, device=args.device, truncate=args.truncate,
        positions=args.positions, chat=args.chat, window=args.window, stride=args.stride,
        engine=EngineOptions(weights=args.weights) if args.weights else None,
    )  # fmt: skip


def _task(name: str, args: argparse.Namespace) -> Any:
    from foundling.evaluate.task_file import load_task, texts_of

    if name.endswith((".yaml", ".yml")):
        return load_task(name, shots=args.shots, seed=args.seed, limit=args.limit)
    return texts_of(name, limit=args.limit)


def _about(args: argparse.Namespace, subject: Any) -> dict[str, Any]:
    model = getattr(subject, "model", None)
    if model is None or isinstance(model, str):
        return {"directory": args.subject}
    from foundling.models import family_of

    n_params = sum(p.numel() for p in model.parameters())
    return {"directory": args.subject, "family": family_of(model).name, "params": n_params}


def _free(name: str) -> Path:
    return next(path for n in range(1, 1 << 20) if not (path := Path(f"runs/{name}-eval-{n}")).exists())


def _line(result: Any) -> str:
    value = "none" if result.value is None else f"{result.value:.4f}"
    interval = "" if result.low is None else f" ({result.low:.4f} to {result.high:.4f})"
    return f"{result.task}: {result.metric} {value}{interval}, n = {result.n:,}, {result.cost.get('seconds', 0):.1f} s"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
