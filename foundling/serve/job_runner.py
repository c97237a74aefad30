# SPDX-License-Identifier: Apache-2.0
"""Runs fine-tuning jobs one after another, each in a process of its own, and serves what comes of them.

Every step can be done again: a server that is killed anywhere finds the record of the job, the checkpoints of its run
or the finished model, and goes on from there."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, replace
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
from foundling.serve.job_child import AGAIN, OUTCOME, REQUEST
from foundling.serve.job_log import JobLog
from foundling.serve.job_models import JobModels
from foundling.serve.job_store import MODEL, TRAIN, VALID, Job, JobStore, finite_or_none
from foundling.serve.server import Server
from foundling.weights.manifest import read_manifest

logger = logging.getLogger("foundling.serve")
DEFAULT_EPOCHS = 3
POLL_SECONDS = 0.5
STOP_SECONDS = 60.0
"""that a process has to write its checkpoint in, before it is killed"""
RETRY_SECONDS, MAX_RETRY_SECONDS = 5.0, 300.0
"""after an error that is not of the job, and after one such error upon another; other jobs go on meanwhile"""
MAX_CRASHES = 10
"""of a job's process without a step of progress; then the job fails"""
ENVIRONMENT = {"PATH", "HOME", "LANG", "TMPDIR", "TZ", "USER", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"}
ENVIRONMENT_OF = ("LC_", "OMP_", "MKL_", "OPENBLAS_", "CUDA_", "NVIDIA_", "TORCH", "PYTORCH_", "TRITON_", "XDG_",
                  "FOUNDLING_", "HF_")  # fmt: skip
SECRETS = {"FOUNDLING_API_KEY", "HF_TOKEN"}
INTERNAL = "the fine-tuning met an error of the server's own; its operator finds more in its log"


class JobRunner:
    """The event loop alone uses it."""

    def __init__(self, server: Server, store: JobStore) -> None:
        self.server, self.store, self.options = server, store, store.options
        self.models = JobModels(server, store)
        self._wake = asyncio.Event()
        self._later: dict[str, tuple[int, float]] = {}
        """id -> (errors one upon another, when the job is tried again)"""
        self._changing = defaultdict[str, asyncio.Lock](asyncio.Lock)
        """id -> what is held while the state of that job changes"""
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
        await self.models.stop()

    async def submit(self, job: Job, data: dict[str, Path]) -> None:
        """The job is on disk when it returns, and counts from now on. APIError beyond the limits of its key."""
        old = self.store.make_place(job.owner)
        self.store.creating[job.id] = job
        await asyncio.shield(asyncio.create_task(self._create(job, data, old)))

    async def _create(self, job: Job, data: dict[str, Path], old: list[Job]) -> None:
        try:
            for one in old:
                await asyncio.to_thread(self.store.remove, one)
            await asyncio.to_thread(self.store.create, job, data)
            self.store.jobs[job.id] = job
            self._wake.set()
        except BaseException:
            await asyncio.to_thread(self.store.remove, job)
            raise
        finally:
            del self.store.creating[job.id]

    async def cancel(self, job: Job) -> None:
        """APIError 400 for a job that has ended."""
        async with self._changing[job.id]:
            if not job.open:
                raise APIError(400, f"the job has {job.status} already", code="job_ended")
            await self._end(job, "cancelled", "Fine-tuning job cancelled")
        if self._running is not job:  # else `_train` ends its process first
            await asyncio.to_thread(self.store.tidy, job)

    async def delete_model(self, job: Job) -> None:
        assert job.served_as
        async with self._changing[job.id]:
            await asyncio.to_thread(self.store.save, replace(job, deleted=True))
            job.deleted = True
            if self.server.pool.entry_of(job.served_as):
                await self.server.pool.remove(job.served_as, job.owner)
            await asyncio.to_thread(self.store.tidy, job)

    # --- the queue ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        await self._begin_serving()
        while True:
            job = None
            try:
                self._wake.clear()
                job = self.store.next(self._waiting())
                if job is None:
                    await self._sleep()
                else:
                    await self._train(job)
                    if not job.open:
                        self._later.pop(job.id, None)
                        await asyncio.to_thread(self.store.tidy, job)
            except Exception:  # such as a full disk; what was acknowledged waits for better times
                logger.exception("the fine-tuning job %s could not go on", job and job.id)
                if job is None:
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    self._delay(job)

    async def _begin_serving(self) -> None:
        served = list[Job]()
        for job in list(self.store.jobs.values()):
            try:
                if job.status == "succeeded" and not job.deleted:
                    self.models.add(job)
                    served.append(job)
                if not job.open:  # a server that was killed had no time for it
                    await asyncio.to_thread(self.store.tidy, job)
            except Exception:
                logger.exception("the fine-tuning job %s cannot be served", job.id)
        served.sort(key=lambda job: job.finished or 0)
        self.models.begin(served[-self.options.max_loaded :])  # the others once they are asked for

    def _waiting(self) -> set[str]:
        """The jobs that are tried again later."""
        now = time.monotonic()
        return {job_id for job_id, (_, end) in self._later.items() if end > now}

    def _delay(self, job: Job) -> None:
        n = self._later.get(job.id, (0, 0.0))[0]
        self._later[job.id] = n + 1, time.monotonic() + min(MAX_RETRY_SECONDS, RETRY_SECONDS * 2**n)

    async def _sleep(self) -> None:
        """Until there is a new job, or one has to be tried again."""
        ends = [end for job_id, (_, end) in self._later.items()
                if (job := self.store.jobs.get(job_id)) is not None and job.open]  # fmt: skip
        seconds = max(0.05, min(ends) - time.monotonic()) if ends else None
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    async def _train(self, job: Job) -> None:
        """Until the job has ended, or its process has to be begun again."""
        if not await self._begin(job):
            return
        process = await self._spawn(job)
        self._running = job
        try:
            progress = await asyncio.to_thread(JobLog, self.store, job)
            first = progress.step
            await self._watch(job, process, progress)
        finally:
            self._running = None
            if process.returncode is None:
                await _stop(process)
        async with self._changing[job.id]:
            if job.open:
                if progress.step > first:
                    self._later.pop(job.id, None)
                await self._judge(job, process.returncode, progress.step)

    async def _spawn(self, job: Job) -> asyncio.subprocess.Process:
        folder = self.store.folder(job)
        log = await asyncio.to_thread(_prepare, job, folder)
        with log:
            return await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "foundling.serve.job_child", cwd=folder,
                env=child_environment(job.base_directory), stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    async def _watch(self, job: Job, process: asyncio.subprocess.Process, progress: JobLog) -> None:
        """Notes the progress of a process until it ends, and ends it once its job is cancelled."""
        begin = 0.0
        while process.returncode is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), POLL_SECONDS)
            if process.returncode is not None or time.monotonic() >= begin:
                try:
                    await asyncio.to_thread(progress.read)
                except (APIError, OSError):  # a full disk: the run may have what it needs, and is not disturbed
                    begin = time.monotonic() + RETRY_SECONDS
            if not job.open:
                await _stop(process)

    async def _begin(self, job: Job) -> bool:
        """Notes that its process begins. False where the job has ended."""
        async with self._changing[job.id]:
            if not job.open:
                return False
            if job.status != "running":
                await asyncio.to_thread(self.store.save, replace(job, status="running"))
                job.status = "running"
            await self._tell(job, "Fine-tuning job started", key="started")
            return True

    async def _judge(self, job: Job, code: int | None, step: int) -> None:
        """What the end of its process means. `step`: the last one that it told."""
        folder = self.store.folder(job)
        if code == 0:
            try:
                result = (await asyncio.to_thread(read_manifest, folder / MODEL))["result"]
            except (WeightsError, KeyError):
                await self._fail(job, "server_error", INTERNAL)
            else:
                await self._finish(job, result)
        elif code in (AGAIN, 129, 130, 143):  # no fault of the job: a full disk, or somebody ended it
            logger.warning("the process of %s ended with %s; it begins again", job.id, code)
            self._delay(job)
        elif code is None or code < 0:
            await self._count_crash(job, code, step)
        else:
            outcome = await asyncio.to_thread(_read_outcome, folder)
            message, wrong = self.public(job, outcome.get("error", INTERNAL)), code == 2 and "error" in outcome
            await self._fail(job, "invalid_request" if wrong else "server_error", message)

    async def _count_crash(self, job: Job, code: int | None, step: int) -> None:
        """Counts that a signal ended its process that we did not send. The job fails where that has been too often."""
        logger.warning("the process of %s was ended by signal %s; it begins again", job.id, -(code or 0))
        n = job.n_crashes + 1 if step <= job.step_at_crash else 1
        if n >= MAX_CRASHES:
            message = f"its process ended {n} times without an answer or progress: out of memory?"
            await self._fail(job, "server_error", message)
            return
        await asyncio.to_thread(self.store.save, replace(job, n_crashes=n, step_at_crash=step))
        job.n_crashes, job.step_at_crash = n, step
        self._delay(job)

    async def _finish(self, job: Job, result: dict[str, Any]) -> None:
        actual, before = (finite_or_none(value) for value in
                          (result["actual"].get("loss"), result["baselines"].get("before")))  # fmt: skip
        job.trained_tokens, job.steps = result.get("tokens"), result.get("best_step") or result.get("steps")
        ratio, passed = self.options.max_loss_ratio, None
        if ratio is not None:
            numbers = isinstance(actual, int | float) and isinstance(before, int | float)
            passed = numbers and actual <= ratio * before
        job.evaluation = {
            "held_out_loss": actual, "base_held_out_loss": before, "max_ratio": ratio, "passed": passed
        }  # fmt: skip
        if passed is False:
            after, base = ("no number" if loss is None else f"{loss:.3f}" for loss in (actual, before))
            message = (
                f"the held-out loss is {after}, that of the base model is {base}; this server serves a fine-tuned "
                f"model only where its loss is at most {ratio:g} times that of its base"
            )
            await self._fail(job, "evaluation_failed", message)
            return
        await self.models.load(job)  # first: a client may ask for the model as soon as the job has succeeded
        await self._end(
            job, "succeeded", "The job has successfully completed", f"New fine-tuned model: {job.model_name}",
            served_as=job.model_name,
        )  # fmt: skip

    async def _fail(self, job: Job, code: str, message: str) -> None:
        error = {"code": code, "message": message, "param": None}
        await self._end(job, "failed", f"Fine-tuning job failed: {message}", level="error", error=error)

    async def _tell(self, job: Job, message: str, *, level: str = "info", key: str | None = None) -> None:
        await asyncio.to_thread(self.store.add_event, job, message, level=level, key=key or message)

    async def _end(self, job: Job, status: Any, *messages: str, level: str = "info", **changes: Any) -> None:
        """The events first: a job that has ended has them all, whenever the server is killed. Its key is charged for
        what was trained, once: the record says so before it is done."""
        for message in messages:
            await self._tell(job, message, level=level)
        tokens = job.trained_tokens
        if tokens is None:
            tokens = (await asyncio.to_thread(JobLog, self.store, job)).tokens
        tokens, changes = 0 if job.charged else tokens, changes | {"charged": True}
        changes |= {"status": status, "finished": time.time()}
        await asyncio.to_thread(self.store.save, replace(job, **changes))
        for name, value in changes.items():
            setattr(job, name, value)
        if tokens:
            price = self.server.pool.prices.get(job.base)
            dollars = price.cost(tokens, 0) if price else 0.0
            await asyncio.to_thread(self.server.keys.charge_owner, job.owner, tokens, dollars)

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
    fields: dict[str, Any] = {
        "model": {"directory": job.base_directory}, "adapt": {"method": job.method},
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


def _prepare(job: Job, folder: Path) -> Any:
    """What its process reads; the file of its log."""
    write_json(folder / REQUEST, asdict(_request_of(job, (folder / VALID).exists())))
    return open(folder / "process.log", "ab")


def _read_outcome(folder: Path) -> dict[str, Any]:
    return read_json(folder / OUTCOME) if (folder / OUTCOME).exists() else {}


def child_environment(base: str) -> dict[str, str]:
    """The variables of a job's process, which finds this package wherever it is started. It needs none of the server's
    keys; that of the hub only where its base is there."""
    more = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    places = [str(Path(foundling.__file__).absolute().parents[1]), *map(os.path.abspath, more)]
    own = {
        name: value for name, value in os.environ.items()
        if (name in ENVIRONMENT or name.startswith(ENVIRONMENT_OF))
        and (name not in SECRETS or (name == "HF_TOKEN" and is_hub(base)))
    }  # fmt: skip
    return own | {"PYTHONPATH": os.pathsep.join(places)}


async def _stop(process: asyncio.subprocess.Process) -> None:
    """It writes a checkpoint and ends; after STOP_SECONDS it is killed."""
    for end in (process.terminate, process.kill):
        with suppress(ProcessLookupError):
            end()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
            return
