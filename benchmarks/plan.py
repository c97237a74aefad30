# SPDX-License-Identifier: Apache-2.0
"""What `foundling plan` says of a training step's time and memory, against steps that were taken.

python -m benchmarks.plan [--seconds 8]

Each case runs in two processes of its own: one foresees, the other takes steps and has its memory watched.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

from foundling.blocks.init import initialise
from foundling.models import build, family
from foundling.objectives.causal import Causal
from foundling.plan.flops import skeleton, training_flops_per_token
from foundling.plan.memory import estimate_training_memory, process_bytes
from foundling.plan.probe import RandomBatches, estimate_step
from foundling.runtime.device import Runtime, available_threads
from foundling.runtime.memory import PeakMemory, free_memory
from foundling.runtime.rng import generator
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState

# family, vocabulary, window, width, layers, rows, rows at once, precision, optimiser, layers twice
CASES = [
    ("llama", 2048, 256, 128, 4, 32, 32, "float32", "muon", False),
    ("llama", 4096, 512, 320, 6, 32, 8, "float32", "muon", False),
    ("llama", 4096, 512, 320, 6, 32, 32, "float32", "adamw", True),
    ("llama", 2048, 256, 192, 5, 16, 16, "bfloat16", "muon", False),
    ("gpt2", 50304, 256, 384, 6, 8, 8, "float32", "adamw", False),
    ("gpt2", 50304, 1024, 768, 12, 2, 2, "float32", "adamw", False),
    ("llama", 16384, 512, 512, 16, 16, 8, "float32", "adamw", False),
    ("mamba2", 2048, 256, 128, 4, 16, 16, "float32", "muon", False),
    ("mixtral", 2048, 256, 128, 4, 16, 16, "float32", "muon", False),
]


def work(what: str, case: list[Any], least: float) -> dict[str, Any]:
    name, vocab, seq_len, width, layers, rows, micro, precision, optimizer, twice = case
    fields = family(name).module.sized(vocab, seq_len, width, layers)
    runtime, optim = Runtime(precision=precision, threads=available_threads()), OptimOptions(optimizer=optimizer)
    runtime.setup()
    if what == "foresee":
        flops = training_flops_per_token(skeleton(name, fields), seq_len)
        footprint = estimate_training_memory(
            name, fields, micro_batch_size=micro, seq_len=seq_len, precision=precision, optim=optim,
            accumulates=micro < rows, checkpointing=twice, process=process_bytes(),
        )  # fmt: skip
        begin = time.perf_counter()
        step = estimate_step(
            name, fields, Causal(), runtime, rows, micro, optim, flops_per_token=flops, memory_bytes=free_memory(),
            checkpoint_activations=twice,
        )  # fmt: skip
        took = time.perf_counter() - begin
        return {**asdict(step), "needed": footprint.peak, "took": took}
    model = build(name, **fields)
    initialise(model, generator("bench"))
    state, memory = TrainState.build(model, optim), PeakMemory(0.02)
    options, marks = TrainOptions(micro, activation_checkpointing=twice), []
    for record in train(state, Causal(), RandomBatches(rows, seq_len, vocab), Schedule(10**6), options, runtime):
        record.grad_norm  # noqa: B018
        marks.append(time.perf_counter())
        if len(marks) > 3 and marks[-1] - marks[0] > least:
            break
    return {"seconds": (marks[-1] - marks[0]) / (len(marks) - 1), "peak_bytes": memory.peak}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(work(args.work[0], json.loads(args.work[1]), args.seconds)))
        return
    for case in CASES:
        found = {}
        for what in ("foresee", "run"):
            command = [sys.executable, "-m", "benchmarks.plan", "--seconds", str(args.seconds)]
            command += ["--work", what, json.dumps(case)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[what] = json.loads(out.splitlines()[-1])
        p, a = found["foresee"], found["run"]
        print(
            f"{' '.join(map(str, case)):64} time {p['seconds']:7.3f} -> {a['seconds']:7.3f} s "
            f"({a['seconds'] / p['seconds'] - 1:+6.1%}), memory {p['peak_bytes'] / 2**30:5.2f} -> "
            f"{a['peak_bytes'] / 2**30:5.2f} GiB ({a['peak_bytes'] / p['peak_bytes'] - 1:+6.1%}; needed: "
            f"{p['needed'] / 2**30:5.2f}); {p['how']} in {p['took']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
