# SPDX-License-Identifier: Apache-2.0
"""Files of another user, for tests that run as any user."""

import os
import stat
from pathlib import Path

import pytest

from foundling.runtime import caches


class ForeignEntry:
    """An os.DirEntry that says that it belongs to another user."""

    def __init__(self, entry: os.DirEntry[str]) -> None:
        self.entry, self.path = entry, entry.path

    def stat(self, follow_symlinks: bool = True) -> os.stat_result:
        return foreign(self.entry.stat(follow_symlinks=follow_symlinks))


def foreign(status: os.stat_result) -> os.stat_result:
    values = list(status)
    values[stat.ST_UID] = 12345
    return os.stat_result(values)


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As os.chown, which only root may use, would: for what foundling asks about owners."""
    lstat, entries = os.lstat, caches._entries
    monkeypatch.setattr(os, "lstat", lambda asked: foreign(lstat(asked)) if Path(asked) == path else lstat(asked))
    monkeypatch.setattr(Path, "lstat", lambda path: os.lstat(path))
    monkeypatch.setattr(
        caches, "_entries", lambda top: (ForeignEntry(e) if Path(e.path) == path else e for e in entries(top))
    )
