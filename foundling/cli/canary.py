# SPDX-License-Identifier: Apache-2.0
"""Notice that a model has changed under its name: fixed prompts, asked now and compared with the first time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from foundling.cli import exits
from foundling.cli.stdio import say

EXAMPLES = [
    "foundling canary openai:gpt-4.1-mini --record canaries.json",
    "foundling canary openai:gpt-5-mini --omit temperature    # a reasoning model refuses it",
    "foundling canary llama@http://localhost:8080/v1 --record canaries.json || echo it has changed",
]


def add(parser: argparse.ArgumentParser) -> None:
    from foundling.cli.subjects import SUBJECT, add_upstream

    parser.add_argument("subject", help=SUBJECT)
    parser.add_argument("--record", default="canaries.json", metavar="FILE",
                        help="what was answered the first time, and later checks (default canaries.json)")  # fmt: skip
    add_upstream(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.cli.subjects import chats, load_subject
    from foundling.evaluate.canary import PROMPTS, canary

    subject = load_subject(args.subject, args)
    report = canary(subject, Path(args.record), chat=chats(subject))
    if not args.json:
        text = {"recorded": "recorded for later", "same": "the same", "changed": "changed"}[report.verdict]
        say(f"{report.name}: {text}; {report.stable} of {len(PROMPTS)} canaries always answer alike")
        if report.changed:
            since = f", first seen {report.since}" if report.since else ""
            until = f"the same until {report.last_same}"
            say(f"changed: {', '.join(report.changed)} (p = {report.p_value:.2g}{since}; {until})")
    return report._asdict() | {"exit_code": exits.WORSE if report.exit_code else 0}
