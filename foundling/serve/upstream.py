# SPDX-License-Identifier: Apache-2.0
"""Models behind other OpenAI-compatible APIs, served under a name of this server. URLs and keys come from the command
line alone; a client sees neither."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from foundling.errors import ConfigError, FoundlingError
from foundling.evaluate.endpoint_errors import EndpointError, code_inside, error_text
from foundling.evaluate.upstream import Upstream, subject_of
from foundling.serve.errors import APIError, busy
from foundling.serve.models import Price, ServedModel
from foundling.serve.options import ServeOptions
from foundling.serve.recording import Recording
from foundling.text import Tokenizer

logger = logging.getLogger("foundling.serve")
RETRIES = 1
"""of a request that is not streamed; clients try again themselves"""
MAX_WAIT = 1.0
"""seconds that a request waits here for an API that asks to wait"""
MAX_RETRY_AFTER = 3600.0
"""seconds that a client is told to wait, whatever the API says"""


class _Call(NamedTuple):
    name: str
    future: Future[Any]
    begun: asyncio.Event

    async def started(self, seconds: float) -> None:
        """Returns once it runs. APIError 503 where others are before it for too long."""
        try:
            async with asyncio.timeout(seconds):
                await self.begun.wait()
        except TimeoutError:
            raise busy(f"{self.name} had no thread free for {seconds:g} s", 5.0, "queue_timeout", 503) from None


@dataclass(kw_only=True)
class UpstreamModel(ServedModel):
    """`directory` is empty, `model` has no configuration."""

    subject: Upstream
    recording: Recording | None
    threads: ThreadPoolExecutor
    max_queue: int
    queue_timeout: float
    n_open: int = field(default=0, init=False)
    """requests whose threads have not ended; only the event loop uses it"""

    def __post_init__(self) -> None:
        self.kind = "upstream"

    @property
    def family(self) -> str:
        return "upstream"

    @property
    def tokenizer(self) -> Tokenizer:
        raise APIError(400, f"{self.name} is behind another API; its tokens are not known here", param="model")

    def about(self) -> dict[str, Any]:
        price = self.price and {"prompt": self.price.prompt, "completion": self.price.completion}
        unknown = dict.fromkeys(("family", "max_seq_len", "vocab_size", "parameters", "adapter_of"))
        return unknown | {"kind": self.kind, "price": price, "chats": True, "fills_middle": False}

    async def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The whole answer. APIError for what the API refuses or never answers."""
        with self._begin(lambda stop: self.subject.endpoint.post(path, body, stop)) as call:
            await call.started(self.queue_timeout)
            try:
                answer = await asyncio.wrap_future(call.future)
            except Exception as error:
                raise self._refused(error) from None
            if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list) or not answer["choices"]:
                raise APIError(502, f"{self.name}: the API behind it answered without a choice", code="bad_gateway")
            return answer

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of the answer. Raises as `ask`; leaving it cuts the connection."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def put(item: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(queue.put_nowait, item)

        def read(stop: threading.Event) -> None:
            try:
                for chunk in self.subject.endpoint.stream(path, body, stop):
                    put(chunk)
                put(None)
            except Exception as error:
                put(error)

        n = 0
        with self._begin(read) as call:
            await call.started(self.queue_timeout)
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise self._refused(item) from None
                if code := code_inside(item):
                    raise self._refused(EndpointError("", status=code, reason=error_text(item)))
                if isinstance(item, dict):
                    n += 1
                    yield item
        if not n:
            raise APIError(502, f"{self.name}: the API behind it answered nothing", code="bad_gateway")

    @contextlib.contextmanager
    def _begin(self, function: Callable[[threading.Event], Any]) -> Iterator[_Call]:
        """Computes it in a thread, unless the block is left before that begins. The event that it gets is set, and its
        connection cut, where the block is left; it counts until its thread has ended. APIError 429 beyond the limit."""
        if self.n_open >= self.max_queue:
            raise busy(f"{self.name} has {self.n_open} requests under way and takes no more; try again later", 2.0)
        loop, stop, begun = asyncio.get_running_loop(), threading.Event(), asyncio.Event()

        def in_loop(function: Callable[[], object]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(function)

        def run() -> Any:
            in_loop(begun.set)
            return None if stop.is_set() else function(stop)

        def count_down() -> None:
            self.n_open -= 1

        future = self.threads.submit(run)
        self.n_open += 1
        future.add_done_callback(lambda _: in_loop(count_down))
        try:
            yield _Call(self.name, future, begun)
        finally:
            stop.set()
            future.cancel()
            self.subject.endpoint.abort(stop)

    def _refused(self, error: Exception) -> APIError:
        """What a client is told. The API's own words are passed on only where the client can mend it: those about keys
        may show a part of one."""
        status = error.status if isinstance(error, EndpointError) else None
        logger.warning("%s: %s", self.name, f"HTTP {status}" if status else type(error).__name__)
        if isinstance(error, EndpointError):
            retry_after = error.retry_after or 5.0
            retry_after = min(retry_after, MAX_RETRY_AFTER) if math.isfinite(retry_after) else MAX_RETRY_AFTER
            if status in (400, 413, 422):
                return APIError(400, f"{self.name}: {error.reason}")
            if status == 429:
                return busy(f"the API behind {self.name} takes no more requests for now", retry_after)
            if status is None or status == 408 or status >= 500:
                message = f"the API behind {self.name} does not answer ({f'HTTP {status}' if status else error.reason})"
                return busy(message, retry_after, "unavailable", 503)
            return APIError(502, f"the API behind {self.name} refuses this server (HTTP {status}); tell its operator",
                            code="bad_gateway")  # fmt: skip
        if not isinstance(error, FoundlingError):
            logger.error("%s: internal error", self.name, exc_info=error)
        return APIError(502, f"the API behind {self.name} gave no valid answer; tell its operator", code="bad_gateway")

    async def close(self) -> None:
        self.subject.endpoint.abort()
        self.threads.shutdown(wait=False, cancel_futures=True)


def load_upstreams(
    specs: Sequence[str], options: ServeOptions, *, key_envs: Sequence[str] = (), record: Path | None = None,
    prices: Mapping[str, Price] | None = None,
) -> list[UpstreamModel]:  # fmt: skip
    """The models that NAME=PROVIDER:MODEL or NAME=MODEL@URL name. `key_envs`: NAME=VARIABLE that holds the key.
    ConfigError for what is neither, for a key that is missing, and for a URL that is neither https nor here."""
    variables = dict(_parts(text, "--upstream-key-env", "NAME=VARIABLE") for text in key_envs)
    pairs = [_parts(text, "--upstream", "NAME=PROVIDER:MODEL or NAME=MODEL@URL") for text in specs]
    if strange := sorted(variables.keys() - dict(pairs).keys()):
        raise ConfigError(f"--upstream-key-env names {strange[0]}, which no --upstream does")
    recording = Recording(record) if record else None
    served = list[UpstreamModel]()
    for name, spec in pairs:
        wait: dict[str, Any] = {"timeout": options.request_timeout, "retries": RETRIES, "max_wait": MAX_WAIT}
        key = {"key_env": variables[name]} if name in variables else {}
        served.append(UpstreamModel(
            name=name, directory="", model=SimpleNamespace(config=None), created=int(time.time()),
            price=(prices or {}).get(name), subject=subject_of(spec, backoff=0.5, **wait, **key), recording=recording,
            threads=ThreadPoolExecutor(options.max_num_seqs, thread_name_prefix=f"upstream {name}"),
            max_queue=options.max_queue, queue_timeout=options.queue_timeout,
        ))  # fmt: skip
    return served


def _parts(text: str, flag: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"{flag}: expected {form}")  # it is not repeated: a key may stand there
    return name, value
