# SPDX-License-Identifier: Apache-2.0
"""Memory and time of the loss alone, with the output head: ours in chunks, and with the whole logits.

python -m benchmarks.loss_memory

Each side runs in a process of its own. The memory is the peak, less what the process had before and what both sides
leave behind (the gradients of the head and of its input).
"""

import json
import os
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from foundling.objectives.chunked import chunked_cross_entropy
from foundling.runtime.device import Runtime, available_threads
from foundling.runtime.memory import PeakMemory, tree_bytes

SHAPES = {"6 × 384": (8, 256, 384, 50304), "GPT-2 124M": (2, 1024, 768, 50304)}


class Model(torch.nn.Module):
    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.head = self.logits = torch.nn.Linear(width, vocab_size, bias=False)


def measure(kind: str, shape: str) -> dict[str, float]:
    rows, seq_len, width, vocab_size = SHAPES[shape]
    Runtime(threads=available_threads()).setup()
    model = Model(width, vocab_size)
    hidden = torch.randn(rows, seq_len, width, requires_grad=True)
    targets = torch.randint(0, vocab_size, (rows, seq_len))
    mask = torch.ones_like(targets, dtype=torch.bool)

    def step() -> float:
        model.zero_grad()
        hidden.grad = None
        if kind == "chunked":
            loss = chunked_cross_entropy(model, hidden, targets, mask) / mask.sum()
        else:
            loss = F.cross_entropy(model.head(hidden).flatten(0, 1), targets.flatten())
        loss.backward()
        return loss.item()

    torch.mm(torch.randn(64, 64), torch.randn(64, 64))
    before = tree_bytes(os.getpid())
    memory = PeakMemory(0.002)
    value = step()
    left = 4 * (width * vocab_size + hidden.numel())
    peak = memory.peak - before - left
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"loss": value, "seconds": statistics.median(seconds), "peak_bytes": peak}


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(measure(*sys.argv[1:])))
        return
    for shape in SHAPES:
        results = {}
        for kind in ("whole", "chunked"):
            command = [sys.executable, "-m", "benchmarks.loss_memory", kind, shape]
            results[kind] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        whole, ours = results["whole"], results["chunked"]
        print(
            f"{shape}: whole logits {whole['peak_bytes'] / 2**20:.0f} MiB, {whole['seconds']:.2f} s; chunked "
            f"{ours['peak_bytes'] / 2**20:.0f} MiB, {ours['seconds']:.2f} s: "
            f"{whole['peak_bytes'] / ours['peak_bytes']:.1f} times less memory",
            flush=True,
        )


if __name__ == "__main__":
    main()
