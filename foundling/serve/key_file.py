# SPDX-License-Identifier: Apache-2.0
"""The file of keys that `foundling key` makes. It stores hashes, limits and usage; several processes use it at once.

This module imports neither fastapi nor torch: the command needs no server.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from foundling.errors import ConfigError, DataError
from foundling.limits import KEY_NAME_CHARS, KEY_TOKENS, REQUESTS_PER_MINUTE, SERVED_COMPLETIONS, shown

PREFIX = "fk-"
DEFAULT_FILE = "foundling-keys.sqlite"
BUSY_SECONDS = 5.0
"""that a writer waits for another one"""
MODE = 0o600
_SCHEMA = """
create table if not exists keys (
  name text primary key, digest text not null unique, created real not null, revoked integer not null default 0,
  tokens integer, requests_per_minute integer, concurrent integer,
  prompt_tokens integer not null default 0, completion_tokens integer not null default 0,
  requests integer not null default 0, dollars real not null default 0
)
"""


LIMITS = ("tokens", "requests_per_minute", "concurrent")
_CALLER = "digest, name, tokens, prompt_tokens + completion_tokens, requests_per_minute, concurrent"
OWNER = "file:"


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
    owner: str = ""
    """of the files and jobs of this key, made of its digest: no other key ever has it, in whatever file"""

    @property
    def digest(self) -> str:
        """The digest of a stored key."""
        return self.owner.removeprefix(OWNER)


class KeyRecord(NamedTuple):
    """A key as `foundling key list` shows it."""

    name: str
    created: float
    """seconds since 1970"""
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
    """An SQLite file of keys, over one connection that threads use one after another. Only its owner may read it. Every
    method raises DataError, with one line, where the file is no such file, is damaged, or is locked by another process
    for long."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """`create`: make the file where there is none. DataError for what is no file of keys, or is not there."""
        self.path, self._lock = path, threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._place: tuple[int, int] | None = None
        """device and number of the file that the connection is to"""
        if not create and not path.is_file():
            raise DataError(f"{path}: no file of keys; make one with: foundling key create NAME --keys {path}")
        if create and (not path.exists() or path.stat().st_size == 0):
            self._make()
        with self._open() as db:
            db.execute("select name, digest, revoked, tokens, requests_per_minute, concurrent from keys limit 1")

    def _make(self) -> None:
        """Two processes may do it at once."""
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, MODE))
        except OSError as error:
            raise DataError(f"{self.path}: cannot be made ({error.strerror}); choose another --keys") from None
        with self._open(writes=True) as db:
            db.execute(_SCHEMA)
        with self._open() as db:
            # readers do not wait for a writer then: a server looks keys up while another process changes them
            db.execute("pragma journal_mode = wal")

    @contextmanager
    def _open(self, *, writes: bool = False, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """`durable`: what is written outlasts a loss of power."""
        with self._lock:
            try:
                db = self._connect()
                if writes:
                    db.execute(f"pragma synchronous = {'full' if durable else 'normal'}")
                    db.execute("begin immediate")
                yield db
                if writes:
                    db.execute("commit")
            except sqlite3.IntegrityError:
                self._close()
                raise
            except (sqlite3.Error, OSError) as error:
                self._close()
                raise DataError(f"{self.path}: cannot be used as a file of keys ({error}); make another") from None
            except BaseException:
                self._close()  # which takes back what was not committed
                raise

    def _connect(self) -> sqlite3.Connection:
        """A new connection where another file has the name by now, and none to a file that is not there."""
        status = os.stat(self.path)
        if self._db is None or self._place != (status.st_dev, status.st_ino):
            self._close()
            self._place = status.st_dev, status.st_ino
            self._db = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS, isolation_level=None,
                check_same_thread=False,
            )  # fmt: skip
        return self._db

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def __del__(self) -> None:  # a connection alone is closed late: it holds itself
        if getattr(self, "_db", None) is not None:
            self._close()

    def close(self) -> None:
        """It is opened again where it is used again."""
        with self._lock:
            self._close()

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
            with self._open(writes=True) as db:
                db.execute(
                    "insert into keys (name, digest, created, tokens, requests_per_minute, concurrent) "
                    "values (?, ?, ?, ?, ?, ?)", values,
                )  # fmt: skip
        except sqlite3.IntegrityError:
            raise ConfigError(f"there is a key {shown(name)} already, or was one; choose another name") from None
        return key

    def change(
        self, name: str, *, tokens: int | None = None, requests_per_minute: int | None = None,
        concurrent: int | None = None, lift: Collection[str] = (),
    ) -> None:  # fmt: skip
        """New limits; None leaves one as it is, and those that `lift` names end. ConfigError for an unknown name."""
        limits = _limits(tokens, requests_per_minute, concurrent)
        with self._open(writes=True) as db:
            self._require(db, name)
            db.execute(
                "update keys set tokens = coalesce(?, tokens), requests_per_minute = coalesce(?, requests_per_minute), "
                "concurrent = coalesce(?, concurrent) where name = ?", (*limits, name),
            )  # fmt: skip
            for column in LIMITS:
                if column in lift:
                    db.execute(f"update keys set {column} = null where name = ?", (name,))

    def revoke(self, name: str) -> None:
        """The key is refused from now on; its name and usage stay. ConfigError for an unknown name."""
        with self._open(writes=True) as db:
            self._require(db, name)
            db.execute("update keys set revoked = 1 where name = ?", (name,))

    def records(self) -> list[KeyRecord]:
        fields = ", ".join(KeyRecord._fields)
        with self._open() as db:
            rows = db.execute(f"select {fields} from keys order by created, name").fetchall()
        return [KeyRecord(*row)._replace(revoked=bool(row[2])) for row in rows]

    def callers(self) -> list[tuple[str, Caller]]:
        """(digest, caller) of each key that is not revoked."""
        with self._open() as db:
            return [_caller(*row) for row in db.execute(f"select {_CALLER} from keys where revoked = 0")]

    def caller(self, digest: str) -> Caller | None:
        """None for an unknown or revoked key."""
        with self._open() as db:
            row = db.execute(f"select {_CALLER} from keys where revoked = 0 and digest = ?", (digest,)).fetchone()
        return None if row is None else _caller(*row)[1]

    def charge(self, digest: str, prompt_tokens: int, completion_tokens: int, dollars: float) -> None:
        """Notes what the key with this digest has used; nothing where there is none."""
        with self._open(writes=True, durable=False) as db:
            db.execute(
                "update keys set prompt_tokens = prompt_tokens + ?, completion_tokens = completion_tokens + ?, "
                "requests = requests + 1, dollars = dollars + ? where digest = ?",
                (prompt_tokens, completion_tokens, dollars, digest),
            )

    @staticmethod
    def _require(db: sqlite3.Connection, name: str) -> None:
        if db.execute("select 1 from keys where name = ?", (name,)).fetchone() is None:
            names = [row[0] for row in db.execute("select name from keys limit 10")]
            raise ConfigError(f"there is no key {shown(name)}; there are: {', '.join(names) or 'none'}")


def _caller(digest: str, name: str, *limits: int | None) -> tuple[str, Caller]:
    return digest, Caller(name, True, *limits, owner=OWNER + digest)  # pyright: ignore[reportArgumentType]


def _limits(*values: int | None) -> tuple[int | None, ...]:
    limits = (KEY_TOKENS, REQUESTS_PER_MINUTE, SERVED_COMPLETIONS)
    return tuple(v if v is None else limit.check(v, n) for v, limit, n in zip(values, limits, LIMITS, strict=True))
