# SPDX-License-Identifier: Apache-2.0
"""Several answers to each prompt of a file, by a model directory: sampled, recorded as they come, the same for the same
seed whatever else is computed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foundling.data import convert
from foundling.data.files import Files
from foundling.data.kinds import PREFERENCE
from foundling.data.layouts import PROMPTS, RIGHTS, SAMPLE_ROWS, SYSTEM, detect
from foundling.data.rows import SUFFIXES, read_rows
from foundling.data.streams import Row, Skip, shown_names
from foundling.decode.engine.engine import EngineOptions
from foundling.decode.request import Request
from foundling.decode.sampling import Sampling
from foundling.decode.text import TextGenerator
from foundling.errors import DataError, GenerationError
from foundling.evaluate.local import LocalModel
from foundling.evaluate.recorded import Recorded
from foundling.evaluate.subject import Decoding, GeneratedText, GenerateRequest, Prompt
from foundling.limits import COMPLETIONS, ITEMS, SEED

LIKE = '{"prompt": "…"}'
_EXPECTED = f"expected rows like {LIKE} in one of {', '.join(SUFFIXES)}"


@dataclass(frozen=True)
class PromptRow:
    """A row of a file of prompts."""

    messages: list[dict[str, Any]]
    """the conversation to answer, as finetuning reads it"""
    fields: dict[str, Any]
    """of the file, which checkers read; "prompt" is the text of the last message, "answer" what is right"""

    @property
    def is_text(self) -> bool:
        """Whether it is one text of a user, which is written as such."""
        one = self.messages[0]
        return len(self.messages) == 1 and one["role"] == "user" and not convert.TURN.match(one["content"])

    @property
    def text(self) -> str:
        """As a judge reads it."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in self.messages)

    def digest(self, *parts: Any) -> str:
        """SHA-256 of the conversation and the parts."""
        return hashlib.sha256(json.dumps([self.messages, *parts], sort_keys=True).encode()).hexdigest()


def read_prompts(
    source: str | Path, field: str | None = None, target: str | None = None
) -> tuple[list[PromptRow], Counter[str]]:
    """The distinct prompts of a file or folder of rows, in order, and how many rows were skipped by reason. `field`:
    the column; by default the first of layouts.PROMPTS that a row has; `target`: the column of what is right, by
    default the first of layouts.RIGHTS that a row has. What follows the last question is left out, so that the prompts
    of demonstrations and comparisons can be answered anew.

    DataError where there is no prompt, or more than ITEMS."""
    files, skipped, details = Files(source, _EXPECTED), Counter[str](), dict[str, str]()
    prompts = dict[str, PromptRow]()
    for path in files.paths():
        for row in [path] if isinstance(path, Skip) else read_rows(path, like=LIKE):
            read = row if isinstance(row, Skip) else _prompt_of(row.fields, field, target)
            if isinstance(read, PromptRow):
                read = prompts.setdefault(read.digest(), read) is read or Skip("a prompt that was there before")
            if isinstance(read, Skip):
                skipped[read.reason] += 1
                details.setdefault(read.reason, read.detail)
        ITEMS.check(max(1, len(prompts)), "the number of prompts", DataError)
    if not prompts:
        reasons = ", ".join(f"{reason}: {n:,}" for reason, n in skipped.most_common())
        detail = next((text for text in details.values() if text), _EXPECTED)
        raise DataError(f"{str(source)!r} has no prompt{f' ({reasons})' if reasons else ''}: {detail}")
    return list(prompts.values()), skipped


def read_comparisons(source: str | Path) -> list[tuple[PromptRow, list[str]]]:
    """The prompts of a file of comparisons with their answers, the best first. DataError where there is none."""
    files, rows, reason = Files(source, _EXPECTED), list[dict[str, Any]](), ""
    for path in files.paths():
        rows += [row.fields for row in ([] if isinstance(path, Skip) else read_rows(path)) if isinstance(row, Row)]
    if not rows:
        raise DataError(f"{str(source)!r} has no row: expected prompt with chosen and rejected, or with ranked")
    layout, comparisons = detect(rows[:SAMPLE_ROWS], PREFERENCE), list[tuple[PromptRow, list[str]]]()
    for row in rows:
        read = layout.convert(row)
        if isinstance(read, Skip):
            reason = reason or f": {read.reason}"
        else:
            comparisons.append((_with_messages(row, read["messages"]), read["completions"]))
    if not comparisons:
        raise DataError(f"{str(source)!r} has no comparison that can be used{reason}")
    return comparisons


def _prompt_of(row: dict[str, Any], field: str | None, target: str | None) -> PromptRow | Skip:
    name = field or next((name for name in PROMPTS if row.get(name) is not None), None)
    if name is None or row.get(name) is None:
        there = f"there are {shown_names(list(row))}; name the column with --field"
        return Skip("no prompt", f"no column {field!r}; {there}" if field else there)
    right = target or next((name for name in RIGHTS if row.get(name) is not None), "")
    system = next((name for name in SYSTEM["system"] if row.get(name)), "")
    read = convert.prompt(row, {"asked": name, "right": right, "system": system})  # as `align grpo` reads it
    return read if isinstance(read, Skip) else _with_messages(read["row"], read["messages"])


def _with_messages(row: dict[str, Any], messages: list[dict[str, Any]]) -> PromptRow:
    return PromptRow(messages, row | {"messages": messages, "prompt": messages[-1]["content"]})


class Sampler(LocalModel):
    """A model directory with all of its sampling options. `decoding` of a request gives the number of tokens, the stops
    and the seed; the rest is `sampling`. An answer depends on its own request alone: native code computes several at
    once, torch one after another."""

    def __init__(
        self, generator: TextGenerator, *, name: str, weights: str | None = None, batch_size: int = 32
    ) -> None:
        self.sampling: Sampling = generator.sampling
        self.default_tokens, self._hashes = generator.max_tokens, None
        engine = EngineOptions(weights, deterministic=True, max_num_seqs=batch_size,
                               max_step_tokens=max(256, batch_size))  # fmt: skip
        super().__init__(generator.model, generator.framing, name=name, chat=True, engine=engine)

    @property
    def hashes(self) -> dict[str, str]:
        if self._hashes is None:  # they are asked for with each answer, and a tokenizer is some megabytes
            hashes = super().hashes
            template = hashlib.sha256(f"{hashes['template']} {self.sampling!r}".encode()).hexdigest()
            self._hashes = hashes | {"template": template}
        return self._hashes

    def place(self, prompt: Prompt) -> int:
        """Tokens that an answer may have."""
        n = len(self._encode(prompt))
        limit = self.model.config.max_seq_len
        return (0 if n > limit else limit) if self.model.capabilities.reads_source else max(0, limit - n)

    def _request(self, prompt: Prompt, decoding: Decoding) -> Request:
        return replace(super()._request(prompt, decoding), sampling=self.sampling)


@dataclass(frozen=True)
class Samples:
    """The answers to one prompt, in the order of their seeds."""

    prompt: PromptRow
    answers: list[GeneratedText]


def answer_all(
    sampler: Sampler, prompts: Sequence[PromptRow], path: Path, *, n: int, seed: int = 0, max_tokens: int | None = None,
    stop: Sequence[str] = (), on_answer: Callable[[], None] = lambda: None,
) -> tuple[list[Samples], Counter[str]]:  # fmt: skip
    """`n` answers to each prompt, and the prompts that were skipped by reason. Answers are taken from `path` where they
    are recorded, and recorded there as they come. The seed of an answer depends on its prompt and number alone, so that
    more prompts, or more answers, leave the others as they are. `max_tokens`: by default what the directory says.

    GenerationError where all answers would be equal, and where no prompt leaves place for one."""
    COMPLETIONS.check(n, "n", GenerationError)
    SEED.check(seed, "seed", GenerationError)
    if n > 1 and sampler.sampling.temperature == 0:
        raise GenerationError(f"temperature 0 gives the same answer {n} times; raise it")
    sampling, limit = sampler.sampling, sampler.default_tokens if max_tokens is None else max_tokens
    requests, fitting = list[GenerateRequest](), list[PromptRow]()
    for one in prompts:
        place = sampler.place(one.messages)  # pyright: ignore[reportArgumentType]
        if place < (1 if max_tokens is None else max_tokens):
            continue
        fitting.append(one)
        for k in range(n):
            drawn = int(one.digest(seed, k)[:15], 16)
            decoding = Decoding(min(limit, place), tuple(stop), sampling.temperature, sampling.top_p, drawn)
            requests.append(GenerateRequest(one.messages, decoding))  # pyright: ignore[reportArgumentType]
    skipped = Counter({"a prompt that leaves no place for an answer": len(prompts) - len(fitting)})
    if not fitting:
        longest = sampler.model.config.max_seq_len
        raise GenerationError(
            f"all {len(prompts):,} prompts are too long: the model reads {longest:,} tokens of prompt and answer; give "
            "shorter prompts, or a lower --max-tokens"
        )
    answers = dict[int, GeneratedText]()
    for index, answer in Recorded(path, sampler).generate(requests):
        answers[index] = answer
        on_answer()
    return [Samples(one, [answers[i * n + k] for k in range(n)]) for i, one in enumerate(fitting)], +skipped
