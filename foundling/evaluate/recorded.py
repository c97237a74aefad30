# SPDX-License-Identifier: Apache-2.0
"""Answers on disk: an evaluation that was interrupted goes on, and one of a model that is gone replays.

One JSON line an answer, {"key", "kind", "request", "answer", "model", "hashes", "date"}, appended as answers come. The
key is the hash of the subject and the whole request (`subject.request_key`). What a server reports with its answers
(REPORTED) is recorded and is no part of the key, since nobody knows it before."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foundling.errors import DataError, GenerationError
from foundling.evaluate.subject import (
    Continuation,
    Decoding,
    GeneratedText,
    GenerateRequest,
    LikelihoodRequest,
    MatchRequest,
    Subject,
    Vector,
    request_key,
)
from foundling.limits import MAX_LINE_BYTES
from foundling.runtime.files import cut_torn_line, output_errors

REPORTED = "reported: "
"""how a hash of a subject begins that it learns from its answers"""
_ANSWERS: dict[str, type] = {
    "loglikelihood": Continuation, "rolling": Continuation, "generate": GeneratedText, "embed": Vector,
    "match": Continuation,
}  # fmt: skip


class Recorded:
    """A subject whose answers are taken from `path` where they are recorded there, and are recorded there otherwise.
    Without `subject` only recorded answers exist: GenerationError for a request that was never made."""

    def __init__(
        self, path: Path, subject: Subject | None = None, *, name: str = "", hashes: Mapping[str, str] | None = None
    ) -> None:
        """`name` and `hashes` say who is replayed where there is no subject. DataError for a damaged file."""
        self.path, self.subject = path, subject
        self.name = subject.name if subject else name
        self._fixed = _fixed(subject.hashes if subject else hashes or {})
        self._reports = dict[tuple[str, str], None]()  # a set in order
        if not subject:
            self._note(hashes or {})
        if subject:
            _end_last_line(path)
        self._lines = {line["key"]: line for line in read_answers(path)}
        self.others = {
            str(line.get("model")) for line in self._lines.values() if _fixed(line.get("hashes", {})) != self._fixed
        }
        """names of models, whose answers stand there too"""
        self.n_replayed = 0
        """answers that came from the file"""

    @property
    def hashes(self) -> dict[str, str]:
        """Those of the subject, with all that was reported with the answers of this object, recorded or new."""
        reports: dict[str, list[str]] = {}
        for name, report in self._reports:
            reports.setdefault(name, []).append(report)
        return self._fixed | {name: REPORTED + "; ".join(sorted(values)) for name, values in reports.items()}

    def _note(self, hashes: Mapping[str, str]) -> None:
        for name, value in hashes.items():
            if value.startswith(REPORTED):
                self._reports |= dict.fromkeys((name, report) for report in value[len(REPORTED) :].split("; "))

    def loglikelihood(self, requests: Sequence[LikelihoodRequest]) -> Iterator[tuple[int, Continuation]]:
        return self._run("loglikelihood", requests)

    def rolling(self, texts: Sequence[str]) -> Iterator[tuple[int, Continuation]]:
        return self._run("rolling", texts)

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GeneratedText]]:
        return self._run("generate", requests)

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[int, Vector]]:
        return self._run("embed", texts)

    def match(self, requests: Sequence[MatchRequest]) -> Iterator[tuple[int, Continuation]]:
        return self._run("match", requests)

    def _run(self, kind: str, requests: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        keys = [request_key(self._fixed, kind, [r] if isinstance(r, str) else r) for r in requests]
        missing = list[int]()
        for index, key in enumerate(keys):
            if line := self._lines.get(key):
                self.n_replayed += 1
                self._note(line.get("hashes", {}))
                answer = _ANSWERS[kind](**line["answer"])
                yield index, answer._replace(text=requests[index]) if kind == "rolling" else answer
            else:
                missing.append(index)
        if not missing:
            return
        if self.subject is None:
            raise GenerationError(
                f"{self.path}: {len(missing)} of {len(requests)} requests were never answered by {self.name!r}; "
                "give the model itself, or the file of the same evaluation"
            )
        ask: Callable[[Sequence[Any]], Iterator[tuple[int, Any]]] = getattr(self.subject, kind)
        with output_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            for place, answer in ask([requests[i] for i in missing]):
                index = missing[place]
                hashes = self.subject.hashes
                self._note(hashes)
                plain = answer._asdict() | ({"text": ""} if kind == "rolling" else {})  # it stands in the request
                line = {
                    "key": keys[index], "kind": kind, "request": _plain(requests[index]), "answer": plain,
                    "model": self.name, "hashes": hashes,
                    "date": datetime.now(UTC).isoformat(timespec="seconds"),
                }  # fmt: skip
                text = json.dumps(line)  # in ASCII: an answer may hold half of a character
                if len(text) >= MAX_LINE_BYTES:
                    text = json.dumps(line | {"request": None})  # its key names it
                file.write(text + "\n")
                file.flush()
                self._lines[keys[index]] = {name: line[name] for name in ("key", "answer", "hashes")}
                yield index, answer
            os.fsync(file.fileno())


def replay(path: Path, *, name: str | None = None) -> Recorded:
    """The recorded answers alone: their model is gone, or is not asked. `name` chooses where a file has several models.

    Raises DataError for a file that is missing or damaged, that has no answer, or several models and no `name`."""
    if not path.is_file():
        raise DataError(f"{path}: no file of recorded answers")
    subjects: dict[tuple[str, str], dict[str, str]] = {}
    for line in read_answers(path):
        try:
            model, hashes = str(line["model"]), {str(k): str(v) for k, v in line["hashes"].items()}
        except (KeyError, AttributeError):
            raise DataError(f"{path}: an answer without the hashes of its model; record the answers again") from None
        if name in (None, model):
            subjects.setdefault((model, json.dumps(_fixed(hashes), sort_keys=True)), hashes)
    if not subjects:
        raise DataError(f"{path}: no recorded answer{f' of {name!r}' if name else ''}; give the file of an evaluation")
    if len(subjects) > 1:
        models = ", ".join(sorted({model for model, _ in subjects}))
        raise DataError(f"{path}: answers of {len(subjects)} subjects ({models}); name one, or keep a file for each")
    ((model, fixed),) = subjects
    return Recorded(path, name=model, hashes=json.loads(fixed))


def _fixed(hashes: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in hashes.items() if not value.startswith(REPORTED)}


def read_answers(path: Path) -> Iterator[dict[str, Any]]:
    """The recorded lines, without a last one that is not whole: another process may be writing it. DataError, with the
    number of the line, for any other damage."""
    if not path.exists():
        return
    number = 0
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if not line.endswith(b"\n") and len(line) == MAX_LINE_BYTES:
                raise DataError(f"{path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes")
            if not line.endswith(b"\n") and not _is_json(line):
                return
            try:
                value = json.loads(line)
                _ANSWERS[value["kind"]](**value["answer"])
                str(value["key"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}, line {number}: no recorded answer ({error}); remove the line") from None
            yield value


def _end_last_line(path: Path) -> None:
    """What a killed process left of a line is cut off; a whole one that only lacks its end gets it."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MAX_LINE_BYTES))
        last = file.read().rpartition(b"\n")[2]
        if last and _is_json(last):
            file.write(b"\n")
            return
    if last:
        cut_torn_line(path, begin=b'{"key": ', what="recorded answer", max_bytes=MAX_LINE_BYTES)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _plain(request: Any) -> Any:
    if isinstance(request, str):
        return request
    return [asdict(part) if isinstance(part, Decoding) else part for part in request]
