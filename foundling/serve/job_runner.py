# SPDX-License-Identifier: Apache-2.0
"""Runs fine-tuning jobs one after another, each in a process of its own, and serves what comes of them.

Every step can be done again: a server that is killed anywhere finds the record of the job, the checkpoints of its run
or the finished model, and goes on from there."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import foundling
from foundling.errors import WeightsError, render
from foundling.plan.budget import Budget
from foundling.recipes.finetune_plan import LEARNING_RATES
from foundling.recipes.recipe import Request
from foundling.runtime.device import available_threads
from foundling.runtime.files import read_json, write_json
from foundling.runtime.hub import is_hub
from foundling.serve.errors import APIError
from foundling.serve.job_child import OUTCOME, REQUEST
from foundling.serve.job_log import JobLog
from foundling.serve.job_store import MODEL, TRAIN, VALID, Job, JobStore
from foundling.serve.server import Server
from foundling.weights.manifest import read_manifest

logger = logging.getLogger("foundling.serve")
DEFAULT_EPOCHS = 3
POLL_SECONDS = 0.5
STOP_SECONDS = 60.0
"""that a process has to write its checkpoint in, before it is killed"""
RETRY_SECONDS = 5.0
"""after an error that is not of the job"""
MAX_STARTS = 10
"""of a job's process without a step of progress; then the job fails"""
INTERNAL = "the fine-tuning met an error of the server's own; its operator finds more in its log"


class JobRunner:
    """The event loop alone uses it."""

    def __init__(self, server: Server, store: JobStore) -> None:
        self.server, self.store, self.options = server, store, store.options
        self._wake = asyncio.Event()
        self._changing = asyncio.Lock()
        """held while the state of a job changes"""
        self._running: Job | None = None
        """whose process runs"""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """The job that runs goes on at the next start."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def submit(self, job: Job, data: dict[str, Path]) -> None:
        """The job is on disk when it returns."""
        await asyncio.to_thread(self.store.create, job, data)
        self._wake.set()

    async def cancel(self, job: Job) -> None:
        """APIError 400 for a job that has ended."""
        async with self._changing:
            if not job.open:
                raise APIError(400, f"the job has {job.status} already", code="job_ended")
            await self._end(job, "cancelled", "Fine-tuning job cancelled")
        if self._running is not job:  # else `_train` ends its process first
            await asyncio.to_thread(self.store.tidy, job)

    async def delete_model(self, job: Job) -> None:
        assert job.served_as
        async with self._changing:
            job.deleted = True
            await asyncio.to_thread(self.store.save, job)
            if self.server.pool.entry_of(job.served_as):
                await self.server.pool.remove(job.served_as, job.owner)
            await asyncio.to_thread(self.store.tidy, job)

    # --- the queue ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        served = [job for job in self.store.jobs.values() if job.status == "succeeded" and not job.deleted]
        for job in served:
            self._name(job)  # all of them first: one that is still to be loaded is not unknown
        for job in served:
            await self._serve(job)
        while True:
            self._wake.clear()
            if (job := self.store.next()) is None:
                await self._wake.wait()
                continue
            try:
                await self._train(job)
            except Exception:  # such as a full disk; what was acknowledged waits for better times
                logger.exception("the fine-tuning job %s could not go on", job.id)
                await asyncio.sleep(RETRY_SECONDS)
            if not job.open:
                await asyncio.to_thread(self.store.tidy, job)

    async def _train(self, job: Job) -> None:
        """Until the job has ended, or its process has to be begun again."""
        if not await self._begin(job):
            return
        folder = self.store.folder(job)
        write_json(folder / REQUEST, asdict(_request_of(job, (folder / VALID).exists())))
        with open(folder / "process.log", "ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "foundling.serve.job_child", cwd=folder, env=_environment(),
                stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._running, progress = job, JobLog(self.store, job)
        try:
            while process.returncode is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), POLL_SECONDS)
                await asyncio.to_thread(progress.read)
                if not job.open:
                    await _stop(process)
        finally:
            self._running = None
            if process.returncode is None:
                await _stop(process)
        async with self._changing:
            if job.open:
                await self._judge(job, process.returncode)

    async def _begin(self, job: Job) -> bool:
        """Notes that its process begins. False where that has been in vain too often."""
        async with self._changing:
            if not job.open:
                return False
            step = JobLog(self.store, job).step
            job.n_starts = 1 if step > job.step_at_start else job.n_starts + 1
            job.step_at_start = step
            if job.n_starts > MAX_STARTS:
                message = f"its process ended {MAX_STARTS} times without an answer or progress: out of memory?"
                await self._fail(job, "server_error", message)
                return False
            job.status = "running"
            await asyncio.to_thread(self.store.save, job)
            self.store.add_event(job, "Fine-tuning job started", key="started")
            return True

    async def _judge(self, job: Job, code: int | None) -> None:
        """What the end of its process means."""
        folder = self.store.folder(job)
        if code == 0:
            try:
                result = read_manifest(folder / MODEL)["result"]
            except (WeightsError, KeyError):
                await self._fail(job, "server_error", INTERNAL)
            else:
                await self._finish(job, result)
        elif code in (75, 129, 130, 143) or (code is not None and code < 0):
            logger.warning("the process of %s ended with %s; it begins again", job.id, code)
        else:
            outcome = read_json(folder / OUTCOME) if (folder / OUTCOME).exists() else {}
            message, wrong = self.public(job, outcome.get("error", INTERNAL)), code == 2 and "error" in outcome
            await self._fail(job, "invalid_request" if wrong else "server_error", message)

    async def _finish(self, job: Job, result: dict[str, Any]) -> None:
        actual, before = result["actual"].get("loss"), result["baselines"].get("before")
        job.trained_tokens, job.steps = result.get("tokens"), result.get("best_step") or result.get("steps")
        ratio, passed = self.options.max_loss_ratio, None
        if ratio is not None:
            numbers = isinstance(actual, int | float) and isinstance(before, int | float)
            passed = numbers and math.isfinite(actual) and actual <= ratio * before
        job.evaluation = {
            "held_out_loss": actual, "base_held_out_loss": before, "max_ratio": ratio, "passed": passed
        }  # fmt: skip
        if passed is False:
            message = (
                f"the held-out loss is {actual}, that of the model before was {before}; this server serves a "
                f"fine-tuned model only where it is at most {ratio:g} times as high"
            )
            await self._fail(job, "evaluation_failed", message)
            return
        job.served_as = job.model_name
        await self._serve(job)  # first: a client may ask for the model as soon as the job has succeeded
        await self._end(
            job, "succeeded", "The job has successfully completed", f"New fine-tuned model: {job.served_as}"
        )

    def _name(self, job: Job) -> str:
        """The name of its model, of which the pool is told; at the price of its base."""
        pool, name = self.server.pool, job.model_name
        if pool.entry_of(name) is None:
            if job.base in pool.prices:
                pool.prices[name] = pool.prices[job.base]
            pool.add(name, str(self.store.folder(job) / MODEL), owner=job.owner)
        return name

    async def _serve(self, job: Job) -> None:
        """Loads the model of a job. Where that fails the job has its model all the same: it can be loaded later."""
        try:
            await self.server.pool.load(self._name(job), job.owner)
        except Exception:
            logger.exception("the model of %s could not be loaded", job.id)
            self.store.add_event(job, "The model could not be loaded", level="warn", key="unloaded")

    async def _fail(self, job: Job, code: str, message: str) -> None:
        job.error = {"code": code, "message": message, "param": None}
        job.served_as = None
        await self._end(job, "failed", f"Fine-tuning job failed: {message}", level="error")

    async def _end(self, job: Job, status: Any, *messages: str, level: str = "info") -> None:
        """The events first: a job that has ended has them all, whenever the server is killed."""
        for message in messages:
            self.store.add_event(job, message, level=level, key=message)
        job.status, job.finished = status, time.time()
        await asyncio.to_thread(self.store.save, job)

    def public(self, job: Job, message: str) -> str:
        """An error of the job's process without places of this machine."""
        for place, name in (
            (str(self.store.folder(job).absolute()), "job"), (str(self.options.state.absolute()), "state"),
            (os.path.abspath(job.base_directory), job.base), (TRAIN, job.training_file),
            (VALID, job.validation_file or ""),
        ):  # fmt: skip
            message = message.replace(place, name)
        return render.message(
            re.sub(r"(?<![\w.:/])~?/?(?:[\w.@+-]+/){2,}[\w.@+-]*|(?<![\w.:/])/[\w.@+-]+", "…", message)
        )


def _request_of(job: Job, validated: bool) -> Request:
    chosen = {name: value for name, value in job.hyperparameters.items() if value != "auto"}
    base = job.base_directory
    fields: dict[str, Any] = {
        "model": {"directory": base if is_hub(base) else os.path.abspath(base)}, "adapt": {"method": job.method},
        "objective": {"kind": job.kind}, "seed": job.seed,
        "runtime": {"threads": max(1, available_threads() - 1)},
    }  # fmt: skip
    if validated:
        fields["data"] = {"held_out": VALID}
    if "batch_size" in chosen:
        fields["train"] = {"batch_size": chosen["batch_size"]}
    if "learning_rate_multiplier" in chosen:
        rate = LEARNING_RATES[job.method] * chosen["learning_rate_multiplier"]
        fields["optim"] = {"optimizer": "adamw", "learning_rate": rate}
    return Request(TRAIN, Budget("epochs", chosen.get("n_epochs", DEFAULT_EPOCHS)), None, fields, "finetune")


def _environment() -> dict[str, str]:
    """Of the child, which finds this package wherever it is started, and needs no key of the server."""
    more = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    places = [str(Path(foundling.__file__).absolute().parents[1]), *map(os.path.abspath, more)]
    own = {name: value for name, value in os.environ.items() if name != "FOUNDLING_API_KEY"}
    return own | {"PYTHONPATH": os.pathsep.join(places)}


async def _stop(process: asyncio.subprocess.Process) -> None:
    """It writes a checkpoint and ends; after STOP_SECONDS it is killed."""
    for end in (process.terminate, process.kill):
        with suppress(ProcessLookupError):
            end()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
            return
