# SPDX-License-Identifier: Apache-2.0
"""Logged-in pages: a random token in a cookie stands for a key, in this process alone."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict

COOKIE = "foundling_session"
MAX_SESSIONS, SESSION_SECONDS = 1024, 12 * 3600


class Sessions:
    """Only hashes of tokens are looked up, so that the time of a lookup tells nothing of a token."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def begin(self, key: str) -> str:
        """The token of a new session; the oldest session ends where there are too many."""
        token = secrets.token_urlsafe(32)
        self._keys[_digest(token)] = key, time.monotonic() + SESSION_SECONDS
        while len(self._keys) > MAX_SESSIONS:
            self._keys.popitem(last=False)
        return token

    def key_of(self, token: str) -> str | None:
        key, end = self._keys.get(_digest(token), ("", 0.0))
        return key if time.monotonic() < end else None

    def end(self, token: str) -> None:
        self._keys.pop(_digest(token), None)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
