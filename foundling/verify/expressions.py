# SPDX-License-Identifier: Apache-2.0
"""Expressions in LaTeX or plain text, read by a grammar of our own into a tree of lists.

No part of an untrusted text reaches Python's or SymPy's evaluation: the names in a tree come from the tables here, its
numbers are digits, its symbols single letters with an index. What the grammar does not have is no expression, and is
compared as text.

A tree is ["number", "3/4"], ["symbol", "x"], ["constant", "pi"], ["add" | "multiply" | "tuple" | "set" | "list" |
"union", tree, …], ["divide" | "power" | "root" | "log", tree, tree], ["negative" | "factorial" | "plus_minus" |
FUNCTION, tree], ["interval", "[)", tree, tree], ["relation", "<=", tree, tree] or ["matrix", [tree, …], …].
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from foundling.verify.numbers import MAX_DIGITS, normalise, read_decimal, without_bars

MAX_CHARS = 2_000
"""characters of an expression; longer ones are text"""
MAX_TOKENS = 800
MAX_DEPTH = 40
"""brackets, powers and signs inside each other"""

Tree = list[Any]

FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log", "exp",
    "abs", "sqrt", "floor", "ceiling", "binomial",
}  # fmt: skip
_CALLS = {*FUNCTIONS, "asin", "acos", "atan"} - {"floor", "ceiling", "binomial"}
_OF_ANGLES = {"sin", "cos", "tan", "cot", "sec", "csc"}
_NO_FACTORS = {*_CALLS, "and", "or"}
_INVERSE = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
_CONSTANTS = {"pi": "pi", "infty": "infinity", "infinity": "infinity", "inf": "infinity", "oo": "infinity"}
_GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "Gamma",
    "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "ell", "hbar",
}  # fmt: skip
_RELATIONS = {
    "=": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "≤": "<=", "≥": ">=", "≠": "!=", "le": "<=", "leq": "<=",
    "ge": ">=", "geq": ">=", "leqslant": "<=", "geqslant": ">=", "lt": "<", "gt": ">", "ne": "!=", "neq": "!=",
    "in": "in", "∈": "in", "!=": "!=",
}  # fmt: skip
_SPACES = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|limits|[bB]ig[lrg]?|[bB]igg[lr]?|quad|qquad|[,!;:> ])(?![a-zA-Z])|~"
)
_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname|mbox|boldsymbol)\s*\{([^{}]*)\}")
_ROW = "\x01"
"""ends a row of a matrix, written as two backslashes"""
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)|\\(?P<command>[a-zA-Z]+|[{}|%$])|"
    r"(?P<word>[a-zA-Z]+)|(?P<mark>\*\*|<=|>=|!=|[-+*/^_=<>()\[\]{}|!%,;&±∪∈≤≥≠√π∞°∅\x01]))"
)


class NoExpression(Exception):
    """The text has something that the grammar does not have."""


def parse(text: str) -> Tree:
    """The tree of an expression, or of several with commas between them; raises NoExpression."""
    text = without_bars(normalise(text[: MAX_CHARS + 1]), "({})")
    if len(text) > MAX_CHARS:
        raise NoExpression
    text = _SPACES.sub(" ", _WORDS.sub(r" \1 ", text.replace("{,}", ",").replace("\\\\", _ROW)))
    parser = _Parser(_tokens(text.strip().strip("$").replace("$", " ")))
    tree = parser.listing()
    if parser.at != len(parser.tokens):
        raise NoExpression
    return tree


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, at, depth = list[tuple[str, str]](), 0, 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if not match or len(tokens) > MAX_TOKENS:
            raise NoExpression
        kind, token, at = str(match.lastgroup), match[str(match.lastgroup)], match.end()
        depth += (token in ("(", "[", "{")) - (token in (")", "]", "}"))
        if kind == "number" and "," in token and depth:  # in (1,234) the comma separates
            at = match.start(kind) + token.index(",")
            token = token[: token.index(",")]
        tokens.append((kind, token))
    # "so it" are words, "xy" and "x y" are products
    pairs = [
        a + b for (kind, a), (other, b) in pairwise(tokens) if kind == other == "word" and not {a, b} & _NO_FACTORS
    ]
    if not tokens or any(len(pair) > 2 for pair in pairs):
        raise NoExpression
    return tokens


class _Parser:
    """listing = relation {, relation}; relation = union {(= | < | …) union}; union = sum {∪ sum};
    sum = product {(+ | - | ±) product}; product = signed {[* | /] signed}; signed = {+ | -} power;
    power = postfix [^ exponent]; postfix = atom {! | %}"""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens, self.at, self.depth, self.bars = tokens, 0, 0, 0
        self.angles = 0  # functions of an angle whose argument is being read

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def take(self, *allowed: str) -> str:
        token = self.peek()
        if not token or (allowed and token not in allowed):
            raise NoExpression
        self.at += 1
        return token

    def skip(self, *tokens: str) -> bool:
        if self.peek() in tokens and self.peek():
            self.at += 1
            return True
        return False

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NoExpression

    def listing(self) -> Tree:
        parts = [self.relation()]
        while self.skip(",", ";", "and", "or"):
            self.skip("and", "or")
            parts.append(self.relation())
        return parts[0] if len(parts) == 1 else ["list", *parts]

    def relation(self) -> Tree:
        left = self.union()
        chain: list[Tree] = []
        while (name := _RELATIONS.get(self.peek())) and self.kind() != "word":
            self.at += 1
            right = self.union()
            chain.append(["relation", name, left, right])
            left = right
        return left if not chain else chain[0] if len(chain) == 1 else ["chain", *chain]

    def union(self) -> Tree:
        parts = [self.sum()]
        while self.skip("cup", "∪"):
            parts.append(self.sum())
        return parts[0] if len(parts) == 1 else ["union", *parts]

    def sum(self) -> Tree:
        self.enter()
        if self.peek() in ("pm", "±"):
            self.at += 1
            parts: list[Tree] = [["plus_minus", self.product()]]
        else:
            parts = [self.product()]
        while self.peek() in ("+", "-", "pm", "±"):
            mark = self.take()
            part = self.product()
            parts.append(part if mark == "+" else ["negative" if mark == "-" else "plus_minus", part])
        self.depth -= 1
        return parts[0] if len(parts) == 1 else ["add", *parts]

    def product(self) -> Tree:
        tree = self.signed()
        while True:
            if self.skip("*", "cdot", "times"):
                tree = ["multiply", tree, self.signed()]
            elif self.skip("/", "div"):
                tree = ["divide", tree, self.signed()]
            elif self.begins_factor():
                mixed = tree[0] == "number" and "/" not in tree[1] and "." not in tree[1]
                right = self.power()
                if mixed and right[0] == "divide" and right[1][0] == right[2][0] == "number":
                    tree = ["add", tree, right]  # 1\frac{1}{2} is one and a half
                elif right[0] == "number" and tree[0] == "number":  # "2 3" is no product; "1 1/2" is a mixed number
                    self.take("/")
                    if self.kind() != "number" or not mixed:
                        raise NoExpression
                    tree = ["add", tree, ["divide", right, self.atom()]]
                else:
                    tree = ["multiply", tree, right]
            else:
                return tree

    def begins_factor(self) -> bool:
        token, kind = self.peek(), self.kind()
        if kind == "word":
            return token not in ("and", "or")
        if kind == "command":
            return token not in ("cup", "cdot", "times", "div", "pm", "%", "}", "|", "rfloor", "rceil", "end") and (
                token not in _RELATIONS
            )
        return kind == "number" or token in ("(", "{", "√", "π", "∞") or (token == "|" and not self.bars)

    def signed(self) -> Tree:
        self.enter()
        if self.skip("-"):
            tree: Tree = ["negative", self.signed()]
        else:
            self.skip("+")
            tree = self.power()
        self.depth -= 1
        return tree

    def power(self) -> Tree:
        base = self.postfix()
        if self.peek() in ("^", "**"):
            self.at += 1
            if self.peek() in ("circ", "°"):
                self.at += 1
                return self.degrees(base)
            if self.peek() == "{" and self.tokens[self.at + 1 : self.at + 3] == [("command", "circ"), ("mark", "}")]:
                self.at += 3
                return self.degrees(base)
            return ["power", base, self.signed()]
        return base

    def degrees(self, tree: Tree) -> Tree:
        """The sign ° is a unit, and left out, but for the argument of a function, which is in radians."""
        return ["divide", ["multiply", tree, ["constant", "pi"]], ["number", "180"]] if self.angles else tree

    def postfix(self) -> Tree:
        tree = self.atom()
        while self.peek() in ("!", "%", "°"):
            mark = self.take()
            tree = {"!": ["factorial", tree], "%": ["divide", tree, ["number", "100"]], "°": self.degrees(tree)}[mark]
        return tree

    def group(self) -> Tree:
        """What stands in braces, or the next token alone: \\frac12."""
        if self.skip("{"):
            tree = self.listing()
            self.take("}")
            return tree
        if self.kind() == "number" and len(self.peek()) > 1 and self.peek().isdigit():
            first = self.peek()[0]
            self.tokens[self.at] = ("number", self.peek()[1:])
            return ["number", first]
        return self.atom()

    def atom(self) -> Tree:
        self.enter()
        try:
            kind, token = self.kind(), self.take()
            if kind == "number":
                return self.number(token)
            if kind == "word":
                return self.word(token)
            if kind == "command":
                return self.command(token)
            return self.bracket(token)
        finally:
            self.depth -= 1

    def number(self, token: str) -> Tree:
        if len(token) > MAX_DIGITS:
            raise NoExpression
        value = read_decimal(token)
        if self.skip("_"):
            base = self.group()
            if base[0] != "number" or not base[1].isdigit() or not 2 <= int(base[1][:3]) <= 36 or not token.isdigit():
                raise NoExpression
            try:
                return ["number", str(int(token, int(base[1])))]
            except ValueError:
                raise NoExpression from None
        return ["number", str(value)]

    def symbol(self, name: str) -> Tree:
        if self.skip("_"):
            index = self.group()
            if index[0] not in ("number", "symbol"):
                raise NoExpression
            name += f"_{index[1]}"
        return ["symbol", name]

    def word(self, token: str) -> Tree:
        if token in _CALLS:
            return self.call(_INVERSE.get(token, token))
        if token.lower() in _CONSTANTS:
            return ["constant", _CONSTANTS[token.lower()]]
        if len(token) > 2 or token in ("or", "and"):
            raise NoExpression
        letters = [self.symbol(letter) if n == len(token) - 1 else ["symbol", letter] for n, letter in enumerate(token)]
        return letters[0] if len(letters) == 1 else ["multiply", *letters]

    def command(self, token: str) -> Tree:
        if token in ("frac", "dfrac", "tfrac", "cfrac"):
            return ["divide", self.group(), self.group()]
        if token in ("binom", "dbinom", "tbinom"):
            return ["binomial", self.group(), self.group()]
        if token == "sqrt":
            index: Tree = ["number", "2"]
            if self.skip("["):
                index = self.sum()
                self.take("]")
            return ["root", self.group(), index]
        if token in _CALLS:
            return self.call(token)
        if token in _CONSTANTS:
            return ["constant", _CONSTANTS[token]]
        if token in _GREEK:
            return self.symbol(token)
        if token in ("emptyset", "varnothing"):
            return ["set"]
        if token == "{":
            parts = [] if self.peek() == "}" else _parts(self.listing())
            self.take("}")
            return ["set", *parts]
        if token in ("lfloor", "lceil"):
            tree = self.sum()
            self.take({"lfloor": "rfloor", "lceil": "rceil"}[token])
            return ["floor" if token == "lfloor" else "ceiling", tree]
        if token == "begin":
            return self.matrix()
        raise NoExpression

    def call(self, name: str) -> Tree:
        base: Tree | None = None
        exponent: Tree | None = None
        if name == "log" and self.skip("_"):
            base = self.group()
        if self.skip("^"):
            exponent = self.group() if self.peek() == "{" else self.atom()
        self.enter()
        self.angles += name in _OF_ANGLES
        if self.skip("("):
            argument = self.sum()
            self.take(")")
        else:
            argument = self.power()
        self.angles -= name in _OF_ANGLES
        self.depth -= 1
        if name == "sqrt":
            tree: Tree = ["root", argument, ["number", "2"]]
        else:
            tree = ["log_base", argument, base] if base else [name, argument]
        return tree if exponent is None else ["power", tree, exponent]

    def matrix(self) -> Tree:
        self.take("{")
        name = self.take("pmatrix", "bmatrix", "matrix", "vmatrix")
        self.take("}")
        rows: list[list[Tree]] = [[self.sum()]]
        while self.peek() != "end":
            if self.skip("&"):
                rows[-1].append(self.sum())
            else:
                self.take(_ROW)
                if self.peek() != "end":
                    rows.append([self.sum()])
        self.at += 1
        self.take("{")
        self.take(name)
        self.take("}")
        if len({len(row) for row in rows}) != 1 or name == "vmatrix":
            raise NoExpression
        return ["matrix", *rows]

    def bracket(self, token: str) -> Tree:
        if token in ("π", "∞", "∅"):
            return ["set"] if token == "∅" else ["constant", "pi" if token == "π" else "infinity"]
        if token == "√":
            return ["root", self.atom(), ["number", "2"]]
        if token == "|":
            self.bars += 1
            tree: Tree = ["abs", self.sum()]
            self.bars -= 1
            self.take("|")
            return tree
        if token == "{":
            tree = self.listing()
            self.take("}")
            # braces alone group in LaTeX; with commas between, they are a set written without backslashes
            return ["set", *tree[1:]] if tree[0] == "list" else tree
        if token not in ("(", "["):
            raise NoExpression
        bars, self.bars = self.bars, 0
        tree, closing = self.listing(), self.take(")", "]")
        self.bars = bars
        if tree[0] == "list" and len(tree) == 3 and token + closing != "()":
            return ["interval", token + closing, *tree[1:]]
        if token + closing not in ("()", "[]"):
            raise NoExpression
        if tree[0] == "list":
            return ["tuple", *tree[1:]]
        return tree


def _parts(tree: Tree) -> list[Tree]:
    return tree[1:] if tree[0] == "list" else [tree]
