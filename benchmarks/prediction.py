# SPDX-License-Identifier: Apache-2.0
"""Predicted against actual: time, memory and loss of `foundling raise` at --minutes 1 and 3.

python -m benchmarks.prediction [MINUTES ...]
"""

import json
import subprocess
import sys
import tempfile


def main() -> None:
    minutes = [a for a in sys.argv[1:] if not a.startswith("-")] or ["1", "3"]
    print(f"{'minutes':>8} {'figure':>14} {'predicted':>12} {'actual':>12} {'error':>7}")
    for budget in minutes:
        with tempfile.TemporaryDirectory() as directory:
            command = [
                sys.executable,
                "-m",
                "foundling",
                "raise",
                "--minutes",
                budget,
                "--out",
                f"{directory}/m",
                "--json",
            ]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for name in ("seconds", "peak_bytes", "loss", "bits_per_byte"):
            p, a = result["predicted"][name], result["actual"][name]
            print(f"{budget:>8} {name:>14} {p:12.5g} {a:12.5g} {a / p - 1:+7.1%}", flush=True)
        print(f"{budget:>8} baselines {result['baselines']} shares {result['shares']}", flush=True)


if __name__ == "__main__":
    main()
