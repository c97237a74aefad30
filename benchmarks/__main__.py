# SPDX-License-Identifier: Apache-2.0
"""`make bench`: the benchmarks that take minutes, each in a process of its own; ARGS names some of them. Calibration,
quality, learning and sweep take an hour or so and are run apart."""

import subprocess
import sys

MODULES = ("loss_memory", "step", "plan", "prediction")

if __name__ == "__main__":
    for name in sys.argv[1:] or MODULES:
        print(f"# python -m benchmarks.{name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
