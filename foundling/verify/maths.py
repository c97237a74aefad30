# SPDX-License-Identifier: Apache-2.0
"""Is the final answer of a solution right? `equal` compares two answers by value, `final_answer` reads one from a text.

The rules of `compare`, in their order; the first that applies decides:

1. Equal texts are equal, up to case, spaces, LaTeX's formatting and the parentheses of an option: (B) is B. So every
   answer equals itself.
2. Numbers are equal where their exact values are: 0.5 and 1/2, never 0.33 and 1/3. A percent sign divides by 100, and
   50% also equals 50, since published labels leave the sign out; so equality is not transitive there. Units count
   where both answers have one that is known (foundling/verify/numbers.py): 1 m is 100 cm, 5 km is not 5 miles, and
   5 km is 5.
3. Expressions are equal where they are for all values of their variables. Tuples and intervals have an order; sets,
   and lists with commas between their parts, have none. `x = 5` equals 5; x < 3 equals the interval (-∞, 3).
4. Anything else is unequal. A comparison that exceeds its bounds, or needs math-verify where it is not installed, is
   unequal as well and says so in `Comparison.by`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from foundling.verify import symbolic
from foundling.verify.calculator import Annotation, annotations, evaluate, without_annotations
from foundling.verify.exact import value_of
from foundling.verify.expressions import NoExpression, Tree, parse
from foundling.verify.final_answers import MAX_ANSWER, OPTION, final_answer, plain
from foundling.verify.numbers import Quantity, normalise, read_quantity, without_unit

__all__ = [
    "Annotation", "Comparison", "annotations", "compare", "equal", "evaluate", "final_answer", "without_annotations",
]  # fmt: skip

MAX_PARTS = 40
"""parts of a set or a list that are compared"""
MAX_DECISIONS = 8
"""comparisons of variables and functions in one answer"""

By = Literal["text", "number", "expression", "undecided", "math-verify is not installed"]


@dataclass(frozen=True)
class Comparison:
    """`by`: what decided. "undecided" is a comparison that took too long or has no value."""

    equal: bool
    by: By


def equal(a: str, b: str) -> bool:
    """Whether two answers mean the same, by the rules of this module. Symmetric, reflexive, and bounded in time.

    >>> equal("$1,000", "1000 dollars"), equal("x^2 - 1", "(x+1)(x-1)"), equal("0.33", "1/3")
    (True, True, False)
    """
    return compare(a, b).equal


def compare(a: str, b: str) -> Comparison:
    """`equal`, with the rule that decided."""
    if a == b:
        return Comparison(True, "text")
    if max(len(a), len(b)) > MAX_ANSWER:
        return Comparison(a.strip() == b.strip(), "text")
    a, b = plain(a), plain(b)
    if _key(a) == _key(b):
        return Comparison(True, "text")
    first, second = read_quantity(a), read_quantity(b)
    if first and second:
        return Comparison(_equal_quantities(first, second), "number")
    if (not first and _is_words(a)) or (not second and _is_words(b)) or (_is_letter(a) and _is_letter(b)):
        return Comparison(False, "text")
    judge, results = _Judge(), []
    for left in _trees(a, first):
        for right in _trees(b, second):
            results.append(judge.same(left, right))
    if not results:
        return Comparison(False, "text")
    return Comparison(any(results), "expression" if any(results) or not judge.reason else judge.reason)


def _is_words(text: str) -> bool:
    """No product of letters, and no constant."""
    letters = all(character.isalpha() or character.isspace() for character in text)
    return letters and len(text) != 1 and text.lower() not in ("pi", "inf", "infinity", "π")


def _is_letter(text: str) -> bool:
    return len(text) == 1 and text.isalpha()


def _key(text: str) -> str:
    """What equal texts have in common."""
    if option := OPTION.fullmatch(text.strip()):
        return str(option[1] or option[2]).casefold()
    text = re.sub(r"\\(?:left|right|[,!;:]|displaystyle)(?![a-zA-Z])|[\s$]", "", normalise(text).casefold())
    return re.sub(r"\\[dt]frac", r"\\frac", text).rstrip(".")


def _equal_quantities(a: Quantity, b: Quantity) -> bool:
    if a.dimension and b.dimension:
        if a.dimension != b.dimension:
            return False
        return a.value * a.size == b.value * b.size
    values = [[q.value, q.value / 100] if q.percent else [q.value] for q in (a, b)]
    if a.percent and b.percent:
        return a.value == b.value
    return any(x == y for x in values[0] for y in values[1])


def _trees(text: str, number: Quantity | None) -> list[Tree]:
    """The readings of an answer: none where it is no expression, two where a percent sign allows them."""
    if number:
        values = [number.value, number.value / 100] if number.percent else [number.value]
        return [["number", str(value)] for value in values]
    try:
        return [_expand(parse(without_unit(text)))]
    except NoExpression:
        return []


def _expand(tree: Tree) -> Tree:
    """a ± b as the list of a + b and a - b; expressions with several such signs stay as they are."""
    if str(tree).count("'plus_minus'") != 1:
        return tree

    def choose(part: Tree, name: str) -> Tree:
        if part[0] == "plus_minus":
            return ["negative", part[1]] if name == "negative" else part[1]
        return [choose(item, name) if isinstance(item, list) else item for item in part]

    if tree[0] == "relation":
        return ["list", *(choose(tree, name) for name in ("add", "negative"))]
    return ["list", choose(tree, "add"), choose(tree, "negative")]


_FLIPPED = {">": "<", ">=": "<="}


class _Judge:
    """Compares trees. `reason` is set where a comparison was not decided."""

    def __init__(self) -> None:
        self.decisions = 0
        self.reason: By | None = None

    def same(self, a: Tree, b: Tree) -> bool:
        a, b = _oriented(a), _oriented(b)
        if a == b:
            return True
        if a[0] == "relation" and b[0] == "relation":
            return self.same_relation(a, b)
        a, b = _as_set(a, b), _as_set(b, a)
        kinds = {a[0], b[0]}
        if kinds <= {"set", "list", "union"} and ("union" not in kinds or len(kinds) == 1):
            return self.same_parts(a[1:], b[1:])
        if kinds & {"set", "list", "union", "tuple", "interval", "matrix", "chain", "relation"}:
            if a[0] != b[0] or len(a) != len(b):
                return False
            pairs = list(zip(a[1:], b[1:]))
            return all(self.same_item(x, y) for x, y in pairs)
        return self.same_value(a, b)

    def same_item(self, a: Tree | str, b: Tree | str) -> bool:
        if isinstance(a, str) or isinstance(b, str):
            return a == b
        if a and isinstance(a[0], list):  # a row of a matrix
            return len(a) == len(b) and all(self.same(x, y) for x, y in zip(a, b))
        return self.same(a, b)

    def same_parts(self, a: list[Tree], b: list[Tree]) -> bool:
        """Equal in some order."""
        if len(a) != len(b) or len(a) > MAX_PARTS:
            return False
        rest = list(b)
        for part in a:
            at = next((n for n, other in enumerate(rest) if self.same(part, other)), None)
            if at is None:
                return False
            del rest[at]
        return True

    def same_relation(self, a: Tree, b: Tree) -> bool:
        if a[1] != b[1]:
            return False
        if self.same(a[2], b[2]) and self.same(a[3], b[3]):
            return True
        if a[1] in ("=", "!=") and self.same(a[2], b[3]) and self.same(a[3], b[2]):
            return True
        if a[1] == "in":
            return False
        differences = [["add", tree[2], ["negative", tree[3]]] for tree in (a, b)]
        signs = [differences[1], ["negative", differences[1]]] if a[1] in ("=", "!=") else differences[1:]
        return any(self.same_value(differences[0], sign) for sign in signs)

    def same_value(self, a: Tree, b: Tree) -> bool:
        values = value_of(a), value_of(b)
        if values[0] is not None and values[1] is not None:
            return values[0] == values[1]
        if {a[0], b[0]} <= {"symbol", "number"}:
            return False
        self.decisions += 1
        if self.decisions > MAX_DECISIONS or self.reason:
            self.reason = self.reason or "undecided"
            return False
        result = symbolic.decide(a, b)
        if result is None:
            self.reason = "undecided" if symbolic.available() else "math-verify is not installed"
        return bool(result)


def _oriented(tree: Tree) -> Tree:
    """Relations point one way: 3 > x as x < 3, 4 > x >= 1 as 1 <= x < 4."""
    if tree[0] == "relation" and tree[1] in _FLIPPED:
        return ["relation", _FLIPPED[tree[1]], tree[3], tree[2]]
    if tree[0] == "chain" and all(part[1] in _FLIPPED for part in tree[1:]):
        return ["chain", *(_oriented(part) for part in reversed(tree[1:]))]
    return tree


def _as_set(tree: Tree, other: Tree) -> Tree:
    """A relation of a variable as what the other answer states without it: x = 5 as 5, x < 3 as an interval."""
    if tree[0] == "relation" and tree[1] in ("=", "in") and other[0] != "relation":
        if tree[2][0] == "symbol" or (tree[2][0] == "multiply" and tree[2][1][0] == "symbol"):  # y, f(x)
            return tree[3]
        return tree[2] if tree[3][0] == "symbol" else tree
    if other[0] not in ("interval", "union", "tuple"):
        return tree
    infinity: Tree = ["constant", "infinity"]
    if tree[0] == "relation" and tree[1] in ("<", "<="):
        closed = tree[1] == "<="
        if tree[2][0] == "symbol":
            return _interval(["negative", infinity], tree[3], "(", "]" if closed else ")")
        if tree[3][0] == "symbol":
            return _interval(tree[2], infinity, "[" if closed else "(", ")")
    if tree[0] == "chain" and len(tree) == 3 and tree[1][3][0] == "symbol":
        first, second = tree[1:]
        if {first[1], second[1]} <= {"<", "<="}:
            marks = "[" if first[1] == "<=" else "(", "]" if second[1] == "<=" else ")"
            return _interval(first[2], second[3], *marks)
    return tree


def _interval(low: Tree, high: Tree, left: str, right: str) -> Tree:
    """As the parser writes it, which reads an open interval as a pair."""
    return ["tuple", low, high] if left + right == "()" else ["interval", left + right, low, high]
