# SPDX-License-Identifier: Apache-2.0
"""Ten times the requests that `foundling serve` can answer: what each of them gets, /health meanwhile, and memory.

python -m benchmarks.serve_overload [--seconds 60] [--out docs/results/serve_overload.json]

First 32 clients ask as fast as they are answered, which tells how many requests a second the server answers. Then ten
times as many come at random times, whether others are answered or not. 16 completions are computed at once and 16 wait;
clients and server share the machine. `smollm2` is the real model in native code with int4 weights, `tiny` a model of
two layers by torch, whose steps hold the interpreter.
"""

import argparse
import asyncio
import datetime
import tempfile
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chat_task import smollm2
from benchmarks.runs import Results, commit
from tests.serve.clients import Outcome, arrivals, overload
from tests.serve.commands import Serving
from tests.serve.servers import save_model

CLIENTS, TOKENS, FACTOR = 32, 60, 10


def measure(directory: Path, seconds: float, *options: str) -> dict[str, Any]:
    with Serving(f"tiny={directory}", "--max-queue", 32, "--max-num-seqs", 16, *options) as server:
        port, process = int(server.url.rsplit(":", 1)[1]), psutil.Process(server.process.process.pid)
        calm = asyncio.run(overload(port, CLIENTS, 15.0, TOKENS))
        rate = FACTOR * calm.statuses[200] / 15.0
        busy = asyncio.run(arrivals(port, rate, seconds, TOKENS, process))
    mib = [round(n / 2**20, 1) for _, n in busy.rss]
    return {
        "requests a second": round(rate, 1), "seconds": seconds, "statuses": busy.statuses,
        "health ms": {"32 clients": quantiles(calm), "overload": quantiles(busy)},
        "memory MiB": {"start": mib[0], "half": mib[len(mib) // 2], "end": mib[-1]}, "commit": commit(),
    }  # fmt: skip


def quantiles(outcome: Outcome) -> dict[str, float]:
    return {name: round(1000 * outcome.percentile(q), 1) for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = Results("serve_overload", args.out)
    results.values["date"] = f"{datetime.date.today()}"
    results.get("smollm2", lambda: measure(smollm2(), args.seconds, "--weights", "int4"))
    with tempfile.TemporaryDirectory() as folder:
        results.get("tiny", lambda: measure(save_model(Path(folder) / "tiny"), args.seconds))


if __name__ == "__main__":
    main()
