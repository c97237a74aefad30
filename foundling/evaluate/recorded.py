# SPDX-License-Identifier: Apache-2.0
"""Answers on disk: an evaluation that was interrupted goes on, and one of a model that is gone replays.

One JSON line an answer, {"key", "kind", "request", "answer", "model", "date"}, appended as answers come. The key is the
hash of the subject and the whole request (`subject.request_key`)."""

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
    Subject,
    request_key,
)
from foundling.limits import MAX_LINE_BYTES
from foundling.runtime.files import output_errors

_ANSWERS: dict[str, type] = {"loglikelihood": Continuation, "rolling": Continuation, "generate": GeneratedText}


class Recorded:
    """A subject whose answers are taken from `path` where they are recorded there, and are recorded there otherwise.
    Without `subject` only recorded answers exist: GenerationError for a request that was never made."""

    def __init__(
        self, path: Path, subject: Subject | None = None, *, name: str = "", hashes: Mapping[str, str] | None = None
    ) -> None:
        """`name` and `hashes` say who is replayed where there is no subject. DataError for a damaged file."""
        self.path, self.subject = path, subject
        self.name = subject.name if subject else name
        self.hashes = subject.hashes if subject else dict(hashes or {})
        self.answers = {line["key"]: line["answer"] for line in read_answers(path)}
        self.n_replayed = 0
        """answers that came from the file"""

    def loglikelihood(self, requests: Sequence[LikelihoodRequest]) -> Iterator[tuple[int, Continuation]]:
        return self._run("loglikelihood", requests)

    def rolling(self, texts: Sequence[str]) -> Iterator[tuple[int, Continuation]]:
        return self._run("rolling", texts)

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GeneratedText]]:
        return self._run("generate", requests)

    def _run(self, kind: str, requests: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        keys = [request_key(self.hashes, kind, [r] if isinstance(r, str) else r) for r in requests]
        missing = list[int]()
        for index, key in enumerate(keys):
            if key in self.answers:
                self.n_replayed += 1
                yield index, _ANSWERS[kind](**self.answers[key])
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
                line = {
                    "key": keys[index], "kind": kind, "request": _plain(requests[index]), "answer": answer._asdict(),
                    "model": self.name, "date": datetime.now(UTC).isoformat(timespec="seconds"),
                }  # fmt: skip
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
                self.answers[keys[index]] = line["answer"]
                yield index, answer
            os.fsync(file.fileno())


def read_answers(path: Path) -> Iterator[dict[str, Any]]:
    """The recorded lines; a last line that a killed process did not finish is cut off the file. DataError, with the
    number of the line, for any other damage."""
    if not path.exists():
        return
    size, number = 0, 0
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if not line.endswith(b"\n"):
                if file.read(1):
                    raise DataError(f"{path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes")
                os.truncate(path, size)
                return
            size += len(line)
            try:
                value = json.loads(line)
                _ANSWERS[value["kind"]](**value["answer"])
                str(value["key"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}, line {number}: no recorded answer ({error}); remove the line") from None
            yield value


def _plain(request: Any) -> Any:
    if isinstance(request, str):
        return request
    return [asdict(part) if isinstance(part, Decoding) else part for part in request]
