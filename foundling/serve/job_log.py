# SPDX-License-Identifier: Apache-2.0
"""The log of a run that is under way, as events of its job. A step is told once, however often its process begins."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from foundling.config import load_yaml
from foundling.errors import FoundlingError
from foundling.recipes.journal import LOG, RECIPE
from foundling.serve.job_store import MODEL, Job, JobStore, finite_or_none

MAX_EVENTS = 500
"""steps of a job that become events; those with a validation loss do in any case"""


class JobLog:
    def __init__(self, store: JobStore, job: Job) -> None:
        self.store, self.job, self.folder = store, job, store.folder(job) / MODEL
        steps = [event["data"] for event in store.events(job)[0] if event["type"] == "metrics"]
        self.step = max((data.get("step", 0) for data in steps), default=0)
        """the last one that is an event"""
        self.tokens = max((data.get("tokens", 0) for data in steps), default=0)
        """trained by then"""
        self.total: int | None = None
        self._inode, self._offset = 0, 0

    def read(self) -> None:
        """Notes the steps that are new."""
        entries = self._entries(self.folder / "run" / LOG) or self._entries(self.folder / LOG)
        if entries and self.total is None:
            self.total = self._steps()
        if not entries or self.total is None:
            return
        stride = max(1, self.total // MAX_EVENTS)
        for entry in entries:
            n = entry["step"]
            if n > self.step and (n % stride == 0 or n == self.total or "validation_loss" in entry):
                try:
                    self._tell(entry, self.total)
                except BaseException:
                    self._inode = 0  # the log is read anew, and told from here on
                    raise
                self.step, self.tokens = n, max(self.tokens, entry["tokens"])

    def _tell(self, entry: dict[str, Any], total: int) -> None:
        n, loss, valid = entry["step"], finite_or_none(entry["loss"]), finite_or_none(entry.get("validation_loss"))
        left = (total - n) * entry["seconds"] / n
        self.job.estimated_finish = time.time() + left
        data = {
            "step": n, "total_steps": total, "train_loss": loss, "tokens": entry["tokens"],
            "learning_rate": entry["lr"], "seconds_left": round(left, 1),
        }  # fmt: skip
        if "validation_loss" in entry:
            data["valid_loss"] = valid
        shown = "skipped" if loss is None else f"training loss={loss:.2f}"
        if valid is not None:
            shown += f", validation loss={valid:.2f}"
        self.store.add_event(self.job, f"Step {n}/{total}: {shown}", data=data)

    def _steps(self) -> int | None:
        """That the recipe has."""
        with suppress(FoundlingError):
            return int(load_yaml(self.folder / "run" / RECIPE)["train"]["total_steps"])
        with suppress(OSError, ValueError, KeyError):
            return int(json.loads((self.folder / "report.json").read_bytes())["settings"]["train.total_steps"]["value"])
        return None

    def _entries(self, path: Path) -> list[dict[str, Any]]:
        """Whole lines behind those that were read. A process that resumes writes the file anew."""
        try:
            with open(path, "rb") as file:
                inode = path.stat().st_ino
                if inode != self._inode:
                    self._inode, self._offset = inode, 0
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        entries = list[dict[str, Any]]()
        for line in whole.splitlines():
            with suppress(ValueError):
                entries.append(json.loads(line))
        return entries
