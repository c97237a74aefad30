# SPDX-License-Identifier: Apache-2.0
"""Fits the loss law to runs of this code over several corpora and writes foundling/plan/calibration.json.

python -m benchmarks.calibrate [--runs FILE] [--fit-only]      about two hours on 2 cores

The loss depends on no clock, so several runs go on at once, with one thread each. FILE holds the runs that are
finished; they are not repeated. The corpus 'headers' is kept for the benchmarks, as one that no calibration has seen.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import foundling
from benchmarks.corpora import WORK
from benchmarks.learning import Setting, TokenizedCorpus, run
from foundling.objectives.causal import Causal
from foundling.plan.law import fit
from foundling.plan.probe import PROXY_SIZE, PROXY_STEP_TOKENS, StepSpec
from foundling.recipes.probes import PROXY_OPTIM, corpus_facts
from foundling.runtime.device import Runtime, available_threads

TABLE = Path(foundling.__file__).parent / "plan" / "calibration.json"
CORPORA = ("stdlib", "reference", "sympy", "packages")
TOKENS_OF_SIZE = {(64, 2): (5e5, 2e6), (128, 4): (4e5, 1.2e6)}
LONG = [("stdlib", 64, 2, 1.4e7), ("sympy", 64, 2, 1.4e7)]
LONG += [("stdlib", 128, 4, 4e6), ("packages", 192, 5, 1.5e6), ("sympy", 128, 4, 4e6), ("stdlib", 192, 5, 2e6)]
"""Runs of about ten minutes, without which larger budgets would be a guess."""
GRID = LONG + [
    (name, *size, tokens)
    for size, several in TOKENS_OF_SIZE.items()
    for tokens in sorted(several)[::-1]
    for name in CORPORA
]


def measure(name: str, d_model: int, n_layers: int, tokens: float) -> dict[str, Any]:
    return {"wanted": tokens, **run(TokenizedCorpus(name), d_model, n_layers, tokens, seed=0, threads=1)}


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["corpus"], run["d_model"], run["n_layers"], run["wanted"]


def proxy_bits_per_byte(name: str, runtime: Runtime) -> float:
    """Held-out bits per byte of the proxy model that `foundling raise` trains before it predicts a loss."""
    data, setting = TokenizedCorpus(name), Setting()
    rows = max(1, PROXY_STEP_TOKENS // setting.seq_len)
    spec = StepSpec(
        setting.family, setting.config(*PROXY_SIZE), Causal(), runtime, PROXY_OPTIM, rows, rows, setting.seq_len
    )
    return corpus_facts(data.corpus, data.tokenizer, spec)[0].look


def finish_grid(runs: list[dict[str, Any]], file: Path) -> None:
    """Appends every run of GRID that is missing in `runs` to them and to `file`."""
    done = {key(run) for run in runs}
    for name in CORPORA:  # written before several processes would write it
        TokenizedCorpus(name)
    with ProcessPoolExecutor(available_threads()) as pool, file.open("a") as out:
        for ended in as_completed([pool.submit(measure, *case) for case in GRID if case not in done]):
            runs.append(ended.result())
            out.write(json.dumps(runs[-1]) + "\n")
            out.flush()
            print(json.dumps(runs[-1]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=WORK / "runs.jsonl")
    parser.add_argument("--fit-only", action="store_true", help="fit the runs that calibration.json holds")
    args = parser.parse_args()
    if args.fit_only:
        runs = json.loads(TABLE.read_text())["runs"]
    else:
        runs = [json.loads(line) for line in args.runs.read_text().splitlines()] if args.runs.exists() else []
        finish_grid(runs, args.runs)
    runtime = Runtime(threads=available_threads())
    runtime.setup()
    for name in CORPORA:
        of_corpus = [run for run in runs if run["corpus"] == name]
        if any("look" not in run for run in of_corpus):
            look = round(proxy_bits_per_byte(name, runtime), 4)
            for run in of_corpus:
                run["look"] = look
    law = fit(runs)
    table = {"command": "python -m benchmarks.calibrate", "law": asdict(law), "runs": sorted(runs, key=key)}
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    print(law)


if __name__ == "__main__":
    main()
