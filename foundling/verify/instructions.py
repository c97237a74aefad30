# SPDX-License-Identifier: Apache-2.0
"""Does an answer follow its instructions? All 25 kinds of IFEval and all kinds of IFBench, checked by small functions
(foundling/verify/instruction_kinds/), without a model.

Strict checks the answer as it is. Loose follows where any of eight variants does: with or without asterisks, with or
without the first and the last line (Zhou et al. 2023, section 2.2). An empty answer follows nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from foundling.config import nearest
from foundling.errors import ConfigError, DataError
from foundling.limits import ANSWER_CHARS, INSTRUCTIONS, shown
from foundling.verify.instruction_kinds import (
    ifbench_counts,
    ifbench_custom,
    ifbench_formats,
    ifbench_words,
    ifeval,
)
from foundling.verify.instruction_kinds.kind import Kind, problem

KINDS: dict[str, Kind] = {
    **ifeval.KINDS,
    **ifbench_counts.KINDS,
    **ifbench_words.KINDS,
    **ifbench_formats.KINDS,
    **ifbench_custom.KINDS,
}
"""identifier -> kind, as the data sets name them"""


@dataclass(frozen=True)
class Followed:
    """One prompt's instructions, in their order, and whether the answer follows each."""

    kinds: tuple[str, ...]
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]

    @property
    def all_strict(self) -> bool:
        return all(self.strict)

    @property
    def all_loose(self) -> bool:
        return all(self.loose)


@dataclass(frozen=True)
class Scores:
    """Shares of prompts whose instructions are all followed, and of instructions; `by_kind`: kind -> (instructions,
    followed strictly, followed loosely)."""

    prompts: int
    instructions: int
    prompt_strict: float
    prompt_loose: float
    instruction_strict: float
    instruction_loose: float
    by_kind: dict[str, tuple[int, int, int]]


def follows(text: str, kind: str, prompt: str = "", **arguments: Any) -> bool:
    """Whether a text follows one instruction, strictly. DataError for an unknown kind, or arguments that it does not
    take; ConfigError where a kind's library is not installed.

    >>> follows("no commas here", "punctuation:no_comma")
    True
    """
    return _follows(text, prompt, kind, arguments_of(kind, arguments))


def check(text: str, prompt: str, kinds: Sequence[str], arguments: Sequence[Mapping[str, Any] | None]) -> Followed:
    """An answer against all instructions of its prompt. Errors as `follows`."""
    if len(kinds) != len(arguments):
        raise DataError(f"{len(kinds)} instructions have {len(arguments)} sets of arguments; give one for each")
    INSTRUCTIONS.check(len(kinds), "the number of instructions", DataError)
    every = [(kind, arguments_of(kind, fields or {})) for kind, fields in zip(kinds, arguments)]
    strict = tuple(_follows(text, prompt, kind, fields) for kind, fields in every)
    variants = loose_variants(text)
    # the first variant is the text itself
    loose = tuple(
        done or any(_follows(variant, prompt, kind, fields) for variant in variants[1:])
        for done, (kind, fields) in zip(strict, every)
    )
    return Followed(tuple(kinds), strict, loose)


def loose_variants(text: str) -> list[str]:
    """The text; without its first line, its last line, and both; each of the four also without asterisks."""
    lines = text.split("\n")
    parts = [text, "\n".join(lines[1:]).strip(), "\n".join(lines[:-1]).strip(), "\n".join(lines[1:-1]).strip()]
    return list(dict.fromkeys(parts + [part.replace("*", "") for part in parts]))


def arguments_of(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a kind, checked, as its function takes them. Data sets write null for what a kind does not
    take. DataError names the kind, the argument and what is allowed."""
    if kind not in KINDS:
        raise DataError(f"the kind of instruction {shown(kind)} is unknown; {nearest(kind, list(KINDS))}")
    rule = KINDS[kind]
    fields = {name: value for name, value in fields.items() if value is not None}
    if missing := sorted(set(rule.arguments) - set(fields)):
        raise DataError(f"{kind} lacks the argument {', '.join(missing)}")
    if extra := sorted(set(fields) - set(rule.arguments)):
        takes = ", ".join(rule.arguments) or "none"
        raise DataError(f"{kind} has the argument {shown(extra[0])}; it takes {takes}")
    for name, argument in rule.arguments.items():
        if reason := problem(fields[name], argument):
            raise DataError(f"{kind}: {name} is {shown(fields[name])}; {reason}")
    if rule.needs and find_spec(rule.needs) is None:
        raise ConfigError(f"{kind} needs the library {rule.needs}: pip install 'foundling[verify]'")
    whole = ("count", "percentage")
    return {name: int(value) if rule.arguments[name] in whole else value for name, value in fields.items()}


def _follows(text: str, prompt: str, kind: str, fields: dict[str, Any]) -> bool:
    return bool(text.strip()) and len(text) <= ANSWER_CHARS.high and KINDS[kind].check(text, prompt, **fields)


def score(results: Iterable[Followed]) -> Scores:
    """The four accuracies of IFEval, over all prompts. DataError without any."""
    results = list(results)
    if not results:
        raise DataError("there is no answer to score")
    by_kind: dict[str, tuple[int, int, int]] = {}
    for result in results:
        for kind, strict, loose in zip(result.kinds, result.strict, result.loose):
            n, a, b = by_kind.get(kind, (0, 0, 0))
            by_kind[kind] = (n + 1, a + strict, b + loose)
    total = sum(n for n, _, _ in by_kind.values())
    return Scores(
        prompts=len(results),
        instructions=total,
        prompt_strict=sum(result.all_strict for result in results) / len(results),
        prompt_loose=sum(result.all_loose for result in results) / len(results),
        instruction_strict=sum(a for _, a, _ in by_kind.values()) / total,
        instruction_loose=sum(b for _, _, b in by_kind.values()) / total,
        by_kind=dict(sorted(by_kind.items())),
    )
