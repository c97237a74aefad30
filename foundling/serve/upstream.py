# SPDX-License-Identifier: Apache-2.0
"""Models behind other OpenAI-compatible APIs, served under a name of this server. URLs and keys come from the command
line alone; a client sees neither."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from foundling.errors import ConfigError, FoundlingError
from foundling.evaluate.endpoint_errors import EndpointError, code_inside, error_text
from foundling.evaluate.upstream import Upstream, subject_of
from foundling.serve.errors import APIError, busy
from foundling.serve.models import Price, ServedModel
from foundling.serve.options import ServeOptions
from foundling.serve.recording import Recording, request_key
from foundling.text import Tokenizer

logger = logging.getLogger("foundling.serve")
RETRIES = 1
"""of a request that is not streamed; clients try again themselves"""
MAX_WAIT = 1.0
"""seconds that a request waits here for an API that asks to wait"""


@dataclass(kw_only=True)
class UpstreamModel(ServedModel):
    """`directory` is empty, `model` has no configuration."""

    subject: Upstream
    recording: Recording | None
    threads: ThreadPoolExecutor
    max_queue: int
    n_open: int = field(default=0, init=False)
    """requests under way; only the event loop uses it"""

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

    def key(self, path: str, body: dict[str, Any]) -> str:
        """Of the recorded answer to a request."""
        return request_key(self.subject.endpoint.url, path, body)

    async def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The whole answer. APIError for what the API refuses or never answers."""
        with self._under_way() as stop:
            answer = await self._in_thread(self.subject.endpoint.post, path, body, stop)
            if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list) or not answer["choices"]:
                raise APIError(502, f"{self.name}: the API behind it answered without a choice", code="bad_gateway")
            return answer

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of the answer. Raises as `ask`; leaving it cuts the connection."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def put(item: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(queue.put_nowait, item)

        def read() -> None:
            try:
                for chunk in self.subject.endpoint.stream(path, body, stop):
                    put(chunk)
                put(None)
            except Exception as error:
                put(error)

        n = 0
        with self._under_way() as stop:
            self.threads.submit(read)
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

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self.threads, function, *args)
        except Exception as error:
            raise self._refused(error) from None

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[threading.Event]:
        """An event that ends the request; it is set, and the connection cut, where the block is left."""
        if self.n_open >= self.max_queue:
            raise busy(f"{self.name} has {self.n_open} requests under way and takes no more; try again later", 2.0)
        stop = threading.Event()
        self.n_open += 1
        try:
            yield stop
        finally:
            self.n_open -= 1
            stop.set()
            self.subject.endpoint.abort(stop)

    def _refused(self, error: Exception) -> APIError:
        """What a client is told. The API's own words are passed on only where the client can mend it: those about keys
        may show a part of one."""
        status = error.status if isinstance(error, EndpointError) else None
        logger.warning("%s: %s", self.name, f"HTTP {status}" if status else type(error).__name__)
        if isinstance(error, EndpointError):
            retry_after = error.retry_after or 5.0
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
    """Of NAME=PROVIDER:MODEL or NAME=MODEL@URL. `key_envs`: NAME=VARIABLE that holds the key. ConfigError for what is
    neither, for a key that is missing, and for a URL that is not https (http on this machine)."""
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
            max_queue=options.max_queue,
        ))  # fmt: skip
    return served


def _parts(text: str, flag: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"{flag}: expected {form}")  # it is not repeated: a key may stand there
    return name, value
