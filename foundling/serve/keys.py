# SPDX-License-Identifier: Apache-2.0
"""The keys that a server takes, and the limits of each: requests a minute, requests at once, tokens."""

from __future__ import annotations

import hmac
import logging
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from foundling.errors import ConfigError, DataError
from foundling.serve.errors import APIError, busy
from foundling.serve.key_file import OWNER, Caller, KeyFile, digest_of

logger = logging.getLogger("foundling.serve")
MIN_KEY_CHARS, MAX_KEY_CHARS = 8, 512
REREAD_SECONDS = 1.0
"""within which a change of the file of keys holds"""
ANYONE = Caller("anyone", owner="anyone")
"""where a server has no keys"""


class KeyStore:
    """The keys that one server takes: those of its command line and those of a file."""

    def __init__(self, keys: Sequence[str] = (), file: KeyFile | None = None) -> None:
        """ConfigError for a key that is too short to be one, DataError for a file that cannot be read."""
        for key in keys:
            if not MIN_KEY_CHARS <= len(key) <= MAX_KEY_CHARS or not key.isascii() or not key.isprintable():
                raise ConfigError(f"an API key has {len(key)} characters; use {MIN_KEY_CHARS} or more of ASCII")
        digests = [digest_of(key) for key in keys]
        self.fixed = [(d, Caller(f"key {n + 1}", owner=f"option:{d}")) for n, d in enumerate(digests)]
        self.file = file
        self._stored = file.callers() if file else []
        self._failed, self._closed = False, threading.Event()
        if file:
            args = (weakref.ref(self), self._closed)
            threading.Thread(target=_reread, args=args, name="key file", daemon=True).start()

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return bool(self.fixed or self.file)

    def identify(self, key: str | None) -> Caller | None:
        """Whose key it is; None for nobody's. Every stored key is compared, each in constant time."""
        if not self.required:
            return ANYONE
        digest, caller = digest_of((key or "")[: MAX_KEY_CHARS + 1]), None
        for other, owner in [*self.fixed, *self._stored]:
            if hmac.compare_digest(digest, other):
                caller = owner
        return caller

    def _read(self) -> None:
        """Where it fails, the keys that were read last stay."""
        assert self.file
        try:
            self._stored, self._failed = self.file.callers(), False
        except DataError as error:
            if not self._failed:
                logger.error("%s", error)
            self._failed = True

    def current(self, caller: Caller) -> Caller:
        """Its limits and usage as they are stored now. APIError 401 for a revoked key, 503 where the file cannot be
        read. It waits for the file: the event loop does not call it."""
        if self.file is None or not caller.stored:
            return caller
        try:
            current = self.file.caller(caller.digest)
        except DataError as error:  # the client learns nothing of the file
            logger.error("%s", error)
            raise busy("keys cannot be looked up now; try again later", 5, "unavailable", 503) from None
        if current is None:
            raise APIError(401, "the key was revoked", code="invalid_api_key")
        return current

    def charge(self, caller: Caller, prompt_tokens: int, completion_tokens: int, dollars: float) -> None:
        """It waits for the file, as `current` does."""
        if self.file is None or not caller.stored:
            return
        try:
            self.file.charge(caller.digest, prompt_tokens, completion_tokens, dollars)
        except DataError as error:  # the answer is computed: the client gets it
            logger.error("usage of the key %s is not counted: %s", caller.name, error)

    def charge_owner(self, owner: str, tokens: int, dollars: float) -> None:
        """Charges the key whose `Caller.owner` that is, once it asks no more."""
        self.charge(Caller("of a job", owner.startswith(OWNER), owner=owner), tokens, 0, dollars)

    def close(self) -> None:
        self._closed.set()
        if self.file:
            self.file.close()


def _reread(store: weakref.ref[KeyStore], closed: threading.Event) -> None:
    """Beside the event loop, so that quotas and revocations hold soon, and no request waits for the file."""
    while not closed.wait(REREAD_SECONDS):
        if (current := store()) is None:
            return
        current._read()
        del current


@dataclass
class _Window:
    begin: float
    count: int = 0


class Limiter:
    """Requests a minute and requests at once of each key. The event loop alone uses it."""

    def __init__(self) -> None:
        self.windows: dict[str, _Window] = {}
        self.running: dict[str, int] = {}

    @contextmanager
    def enter(self, caller: Caller) -> Iterator[None]:
        """APIError 429, with the seconds to wait, beyond a limit."""
        now, name = time.monotonic(), caller.owner or caller.name
        if caller.requests_per_minute is not None:
            window = self.windows.get(name)
            if window is None or now - window.begin >= 60:
                window = self.windows[name] = _Window(now)
            if window.count >= caller.requests_per_minute:
                message = f"the key is allowed {caller.requests_per_minute} requests a minute; wait a little"
                raise busy(message, 60 - (now - window.begin))
            window.count += 1
        if caller.concurrent is not None and self.running.get(name, 0) >= caller.concurrent:
            raise busy(f"the key is allowed {caller.concurrent} requests at a time; wait for one to end", 1)
        self.running[name] = self.running.get(name, 0) + 1
        try:
            yield
        finally:
            self.running[name] -= 1
            if not self.running[name]:
                del self.running[name]
