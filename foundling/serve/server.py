# SPDX-License-Identifier: Apache-2.0
"""What the routes share: models, keys, limits of each key, metrics, the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import Request as HTTPRequest

from foundling.decode.classify import Classifier
from foundling.decode.request import Request
from foundling.serve.answer_cache import AnswerCache
from foundling.serve.batcher import Batcher
from foundling.serve.compiling import Compiler
from foundling.serve.keys import Caller, KeyStore, Limiter
from foundling.serve.metrics import Metrics, label_of
from foundling.serve.models import ClassifierModel, EmbeddingModel, GenerativeModel, ServedModel
from foundling.serve.options import ServeOptions
from foundling.serve.pool import ModelPool
from foundling.serve.quota import Reservations
from foundling.serve.reply import Usage

logger = logging.getLogger("foundling.serve")


@dataclass
class Record:
    """What the log says of one request. Nothing of its contents."""

    id: str
    caller: Caller
    begin: float = field(default_factory=time.monotonic)
    model: str | None = None
    usage: Usage | None = None
    charged: bool = False


class Server:
    def __init__(
        self, options: ServeOptions, pool: ModelPool, keys: KeyStore, *, reward: ClassifierModel | None = None
    ) -> None:
        self.options, self.pool, self.keys, self.reward = options, pool, keys, reward
        self.limiter, self.metrics = Limiter(), Metrics()
        self.compiler = Compiler()
        self.answer_cache: AnswerCache | None = None
        # a file of keys may be slow and locked by another process: one thread, in the order of the requests, so that a
        # request that follows another sees what that one was charged
        self._ledger, self._reservations = ThreadPoolExecutor(1, "keys"), Reservations()
        self.stopping = False
        """whether no further request begins"""
        self.stop: Callable[[], object] = lambda: None
        """ends the server as the first signal does; any thread may call it"""
        self.n_connections: Callable[[], int] = lambda: 0
        """open connections, whether a request runs on them or not"""

    # --- of one request ----------------------------------------------------------------------------------------------

    def model(self, name: str | None, http: HTTPRequest, kind: type[Any] = ServedModel) -> Any:
        """The model that a request names, noted for the log. APIError where it is unknown or of another kind."""
        served = self.pool.get(name, kind, record_of(http).caller.owner)
        record_of(http).model = served.name
        return served

    def check_queues(self) -> None:
        """Before anything of a request is read: APIError 429 where no model takes a further completion. Under overload
        most requests end here, so it has to cost little, or those that are refused would keep the rest waiting."""
        workers = [one.worker for one in self.pool.loaded if isinstance(one, GenerativeModel)]
        # a model behind another API has a queue of its own
        if workers and not self.pool.remotes and all(worker.n_open >= worker.max_queue for worker in workers):
            workers[0].check_queue(1)

    def generative(self, name: str | None, http: HTTPRequest) -> GenerativeModel:
        return self.model(name, http, GenerativeModel)

    async def check_quota(self, http: HTTPRequest, usage: Usage, limits: Sequence[int] = ()) -> list[int]:
        """Before anything is computed: APIError 429 where the key's quota of tokens is used up. `limits`: new tokens of
        each completion; they are returned, or fewer where the quota has not as many left."""
        record = record_of(http)
        record.usage = usage
        if not record.caller.stored:
            return list(limits)

        def reserve() -> list[int]:
            caller = self.keys.current(record.caller)
            return self._reservations.reserve(caller, record.id, usage.prompt_tokens, limits)

        return await asyncio.get_running_loop().run_in_executor(self._ledger, reserve)

    async def reserve(self, http: HTTPRequest, usage: Usage, requests: list[Request]) -> None:
        """Before anything is computed: shortens the requests to what the key's quota has left."""
        allowed = await self.check_quota(http, usage, [request.max_tokens for request in requests])
        requests[:] = [replace(request, max_tokens=n) for request, n in zip(requests, allowed, strict=True)]

    def settle(self, record: Record) -> None:
        """A request has ended: what it did not take of its key's quota is free again."""
        if record.caller.stored:
            with suppress(RuntimeError):  # the server has ended
                self._ledger.submit(self._reservations.release, record.id)

    def account(self, http: HTTPRequest, usage: Usage) -> None:
        """Charges what was computed to the key, once."""
        record = record_of(http)
        record.usage = usage
        if record.charged:
            return
        record.charged = True
        if record.caller.stored:
            self._ledger.submit(
                self._charge, record.caller, usage.prompt_tokens, usage.completion_tokens, usage.cost or 0.0
            )
        self.metrics.count_tokens(label_of(record.model or "", self.pool), usage.prompt_tokens, usage.completion_tokens)

    def _charge(self, *values: Any) -> None:
        try:
            self.keys.charge(*values)
        except Exception as error:
            logger.error("the usage of a key was not stored: %s: %s", type(error).__name__, error)

    async def close(self) -> None:
        """Ends the models, and stores what is still to be charged."""
        await self.pool.close()
        self.compiler.close()
        await asyncio.to_thread(self._ledger.shutdown)
        self.keys.close()

    def fixed(self, body: Any, served: ServedModel) -> dict[str, Any]:
        """In deterministic mode, for a request with a seed: what its id and time are made of."""
        if self.options.deterministic and getattr(body, "seed", None) is not None:
            return {"body": body, "created": served.created}
        return {}

    async def rewards(self, score: Callable[[Classifier], list[float]]) -> list[float] | None:
        """What the reward model makes of completions; None without one."""
        if (reward := self.reward) is None:
            return None
        return await self.in_turn(lambda: score(reward.classifier))

    def batcher(
        self, served: EmbeddingModel | ClassifierModel, compute: Callable[[list[Any]], Sequence[Any]], max_items: int,
        on_batch: Callable[[int], None] = lambda n: None,
    ) -> Batcher[Any, Any]:  # fmt: skip
        """The model's, made once it is asked for."""
        if served.batcher is None:
            served.batcher = Batcher(
                self.in_turn, compute, max_items=max_items, max_waiting=self.options.max_queue,
                max_wait=self.options.queue_timeout, alone=self.options.deterministic, on_batch=on_batch,
            )  # fmt: skip
        return served.batcher

    async def in_turn(self, function: Callable[[], Any]) -> Any:
        """A computation of a model without an engine, one at a time."""
        return await self.pool.in_turn(function)


def record_of(http: HTTPRequest) -> Record:
    return http.scope["foundling.record"]
