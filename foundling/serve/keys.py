# SPDX-License-Identifier: Apache-2.0
"""Keys of clients: made by `foundling key`, stored as hashes, with quotas that can be raised while a server runs."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from foundling.errors import ConfigError, DataError
from foundling.limits import KEY_NAME_CHARS, KEY_TOKENS, REQUESTS_PER_MINUTE, SERVED_COMPLETIONS, shown
from foundling.serve.errors import APIError, busy

PREFIX = "fk-"
MIN_KEY_CHARS, MAX_KEY_CHARS = 8, 512
DEFAULT_FILE = "foundling-keys.sqlite"
_SCHEMA = """
create table if not exists keys (
  name text primary key, digest text not null unique, created real not null, revoked integer not null default 0,
  tokens integer, requests_per_minute integer, concurrent integer,
  prompt_tokens integer not null default 0, completion_tokens integer not null default 0,
  requests integer not null default 0, dollars real not null default 0
)
"""


class Caller(NamedTuple):
    """Who asks. The name is for the log; None stands for no limit."""

    name: str
    stored: bool = False
    """whether its usage is counted in a file"""
    tokens: int | None = None
    """quota of prompt and completion tokens, over the key's whole life"""
    used: int = 0
    requests_per_minute: int | None = None
    concurrent: int | None = None


ANYONE = Caller("anyone")
"""where a server has no keys"""


class KeyRecord(NamedTuple):
    """A key as `foundling key list` shows it."""

    name: str
    created: float
    revoked: bool
    tokens: int | None
    requests_per_minute: int | None
    concurrent: int | None
    prompt_tokens: int
    completion_tokens: int
    requests: int
    dollars: float


def digest_of(key: str) -> str:
    """A key has over 128 bits, so one round of a hash keeps it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class KeyFile:
    """An SQLite file of keys, which several processes may use at once. Only its owner may read it."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """DataError for what is no such file, or is not there."""
        self.path = path
        if not create and not path.is_file():
            raise DataError(f"{path}: no file of keys; make one with: foundling key create NAME --keys {path}")
        try:
            if create and not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            with self._open() as db:
                db.execute(_SCHEMA)
                db.execute("select name, digest, tokens, concurrent from keys limit 1")
        except sqlite3.Error as error:
            raise DataError(f"{path}: cannot be read as a file of keys ({error})") from None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=10, isolation_level=None)
        try:
            db.execute("begin immediate")
            yield db
            db.execute("commit")
        finally:
            db.close()

    def create(
        self, name: str, *, tokens: int | None = None, requests_per_minute: int | None = None,
        concurrent: int | None = None,
    ) -> str:  # fmt: skip
        """A new key, which is nowhere stored and cannot be shown again. ConfigError for a name that is taken."""
        if not 0 < len(name) <= KEY_NAME_CHARS.high or not name.isprintable():
            raise ConfigError(f"the key's name is {shown(name)}; expected 1 to {KEY_NAME_CHARS.high} characters")
        key = PREFIX + secrets.token_urlsafe(32)
        values = (name, digest_of(key), time.time(), *_limits(tokens, requests_per_minute, concurrent))
        try:
            with self._open() as db:
                db.execute(
                    "insert into keys (name, digest, created, tokens, requests_per_minute, concurrent) "
                    "values (?, ?, ?, ?, ?, ?)", values,
                )  # fmt: skip
        except sqlite3.IntegrityError:
            raise ConfigError(f"there is a key {shown(name)} already; choose another name, or revoke it") from None
        return key

    def change(
        self, name: str, *, tokens: int | None = None, requests_per_minute: int | None = None,
        concurrent: int | None = None,
    ) -> None:  # fmt: skip
        """New limits; None leaves one as it is."""
        limits = _limits(tokens, requests_per_minute, concurrent)
        with self._open() as db:
            self._require(db, name)
            db.execute(
                "update keys set tokens = coalesce(?, tokens), requests_per_minute = coalesce(?, requests_per_minute), "
                "concurrent = coalesce(?, concurrent) where name = ?", (*limits, name),
            )  # fmt: skip

    def revoke(self, name: str) -> None:
        """The key is refused from now on; its usage stays."""
        with self._open() as db:
            self._require(db, name)
            db.execute("update keys set revoked = 1 where name = ?", (name,))

    def records(self) -> list[KeyRecord]:
        fields = ", ".join(KeyRecord._fields)
        with self._open() as db:
            rows = db.execute(f"select {fields} from keys order by created").fetchall()
        return [KeyRecord(*row)._replace(revoked=bool(row[2])) for row in rows]

    def digests(self) -> list[tuple[str, Caller]]:
        """(digest, caller) of each key that is not revoked."""
        with self._open() as db:
            rows = db.execute(
                "select digest, name, tokens, prompt_tokens + completion_tokens, requests_per_minute, concurrent "
                "from keys where revoked = 0"
            ).fetchall()
        return [(digest, Caller(name, True, *limits)) for digest, name, *limits in rows]

    def charge(self, name: str, prompt_tokens: int, completion_tokens: int, dollars: float) -> None:
        with self._open() as db:
            db.execute(
                "update keys set prompt_tokens = prompt_tokens + ?, completion_tokens = completion_tokens + ?, "
                "requests = requests + 1, dollars = dollars + ? where name = ?",
                (prompt_tokens, completion_tokens, dollars, name),
            )

    @staticmethod
    def _require(db: sqlite3.Connection, name: str) -> None:
        if db.execute("select 1 from keys where name = ?", (name,)).fetchone() is None:
            names = [row[0] for row in db.execute("select name from keys limit 10")]
            raise ConfigError(f"there is no key {shown(name)}; there are: {', '.join(names) or 'none'}")


def _limits(*values: int | None) -> tuple[int | None, ...]:
    limits = (KEY_TOKENS, REQUESTS_PER_MINUTE, SERVED_COMPLETIONS)
    names = ("tokens", "requests_per_minute", "concurrent")
    return tuple(v if v is None else limit.check(v, n) for v, limit, n in zip(values, limits, names, strict=True))


class KeyStore:
    """The keys that one server takes: those of its command line and those of a file."""

    def __init__(self, keys: Sequence[str] = (), file: KeyFile | None = None) -> None:
        """ConfigError for a key that is too short to be one."""
        for key in keys:
            if not MIN_KEY_CHARS <= len(key) <= MAX_KEY_CHARS or not key.isascii() or not key.isprintable():
                raise ConfigError(f"an API key has {len(key)} characters; use {MIN_KEY_CHARS} or more of ASCII")
        self.fixed = [(digest_of(key), Caller(f"key {n + 1}")) for n, key in enumerate(keys)]
        self.file = file
        self._lock = threading.Lock()
        self._stored: list[tuple[str, Caller]] = []
        self._read_at = -1.0

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return bool(self.fixed or self.file)

    def identify(self, key: str | None) -> Caller | None:
        """Whose key it is; None for nobody's. Every stored key is compared, each in constant time."""
        if not self.required:
            return ANYONE
        digest, caller = digest_of((key or "")[: MAX_KEY_CHARS + 1]), None
        for other, owner in [*self.fixed, *self._of_file()]:
            if hmac.compare_digest(digest, other):
                caller = owner
        return caller

    def _of_file(self) -> list[tuple[str, Caller]]:
        """Read again after a second, so that quotas and revocations hold soon."""
        if self.file is None:
            return []
        with self._lock:
            now = time.monotonic()
            if now - self._read_at > 1.0 or self._read_at < 0:
                self._stored, self._read_at = self.file.digests(), now
            return self._stored

    def check_quota(self, caller: Caller) -> None:
        """APIError 429 where the key's tokens are used up, by usage as it is stored now."""
        if self.file is None or not caller.stored:
            return
        current = next((one for _, one in self.file.digests() if one.name == caller.name), None)
        if current is None:
            raise APIError(401, "the key was revoked", code="invalid_api_key")
        if current.tokens is not None and current.used >= current.tokens:
            message = f"the key has used {current.used:,} of its {current.tokens:,} tokens; ask for a larger quota"
            raise APIError(429, message, code="insufficient_quota")

    def charge(self, caller: Caller, prompt_tokens: int, completion_tokens: int, dollars: float) -> None:
        if self.file is not None and caller.stored:
            self.file.charge(caller.name, prompt_tokens, completion_tokens, dollars)


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
        now, name = time.monotonic(), caller.name
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


def as_json(record: KeyRecord) -> dict[str, Any]:
    return record._asdict()
