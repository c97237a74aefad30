# SPDX-License-Identifier: Apache-2.0
"""Predicted against actual: time, peak memory and held-out loss of `foundling raise`, and what a naive predictor says.

python -m benchmarks.prediction [--cases default,adamw,gpt2] [--minutes 1,3,10] [--corpora stdlib,headers]
    [--seeds 0,1,2] [-- OPTIONS OF foundling raise]

The corpus 'headers' is one that no calibration has seen. The naive predictor knows the run before, of the same case on
the same corpus: it says the same loss, and a time in proportion to the tokens.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.corpora import path_of

FIGURES = ("seconds", "peak_bytes", "loss")
CASES = {
    "default": [],
    "adamw": ["--optimizer", "adamw"],
    "gpt2": ["--preset", "gpt2", "--model.n-layers", "2"],
}
"""name -> options of `foundling raise`"""
LIMIT = 0.15
"""largest error of time and peak memory that we accept"""


def raise_model(corpus: str, options: list[str]) -> dict[str, Any]:
    """The object that `foundling raise --json` prints."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "foundling", "raise", path_of(corpus), *options, "--out", f"{out}/m", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:])} ended with {done.returncode}: {done.stdout}{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def errors(result: dict[str, Any]) -> dict[str, float]:
    """actual / predicted − 1 of each figure that was predicted"""
    predicted = result["predicted"]
    return {name: result["actual"][name] / predicted[name] - 1 for name in FIGURES if name in predicted}


def percent(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:+.1%}" for name, value in values.items())


def describe(result: dict[str, Any], minutes: str, before: dict[str, Any] | None) -> str:
    """One line for a run; `before`: the run with the next smaller budget."""
    actual = result["actual"]
    line = f"{percent(errors(result))}; {actual['seconds']:.0f} s, {actual['peak_bytes'] / 2**30:.2f} GiB, "
    line += f"{actual['bits_per_byte']:.3f} bits per byte; "
    line += f"probe {result['phases']['probe'] / 60 / float(minutes):.1%} of the budget"
    if before:
        expected = before["actual"]["seconds"] * result["tokens"] / before["tokens"]
        naive = {"seconds": actual["seconds"] / expected - 1, "loss": actual["loss"] / before["actual"]["loss"] - 1}
        line += f"; naive: {percent(naive)}"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="default", help=f"of {', '.join(CASES)}")
    parser.add_argument("--minutes", default="1,3,10")
    parser.add_argument("--corpora", default="stdlib,headers")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("options", nargs="*", help="passed on to foundling raise, after --")
    args = parser.parse_args()
    if unknown := set(args.cases.split(",")) - set(CASES):
        parser.error(f"{', '.join(sorted(unknown))}: not a case; expected {', '.join(CASES)}")
    for case, corpus in itertools.product(args.cases.split(","), args.corpora.split(",")):
        before = None
        for minutes in args.minutes.split(","):
            results = []
            for seed in args.seeds.split(","):
                options = [*CASES[case], "--minutes", minutes, "--seed", seed, *args.options]
                results.append(raise_model(corpus, options))
                print(
                    f"{case}, {corpus} {minutes} min, seed {seed}: {describe(results[-1], minutes, before)}", flush=True
                )
            before, of_runs = results[-1], [errors(result) for result in results]
            worst = {name: max((e[name] for e in of_runs), key=abs) for name in of_runs[0]}
            median = {name: statistics.median(e[name] for e in of_runs) for name in of_runs[0]}
            within = max(abs(worst["seconds"]), abs(worst["peak_bytes"])) <= LIMIT
            print(
                f"{case}, {corpus} {minutes} min, worst and median: {percent(worst)}; {percent(median)}; time and "
                f"memory are {'' if within else 'not '}within {LIMIT:.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
