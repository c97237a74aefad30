# SPDX-License-Identifier: Apache-2.0
"""Let a model choose between the answers of two evaluations, each pair in both orders."""

from __future__ import annotations

import argparse
import shlex
import sys
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
        "--out",
        metavar="DIR",
        help="directory of the result, an evaluation as well; the same one goes on (default: beside A)",
    )
    add_upstream(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.cli.subjects import chats, load_subject
    from foundling.errors import DataError
    from foundling.evaluate.judge import CRITERIA, Judge, win_rate
    from foundling.evaluate.judged import judged_record, pairs_of
    from foundling.evaluate.recorded import Recorded
    from foundling.evaluate.store import ANSWERS, read_evaluation, write_evaluation
    from foundling.limits import ITEMS
    from foundling.runtime.files import lock

    if args.limit is not None:
        ITEMS.check(args.limit, "--limit")
    a, b = read_evaluation(args.a), read_evaluation(args.b)
    pairs = pairs_of(a, b, args.limit)
    subject = load_subject(args.by, args)
    out = _out(args, subject.name)
    by, criteria = "logprobs" if args.logprobs else "text", args.criteria or CRITERIA
    with lock(out):
        recorded = Recorded(out / ANSWERS, subject)
        judge = Judge(recorded, criteria=criteria, by=by, chat=chats(subject))
        compared = []
        with progress_for(args).bar("judged", len(pairs), unit="pairs") as bar:
            for at in range(0, len(pairs), AT_ONCE):
                part = judge.compare_all([(pair.prompt, pair.a, pair.b) for pair in pairs[at : at + AT_ONCE]])
                compared += part
                for _ in part:
                    bar.advance()
        rate = win_rate(compared)
        if rate.value is None:
            way = "name a judge that follows instructions" if args.logprobs else "use --logprobs, or another judge"
            raise DataError(f"{subject.name}: none of {len(pairs)} verdicts could be read; {way}")
        record = judged_record(
            a, b, pairs, compared, judge=subject.name, hashes=recorded.hashes,
            settings={"criteria": criteria, "by": by, "chat": judge.chat, "against": b.subject},
            command=shlex.join(["foundling", *sys.argv[1:]]),
        )  # fmt: skip
        write_evaluation(record, out)
    return _shown(args, record, rate, out, pairs, compared)


def _shown(args: argparse.Namespace, record: Any, rate: Any, out: Path, pairs: Any, compared: Any) -> dict[str, Any]:
    from foundling.evaluate.store import ANSWERS

    a, b, judge = record.subject, record.settings["against"], record.settings["judge"]
    if rate.unparsed:
        note(f"note: {rate.unparsed} of {len(pairs)} verdicts could not be read and count in no figure")
    if rate.attacks:
        note(f"note: {rate.attacks} pairs hold signs of an injection; {rate.attacks_won} answers with one won")
    if not args.json:
        say(f"{a} against {b}: preferred in {rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})")
        say(f"{rate.wins} wins, {rate.losses} losses, {rate.ties} ties, p = {rate.p_value:.3g}; ties are half a win")
        if rate.position_bias.value is not None:
            say(f"position bias: {rate.position_bias.value:.1%} of pairs follow the place of an answer")
        say(f"results: {out}/index.html")
    rows = [
        {"task": pair.task, "id": pair.id, "winner": one.winner, "verdicts": one.verdicts, "margin": one.margin}
        for pair, one in zip(pairs, compared, strict=True)
    ]
    figures = rate._asdict() | {"position_bias": rate.position_bias._asdict()}
    places = {"out": str(out), "verdicts": str(out / ANSWERS)}
    return {"a": a, "b": b, "judge": judge, **figures, **places, "pairs": rows}


def _out(args: argparse.Namespace, judge: str) -> Path:
    """ConfigError for the directory of an evaluation that is none of a judge: it would be replaced."""
    from foundling.errors import ConfigError
    from foundling.evaluate.store import RECORD, read_evaluation

    a, b = (path.parent if path.name == RECORD else path for path in (Path(args.a), Path(args.b)))
    out = Path(args.out) if args.out else a.parent / f"{a.resolve().name}-to-{b.resolve().name}-by-{_plain(judge)}"
    if (out / RECORD).is_file() and "judge" not in read_evaluation(out).settings:
        raise ConfigError(f"--out {out}: there is an evaluation that is none of a judge; choose another directory")
    return out


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in name)[:80]
