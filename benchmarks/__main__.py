# SPDX-License-Identifier: Apache-2.0
"""`make bench`: the benchmarks that take minutes, each in a process of its own; ARGS names some of them.

calibrate, quality, learning, sweep, families, league and mutants take about an hour each, serving a quarter of one;
start them by hand. finetune_chat, finetune_labels, domain, in_context, molecules and series go on from what an earlier
call measured (--minutes). rounding and picture need a raised model, structure a checkout of older code, and gpu
(`make gpu`) needs CUDA.
"""

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
