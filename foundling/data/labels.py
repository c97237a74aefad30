# SPDX-License-Identifier: Apache-2.0
"""What people are asked to label, and what they said of it: items from rows of prompts and answers, and a file of
judgements that only grows.

An item is known by the hash of its contents, whatever file it stands in; its answers have an order of their own (that
of their hashes), so that neither their number nor their place says where one comes from. A judgement is one JSON line.
The last line of a labeller and an item counts; undoing appends a line that repeats what counted before.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from foundling.data import convert
from foundling.data.files import Files
from foundling.data.layouts import PROMPTS, SYSTEM
from foundling.data.rows import SUFFIXES, read_rows
from foundling.data.streams import Skip, suffix
from foundling.errors import DataError, OutputError
from foundling.limits import LABEL_CHARS, LABEL_ITEMS, LABEL_LINE, RANKED_ANSWERS
from foundling.runtime.files import cut_torn_line, fsync_path, output_errors, require_name

Task = Literal["rank", "write"]
"""rank: order the answers to a prompt; write: write one"""
State = Literal["judged", "skipped", "flagged", "open"]
"""flagged: something is wrong with the item; open: it was judged, and that was undone"""
_BEGIN = b'{"id": "'
_EXPECTED = "expected rows of .jsonl, .json, .csv, .tsv or .parquet with a prompt"


class Item(NamedTuple):
    id: str
    messages: tuple[dict[str, Any], ...]
    """the conversation that is to be answered"""
    completions: tuple[str, ...]
    """in the order of their hashes; () where one is to be written"""


class Items(NamedTuple):
    items: list[Item]
    task: Task
    sentence: str
    """what is read as what, for people"""
    skipped: Counter[str]


# --- items -----------------------------------------------------------------------------------------------------------


def read_items(source: str | Path, task: Task | None = None, exclude: str | Path | None = None) -> Items:
    """The items of a file or a folder of rows, each once; not those of a file `exclude` in that folder. Rows with two
    answers or more are ranked, prompts alone are written for; of a file that has both, the former. DataError where
    nothing is left."""
    files, rows, skipped = Files(source, _EXPECTED, exclude), list[Mapping[str, Any]](), Counter[str]()
    for path in files.paths():
        if isinstance(path, Skip) or suffix(path) not in SUFFIXES:
            skipped["not a file of rows"] += 1
            continue
        for row in read_rows(path, like='{"prompt": "…", "completions": ["…", "…"]}'):
            if isinstance(row, Skip):
                skipped[row.reason] += 1
            elif len(rows) == LABEL_ITEMS.high:
                raise DataError(f"{str(source)!r} has more than {LABEL_ITEMS.high:,} rows; label it in parts")
            else:
                rows.append(row.fields)
    answers = [_answer_columns(row) for row in rows]
    chosen: Task = task or ("rank" if any(answers) else "write")
    items = dict[str, Item]()
    for row, columns in zip(rows, answers, strict=True):
        item = _item(row, columns if chosen == "rank" else None, chosen)
        if isinstance(item, Skip):
            skipped[item.reason] += 1
        else:
            skipped["the same item again"] += item.id in items
            items.setdefault(item.id, item)
    skipped = +skipped
    if not items:
        why = ", ".join(f"{reason}: {n:,}" for reason, n in skipped.most_common())
        raise DataError(f"{str(source)!r} has nothing to {chosen} ({why or 'no rows'}); {_EXPECTED}, or see --as")
    what = "prompts with answers to rank" if chosen == "rank" else "prompts to write an answer to"
    return Items(list(items.values()), chosen, f"{len(items):,} {what}", skipped)


def _answer_columns(row: Mapping[str, Any]) -> dict[str, str] | None:
    """role -> column of the answers, where a row has two or more."""
    if all(row.get(name) is not None for name in ("chosen", "rejected")):
        return {"chosen": "chosen", "rejected": "rejected"}
    names = [name for name in ("completions", "ranked") if isinstance(row.get(name), list)]
    return {"ranked": names[0]} if names else None


def _item(row: Mapping[str, Any], columns: dict[str, str] | None, task: Task) -> Item | Skip:
    if task == "rank" and columns is None:
        return Skip("no two answers")
    prompt = next((name for name in PROMPTS if row.get(name) is not None), "")
    roles = {"prompt": prompt, **{role: names[0] for role, names in SYSTEM.items()}}
    if columns is None:  # read as a comparison of two answers that are left out again: prompts have one meaning
        row, columns = {**row, "completions": ["a", "b"]}, {"ranked": "completions"}
    elif "ranked" in columns:
        values = row[columns["ranked"]]  # samples of a model are often equal
        values = list(dict.fromkeys(values)) if all(isinstance(value, str) for value in values) else values
        row = {**row, columns["ranked"]: values}
    fields = convert.preference(row, {**roles, **columns})
    if isinstance(fields, Skip):
        return fields
    # half of a surrogate pair, which neither the page nor a later file could hold, becomes "?"
    fields = json.loads(json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace"))
    completions = sorted(fields["completions"], key=_digest) if task == "rank" else []
    if len(completions) > RANKED_ANSWERS.high:
        return Skip(f"more than {RANKED_ANSWERS.high} answers")
    text = json.dumps([fields["messages"], completions], ensure_ascii=True, sort_keys=True)
    if len(text) > LABEL_CHARS.high:
        return Skip(f"over {LABEL_CHARS.high:,} characters")
    return Item(_digest(text), tuple(fields["messages"]), tuple(completions))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def shown_order(item: Item, labeller: str, seed: int) -> tuple[int, ...]:
    """The answers in the order in which this labeller sees them: drawn, and the same after a restart."""
    return tuple(sorted(range(len(item.completions)), key=lambda i: _digest(f"{seed}\0{labeller}\0{item.id}\0{i}")))


# --- judgements ------------------------------------------------------------------------------------------------------


@checked(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Judgement:
    """One line. `ranking`: groups of numbers of answers, the best group first; answers of one group are equal."""

    id: str
    item: str
    labeller: str
    task: Task
    state: State
    ranking: tuple[tuple[int, ...], ...] | None = None
    text: str | None = None
    order: tuple[int, ...] = ()
    """the answers from the first to the last on the screen"""
    seconds: float = 0.0
    """that the item was looked at"""
    time: str = ""
    replaces: str | None = None
    """the judgement that counted before"""
    undoes: str | None = None
    """the judgement that this line takes back"""


_ONE = TypeAdapter(Judgement)


def check_ranking(ranking: Sequence[Sequence[int]], n: int) -> tuple[tuple[int, ...], ...]:
    """DataError unless each of `n` answers is in one group."""
    if sorted(i for group in ranking for i in group) != list(range(n)) or not all(ranking):
        raise DataError(f"a ranking names each of {n} answers once, in groups that are not empty")
    return tuple(tuple(sorted(group)) for group in ranking)


def _parse(data: bytes, path: Path, first: int) -> Iterator[Judgement]:
    for number, line in enumerate(data.split(b"\n")[:-1], first):
        try:
            one = _ONE.validate_json(line)
            if one.ranking is not None:
                check_ranking(one.ranking, len(one.order))
        except (ValidationError, DataError):
            raise DataError(f"{path}: line {number} is no judgement; give a file that foundling label wrote") from None
        yield one


def read_judgements(path: str | Path) -> list[Judgement]:
    """All lines of a file in their order; a last one that is being written is left out. DataError for other files."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return list(_parse(data[: data.rfind(b"\n") + 1], path, 1))


class LabelFile:
    """A file of judgements that several processes may append to. Nothing in it is ever changed."""

    def __init__(self, path: str | Path) -> None:
        """DataError for a file of something else, OutputError for one that cannot be written."""
        self.path, self._end, self._n = Path(path), 0, 0
        require_name(self.path)
        with output_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o644)
        if not stat.S_ISREG(os.fstat(self._handle).st_mode):
            self.close()
            raise OutputError(f"{self.path}: is no file; choose another --out")
        with output_errors(self.path), self.locked():
            fsync_path(self.path.parent)  # its name is on the disk as well
            cut_torn_line(self.path, begin=_BEGIN, what="judgement", max_bytes=LABEL_LINE.high)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else appends inside."""
        with suppress(OSError):  # a file system without locks; a line is written at once there all the same
            fcntl.flock(self._handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(self._handle, fcntl.LOCK_UN)

    def read_new(self) -> list[Judgement]:
        """The lines that were written since the last call, by whomever."""
        size = os.fstat(self._handle).st_size
        if size < self._end:
            raise OutputError(f"{self.path}: another program has changed it; start foundling label again")
        data = os.pread(self._handle, size - self._end, self._end)
        data = data[: data.rfind(b"\n") + 1]
        lines = list(_parse(data, self.path, self._n + 1))
        self._end, self._n = self._end + len(data), self._n + len(lines)
        return lines

    def append(self, judgement: Judgement) -> None:
        """It is on the disk once this returns; where that fails, OutputError, and the file is as before. Call it with
        the lock."""
        line = (json.dumps(asdict(judgement), ensure_ascii=True) + "\n").encode()
        LABEL_LINE.check(len(line), "the length of a judgement", DataError)
        with output_errors(self.path):
            if not (self.path.exists() and os.path.samestat(os.fstat(self._handle), os.stat(self.path))):
                raise OutputError(f"{self.path}: was moved or removed; start foundling label again")
            cut_torn_line(self.path, begin=_BEGIN, what="judgement", max_bytes=LABEL_LINE.high)
            size = os.fstat(self._handle).st_size
            try:
                if os.write(self._handle, line) != len(line):
                    raise OutputError(f"{self.path}: the disk is full; free some space and try again")
                os.fsync(self._handle)
            except OSError:
                os.ftruncate(self._handle, size)
                raise

    def close(self) -> None:
        os.close(self._handle)
