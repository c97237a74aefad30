# SPDX-License-Identifier: Apache-2.0
"""Rank answers or write demonstrations on a local page; export what was judged, whether labellers agree, a budget."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foundling.cli.stdio import flush, note, say
from foundling.errors import ConfigError

EXAMPLES = [
    "foundling label answers.jsonl --out labels.jsonl --labeller anna       # then open the address that it prints",
    "foundling label prompts.jsonl --as write --out demos.jsonl --labeller anna",
    "foundling label answers.jsonl --out labels.jsonl --export comparisons.jsonl",
    "foundling label answers.jsonl --out anna.jsonl --agreement ben.jsonl carla.jsonl",
    "foundling label answers.jsonl --out labels.jsonl --target 0.85         # how many labels, by how many labellers",
]
PORT = 8010


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="rows of prompts, with completions to rank or alone to write for")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="file of judgements; it grows, and one goes on there"
    )
    parser.add_argument("--labeller", metavar="NAME", help="who labels: opens the page")
    parser.add_argument(
        "--as", dest="task", choices=("rank", "write"), help="what is done (default: what the rows allow)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the order in which answers are shown (0)")
    parser.add_argument("--host", default="127.0.0.1", metavar="TEXT", help="address to listen at (default 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=PORT, metavar="N", help=f"port; 0 takes a free one (default {PORT})"
    )
    reports = parser.add_argument_group("afterwards", "from the judgements of --out, and of the files of --agreement")
    about = "write what the majority prefers, or the demonstrations, as rows for `foundling align`"
    reports.add_argument("--export", metavar="FILE", help=about)
    about = "whether labellers agree; with --labeller, shown once nothing is left to label"
    reports.add_argument("--agreement", nargs="*", metavar="FILE", help=about)
    budget = parser.add_argument_group("budget", "from a measured curve of a reward model's accuracy")
    budget.add_argument(
        "--target", type=float, metavar="SHARE", help="accuracy to reach on pairs that were not labelled"
    )
    budget.add_argument("--budget", type=float, metavar="N", help="labels that can be paid for; with --price, money")
    budget.add_argument("--price", type=float, metavar="MONEY", help="of one label")
    budget.add_argument("--equal", type=float, metavar="SHARE",
                        help="how often two labellers give one label (default: as judged so far)")  # fmt: skip
    budget.add_argument("--curve", metavar="FILE", help="the measured curve (default: docs/results/label_curve.json)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    planning = args.target is not None or args.budget is not None
    if args.labeller is not None and (planning or args.export):
        raise ConfigError("--labeller opens the page, --export, --target and --budget report; give one of them")
    if args.labeller is None and not planning and not args.export and args.agreement is None:
        raise ConfigError("give --labeller NAME to label, or --export, --agreement, --target or --budget to report")
    if args.labeller is not None:
        return _label(args)
    record: dict[str, Any] = {"out": args.out}
    if args.export:
        record["export"] = _export(args)
    if args.agreement is not None:
        record["agreement"] = _report(args)
        for line in record["agreement"]["sentences"] if not args.json else ():
            say(line)
    if planning:
        record["plan"] = _plan(args)
    return record


# --- the page --------------------------------------------------------------------------------------------------------


def _label(args: argparse.Namespace) -> dict[str, Any]:
    if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]:
        raise ConfigError(f"the page needs {missing[0]}: pip install 'foundling[serve]'")
    from foundling.data.label_book import LabelBook, check_labeller
    from foundling.data.labels import LabelFile
    from foundling.limits import SEED
    from foundling.serve.label import serve_labels
    from foundling.serve.options import ServeOptions
    from foundling.serve.run import listen

    check_labeller(args.labeller)
    options = ServeOptions(host=args.host, port=args.port, shutdown_seconds=5.0)
    items = _items(args)
    book = LabelBook(items, LabelFile(args.out), args.labeller, SEED.check(args.seed, "--seed"))
    listener, tell = listen(options), note if args.json else say
    note(f"{items.sentence}; {len(items.items) - book.n_left:,} labelled by {args.labeller}")
    if not options.loopback:
        note("note: other machines can connect, and what they send is not encrypted; only the address keeps them out")

    def ready(url: str) -> None:
        tell(f"label as {args.labeller} at {url}")
        flush()  # or a program that reads our stdout would not learn the address

    serve_labels(book, options, listener, on_ready=ready, agreement=lambda: _report(args))
    tell(f"{len(items.items) - book.n_left:,} of {len(items.items):,} labelled; judgements: {args.out}")
    return {"out": args.out, "labeller": args.labeller, **book.progress()}


def _items(args: argparse.Namespace) -> Any:
    from foundling.data.labels import read_items

    if os.path.realpath(args.data) == os.path.realpath(args.out):
        raise ConfigError("--out is the file of the data; choose another")
    items = read_items(args.data, args.task, args.out)
    for reason, n in items.skipped.items():
        note(f"note: {n:,} skipped: {reason}")
    return items


# --- reports ---------------------------------------------------------------------------------------------------------


def _lines(args: argparse.Namespace) -> list[Any]:
    """Of all files, by time: the last judgement of a labeller counts, wherever it stands."""
    from foundling.data.labels import read_judgements

    files = dict.fromkeys([args.out, *(args.agreement or ())])
    return sorted((one for path in files for one in read_judgements(path)), key=lambda one: one.time)


def _report(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.evaluate.labels import label_report

    return label_report(_lines(args))


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.data.label_export import export_rows, write_rows
    from foundling.evaluate.labels import find_groups, last_judgements, votes_of

    lines = _lines(args)
    export = export_rows(_items(args), last_judgements(lines))
    write_rows(Path(args.export), export.rows)
    groups = find_groups(votes_of(lines))
    if groups and groups.groups:
        note("note: the labellers form two groups; see --agreement, and export each group's files by themselves")
    if not args.json:
        say(f"{args.export}: {len(export.rows):,} rows")
        for name, n in export.counts.items():
            say(f"  {name}: {n:,}")
    return {"file": args.export, "rows": len(export.rows), "counts": dict(export.counts)}


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.evaluate.labels import find_groups, raw_agreement, votes_of
    from foundling.limits import check_number
    from foundling.plan import labels

    law = labels.fit_law(labels.load_points(_curve(args)))
    equal = args.equal
    if equal is None:
        votes = votes_of(_lines(args))
        equal, n = raw_agreement(votes, decided=True)
        if equal is None:
            raise ConfigError("no pair of answers was decided twice; give --equal, how often two labellers agree")
        note(f"note: two labellers give one label in {equal:.1%} of {n} pairs that both decided")
        if (groups := find_groups(votes)) and groups.groups:
            note("note: the labellers form two groups, so their errors are not independent and the plan does not hold")
    right = labels.right_share(equal)
    price = None if args.price is None else check_number(args.price, "--price", 1e-9)
    budget = args.budget
    if budget is not None:
        budget = int(check_number(budget, "--budget", 0, 1e15) / (price or 1) + 1e-9)
    plans = (
        labels.plan_target(law, right, args.target)
        if args.target is not None
        else labels.plan_budget(law, right, budget or 0)
    )
    if args.target is not None and budget is not None:
        plans = [plan for plan in plans if plan.labels <= budget]
        if not plans:
            raise ConfigError(
                f"--target {args.target:g} takes more than {budget:,} labels; raise --budget, or aim lower"
            )
    if not args.json:
        say(f"labellers are right in {right:.1%}")
        say(f"the curve: {law.least_labels:,} to {law.most_labels:,} pairs; its law errs by {law.error:.3f}")
        for plan in plans:
            cost = f", {plan.labels * price:,.2f} to pay" if price else ""
            say(f"{plan.labellers} a pair: {plan.pairs:,} pairs, {plan.labels:,} labels{cost}, {plan.wrong:.1%} wrong: "
                f"accuracy {plan.accuracy:.3f}")  # fmt: skip
    return {"equal": equal, "right": right, "law": vars(law), "plans": [plan._asdict() for plan in plans]}


def _curve(args: argparse.Namespace) -> Path | None:
    import foundling

    if args.curve:
        return Path(args.curve)
    return Path(foundling.__file__).parents[1] / "docs" / "results" / "label_curve.json"
