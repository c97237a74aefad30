# SPDX-License-Identifier: Apache-2.0
"""A thread that owns an engine. Requests come from the event loop and are computed together; a request whose consumer
has gone is cancelled before the next step."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from foundling.decode.engine.engine import Engine, RequestOutput
from foundling.decode.request import Completion, Request
from foundling.errors import FoundlingError
from foundling.serve.errors import APIError, busy

logger = logging.getLogger("foundling.serve")
COMMAND_SECONDS = 0.02
"""of requests that are added before the next step: an encoder reads a whole source while one is added"""


class Computed(NamedTuple):
    """What the engine has computed for one request."""

    begun: bool
    """whether it has begun to compute its prompt"""
    n_tokens: int
    n_shared: int


@dataclass(frozen=True, slots=True)
class Update:
    """What a step did for one request."""

    index: int
    """of the request among those that came together"""
    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[dict[int, float]]
    completion: Completion | None
    """once it has finished"""


@dataclass(eq=False)
class _Ticket:
    """One request in the worker."""

    request: Request
    index: int
    queue: asyncio.Queue[Update | Exception]
    request_id: int | None = None
    n_sent: int = 0
    waiting_since: float = field(default_factory=time.monotonic)
    last_token: float | None = None
    finished: bool = False
    abandoned: bool = False
    """whether nobody waits for it any more; set by the event loop before the thread cancels it"""
    completion: Completion | None = None
    """once it has finished"""


@dataclass
class WorkerStats:
    """`n_cancelled`: completions since the start whose client has gone; `on_cancelled` gets how many more. The others
    are called with seconds."""

    n_cancelled: int = 0
    on_cancelled: Callable[[int], None] = lambda n: None
    to_first_token: Callable[[float], None] = lambda seconds: None
    between_tokens: Callable[[float], None] = lambda seconds: None


class EngineWorker:
    def __init__(self, engine: Engine, name: str, *, max_queue: int, queue_timeout: float) -> None:
        self.engine, self.name, self.max_queue, self.queue_timeout = engine, name, max_queue, queue_timeout
        self.stats = WorkerStats()
        self.tickets: dict[int, _Ticket] = {}
        """of requests in the engine, by request_id; only the thread uses it"""
        self.n_open = 0
        """requests and calls that run or wait; only the event loop uses it"""
        self._condition = threading.Condition()
        self._commands = deque[Callable[[], None]]()
        self._calls = deque[tuple[Future[Any], Callable[[], Any]]]()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)

    def start(self) -> None:
        """Call it in the event loop that will ask."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after its current step. Requests that it still has end with an error."""
        with self._condition:
            self._closing = True
            self._condition.notify()

    async def join(self) -> None:
        await asyncio.to_thread(self._thread.join)

    # --- the event loop's side ---------------------------------------------------------------------------------------

    async def stream(
        self, requests: Sequence[Request], on_end: Callable[[list[Computed]], None] = lambda computed: None
    ) -> AsyncGenerator[Update]:
        """Computes the requests; their updates as they come, until all have finished. Leaving it cancels those that
        have not. `on_end` is called once, however it ends, with what was computed until then, whether its updates were
        taken or not. APIError 429 where the queue is full, 503 where nothing began in time; GenerationError of a
        request that the engine can never serve."""
        self.check_queue(len(requests))
        queue = asyncio.Queue[Update | Exception]()
        tickets = [_Ticket(request, index, queue) for index, request in enumerate(requests)]
        self.n_open += len(tickets)
        for ticket in tickets:
            self._submit(partial(self._add, ticket))
        n_left, started = len(tickets), False
        deadline = time.monotonic() + self.queue_timeout
        try:
            while n_left:
                try:
                    async with asyncio.timeout(None if started else max(0.0, deadline - time.monotonic())):
                        update = await queue.get()
                except TimeoutError:
                    waited = f"no token within {self.queue_timeout:g} s: {self.name} is overloaded; try again later"
                    raise busy(waited, 5.0, "overloaded", 503) from None
                if isinstance(update, Exception):
                    raise update
                started = True
                n_left -= update.completion is not None
                yield update
        finally:
            on_end([self._computed(ticket) for ticket in tickets])
            if n_left:
                for ticket in tickets:
                    ticket.abandoned = True
                self._submit(lambda: self._cancel(tickets))

    def _computed(self, ticket: _Ticket) -> Computed:
        """Until now; the thread may be in a step."""
        if ticket.completion is not None:
            return Computed(True, len(ticket.completion.tokens), ticket.completion.n_shared)
        active = None if ticket.request_id is None else self.engine.active.get(ticket.request_id)
        begun = bool(ticket.n_sent)
        if active is not None:
            begun = begun or self.engine.reads_source or bool(active[1].blocks or active[1].n_computed)
        return Computed(begun, ticket.n_sent, active[1].n_shared if active else 0)

    async def call(self, function: Callable[[], Any]) -> Any:
        """What a function returns that runs between two steps, alone on the model; one such call between two steps.
        Cancelling it takes it out of the queue. APIError as `stream`, but for the time in the queue."""
        self.check_queue(1)
        future: Future[Any] = Future()
        self.n_open += 1
        future.add_done_callback(lambda _: self._call_in_loop(lambda: setattr(self, "n_open", self.n_open - 1)))
        with self._condition:
            self._calls.append((future, function))
            self._condition.notify()
        return await asyncio.wrap_future(future)

    def check_queue(self, n: int) -> None:
        """Before n completions are prepared: APIError 429 where the queue has no place for them, 503 where the model is
        being unloaded."""
        self._check_open()
        if self.n_open + n > self.max_queue:
            raise busy(
                f"{self.name} has {self.n_open} completions running or waiting and takes {self.max_queue}; try again "
                "later", retry_after=2.0,
            )  # fmt: skip

    def _check_open(self) -> None:
        if self._closing:
            raise busy(f"{self.name} is being unloaded; ask again later", 5.0, "unavailable", 503)

    def _submit(self, command: Callable[[], None]) -> None:
        with self._condition:
            self._commands.append(command)
            self._condition.notify()

    def _deliver(self, updates: list[tuple[_Ticket, Update | Exception]]) -> None:
        for ticket, update in updates:
            if isinstance(update, Exception) or update.completion is not None:
                self.n_open -= 1
            ticket.queue.put_nowait(update)

    # --- the thread's side -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._run_until_closed()
            error: Exception = busy(f"{self.name} was unloaded; ask again later", 5.0, "unavailable", 503)
        except Exception as failure:  # ours: whoever waits is told, and nobody waits for a thread that has ended
            logger.exception("the worker of %s failed", self.name)
            error = failure
        with self._condition:
            self._closing = True
        self._run_commands()
        self._fail(error)
        while self._calls:
            self._run_call(error)

    def _run_until_closed(self) -> None:
        while True:
            with self._condition:
                while not (self._commands or self._calls or self.engine.busy or self._closing):
                    self._condition.wait()
                if self._closing:
                    return
            self._run_commands(COMMAND_SECONDS)
            if self._calls:
                self._run_call()
            if self.engine.busy:
                self._step()

    def _run_commands(self, seconds: float = math.inf) -> None:
        """Those that wait, or as many as these seconds allow, one at least."""
        end = time.monotonic() + seconds
        while self._commands:
            command = self._commands.popleft()
            try:
                command()
            except Exception:
                logger.exception("a command of %s failed", self.name)
            if time.monotonic() >= end:
                break

    def _run_call(self, error: Exception | None = None) -> None:
        """The next call that is still wanted; `error` is its answer where the worker has ended."""
        future, function = self._calls.popleft()
        if future.set_running_or_notify_cancel():
            try:
                if error is not None:
                    raise error
                future.set_result(function())
            except BaseException as failure:
                future.set_exception(failure)

    def _add(self, ticket: _Ticket) -> None:
        if ticket.abandoned:
            return  # its cancellation waits behind
        try:
            ticket.request_id = self.engine.add(ticket.request)
        except Exception as error:
            # the group fails as a whole: its first error is its answer
            ticket.finished = True
            if not isinstance(error, FoundlingError | APIError):
                logger.exception("a request could not be added")
            self._send([(ticket, error)])
        else:
            self.tickets[ticket.request_id] = ticket

    def _cancel(self, tickets: Sequence[_Ticket]) -> None:
        n = 0
        for ticket in tickets:
            if not ticket.finished:
                ticket.finished = True
                n += 1
                if ticket.request_id is not None:
                    self.engine.cancel(ticket.request_id)
                    self.tickets.pop(ticket.request_id, None)
        self.stats.n_cancelled += n
        self.stats.on_cancelled(n)
        self._call_in_loop(lambda: setattr(self, "n_open", self.n_open - n))

    def _step(self) -> None:
        try:
            outputs = self.engine.step()
        except Exception as error:
            logger.exception("a step of the engine failed")
            for request_id in list(self.tickets):
                self.engine.cancel(request_id)
            self._fail(error)
            return
        now = time.monotonic()
        self._send([(ticket, update) for output in outputs if (ticket := self.tickets.get(output.request_id))
                    and (update := self._update(ticket, output, now))])  # fmt: skip

    def _update(self, ticket: _Ticket, output: RequestOutput, now: float) -> Update:
        if output.new_tokens:
            if ticket.last_token is None:
                self.stats.to_first_token(now - ticket.waiting_since)
            else:
                self.stats.between_tokens(now - ticket.last_token)
            ticket.last_token = now
        completion = output.completion or self.engine.active[output.request_id][0].completion
        begin, ticket.n_sent = ticket.n_sent, len(completion.tokens)
        if output.completion is not None:
            ticket.finished, ticket.completion = True, output.completion
            del self.tickets[output.request_id]
        logprobs, top = completion.logprobs or [], completion.top_logprobs or []
        return Update(ticket.index, output.new_tokens, logprobs[begin:], top[begin:], output.completion)

    def _fail(self, error: Exception) -> None:
        tickets, self.tickets = list(self.tickets.values()), {}
        for ticket in tickets:
            ticket.finished = True
        self._send([(ticket, error) for ticket in tickets])

    def _send(self, updates: Sequence[tuple[_Ticket, Update | Exception]]) -> None:
        if updates:
            self._call_in_loop(lambda: self._deliver(list(updates)))

    def _call_in_loop(self, function: Callable[[], None]) -> None:
        assert self._loop
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop has ended, and nobody waits
            logger.debug("%s: the event loop has ended", self.name)
