# SPDX-License-Identifier: Apache-2.0
"""Worded sums of one to three steps, with worked solutions, wrong solutions that look right, and running text.

    Ada has 3 apples. Ada buys 4 more apples. How many apples does Ada have now?
    3 + 4 = 7
    Answer: 7

`easy`: one or two steps, one-digit numbers, sums below 20, few words: for models that are raised in minutes. `plain`:
one to three steps of all four operations with numbers of two digits, and more words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from foundling.data.datasets.draws import Draws, Row, distinct

FORMAT = r"^(\d+ [-+*/] \d+ = \d+\n){1,3}Answer: \d+$"
"""what a solution matches: its steps, then the answer, and nothing else"""
EASY_NAMES = ("Ada", "Ben", "Eva", "Leo", "Mia", "Tom")
NAMES = (*EASY_NAMES, "Anna", "Boris", "Clara", "David", "Elena", "Felix", "Grace", "Hugo", "Irene", "Jonas", "Karin",
         "Liam", "Nora", "Oscar", "Paula", "Ravi", "Sofia", "Yusuf")  # fmt: skip
EASY_THINGS = ("apples", "books", "coins", "cards", "pens", "eggs")
THINGS = (*EASY_THINGS, "stamps", "shells", "marbles", "stickers", "oranges", "pencils", "buttons", "photos", "plums",
          "beads", "cakes", "postcards")  # fmt: skip
HAS = "How many {things} does {name} have now?"


class Kind(NamedTuple):
    """A sentence that changes the number, and what it does: `sign` with the number {n}."""

    text: str
    sign: str
    question: str = HAS
    """of a step that comes last; another than HAS ends the story"""


EASY_KINDS = (
    Kind("{name} buys {n} more {things}.", "+"),
    Kind("{name} finds {n} more {things}.", "+"),
    Kind("{other} gives {name} {n} {things}.", "+"),
    Kind("{name} gives {n} {things} to {other}.", "-"),
    Kind("{name} loses {n} {things}.", "-"),
    Kind("{name} sells {n} {things}.", "-"),
)
KINDS = (
    *EASY_KINDS,
    Kind("Then {other} brings {name} another {n} {things}.", "+"),
    Kind("The next day {name} gets {n} {things} as a present.", "+"),
    Kind("{name} needs {n} {things} for school and takes them away.", "-"),
    Kind("On the way home {name} drops {n} of the {things}.", "-"),
    Kind("{other} has {n} {things} more than {name}.", "+", "How many {things} does {other} have?"),
    Kind("{other} has {n} {things} fewer than {name}.", "-", "How many {things} does {other} have?"),
    Kind("{other} has {n} times as many {things} as {name}.", "*", "How many {things} does {other} have?"),
    Kind("{name} sells all {things} for {n} cents each.", "*", "How many cents does {name} get?"),
    Kind("{name} puts the {things} into {n} boxes, the same number into each.", "/",
         "How many {things} are in each box?"),
    Kind("{name} shares the {things} equally among {n} children.", "/", "How many {things} does each child get?"),
)  # fmt: skip
BEGIN = "{name} has {n} {things}."
BAGS = "{name} has {n} bags with {m} {things} in each."
"""begins with a product"""


class Step(NamedTuple):
    left: int
    sign: str
    right: int
    result: int

    @property
    def text(self) -> str:
        return f"{self.left} {self.sign} {self.right} = {self.result}"


@dataclass(frozen=True)
class Problem:
    story: str
    question: str
    steps: tuple[Step, ...]

    @property
    def prompt(self) -> str:
        return f"{self.story} {self.question}"

    @property
    def answer(self) -> int:
        return self.steps[-1].result

    @property
    def solution(self) -> str:
        return solution(self.steps, self.answer)


def solution(steps: tuple[Step, ...], answer: int) -> str:
    return "\n".join([*(step.text for step in steps), f"Answer: {answer}"])


def compute(left: int, sign: str, right: int) -> int | None:
    """None where the result is no whole number from 0 up."""
    results = {"+": left + right, "-": left - right, "*": left * right}
    if sign != "/":
        return results[sign] if results[sign] >= 0 else None
    return left // right if right and not left % right else None


def problem(level: str, draws: Draws) -> tuple[str, Callable[[], Problem]] | None:
    """A problem and its key; None where a result is too large or below 1. No number is 1, for "1 apples" is no
    English. The key of an easy problem is its kinds
    of sentences with their numbers, that of a plain one its numbers and operations alone; names and things never
    count."""
    easy = level == "easy"
    kinds, most = (EASY_KINDS, 19) if easy else (KINDS, 99)
    name, other = draws.sample(EASY_NAMES if easy else NAMES, 2)
    words = {"name": name, "other": other, "things": draws.pick(EASY_THINGS if easy else THINGS)}
    n_steps = draws.between(1, 2 if easy else 3)
    start, steps, key = draws.between(2, 9 if easy else 60), list[Step](), list[str]()
    sentences, kind = [BEGIN.format(n=start, **words)], Kind("", "+")
    if not easy and draws.chance(0.2):
        m, start = draws.between(2, 9), draws.between(2, 9)
        steps.append(Step(start, "*", m, start * m))
        sentences = [BAGS.format(n=start, m=m, **words)]
    value = steps[0].result if steps else start
    while len(steps) < n_steps and kind.question == HAS:
        last = len(steps) == n_steps - 1
        kind = draws.pick([k for k in kinds if last or k.question == HAS])
        n = draws.between(2, 9) if kind.sign in "*/" else draws.between(2, 9 if easy else 40)
        result = compute(value, kind.sign, n)
        if result is None or not 0 < result <= (most if kind.sign != "*" else 999):
            return None
        steps.append(Step(value, kind.sign, n, result))
        sentences.append(kind.text.format(n=n, **words))
        key.append(kind.text if easy else "")
        value = result
    if n_steps == 1 and not key:  # bags alone
        sentences.append(f"{name} takes all {words['things']} out.")
    made = Problem(" ".join(sentences), kind.question.format(**words), tuple(steps))
    return "\n".join([step.text for step in steps] + key), lambda: made


def problems(level: str = "easy", split: str = "train", n: int = 1000, seed: int = 0) -> Iterator[Problem]:
    """`n` problems of a split. No problem has the numbers and operations of one of the other split; of easy problems,
    which have few, not in the same sentences."""
    return distinct(
        lambda number: problem(level, Draws("arithmetic", level, seed, number)), split, n, f"arithmetic:{level}"
    )


# --- wrong and badly formed solutions --------------------------------------------------------------------------------


def _off_by_one(made: Problem, draws: Draws) -> str | None:
    """The last step is miscalculated."""
    wrong = made.answer + draws.pick((-1, 1))
    return solution((*made.steps[:-1], made.steps[-1]._replace(result=wrong)), wrong) if wrong >= 0 else None


def _wrong_operation(made: Problem, draws: Draws) -> str | None:
    """Another sign in one step, and calculated on from there."""
    at = draws.below(len(made.steps))
    sign, steps = draws.pick([s for s in "+-*/" if s != made.steps[at].sign]), list[Step]()
    for number, step in enumerate(made.steps):
        left = steps[-1].result if steps else step.left
        result = compute(left, used := sign if number == at else step.sign, step.right)
        if result is None:
            return None
        steps.append(Step(left, used, step.right, result))
    return solution(tuple(steps), steps[-1].result) if steps[-1].result != made.answer else None


def _wrong_answer(made: Problem, draws: Draws) -> str | None:
    """The steps are right; the answer is a number of the problem."""
    numbers = {n for step in made.steps for n in step[:1] + step[2:]} - {made.answer}
    return solution(made.steps, draws.pick(sorted(numbers))) if numbers else None


def _bad_form(made: Problem, draws: Draws) -> str | None:
    """The right number, not in the form that is asked for."""
    steps = ", ".join(step.text for step in made.steps)
    return draws.pick(
        (f"{made.answer}", f"Answer: {made.answer}", f"{steps}\nThe answer is {made.answer}.",
         made.solution.replace("Answer:", "Result:"), f"It is {made.answer}, since {steps}.")
    )  # fmt: skip


FLAWS: dict[str, Callable[[Problem, Draws], str | None]] = {
    "off by one": _off_by_one,
    "wrong operation": _wrong_operation,
    "wrong answer behind right steps": _wrong_answer,
    "bad form": _bad_form,
}
"""name -> the solution with this flaw; None where the problem allows none"""


def flawed(made: Problem, draws: Draws) -> tuple[str, str]:
    """The name of a flaw, each tried equally often, and a solution that has it."""
    for flaw in draws.shuffled(FLAWS):
        if text := FLAWS[flaw](made, draws):
            return flaw, text
    raise AssertionError("a badly formed solution can always be made")


def load(choice: Any) -> Iterator[Row]:
    """Rows of a part: see docs/tasks.md."""
    for number, made in enumerate(problems(choice.level, choice.split, choice.n, choice.seed)):
        if choice.part == "demonstrations":
            turns = (("user", made.prompt), ("assistant", made.solution))
            yield {"messages": [{"role": role, "content": content} for role, content in turns]}
        elif choice.part == "prompts":
            yield {"prompt": made.prompt, "answer": f"{made.answer}", "steps": len(made.steps)}
        elif choice.part == "comparisons":
            flaw, rejected = flawed(made, Draws("arithmetic flaw", choice.seed, number))
            yield {"prompt": made.prompt, "chosen": made.solution, "rejected": rejected, "flaw": flaw}
        else:
            steps = " ".join(f"{step.text}." for step in made.steps)
            yield {"text": f"{made.prompt} {steps} The answer is {made.answer}."}
