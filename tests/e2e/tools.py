# SPDX-License-Identifier: Apache-2.0
"""Small real corpora, and the real command line in its own process: a fork, or a fresh interpreter where asked."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.processes import Forked, run

TINY = [
    "--total-steps", "24", "--batch-size", "4", "--seq-len", "32", "--d-model", "32", "--n-layers", "2", "--vocab-size",
    "320", "--threads", "1", "--checkpoint-every", "2", "--micro-batch-size", "2", "--compile", "false",
    "--precision", "float32",  # which one is chosen depends on the speed of the moment
]  # fmt: skip


def corpus(directory: Path, documents: int = 60) -> Path:
    """Text files in folders, each different, long lines unshared."""
    chance = random.Random(0)
    words = [
        "data",
        "model",
        "token",
        "reads",
        "learns",
        "slowly",
        "the",
        "a",
        "loss",
        "falls",
        "and",
        "rises",
        "again",
    ]
    for i in range(documents):
        file = directory / f"part{i % 3}" / f"{i:03d}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{i}.{j} " + " ".join(chance.choices(words, k=12)) for j in range(20)]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])} | more


def foundling(*args: object, timeout: float = 300, fresh: bool = False, **options) -> subprocess.CompletedProcess[str]:
    """fresh: in an interpreter of its own (other hash seed, its own imports), not in a fork."""
    command = ["foundling", *map(str, args)]
    if not fresh:
        return run(command, timeout, **({"env": environment()} | options))
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=timeout, env=environment(),
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def start(*args: object) -> Forked:
    """The command, running."""
    return Forked(["foundling", *map(str, args)], env=environment())


def raised(*args: object, **kwargs) -> dict:
    done = foundling("raise", *args, "--json", **kwargs)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def weights(directory: Path) -> str:
    return json.loads((directory / "foundling.json").read_text())["weights_hash"]


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def kill_after_checkpoint(args: list, out: Path, command: str = "raise") -> None:
    """Starts the command and kills it (SIGKILL) once its second checkpoint is there."""
    process = start(command, *args, "--json")
    while process.poll() is None and len(list((out / "run" / "checkpoints").glob("step-*"))) < 2:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    _, error = process.communicate()
    assert (out / "run").exists(), error
