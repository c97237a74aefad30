# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning jobs on disk. A job that was acknowledged is there whatever happens to the server.

STATE/jobs/ID has job.json (the record, replaced whole), train.jsonl and valid.jsonl (links to the files of the client),
events.jsonl (appended) and model/, which is the run (recipes/run.py) and becomes the model directory.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from foundling.config import from_dict
from foundling.data.kinds import Kind
from foundling.errors import ConfigError, DataError, WeightsError
from foundling.limits import MAX_LINE_BYTES, shown
from foundling.runtime.files import cut_torn_line, fsync_path, read_json, remove_abandoned, write_json
from foundling.serve.errors import APIError, busy
from foundling.serve.files import disk_errors
from foundling.serve.job_options import JobMethod, JobOptions

logger = logging.getLogger("foundling.serve")
Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
OPEN: tuple[Status, ...] = ("queued", "running")
RECORD, EVENTS, TRAIN, VALID, MODEL = "job.json", "events.jsonl", "train.jsonl", "valid.jsonl", "model"
EVENT_FIELDS = {"id", "type", "data", "message", "level", "created_at"}


@dataclass
class Job:
    """A record. `owner`, `base_directory`, `charged` and the counts of crashes are never shown."""

    id: str
    owner: str
    created: float
    base: str
    """name of the model that is fine-tuned"""
    base_directory: str
    kind: Kind
    method: JobMethod
    training_file: str
    validation_file: str | None
    suffix: str | None
    seed: int
    hyperparameters: dict[str, Any]
    """as they were asked for: numbers or "auto" """
    metadata: dict[str, str] | None = None
    status: Status = "queued"
    served_as: str | None = None
    """name of the fine-tuned model, once there is one"""
    deleted: bool = False
    """whether the client deleted that model"""
    finished: float | None = None
    trained_tokens: int | None = None
    steps: int | None = None
    error: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    estimated_finish: float | None = None
    charged: bool = False
    """whether its key was charged for what was trained"""
    n_crashes: int = 0
    """of its process since the last progress"""
    step_at_crash: int = 0

    @property
    def open(self) -> bool:
        return self.status in OPEN

    @property
    def model_name(self) -> str:
        """ft:BASE:SUFFIX:ID, as OpenAI calls them."""
        return f"ft:{self.base}:{self.suffix or ''}:{self.id[-8:]}"

    def as_json(self) -> dict[str, Any]:
        """OpenAI's FineTuningJob; `foundling` is of this server alone."""
        return {
            "id": self.id, "object": "fine_tuning.job", "created_at": int(self.created), "model": self.base,
            "status": self.status, "training_file": self.training_file, "validation_file": self.validation_file,
            "fine_tuned_model": self.served_as if self.status == "succeeded" and not self.deleted else None,
            "finished_at": None if self.finished is None else int(self.finished), "error": self.error,
            "hyperparameters": self.hyperparameters, "seed": self.seed, "trained_tokens": self.trained_tokens,
            "estimated_finish": int(self.estimated_finish) if self.estimated_finish and self.open else None,
            "organization_id": "foundling", "result_files": [], "integrations": [], "metadata": self.metadata,
            "user_provided_suffix": self.suffix,
            "method": {"type": "supervised", "supervised": {"hyperparameters": self.hyperparameters}},
            "foundling": {"method": self.method, "kind": self.kind, "evaluation": self.evaluation},
        }  # fmt: skip


class JobStore:
    """The event loop alone uses `jobs` and `creating`. What touches the disk may be called from any thread."""

    def __init__(self, directory: Path, options: JobOptions) -> None:
        self.directory, self.options = directory, options
        self.jobs: dict[str, Job] = {}
        """that were acknowledged"""
        self.creating: dict[str, Job] = {}
        """that are not on disk yet; they count already"""
        self._keys: dict[str, list[str | None]] = {}
        """id -> the key of each event of a job, as far as they were needed"""
        self._lock = threading.Lock()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in sorted(path for path in directory.iterdir() if path.is_dir()):
            if not (folder / RECORD).exists():  # it was never acknowledged, or its removal was cut off
                shutil.rmtree(folder, ignore_errors=True)
                continue
            remove_abandoned(folder)
            try:
                job = from_dict(Job, read_json(folder / RECORD), where=f"{folder.name}/{RECORD}")
                if job.id != folder.name:
                    raise DataError(f"{folder.name}/{RECORD} is of another job")
                self.jobs[job.id] = job
                if (folder / EVENTS).exists():
                    cut_torn_line(folder / EVENTS, begin=b"{", what="event", max_bytes=MAX_LINE_BYTES)
            except (WeightsError, ConfigError, DataError) as error:
                logger.error("a fine-tuning job is left out: %s", error)

    def folder(self, job: Job) -> Path:
        return self.directory / job.id

    def of(self, owner: str) -> list[Job]:
        """The newest first."""
        jobs = [job for job in self.jobs.values() if job.owner == owner]
        return sorted(jobs, key=lambda job: (job.created, job.id), reverse=True)

    def get(self, job_id: str, owner: str) -> Job:
        """APIError 404 for one that is unknown, or another key's."""
        job = self.jobs.get(job_id)
        if job is None or job.owner != owner:
            raise APIError(404, f"there is no fine-tuning job {shown(job_id)}", code="job_not_found")
        return job

    def n_open(self, owner: str | None = None) -> int:
        """Jobs that wait or run, of an owner or of all."""
        jobs = [*self.jobs.values(), *self.creating.values()]
        return sum(job.open and owner in (None, job.owner) for job in jobs)

    def make_place(self, owner: str) -> list[Job]:
        """The jobs, forgotten here and to be removed from the disk, that make place for one more of a key. APIError
        where too many wait, of the key or in all, and where it has too many."""
        own, limits = self.of(owner), self.options
        if (n := self.n_open(owner)) >= limits.max_open_jobs:
            raise busy(f"the key has {n} jobs that wait or run, which is the limit; wait for one, or cancel one", 60)
        if self.n_open() >= limits.max_queue:
            raise busy("too many fine-tuning jobs wait; try again later", 300)
        n = len(own) + sum(job.owner == owner for job in self.creating.values())
        old = [job for job in reversed(own) if not job.open and (job.served_as is None or job.deleted)]
        old = old[: max(0, n + 1 - limits.max_jobs)]
        if n - len(old) >= limits.max_jobs:
            raise APIError(403, f"the key has {n} jobs, which is the limit; delete a model", code="job_limit")
        for job in old:
            del self.jobs[job.id]
        return old

    def next(self, later: Collection[str] = ()) -> Job | None:
        """What has to be run: what a server that was killed had begun, then the oldest that waits; of these none that
        is in `later`."""
        waiting = [job for job in self.jobs.values() if job.open and job.id not in later]
        return min(waiting, key=lambda job: (job.status != "running", job.created, job.id), default=None)

    def create(self, job: Job, data: Mapping[str, Path]) -> None:
        """On disk when it returns. `data`: name in the folder -> file of the client."""
        folder = self.folder(job)
        with disk_errors():
            folder.mkdir(mode=0o700)
            for name, path in data.items():
                try:
                    os.link(path, folder / name)
                except OSError:  # a file system without hard links
                    shutil.copyfile(path, folder / name)
                    fsync_path(folder / name)
            self.add_event(job, f"Created fine-tuning job: {job.id}", key="created")
            self.save(job)
            fsync_path(self.directory)

    def save(self, job: Job) -> None:
        with self._lock, disk_errors():
            self.folder(job).stat()  # one that was removed meanwhile stays so
            write_json(self.folder(job) / RECORD, asdict(job))

    def remove(self, job: Job) -> None:
        """The record first, so that a removal that is cut off is finished at the next start."""
        (self.folder(job) / RECORD).unlink(missing_ok=True)
        shutil.rmtree(self.folder(job), ignore_errors=True)

    def tidy(self, job: Job) -> None:
        """Removes what an ended job needs no more."""
        self._keys.pop(job.id, None)
        for name in (TRAIN, VALID):
            (self.folder(job) / name).unlink(missing_ok=True)
        if job.served_as is None or job.deleted:
            shutil.rmtree(self.folder(job) / MODEL, ignore_errors=True)

    # --- events ------------------------------------------------------------------------------------------------------

    def add_event(
        self, job: Job, message: str, *, level: str = "info", data: dict[str, Any] | None = None, key: str | None = None
    ) -> None:
        """`key`: of what happens once, which is not noted again where it is there already."""
        with self._lock, disk_errors():
            if job.id not in self._keys:
                self._keys[job.id] = [event.get("key") for event in self.events(job)[0]]
            keys = self._keys[job.id]
            if key is not None and key in keys:
                return
            event = {
                "object": "fine_tuning.job.event", "id": f"ftevent-{job.id[-8:]}-{len(keys)}",
                "created_at": int(time.time()), "level": level, "message": message,
                "type": "metrics" if data else "message", "key": key,
                "data": {name: finite_or_none(value) for name, value in (data or {}).items()},
            }  # fmt: skip
            _append(self.folder(job) / EVENTS, json.dumps(event, allow_nan=False).encode() + b"\n")
            keys.append(key)

    def events(self, job: Job, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Those behind so many bytes, the oldest first, and where the last one ends. A line that a disk has damaged is
        skipped."""
        try:
            with open(self.folder(job) / EVENTS, "rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], offset
        end = data.rfind(b"\n") + 1
        values = [_decode(line) for line in data[:end].split(b"\n")]
        return [value for value in values if isinstance(value, dict) and value.keys() >= EVENT_FIELDS], offset + end


def _append(path: Path, line: bytes) -> None:
    """The whole line, or as before: of what a full disk takes a part only, nothing stays."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(handle).st_size
        try:
            while line:
                line = line[os.write(handle, line) :]
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def _decode(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def finite_or_none(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown_event(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "key"}
