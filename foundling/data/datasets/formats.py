# SPDX-License-Identifier: Apache-2.0
"""Instructions of format and tone to follow: a request on a topic, and one or two instructions that a checker of
verify/instruction_kinds decides (format_rules.py, format_shapes.py).

`easy`: eight kinds, one instruction. `plain`: all kinds, and now and then two. Held out are the topics; of
IFBench, whose 294 prompts are the test, no prompt is here, and most of its kinds are not either (format_rules.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from foundling.data.datasets.draws import Draws, Row, distinct
from foundling.data.datasets.format_rules import Arguments, Rule, text
from foundling.data.datasets.format_shapes import RULES, WRAPPERS, wrapped

TOPICS = (
    "bridges", "gardens", "trains", "museums", "markets", "kitchens", "lighthouses", "songs", "maps", "kites",
    "clocks", "beaches", "mountains", "rivers", "festivals", "owls", "horses", "cats", "bees", "libraries", "bicycles",
    "castles", "ships", "forests", "islands", "violins", "mirrors", "stars", "dances", "wells", "towers", "carpets",
    "candles", "theatres", "deserts", "schools", "whales", "parks", "tunnels", "harbours",
)  # fmt: skip
"""words in the plural, without the letters q, x and z"""
REQUESTS = ("Write about {t}.", "Tell me something about {t}.", "What should I know about {t}?", "Describe {t}.")
TWO = 0.25
"""share of `plain` prompts with two instructions, where the first can have a second"""


@dataclass(frozen=True)
class Task:
    """A prompt, its instructions as checkers read them, and the rule and topic that they come from."""

    topic: str
    request: str
    prompt: str
    kinds: tuple[str, ...]
    arguments: tuple[Arguments, ...]
    rule: Rule

    def follow(self, draws: Draws) -> str:
        body = self.rule.follow(draws, self.topic, self.arguments[0])
        return self._wrapped(body, draws)

    def fail(self, draws: Draws) -> str:
        """Of two instructions one is not followed."""
        if len(self.kinds) > 1 and draws.chance(0.5):
            return self.rule.follow(draws, self.topic, self.arguments[0])
        return self._wrapped(self.rule.fail(draws, self.topic, self.arguments[0]), draws)

    def _wrapped(self, body: str, draws: Draws) -> str:
        if len(self.kinds) == 1:
            return body
        return wrapped(body, self.kinds[1], draws, self.topic, self.arguments[1])


def _stated(rule: Rule, arguments: Arguments, draws: Draws) -> str:
    shown = {k: " and ".join(v) if isinstance(v, list) else v for k, v in arguments.items()}
    return draws.pick(rule.wordings).format(**shown)


def task(level: str, draws: Draws) -> tuple[str, Task]:
    """A task and its topic, which decides the split."""
    easy = level == "easy"
    rule = draws.pick([rule for rule in RULES if rule.easy or not easy])
    topic = draws.pick(TOPICS)
    request = draws.pick(rule.requests or REQUESTS).format(t=topic)
    arguments = rule.arguments(draws)
    kinds, every, stated = [rule.kind], [arguments], [_stated(rule, arguments, draws)]
    if not easy and rule.body and arguments.get("relation") != "less than" and draws.chance(TWO):
        second = WRAPPERS[draws.pick(sorted(WRAPPERS))]
        more = second.arguments(draws)
        kinds.append(second.kind)
        every.append(more)
        stated.append(_stated(second, more, draws))
    return topic, Task(topic, request, " ".join([request, *stated]), tuple(kinds), tuple(every), rule)


def tasks(level: str = "easy", split: str = "train", n: int = 1000, seed: int = 0) -> Iterator[tuple[int, Task]]:
    """`n` numbered tasks of a split; no two have the same prompt."""

    def numbered(number: int) -> tuple[str, Callable[[], str]]:
        topic, made = task(level, Draws("formats", level, seed, number))
        numbers.setdefault(made.prompt, (number, made))
        return topic, lambda: made.prompt

    numbers: dict[str, tuple[int, Task]] = {}
    for prompt in distinct(numbered, split, n, f"formats:{level}"):
        yield numbers[prompt]


def load(choice: Any) -> Iterator[Row]:
    """Rows of a part: see docs/tasks.md."""
    if choice.part == "documents":
        yield from distinct(lambda number: _document(choice, number), choice.split, choice.n, "formats:documents")
        return
    for number, made in tasks(choice.level, choice.split, choice.n, choice.seed):
        draws = Draws("formats", choice.part, choice.level, choice.seed, number)
        if choice.part == "demonstrations":
            turns = (("user", made.prompt), ("assistant", made.follow(draws)))
            yield {"messages": [{"role": role, "content": content} for role, content in turns]}
        elif choice.part == "comparisons":
            yield {"prompt": made.prompt, "chosen": made.follow(draws), "rejected": made.fail(draws)}
        else:
            kinds, arguments = list(made.kinds), list(made.arguments)
            yield {"prompt": made.prompt, "instruction_id_list": kinds, "kwargs": arguments}


def _document(choice: Any, number: int) -> tuple[str, Callable[[], Row]]:
    """A request, and an answer in some form or in none; no instruction."""
    draws = Draws("formats documents", choice.level, choice.seed, number)
    topic, made = task(choice.level, draws)
    return topic, lambda: {"text": f"{made.request} {made.follow(draws) if draws.chance(0.5) else text(draws, topic)}"}
