# SPDX-License-Identifier: Apache-2.0
"""What benchmarks of adaptation share: results that a second call goes on from, commands in processes of their own, and
the loss of texts."""

from __future__ import annotations

import datetime
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from foundling.blocks.init import initialise
from foundling.contracts.data import Batch
from foundling.models import build
from foundling.objectives.causal import Causal
from foundling.runtime.device import Runtime, available_threads
from foundling.runtime.files import read_json, write_json
from foundling.runtime.machine import machine
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState

DOCS = Path(__file__).parents[1] / "docs"


class Results:
    """A JSON file of docs/results: name -> what was measured. Each is written when it is there; machine and date are
    those of the last measurement, whatever is read or derived later."""

    def __init__(self, name: str, file: Path | None = None, *, minutes: float = math.inf) -> None:
        """No new measurement begins after `minutes`."""
        self.file = file or DOCS / "results" / f"{name}.json"
        self.values: dict[str, Any] = read_json(self.file) if self.file.exists() else {}
        self.until, self.lock = time.monotonic() + 60 * minutes, threading.Lock()
        self.complete = True
        self.values = self.measured() | self.values

    @staticmethod
    def measured() -> dict[str, Any]:
        return {"machine": machine(), "date": datetime.date.today().isoformat()}

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """None where the time is over."""
        if name not in self.values:
            if time.monotonic() >= self.until:
                self.complete = False
                return None
            value = measure()
            with self.lock:  # of several threads
                self.values |= {name: value, **self.measured()}
                self.save()
            print(f"{name}: {json.dumps(value)[:400]}", flush=True)
        return self.values[name]

    def save(self) -> None:
        write_json(self.file, self.values)


def commit() -> str:
    """Of this working tree."""
    git = ["git", "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(git, cwd=Path(__file__).parent, check=True, capture_output=True, text=True).stdout.strip()


def resident_peak() -> int:
    """The most bytes that this process had in memory. ru_maxrss of a child would begin with what its parent had."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def foundling_json(*arguments: str | Path) -> dict[str, Any]:
    """The object that a command prints with --json. SystemExit with its error."""
    command = [sys.executable, "-m", "foundling", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:])} ended with {done.returncode}: {done.stdout}{done.stderr[-2000:]}")
    return json.loads(done.stdout)


@torch.inference_mode()
def bits_per_byte(model: Any, tokenizer: Tokenizer, texts: list[str], *, longest: int = 256) -> float:
    """Of texts that begin after an end of text, of which the first `longest` tokens are read, four at a time."""
    model.eval()
    rows = [[tokenizer.eos, *tokenizer.encode(text)][: longest + 1] for text in texts]
    n_bytes = sum(len(tokenizer.decode(row[1:]).encode()) for row in rows)
    rows.sort(key=len)
    nats = 0.0
    for at in range(0, len(rows), 4):
        batch = [torch.tensor(row) for row in rows[at : at + 4]]
        padded = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=-100)
        logits = model.logits(model(padded[:, :-1].clamp_min(0)).hidden).float()
        nats += float(cross_entropy(logits.flatten(0, 1), padded[:, 1:].flatten(), reduction="sum"))
    return nats / math.log(2) / n_bytes


def train_model(
    name: str,
    config: dict[str, Any],
    batches: Any,
    steps: int,
    *,
    seed: int = 0,
    optim: OptimOptions | None = None,
    threads: int | None = None,
) -> Any:
    """A model of a family trained on `batches` by next-token prediction, in float32."""
    runtime = Runtime(threads=threads or available_threads())
    runtime.setup()
    model = build(name, **config)
    initialise(model, generator("init", seed))
    state = TrainState.build(model, optim or OptimOptions())
    options = TrainOptions(1 << 20)  # a step's rows go through the model at once
    for record in train(state, Causal(), batches, Schedule(steps, warmup_steps=steps // 20), options, runtime):
        if record.n % (steps // 4) == 0:
            print(f"  step {record.n}: loss {record.loss:.3f}", flush=True)
    return model.eval()


def causal_batch(rows: torch.Tensor, counted: torch.Tensor | None = None) -> Batch:
    """rows (B, T + 1) of ids -> a batch; `counted` (B, T): which targets count (default: all)."""
    tokens, targets = rows[:, :-1], rows[:, 1:]
    mask = torch.ones_like(targets, dtype=torch.bool) if counted is None else counted
    ids = torch.arange(len(rows))
    return {
        "tokens": tokens, "targets": targets, "documents": torch.zeros_like(tokens), "loss_mask": mask,
        "sample_ids": ids,
    }  # fmt: skip
