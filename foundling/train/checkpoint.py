# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: directories written aside and renamed, each file known by its hash; the newest whole one counts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from foundling.errors import WeightsError
from foundling.runtime.distributed import barrier, is_first_rank
from foundling.runtime.files import write_directory
from foundling.train.loop import TrainState
from foundling.train.parallel import local, part_of
from foundling.weights.directory import check, read_manifest, whole, write_manifest

KEEP = 2
STATE = "state.safetensors"


def save_checkpoint(directory: Path, state: TrainState, about: dict[str, Any]) -> Path:
    """directory/step-00000123; older ones beyond the last two are removed once this one is safe. Every rank calls, the
    first one writes; what is written does not depend on how many there are."""
    path = directory / f"step-{state.step:08d}"
    tensors = {f"model/{n}": whole(p.detach()) for n, p in state.model.named_parameters()}
    tensors |= {f"optimizer/{n}": t.detach() for n, t in state.optimizer.state_tensors().items()}
    if not is_first_rank():
        barrier()
        return path
    if path.exists():  # left by a run that was broken off after it; the same step gives the same bytes
        shutil.rmtree(path)

    def fill(aside: Path) -> None:
        save_file({n: t.contiguous().cpu() for n, t in tensors.items()}, aside / STATE)
        write_manifest(aside, {"step": state.step, "skipped": state.skipped, **about})

    write_directory(path, fill)
    for old in checkpoints(directory)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    barrier()
    return path


def checkpoints(directory: Path) -> list[Path]:
    """Oldest first."""
    return sorted(p for p in directory.glob("step-*") if p.is_dir())


def latest_checkpoint(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a line for each damaged one passed over."""
    damaged = []
    for path in reversed(checkpoints(directory)):
        try:
            problems = check(path)["problems"]
        except WeightsError as error:
            problems = [str(error)]
        if not problems:
            return path, damaged
        damaged.append(f"{path.name}: {problems[0]}")
    return None, damaged


def load_checkpoint(path: Path, state: TrainState) -> dict[str, Any]:
    """Puts the checkpoint into `state`, in place, and returns what was said `about` it."""
    manifest = read_manifest(path)
    try:
        tensors = load_file(path / STATE)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path / STATE}: damaged ({str(error).splitlines()[0]})") from None
    params = dict(state.model.named_parameters())
    stored = {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
    if stored.keys() != params.keys():
        raise WeightsError(f"{path}: its tensors are not those of this model")
    for name, p in params.items():
        local(p.detach()).copy_(part_of(stored[name], p))
    state.optimizer.load_state_tensors(
        {n.removeprefix("optimizer/"): t for n, t in tensors.items() if n.startswith("optimizer/")}
    )
    state.step, state.skipped = int(manifest["step"]), int(manifest["skipped"])
    return manifest
