# SPDX-License-Identifier: Apache-2.0
"""The models of fine-tuning jobs in memory: as many as the options allow, of the others those that are asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from contextlib import suppress

from foundling.serve.job_store import MODEL, Job, JobStore
from foundling.serve.models import GenerativeModel
from foundling.serve.pool import Entry
from foundling.serve.server import Server

logger = logging.getLogger("foundling.serve")
RELOAD_SECONDS = 60.0
"""after which a model that could not be loaded is tried again, if it is asked for"""


class JobModels:
    """The event loop alone uses it."""

    def __init__(self, server: Server, store: JobStore) -> None:
        self.server, self.store = server, store
        self._lock = asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[bool]] = {}
        """name -> what loads it"""
        self._failed: dict[str, float] = {}

    def add(self, job: Job) -> str:
        """The name of its model, of which the pool is told; at the price of its base. ConfigError where another model
        has that name."""
        pool, name = self.server.pool, job.model_name
        entry = pool.entry_of(name)
        if entry is None or entry.on_demand is None:
            if job.base in pool.prices:
                pool.prices[name] = pool.prices[job.base]
            pool.add(name, str(self.store.folder(job) / MODEL), owner=job.owner)
            entry = pool.entries[name]
            entry.on_demand, entry.loader = lambda: self.begin([job]), lambda: self.load(job)
        return name

    def begin(self, jobs: Iterable[Job]) -> None:
        """Loads their models, without waiting for it."""
        for job in jobs:
            name, now = job.model_name, time.monotonic()
            if name not in self._tasks and now - self._failed.get(name, -RELOAD_SECONDS) >= RELOAD_SECONDS:
                task = self._tasks[name] = asyncio.create_task(self.load(job))
                task.add_done_callback(lambda _, name=name: self._tasks.pop(name, None))

    async def load(self, job: Job) -> bool:
        """Whether the model of a job is in memory now. Where it cannot be loaded the job has it all the same: it is
        tried again when it is asked for."""
        async with self._lock:
            try:
                if job.deleted or not await self._make_place(name := self.add(job)):
                    return False
                await self.server.pool.load(name, job.owner, has_place=True)
                self._failed.pop(name, None)
                return True
            except Exception:
                self._failed[job.model_name] = time.monotonic()
                logger.exception("the model of %s could not be loaded", job.id)
        with suppress(Exception):  # a full disk has been logged
            await asyncio.to_thread(
                self.store.add_event, job, "The model could not be loaded", level="warn", key="unloaded"
            )
        return False

    async def _make_place(self, name: str) -> bool:
        """Unloads what was not used for longest. False where requests run on too many."""
        pool = self.server.pool
        others = [entry for entry in pool.entries.values() if entry.on_demand and entry.served and entry.name != name]
        idle = sorted((entry for entry in others if not _is_computing(entry)), key=lambda entry: entry.used)
        n = len(others) + 1 - self.store.options.max_loaded
        if n > len(idle):
            return False
        for entry in idle[: max(0, n)]:
            await pool.unload(entry.name, entry.owner)
        return True

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_computing(entry: Entry) -> bool:
    return any(one.worker.n_open for one in entry.served.values() if isinstance(one, GenerativeModel))
