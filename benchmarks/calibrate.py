# SPDX-License-Identifier: Apache-2.0
"""Fits the loss law to runs of this code and writes foundling/plan/calibration.json.

python -m benchmarks.calibrate [--fit-only]      some 15 minutes on 2 cores
"""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import foundling
from foundling.plan.flops import matmul_parameters
from foundling.plan.law import fit
from foundling.recipes.recipe import Request
from foundling.recipes.showing import Show

TABLE = Path(foundling.__file__).parent / "plan" / "calibration.json"
GRID = [
    (d_model, n_layers, tokens)
    for (d_model, n_layers), budgets in {
        (64, 2): (0.5e6, 1e6, 2e6),
        (128, 4): (0.5e6, 1e6, 2e6),
    }.items()
    for tokens in budgets
]


def measure(d_model: int, n_layers: int, tokens: float, directory: Path) -> dict:
    given = {"d_model": d_model, "n_layers": n_layers, "vocab_size": 2048, "seq_len": 256}
    result = foundling.raise_model(Request("builtin:stdlib", "tokens", tokens, given=given), directory, show=Show())
    manifest = json.loads((directory / "foundling.json").read_text())
    prediction = manifest["prediction"]
    return {
        "corpus": "stdlib",
        "d_model": d_model,
        "n_layers": n_layers,
        "tokens": result["tokens"],
        "n": matmul_parameters(foundling.load(directory)),
        "bytes_read": round(result["tokens"] * prediction["bytes_per_token"]),
        "unique_bytes": prediction["train_bytes"],
        "scale": prediction["scale"],
        "bits_per_byte": result["actual"]["bits_per_byte"],
    }


def main() -> None:
    table = json.loads(TABLE.read_text())
    if "--fit-only" not in sys.argv:
        table["runs"] = []
        with tempfile.TemporaryDirectory() as directory:
            for n, case in enumerate(GRID):
                table["runs"].append(measure(*case, Path(directory) / str(n)))
                print(json.dumps(table["runs"][-1]), flush=True)
    law = fit(table["runs"])
    table = {"command": "python -m benchmarks.calibrate", "law": asdict(law), "runs": table["runs"]}
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    print(law)


if __name__ == "__main__":
    main()
