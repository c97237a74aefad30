# SPDX-License-Identifier: Apache-2.0
"""Consistency: shares by hand, and a small model of our own in two number formats and batch sizes."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import foundling
from foundling.decode.engine.engine import EngineOptions
from foundling.decode.response_cache import inconsistency
from foundling.errors import DataError
from foundling.evaluate.conditions import conditions
from foundling.evaluate.consistency import agreement, changes, measure, orders, variants
from foundling.evaluate.intervals import wilson
from foundling.evaluate.subject import Continuation, Decoding, GeneratedText, GenerateRequest, LikelihoodRequest
from foundling.models import build, family
from foundling.text import Tokenizer


def test_agreement_by_hand() -> None:
    answers = {"one": ["a", "b", "c", "d"], "two": ["a", "b", "x", "d"], "three": ["a", "y", "z", "d"]}
    report = agreement(answers)
    assert report.different[:3] == (0.5, *wilson(0.5, 4)) and report.n == 4
    # pairs: none of three, two of three, three of three, none of three
    assert report.pairs == 5 / 12 == inconsistency(zip(*answers.values(), strict=True))
    assert {name: figure.value for name, figure in report.by_condition.items()} == {"two": 0.25, "three": 0.5}
    for bad in ({}, {"one": ["a"]}, {"one": [], "two": []}, {"one": ["a"], "two": ["a", "b"]}):
        with pytest.raises(DataError, match="expected two or more"):
            agreement(bad)


def test_changes_by_hand() -> None:
    change = changes([-1.0, -2.0, -3.0, -float("inf")], [-1.5, -2.0, -2.0, -float("inf")])
    assert (change.mean.value, change.largest, change.worst) == (0.375, 1.0, 2)
    assert change.covered == pytest.approx(0.05**0.25)  # 0.473: of four requests little is known of the next
    assert changes([-1.0], [-1.25]).mean[:3] == (0.25, None, None)
    assert 1 - changes([0.0] * 59, [0.0] * 59).covered < 0.05 < 1 - changes([0.0] * 58, [0.0] * 58).covered
    with pytest.raises(DataError):
        changes([-1.0], [])


def test_variants_ask_for_the_same() -> None:
    text = "What is the capital of {France}?"
    by_name = variants(text)
    assert len(set(map(str, by_name.values()))) == len(by_name) >= 12 and by_name["as is"] == text
    assert all("capital of {france}" in str(prompt).lower() for prompt in by_name.values())
    assert json.loads(str(by_name["JSON"])) == {"task": text}
    chat = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."}, {"role": "user", "content": text},
    ]  # fmt: skip
    of_chat = variants(chat)
    assert list(of_chat) == list(by_name)
    for name, prompt in of_chat.items():
        assert [*prompt[:3]] == chat[:3] and prompt[3] == {"role": "user", "content": by_name[name]}
    with pytest.raises(DataError, match="without a message of the user"):
        variants([{"role": "system", "content": "x"}])


def test_each_option_stands_once_at_each_place() -> None:
    places = list(orders(["a", "b", "c", "d"]).values())
    assert places[0] == [0, 1, 2, 3] and all(sorted(column) == [0, 1, 2, 3] for column in zip(*places, strict=True))


class Tiny:
    """The least of a subject: bytes as tokens, one request a forward pass or all padded in one."""

    hashes = {"model": "tiny", "template": "bytes", "backend": "torch"}

    def __init__(self, name: str, *, dtype: torch.dtype = torch.float32, together: bool = False) -> None:
        torch.manual_seed(0)
        self.name, self.together = name, together
        self.model: Any = build("llama", **family("llama").module.sized(256, 128, 32, 2)).eval().to(dtype)

    @torch.no_grad()
    def _logprobs(self, rows: list[bytes]) -> list[torch.Tensor]:
        groups = [rows] if self.together else [[row] for row in rows]
        out = list[torch.Tensor]()
        for group in groups:
            width = max(map(len, group))
            ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in group])
            documents = torch.tensor([[0] * len(row) + [-1] * (width - len(row)) for row in group])
            hidden = self.model(ids, documents=documents).hidden
            out += torch.log_softmax(self.model.logits(hidden).float(), -1)
        return out

    def loglikelihood(self, requests: Sequence[LikelihoodRequest]) -> Iterator[tuple[int, Continuation]]:
        rows = [str(r.prompt).encode() + r.continuation.encode() for r in requests]
        for i, (row, logprobs) in enumerate(zip(rows, self._logprobs(rows), strict=True)):
            n = len(requests[i].continuation.encode())
            total = sum(float(logprobs[at - 1, row[at]]) for at in range(len(row) - n, len(row)))
            yield i, Continuation(requests[i].continuation, total, n)

    def rolling(self, texts: Sequence[str]) -> Iterator[tuple[int, Continuation]]:
        return self.loglikelihood([LikelihoodRequest("\n", text) for text in texts])

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GeneratedText]]:
        rows = [str(r.prompt).encode() for r in requests]
        for _ in range(requests[0].decoding.max_tokens):
            logprobs = self._logprobs(rows)
            rows = [row + bytes([int(p[len(row) - 1].argmax())]) for row, p in zip(rows, logprobs, strict=True)]
        for i, (row, request) in enumerate(zip(rows, requests, strict=True)):
            yield i, GeneratedText(row[len(str(request.prompt).encode()) :].decode("latin1"))


TEXTS = ["the cat sat", "a dog", "once upon a time there was", "x = 1", "Peru", "what is the capital of Kenya?"] * 3


def test_hardware_inconsistency_of_a_model() -> None:
    generated = [GenerateRequest(f"{text} {i}", Decoding(6)) for i, text in enumerate(TEXTS)]
    scored = [LikelihoodRequest(text, option) for text in TEXTS[:6] for option in (" yes", " no", " maybe")]
    subjects = {
        "float32": Tiny("a"), "again": Tiny("b"), "one batch": Tiny("c", together=True),
        "bfloat16": Tiny("d", dtype=torch.bfloat16),
    }  # fmt: skip
    report = measure(subjects, [*generated, *scored])
    assert report.reference == "float32" and list(report.logprobs) == ["again", "one batch", "bfloat16"]
    assert report.answers and report.preferred
    assert report.answers.by_condition["again"].value == 0 and report.logprobs["again"].largest == 0
    assert 0 <= report.logprobs["one batch"].largest < 1e-4
    assert 1e-3 < report.logprobs["bfloat16"].largest < 1.0
    assert report.answers.n == 18 and report.preferred.n == 6
    worst = report.logprobs["bfloat16"].worst
    values = [dict(subjects[name].loglikelihood(scored))[worst].logprob for name in ("float32", "bfloat16")]
    assert abs(values[0] - values[1]) == pytest.approx(report.logprobs["bfloat16"].largest, abs=1e-6)
    only = measure({"a": subjects["float32"], "b": subjects["again"]}, generated[:2])
    assert only.logprobs == {} and only.preferred is None
    for bad in (({"a": subjects["again"]}, generated), (subjects, [])):
        with pytest.raises(DataError, match="expected two conditions"):
            measure(*bad)


def test_one_request_at_a_time_is_one_row_of_each_batch(tmp_path: Path) -> None:
    """The rows of each forward pass, as the model itself sees them: of generated answers and of log-probabilities."""
    tokenizer = Tokenizer.train(TEXTS, 320)
    torch.manual_seed(0)
    model: Any = build("llama", **family("llama").module.sized(tokenizer.vocab_size, 128, 32, 2))
    foundling.save(model, tmp_path / "model", tokenizer=tokenizer)
    subjects = conditions(tmp_path / "model", engine=EngineOptions(native=False))  # native code passes the hook by
    generated = [GenerateRequest(f"{text} {i}", Decoding(6)) for i, text in enumerate(TEXTS[:6])]
    scored = [LikelihoodRequest(text, option) for text in TEXTS[:6] for option in (" yes", " no")]
    for name, is_alone in (("float32, 1 thread", False), ("one request at a time", True)):
        subject, rows = subjects[name], list[int]()
        hook = subject.subject.model.register_forward_pre_hook(lambda _, args, rows=rows: rows.append(len(args[0])))
        answers = dict(subject.generate(generated))
        of_answers = rows.copy()
        rows.clear()
        values = dict(subject.loglikelihood(scored))
        hook.remove()
        assert len(answers) == 6 and len(values) == 12 and of_answers and rows
        assert (max(of_answers) == 1, max(rows) == 1) == (is_alone, is_alone), (name, of_answers, rows)
