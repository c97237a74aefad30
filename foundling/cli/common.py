# SPDX-License-Identifier: Apache-2.0
"""Arguments and helpers that several commands share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

DEFAULT_DATA = "builtin:stdlib"
DEFAULT_MINUTES = 3.0


def add_budget(parser: argparse.ArgumentParser) -> None:
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--minutes",
        type=float,
        help="budget in minutes, from the start of the process to the held-out loss (default 3)",
    )
    budget.add_argument("--flops", type=float, help="budget in floating-point operations of training, such as 1e14")
    budget.add_argument("--tokens", type=float, help="budget in training tokens, such as 5e6")


def budget_of(args: argparse.Namespace) -> Any:
    """The budget that was given. BudgetError for a value that is not a positive number."""
    from foundling.plan.budget import Budget

    if args.flops is not None:
        return Budget("flops", args.flops)
    if args.tokens is not None:
        return Budget("tokens", args.tokens)
    return Budget("seconds", (DEFAULT_MINUTES if args.minutes is None else args.minutes) * 60)


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", nargs="?",
        help="file or folder of text, code, .jsonl or .parquet, or builtin:NAME (default: builtin:stdlib)",
    )  # fmt: skip


def free_directory(data: str | None) -> Path:
    """runs/NAME-N, the first that does not exist."""
    name = "stdlib" if data is None else Path(data.removeprefix("builtin:").replace(":", "-")).resolve().stem or "data"
    return next(path for n in range(1, 1 << 20) if not (path := Path(f"runs/{name}-{n}")).exists())


def progress_for(args: argparse.Namespace) -> Any:
    """Progress on stderr; with --json only on a terminal."""
    from foundling.recipes.progress import Progress

    return Progress(on=not args.json or sys.stderr.isatty())


def clock() -> Any:
    """A clock that counts from the start of the process."""
    from foundling.runtime.clock import Clock, process_age

    return Clock(process_age())
