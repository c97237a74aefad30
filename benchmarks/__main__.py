# SPDX-License-Identifier: Apache-2.0
"""`make bench`: the benchmarks that take minutes, each in a process of its own; ARGS names some of them. Calibration,
quality, learning, sweep, families and league take an hour or so, serving a quarter of one, and are run apart; rounding
wants a raised model."""

import subprocess
import sys

MODULES = {
    "loss_memory": [],
    "step": [],
    "plan": [],
    "prediction": ["--minutes", "1,3", "--seeds", "0"],
    "decode": ["--rounds", "1", "--batches", "1"],
}

if __name__ == "__main__":
    for name in sys.argv[1:] or MODULES:
        command = ["-m", f"benchmarks.{name}", *MODULES.get(name, [])]
        print("# python " + " ".join(command), flush=True)
        subprocess.run([sys.executable, *command], check=True)
