# SPDX-License-Identifier: Apache-2.0
"""Fits the loss law to runs of this code over several corpora and writes foundling/plan/calibration.json.

python -m benchmarks.calibrate [--runs FILE] [--fit-only]      some two hours on 2 cores

Losses depend on no clock, so runs go on beside each other, one thread each. FILE keeps what is done; runs that are
there already are not made again. The corpus 'headers' is left to the benchmarks, as one that no calibration saw.
"""

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import foundling
from benchmarks.learning import Prepared, run
from foundling.plan.law import fit
from foundling.recipes.probing import look
from foundling.runtime.device import Runtime, available_threads

WORK = Path(tempfile.gettempdir()) / "foundling-benchmarks"
TABLE = Path(foundling.__file__).parent / "plan" / "calibration.json"
CORPORA = ("stdlib", "reference", "sympy", "packages")
SIZES = {(64, 2): (5e5, 2e6), (128, 4): (4e5, 1.2e6)}
FAR = [("stdlib", 64, 2, 1.4e7), ("sympy", 64, 2, 1.4e7)]
FAR += [("stdlib", 128, 4, 4e6), ("packages", 192, 5, 1.5e6), ("sympy", 128, 4, 4e6), ("stdlib", 192, 5, 2e6)]
"""Runs as long as ten minutes allow, without which larger budgets would be a guess."""
GRID = FAR + [(name, *size, tokens) for size, of in SIZES.items() for tokens in sorted(of)[::-1] for name in CORPORA]


def measure(name: str, d_model: int, n_layers: int, tokens: float) -> dict[str, Any]:
    return {"wanted": tokens, **run(Prepared(name, WORK), d_model, n_layers, tokens, seed=0, threads=1)}


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["corpus"], run["d_model"], run["n_layers"], run["wanted"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=Path, default=WORK / "runs.jsonl")
    parser.add_argument("--fit-only", action="store_true")
    args = parser.parse_args()
    runs = [json.loads(line) for line in args.runs.read_text().splitlines()] if args.runs.exists() else []
    done = {key(run) for run in runs}
    if args.fit_only:
        runs = json.loads(TABLE.read_text())["runs"]
    else:
        for name in CORPORA:  # written before two processes would write it
            Prepared(name, WORK)
        with ProcessPoolExecutor(available_threads()) as pool, args.runs.open("a") as file:
            for ended in as_completed([pool.submit(measure, *case) for case in GRID if case not in done]):
                runs.append(ended.result())
                file.write(json.dumps(runs[-1]) + "\n")
                file.flush()
                print(json.dumps(runs[-1]), flush=True)
    runtime = Runtime(threads=available_threads())
    runtime.setup()
    for name in CORPORA:
        if any("look" not in run for run in runs if run["corpus"] == name):
            data = Prepared(name, WORK)
            corpus, _ = look(data.split, data.tokenizer, "llama", 256, runtime)
            for run in runs:
                run |= {"look": round(corpus.look, 4)} if run["corpus"] == name else {}
    law = fit(runs)
    table = {"command": "python -m benchmarks.calibrate", "law": asdict(law), "runs": sorted(runs, key=key)}
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    print(law)


if __name__ == "__main__":
    main()
