# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a training step as `foundling plan` predicts them, against steps that were taken.

python -m benchmarks.plan [--seconds 8]

Each case runs in two processes: one predicts, the other takes steps while its memory is watched.
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
from foundling.plan.probe import RandomBatches, StepSpec, estimate_step
from foundling.runtime.device import Runtime, available_threads
from foundling.runtime.memory import PeakMemory, free_memory
from foundling.runtime.rng import generator
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState

# family, vocab_size, seq_len, d_model, n_layers, batch_size, micro_batch_size, precision, optimiser, checkpointing
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


def work(what: str, case: list[Any], least_seconds: float) -> dict[str, Any]:
    name, vocab_size, seq_len, d_model, n_layers, rows, micro, precision, optimizer, checkpointing = case
    fields = family(name).module.sized(vocab_size, seq_len, d_model, n_layers)
    runtime, optim = Runtime(precision=precision, threads=available_threads()), OptimOptions(optimizer=optimizer)
    runtime.setup()
    if what == "predict":
        flops = training_flops_per_token(skeleton(name, fields), seq_len)
        needed = estimate_training_memory(
            name, fields, micro_batch_size=micro, seq_len=seq_len, precision=precision, optim=optim,
            accumulates=micro < rows, checkpointing=checkpointing, process=process_bytes(),
        )  # fmt: skip
        start = time.perf_counter()
        spec = StepSpec(name, fields, Causal(), runtime, optim, rows, micro, seq_len, checkpointing)
        step = estimate_step(spec, flops_per_token=flops, memory_bytes=free_memory())
        took = time.perf_counter() - start
        return {**asdict(step), "needed": needed.peak, "took": took}
    model = build(name, **fields)
    initialise(model, generator("bench"))
    state, memory = TrainState.build(model, optim), PeakMemory(0.02)
    options, marks = TrainOptions(micro, activation_checkpointing=checkpointing), []
    for record in train(state, Causal(), RandomBatches(rows, seq_len, vocab_size), Schedule(10**6), options, runtime):
        record.grad_norm  # noqa: B018
        marks.append(time.perf_counter())
        if len(marks) > 3 and marks[-1] - marks[0] > least_seconds:
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
        results = {}
        for what in ("predict", "run"):
            command = [sys.executable, "-m", "benchmarks.plan", "--seconds", str(args.seconds)]
            command += ["--work", what, json.dumps(case)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[what] = json.loads(out.splitlines()[-1])
        p, a = results["predict"], results["run"]
        print(
            f"{' '.join(map(str, case)):64} time {p['seconds']:7.3f} -> {a['seconds']:7.3f} s "
            f"({a['seconds'] / p['seconds'] - 1:+6.1%}), memory {p['peak_bytes'] / 2**30:5.2f} -> "
            f"{a['peak_bytes'] / 2**30:5.2f} GiB ({a['peak_bytes'] / p['peak_bytes'] - 1:+6.1%}; needed: "
            f"{p['needed'] / 2**30:5.2f}); {p['how']} in {p['took']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
