# SPDX-License-Identifier: Apache-2.0
"""What the programs of this folder share: arguments, errors in one line, results that a second call goes on from, and
measurements in a process of their own."""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.runs import DOCS, Results
from foundling.errors import ConfigError, FoundlingError


class Parser(argparse.ArgumentParser):
    """Bad arguments are one line, and exit code 2. A program adds its own arguments to those that all have."""

    def __init__(self, name: str, description: str | None) -> None:
        super().__init__(
            prog=f"python -m examples.{name}", description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        self.name = name
        self.add_argument("--small", action="store_true", help="a run of a few minutes, below runs/ if no --out")
        self.add_argument("--seeds", type=int, help="trainings of each model, 1 to 10")
        self.add_argument("--minutes", type=float, default=math.inf, help="begin no measurement after so many")
        self.add_argument("--out", type=Path, help="JSON file of the results; a figure with the same name stands by it")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help says more\n")

    def results(self, args: argparse.Namespace, settings: dict[str, Any]) -> tuple[Results, Path]:
        """The results and where their figure goes. ConfigError where the file has those of other settings."""
        file: Path = args.out or (Path("runs") if args.small else DOCS / "results") / f"{self.name}.json"
        figure = file.with_suffix(".svg") if args.out or args.small else DOCS / f"{self.name}.svg"
        if file.suffix != ".json" or file.is_dir():
            raise ConfigError(f"--out is '{file}', expected the name of a file that ends in .json")
        file.parent.mkdir(parents=True, exist_ok=True)
        results = Results(self.name, file, minutes=args.minutes)
        settings = json.loads(json.dumps(settings))  # as a file gives them again: a list for a tuple
        known = results.values.setdefault("settings", settings)
        if known != settings:
            raise ConfigError(f"{file} has results of other settings; remove it, or give another --out")
        return results, figure


def chosen(text: str, allowed: tuple[str, ...], flag: str) -> list[str]:
    """Names separated by commas, in the order of `allowed`. ConfigError for another one, or none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in allowed]
    if unknown or not names:
        raise ConfigError(f"{flag} is '{text}', expected some of {', '.join(allowed)}, with commas between")
    return [name for name in allowed if name in names]


def seeds_of(args: argparse.Namespace, default: int) -> range:
    count = default if args.seeds is None else args.seeds
    if not 1 <= count <= 10:
        raise ConfigError(f"--seeds is {count}, expected 1 to 10")
    return range(count)


def run(main: Callable[[], None]) -> None:
    """What a user can cause ends in one line and its exit code."""
    try:
        main()
    except FoundlingError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def measured(function: Callable[..., dict[str, Any]], *args: Any, **options: Any) -> dict[str, Any]:
    """What the function gives in a process of its own, and that one's largest resident memory, with all libraries."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_with_memory, function, args, options).result()


def _with_memory(function: Callable[..., dict[str, Any]], args: Any, options: Any) -> dict[str, Any]:
    value = function(*args, **options)
    return value | {"peak memory (MB)": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)}


def spread(values: Sequence[float]) -> str:
    """Mean, and the smallest and largest of several."""
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}–{max(values):.3f})"


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Of Markdown; the first row is the head."""
    lines = [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
