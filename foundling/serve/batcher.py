# SPDX-License-Identifier: Apache-2.0
"""Requests that come while others are computed are computed together, for models without an engine."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from foundling.errors import FoundlingError
from foundling.serve.errors import busy

T = TypeVar("T")
R = TypeVar("R")
logger = logging.getLogger("foundling.serve")


class Batcher(Generic[T, R]):
    """`compute` takes the items of several requests and gives as many results, in a thread, by `in_turn`. The event
    loop alone uses a batcher."""

    def __init__(
        self,
        in_turn: Callable[[Callable[[], Any]], Awaitable[Any]],
        compute: Callable[[list[T]], Sequence[R]],
        *,
        max_items: int,
        max_waiting: int,
        max_wait: float = 60.0,
        alone: bool = False,
        on_batch: Callable[[int], None] = lambda n: None,
    ) -> None:
        """`max_items`: of one batch, unless one request has more; `max_waiting`: requests, `max_wait`: seconds that
        each waits for its turn; `alone`: each request is computed by itself, so that its result has the same bits
        whatever else is asked; `on_batch` gets how many items each batch has."""
        self.in_turn, self.compute, self.max_items, self.max_waiting = in_turn, compute, max_items, max_waiting
        self.max_wait, self.alone, self.on_batch = max_wait, alone, on_batch
        self._waiting = deque[_Item[T, R]]()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, items: Sequence[T], on_begin: Callable[[], object] = lambda: None) -> Sequence[R]:
        """The results, in order; `on_begin` is called when they begin to be computed. APIError 429 where too many wait,
        503 where the turn does not come; what `compute` raises."""
        self.check_queue()
        item = _Item[T, R](list(items), on_begin)
        self._waiting.append(item)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(self.max_wait):
                await item.begun.wait()
        except TimeoutError:
            item.future.cancel()
            raise busy(f"the request waited {self.max_wait:g} s for its turn", 5.0, "queue_timeout", 503) from None
        except asyncio.CancelledError:
            item.future.cancel()
            raise
        return await item.future

    def check_queue(self) -> None:
        """APIError 429 where too many requests wait."""
        if (n := self.n_waiting) >= self.max_waiting:
            raise busy(f"{n} requests wait, and no more may; try again later", retry_after=2.0)

    @property
    def n_waiting(self) -> int:
        """Requests that are not yet part of a batch, and whose clients still wait."""
        return sum(not item.future.done() for item in self._waiting)

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = self._next()
                if batch:
                    await self._compute(batch)
        finally:
            self._task = None

    def _next(self) -> list[_Item[T, R]]:
        """The next requests whose clients still wait."""
        batch, n = list[_Item[T, R]](), 0
        while self._waiting:
            item = self._waiting[0]
            if batch and (self.alone or n + len(item.rows) > self.max_items):
                break
            self._waiting.popleft()
            if not item.future.done():
                batch.append(item)
                n += len(item.rows)
        return batch

    async def _compute(self, batch: list[_Item[T, R]]) -> None:
        rows = [row for item in batch for row in item.rows]
        self.on_batch(len(rows))

        def compute() -> Sequence[R]:
            for item in batch:
                loop.call_soon_threadsafe(item.begin)
            return self.compute(rows)

        loop = asyncio.get_running_loop()
        try:
            results = await self.in_turn(compute)
        except Exception as error:
            if len(batch) > 1:  # the fault of one is not that of the others
                for one in batch:
                    await self._compute([one])
                return
            if not isinstance(error, FoundlingError):
                logger.error("a batch failed", exc_info=error)
            if not batch[0].future.done():
                batch[0].future.set_exception(error)
            return
        begin = 0
        for item in batch:
            if not item.future.done():
                item.future.set_result(results[begin : begin + len(item.rows)])
            begin += len(item.rows)


class _Item(Generic[T, R]):
    """One request."""

    def __init__(self, rows: list[T], on_begin: Callable[[], object]) -> None:
        self.rows, self.on_begin, self.begun = rows, on_begin, asyncio.Event()
        self.future: asyncio.Future[Sequence[R]] = asyncio.get_running_loop().create_future()

    def begin(self) -> None:
        if not self.begun.is_set():
            self.begun.set()
            if not self.future.done():
                self.on_begin()
