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
        alone: bool = False,
        on_batch: Callable[[int], None] = lambda n: None,
    ) -> None:
        """`max_items`: of one batch, unless one request has more; `max_waiting`: requests; `alone`: each request is
        computed by itself, so that its result has the same bits whatever else is asked; `on_batch` gets the items of
        each batch."""
        self.in_turn, self.compute, self.max_items, self.max_waiting = in_turn, compute, max_items, max_waiting
        self.alone, self.on_batch = alone, on_batch
        self._waiting = deque[tuple[list[T], asyncio.Future[Sequence[R]]]]()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, items: Sequence[T]) -> Sequence[R]:
        """The results, in order. APIError 429 where too many wait; what `compute` raises."""
        if self.n_waiting >= self.max_waiting:
            raise busy(f"{self.n_waiting} requests wait, and no more may; try again later", retry_after=2.0)
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((list(items), future))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await future

    @property
    def n_waiting(self) -> int:
        """Requests that are not yet part of a batch."""
        return len(self._waiting)

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = self._next()
                if batch:
                    await self._compute(batch)
        finally:
            self._task = None

    def _next(self) -> list[tuple[list[T], asyncio.Future[Sequence[R]]]]:
        """The next requests whose clients still wait."""
        batch, n = list[tuple[list[T], asyncio.Future[Sequence[R]]]](), 0
        while self._waiting:
            items, future = self._waiting[0]
            if batch and (self.alone or n + len(items) > self.max_items):
                break
            self._waiting.popleft()
            if not future.done():
                batch.append((items, future))
                n += len(items)
        return batch

    async def _compute(self, batch: list[tuple[list[T], asyncio.Future[Sequence[R]]]]) -> None:
        rows = [item for items, _ in batch for item in items]
        self.on_batch(len(rows))
        try:
            results = await self.in_turn(lambda: self.compute(rows))
        except Exception as error:
            if len(batch) > 1:  # the fault of one is not that of the others
                for one in batch:
                    await self._compute([one])
                return
            if not isinstance(error, FoundlingError):
                logger.error("a batch failed", exc_info=error)
            if not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        begin = 0
        for items, future in batch:
            if not future.done():
                future.set_result(results[begin : begin + len(items)])
            begin += len(items)
