# SPDX-License-Identifier: Apache-2.0
"""Let a model choose between the answers of two evaluations, each pair in both orders."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from foundling.cli.common import progress_for
from foundling.cli.stdio import note, say

EXAMPLES = [
    "foundling judge runs/a-eval runs/b-eval --by openai:gpt-4.1-mini",
    "foundling judge runs/a-eval runs/b-eval --by runs/large --logprobs --limit 100 --json",
    'foundling judge runs/a-eval runs/b-eval --by ollama:llama3.2 --criteria "The shorter right answer is better."',
]


AT_ONCE = 16
"""pairs"""


def add(parser: argparse.ArgumentParser) -> None:
    from foundling.cli.subjects import SUBJECT, add_upstream

    parser.add_argument("a", help="directory of an evaluation with generated answers")
    parser.add_argument("b", help="directory of another one on the same items")
    parser.add_argument("--by", required=True, metavar="SUBJECT", help=f"the judge: {SUBJECT}")
    parser.add_argument(
        "--criteria", metavar="TEXT", help="what makes an answer better (default: helpful, right, short)"
    )
    parser.add_argument("--logprobs", action="store_true",
                        help="take the likelier verdict instead of a written one: suits small models")  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N items of each task")
    parser.add_argument(
        "--out", metavar="FILE", help="the judge's answers, as they come (default: A/judged-by-NAME.jsonl)"
    )
    add_upstream(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.cli.subjects import chats, load_subject
    from foundling.evaluate.judge import CRITERIA, Judge, win_rate
    from foundling.evaluate.recorded import Recorded
    from foundling.evaluate.store import read_evaluation
    from foundling.limits import ITEMS

    if args.limit is not None:
        ITEMS.check(args.limit, "--limit")
    a, b = read_evaluation(args.a), read_evaluation(args.b)
    pairs = _pairs(a, b, args.limit)
    subject = load_subject(args.by, args)
    out = Path(args.out) if args.out else Path(args.a) / f"judged-by-{_plain(subject.name)}.jsonl"
    recorded = Recorded(out, subject)
    judge = Judge(
        recorded, criteria=args.criteria or CRITERIA, by="logprobs" if args.logprobs else "text", chat=chats(subject)
    )
    compared = []
    with progress_for(args).bar("judged", len(pairs), unit="pairs") as bar:
        for at in range(0, len(pairs), AT_ONCE):
            part = judge.compare_all([(row[2], row[3], row[4]) for row in pairs[at : at + AT_ONCE]])
            compared += part
            for _ in part:
                bar.advance()
    rate = win_rate(compared)
    if rate.unparsed:
        note(f"note: {rate.unparsed} of {len(pairs)} verdicts could not be read and count in no figure")
    if rate.attacks:
        note(f"note: {rate.attacks} pairs hold signs of an injection; {rate.attacks_won} answers with one won")
    if not args.json:
        if rate.value is not None:
            say(f"{a.subject} against {b.subject}: preferred in {rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})")
        say(f"{rate.wins} wins, {rate.losses} losses, {rate.ties} ties, p = {rate.p_value:.3g}; ties are half a win")
        if rate.position_bias.value is not None:
            say(f"position bias: {rate.position_bias.value:.1%} of pairs follow the place of an answer")
        say(f"verdicts: {out}")
    rows = [
        {"task": task, "id": name, "winner": one.winner, "verdicts": one.verdicts, "margin": one.margin}
        for (task, name, *_), one in zip(pairs, compared, strict=True)
    ]
    figures = rate._asdict() | {"position_bias": rate.position_bias._asdict()}
    return {"a": a.subject, "b": b.subject, "judge": subject.name, **figures, "verdicts": str(out), "pairs": rows}


def _pairs(a: Any, b: Any, limit: int | None) -> list[tuple[str, str, str, str, str]]:
    """(task, id, prompt, answer of a, answer of b) of the items that both have."""
    from foundling.errors import MismatchError

    pairs = []
    for task in a.items:
        others = {item["id"]: item for item in b.items.get(task, [])}
        for item in a.items[task][:limit]:
            other = others.get(item["id"])
            if other is None or "choices" in item:
                continue
            if other["prompt"] != item["prompt"]:
                raise MismatchError(
                    f"task {task!r}, item {item['id']!r}: the prompts differ; evaluate both on one task"
                )
            pairs.append((task, item["id"], item["prompt"], item["answer"], other["answer"]))
    if not pairs:
        raise MismatchError("the evaluations have no generated answers to the same items; evaluate both on one task")
    return pairs


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in name)[:80]
