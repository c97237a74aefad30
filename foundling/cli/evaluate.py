# SPDX-License-Identifier: Apache-2.0
"""Evaluate a model on tasks: small YAML files, texts, or tasks of the standard harness."""

from __future__ import annotations

import argparse
import shlex
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
    "foundling evaluate runs/notes questions.yaml --seeds 0,1,2 --contamination corpus/",
    "foundling evaluate openai:gpt-4.1-mini questions.yaml --out runs/theirs",
    "foundling evaluate runs/theirs/answers.jsonl questions.yaml    # replays them, offline",
]


def add(parser: argparse.ArgumentParser) -> None:
    from foundling.cli.subjects import SUBJECT, add_price, add_upstream

    parser.add_argument("subject", help=SUBJECT)
    parser.add_argument(
        "tasks", nargs="+", metavar="TASK", help="task file (.yaml), or a text or rows with texts: bits per byte"
    )
    parser.add_argument("--out", metavar="DIR", help="directory of the results (default: runs/NAME-eval-N)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N items of each task")
    parser.add_argument("--shots", type=int, metavar="N", help="solved examples before an item (default: the task's)")
    parser.add_argument("--seed", type=int, help="of the examples and of sampling (default: as the task)")
    parser.add_argument("--seeds", metavar="N,N,…", help="each task once for each seed, and their mean")
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
    parser.add_argument("--contamination", metavar="DATA",
                        help="look for the items in this training data, and score those apart")  # fmt: skip
    add_price(parser)
    parser.add_argument("--card", action="store_true", help="write the results into the model's card, README.md")
    parser.add_argument("--plan", action="store_true", help="only say how many tokens and minutes it will take")
    parser.add_argument("--base-model", metavar="DIR", help="of an adapter's directory: where its base is now")
    add_upstream(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.evaluate.estimate import estimate
    from foundling.evaluate.subjects import LocalSubject
    from foundling.limits import ITEMS

    if args.limit is not None:
        ITEMS.check(args.limit, "--limit")
    tasks = [task for name in args.tasks for task in _tasks(name, args)]
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

    from foundling.evaluate.evaluation import check_same_subject, evaluate, with_previous
    from foundling.evaluate.store import ANSWERS, RECORD, read_evaluation, write_evaluation
    from foundling.runtime.files import lock
    from foundling.runtime.machine import machine

    out = Path(args.out) if args.out else _free(subject.name)
    progress = progress_for(args)
    with lock(out):
        previous = read_evaluation(out) if (out / RECORD).exists() else None
        if previous is not None:
            check_same_subject(previous, subject, out)
        record = evaluate(
            subject, tasks, out / ANSWERS, bar=lambda name, total: progress.bar(name, total),
            command=shlex.join(["foundling", *sys.argv[1:]]), machine=machine(), about=_about(args, subject),
            settings={"shots": args.shots, "seed": args.seed, "limit": args.limit, "chat": args.chat},
            corpus=_corpus(args),
        )  # fmt: skip
        record = _priced(args, record)
        if previous is not None:
            record = with_previous(previous, record)
        write_evaluation(record, out)
    if args.card:
        from foundling.evaluate.card import write_card

        write_card(args.subject, [record])
    for text in record.notes:
        note(f"note: {text}")
    if not args.json:
        for result in record.results:
            say(_line(result))
        for line in _means(args, record.results):
            say(line)
        say(f"results: {out}/index.html")
    results = [asdict(replace(result, scores=[], weights=[])) for result in record.results]
    return {"subject": subject.name, "out": str(out), "results": results, "notes": record.notes}


def _subject(args: argparse.Namespace) -> Any:
    from foundling.cli.subjects import is_local, load_subject
    from foundling.decode.engine.engine import EngineOptions

    if not is_local(args.subject):
        return load_subject(args.subject, args)
    return load_subject(
        args.subject, args, base=args.base_model, dtype=args.dtype, device=args.device, truncate=args.truncate,
        positions=args.positions, chat=args.chat, window=args.window, stride=args.stride,
        engine=EngineOptions(weights=args.weights) if args.weights else None,
    )  # fmt: skip


def _tasks(name: str, args: argparse.Namespace) -> list[Any]:
    from foundling.evaluate.task_file import load_task, texts_of

    if not name.endswith((".yaml", ".yml")):
        return [texts_of(name, limit=args.limit)]
    return [
        load_task(name, shots=args.shots, seed=seed, limit=args.limit, named=bool(args.seeds)) for seed in _seeds(args)
    ]


def _priced(args: argparse.Namespace, record: Any) -> Any:
    """With what the tokens of each task cost, in dollars."""
    from dataclasses import replace

    from foundling.cli.subjects import price_of

    if (price := price_of(args)) is None:
        return record
    results = []
    for result in record.results:
        n = result.cost.get("prompt_tokens", 0.0), result.cost.get("new_tokens", 0.0)
        dollars = (n[0] * price[0] + n[1] * price[1]) / 1e6
        results.append(replace(result, cost={**result.cost, "dollars": dollars}))
    return replace(record, results=results)


def _seeds(args: argparse.Namespace) -> list[int | None]:
    if args.seeds is None:
        return [args.seed]
    from foundling.errors import ConfigError

    try:
        return [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds is {args.seeds!r}; expected whole numbers, such as 0,1,2") from None


def _corpus(args: argparse.Namespace) -> Any:
    """Documents of the data that the items are looked for in, from the beginning at each call."""
    if args.contamination is None:
        return None
    from foundling.data.sources import Source

    return lambda: (document.text for document in Source(args.contamination))


def _means(args: argparse.Namespace, results: list[Any]) -> list[str]:
    """Of tasks that ran with several seeds."""
    if args.seeds is None:
        return []
    from statistics import fmean, stdev

    values = dict[str, list[float]]()
    for result in results:
        values.setdefault(result.task.rpartition(", seed ")[0] or result.task, []).append(result.value)
    return [
        f"{task}: mean of {len(row)} seeds {fmean(row):.4f}, standard deviation {stdev(row):.4f}"
        for task, row in values.items()
        if len(row) > 1
    ]


def _about(args: argparse.Namespace, subject: Any) -> dict[str, Any]:
    model = getattr(subject, "model", None)
    if model is None or isinstance(model, str):
        return {"directory": args.subject}
    from foundling.models import family_of

    n_params = sum(p.numel() for p in model.parameters())
    return {"directory": args.subject, "family": family_of(model).name, "params": n_params}


def _free(name: str) -> Path:
    plain = "".join(c if c.isalnum() or c in "-._" else "-" for c in name).lstrip(".")[:80] or "model"
    return next(path for n in range(1, 1 << 20) if not (path := Path(f"runs/{plain}-eval-{n}")).exists())


def _line(result: Any) -> str:
    value = "none" if result.value is None else f"{result.value:.4f}"
    interval = "" if result.low is None else f" ({result.low:.4f} to {result.high:.4f})"
    cost = f", ${result.cost['dollars']:.4f}" if "dollars" in result.cost else ""
    seconds = result.cost.get("seconds", 0)
    return f"{result.task}: {result.metric} {value}{interval}, n = {result.n:,}, {seconds:.1f} s{cost}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
