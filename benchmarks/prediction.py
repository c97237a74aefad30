# SPDX-License-Identifier: Apache-2.0
"""Predicted against actual: time, memory and held-out loss of `foundling raise`, and what a naive predictor would say.

python -m benchmarks.prediction [--minutes 1,3,10] [--corpora stdlib,headers] [--seeds 0,1,2]

'headers' is a corpus that no calibration saw. The naive predictor knows the run before on the same corpus: the loss
will be that one's, and the time in proportion to the tokens.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.corpora import path_of

FIGURES = ("seconds", "peak_bytes", "loss")


def raised(name: str, minutes: str, seed: str) -> dict[str, Any]:
    """What `foundling raise --json` prints."""
    data = path_of(name, Path(tempfile.gettempdir()) / "foundling-benchmarks")
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "foundling", "raise", *([] if name == "stdlib" else [data])]
        command += ["--minutes", minutes, "--seed", seed, "--out", f"{out}/m", "--json"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def errors(result: dict[str, Any]) -> dict[str, float]:
    return {name: result["actual"][name] / result["predicted"][name] - 1 for name in FIGURES}


def shown(of: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:+.1%}" for name, value in of.items())


def median(of: list[dict[str, float]]) -> dict[str, float]:
    """Of signed errors, figure by figure."""
    return {name: statistics.median(e[name] for e in of) for name in of[0]}


def worst(of: list[dict[str, float]]) -> dict[str, float]:
    return {name: max((e[name] for e in of), key=abs) for name in of[0]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", default="1,3,10")
    parser.add_argument("--corpora", default="stdlib,headers")
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()
    for name in args.corpora.split(","):
        before: dict[str, float] | None = None
        for minutes in args.minutes.split(","):
            found, last = [], None
            for seed in args.seeds.split(","):
                result = raised(name, minutes, seed)
                found.append(errors(result))
                a = result["actual"]
                line = f"{name} {minutes} min, seed {seed}: {shown(found[-1])}; {a['seconds']:.0f} s, "
                line += f"{a['peak_bytes'] / 2**30:.2f} GiB, {a['bits_per_byte']:.3f} bits per byte; "
                line += f"probe {result['phases']['probe'] / 60 / float(minutes):.1%} of the budget"
                if before:
                    naive = {
                        "seconds": a["seconds"] / (before["seconds"] * result["tokens"] / before["tokens"]) - 1,
                        "loss": a["loss"] / before["loss"] - 1,
                    }
                    line += f"; naive: {shown(naive)}"
                print(line, flush=True)
                last = {"seconds": a["seconds"], "tokens": result["tokens"], "loss": a["loss"]}
            print(f"{name} {minutes} min, worst and median: {shown(worst(found))}; {shown(median(found))}", flush=True)
            before = last


if __name__ == "__main__":
    main()
