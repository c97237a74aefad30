# SPDX-License-Identifier: Apache-2.0
"""What the programs of this folder share: arguments, errors in one line, results that a second call goes on from, and
measurements in a process of their own."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

import torch

from benchmarks.runs import DOCS, Results, foundling_json, resident_peak
from foundling.errors import ConfigError, FoundlingError
from foundling.runtime.device import available_threads


class Parser(argparse.ArgumentParser):
    """Bad arguments are one line, and exit code 2. A program adds its own arguments to those that all have."""

    def __init__(
        self, name: str, description: str | None, *, small: str = "a run of a few minutes", seeds: bool = True
    ) -> None:
        """`small` says what --small does, "" that there is none; a program that has one seed has no --seeds."""
        super().__init__(
            prog=f"python -m examples.{name}", description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        self.name = name
        self.set_defaults(small=False, seeds=None)
        if small:
            self.add_argument("--small", action="store_true", help=f"{small}; results in runs/ if no --out")
        if seeds:
            self.add_argument("--seeds", type=number(int, 1, 10), help="trainings of each model, 1 to 10")
        self.add_argument("--minutes", type=number(float), default=math.inf, help="begin no measurement after so many")
        self.add_argument("--out", type=Path, help="JSON file of the results; a figure with the same name stands by it")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help says more\n")

    def results(self, args: argparse.Namespace, settings: dict[str, Any], part: str = "") -> tuple[Results, Path]:
        """The results, and where their figure goes. ConfigError where the file has those of other settings."""
        name = f"{self.name}_{part}" if part else self.name
        file: Path = args.out or (Path("runs") if args.small else DOCS / "results") / f"{name}.json"
        if file.suffix != ".json" or file.is_dir():
            raise ConfigError(f"--out is '{file}', expected the name of a file that ends in .json")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out is '{file}', whose folder cannot be made: {error.strerror}") from None
        settings, is_new = json.loads(json.dumps(settings)), not file.exists()  # as a file has them: a list for a tuple
        results = Results(name, file, minutes=args.minutes)
        if results.values.setdefault("settings", settings if is_new else None) != settings:
            raise ConfigError(f"{file} has results of other settings; remove it, or give another --out")
        return results, file.with_suffix(".svg") if args.out or args.small else DOCS / f"{name}.svg"


def number(kind: type[int] | type[float], low: float = 0, high: float = math.inf) -> Callable[[str], Any]:
    """The `type` of an argument from `low` to `high`."""

    def convert(text: str) -> int | float:
        value = kind(text)
        if not low <= value <= high:
            expected = f"at least {low}" if high == math.inf else f"{low} to {high}"
            raise argparse.ArgumentTypeError(f"it is {text}, expected {expected}")
        return value

    convert.__name__ = kind.__name__  # for argparse's own message
    return convert


def chosen(text: str, allowed: Sequence[str], flag: str) -> list[str]:
    """Names separated by commas, in the order of `allowed`. ConfigError for another one, or none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in allowed]
    if unknown or not names:
        raise ConfigError(f"{flag} is '{text}', expected some of {', '.join(allowed)}, with commas between")
    return [name for name in allowed if name in names]


def seeds_of(args: argparse.Namespace, default: int) -> range:
    return range(args.seeds or default)


def run(main: Callable[[], None]) -> None:
    """What a user can cause ends in one line and its exit code."""
    try:
        main()
    except FoundlingError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def measured(function: Callable[..., dict[str, Any]], *args: Any, threads: int = 0, **options: Any) -> dict[str, Any]:
    """What the function gives in a process of its own, with `threads` of torch (0: those that it may use); and these,
    its minutes, and its largest resident memory with all libraries."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, function, args, options, threads or available_threads()).result()


def _measured(function: Callable[..., dict[str, Any]], args: Any, options: Any, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    start = time.monotonic()
    value = function(*args, **options)
    cost = {"minutes": round((time.monotonic() - start) / 60, 2), "peak memory (MB)": round(resident_peak() / 1e6)}
    return {"threads": torch.get_num_threads()} | value | cost


def finetuned(base: Path, data: Path, held_out: Path, options: Sequence[str]) -> dict[str, Any]:
    """`foundling finetune` of the model directory; its score on the held-out examples, minutes and peak memory. What it
    writes is removed."""
    out = base.with_name(f"{base.name}-finetuned")
    shutil.rmtree(out, ignore_errors=True)
    result = foundling_json("finetune", base, data, "--held-out", held_out, *options, "--out", out)
    shutil.rmtree(out, ignore_errors=True)
    actual = result["actual"]
    return {
        result["metric"]: actual[result["metric"]], "minutes": round(actual["seconds"] / 60, 2),
        "peak memory (MB)": round(actual["peak_bytes"] / 1e6),
    }  # fmt: skip


def require_all(results: Results) -> None:
    if not results.complete:
        print("the time is over; the same command goes on from here", file=sys.stderr)
        raise SystemExit(75)  # as of a command that can be resumed


def cost_of(results: Results) -> str:
    """Of the measurements that state theirs: minutes together and of the longest, and the largest memory."""
    cells = [cell for cell in results.values.values() if isinstance(cell, dict)]
    minutes, memory = ([c[name] for c in cells if name in c] for name in ("minutes", "peak memory (MB)"))
    time_taken = f"{sum(minutes):.1f} minutes of measurements, the longest {max(minutes):.1f}." if minutes else ""
    return time_taken + (f" Peak memory {max(memory):,} MB." if memory else "")


def save_figure(figure: Any, file: Path) -> None:
    """With the same bytes for the same figure."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = file.stem
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def spread(values: Sequence[float]) -> str:
    """Mean, and the smallest and largest of several."""
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}–{max(values):.3f})"


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Of Markdown; the first row is the head."""
    lines = [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
