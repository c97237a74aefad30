# SPDX-License-Identifier: Apache-2.0
"""Regular expressions of JSON Schema (ECMA-262, section 22.2) in a form that Rust's and Python's engines read alike.

Each class is written out as ranges of code points, because engines disagree on \\d, \\w, \\s, `.` and what ^ negates.
What no finite automaton decides, or no mask can enforce, is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from foundling.errors import GenerationError
from foundling.limits import GROUP_DEPTH, REPETITIONS, shown

Ranges = list[tuple[int, int]]

LAST = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)
DIGITS: Ranges = [(0x30, 0x39)]
WORD: Ranges = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
SPACES: Ranges = [
    (0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
    (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
]  # fmt: skip
LINE_ENDS: Ranges = [(0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)]
CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
ANYTHING = "(?s:.)*"


@dataclass
class _Item:
    """An atom, a group of alternatives, or an anchor, and how often it comes."""

    text: str = ""
    group: list[list[_Item]] | None = None
    anchor: str = ""
    quantifier: str = ""


@dataclass
class _Parser:
    pattern: str
    where: str
    at: int = 0
    depth: int = field(default=0)

    def refuse(self, what: str) -> GenerationError:
        return GenerationError(f"{self.where}: {what} in {shown(self.pattern)}")

    def peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def take(self) -> str:
        if self.at >= len(self.pattern):
            raise self.refuse("the pattern ends in the middle of an expression")
        self.at += 1
        return self.pattern[self.at - 1]

    def alternatives(self) -> list[list[_Item]]:
        self.depth += 1
        if self.depth > GROUP_DEPTH.high:
            raise self.refuse(f"more than {GROUP_DEPTH.high} groups inside each other")
        result: list[list[_Item]] = [[]]
        while self.peek() not in ("", ")"):
            if self.peek() == "|":
                self.at += 1
                result.append([])
            else:
                result[-1].append(self.item())
        self.depth -= 1
        return result

    def item(self) -> _Item:
        char = self.take()
        if char in "^$":
            item = _Item(anchor=char)
        elif char == "(":
            item = _Item(group=self.group())
        elif char == "[":
            item = _Item(text=_write(self.klass()))
        elif char == ".":
            item = _Item(text=_write(_complement(LINE_ENDS)))
        elif char == "\\":
            item = _Item(text=_write(self.escape(in_class=False)))
        elif char in "*+?{":
            raise self.refuse(f"'{char}' repeats nothing; write \\{char} for the character itself")
        else:
            item = _Item(text=_write(_single(self.code(char))))
        item.quantifier = self.quantifier()
        if item.anchor and item.quantifier:
            raise self.refuse(f"the anchor {item.anchor} is repeated")
        return item

    def code(self, char: str) -> int:
        if SURROGATES[0] <= ord(char) <= SURROGATES[1]:
            raise self.refuse("half of a surrogate pair")
        return ord(char)

    def group(self) -> list[list[_Item]]:
        if self.peek() == "?":
            rest = self.pattern[self.at : self.at + 3]
            if rest.startswith(("?=", "?!", "?<=", "?<!")):
                raise self.refuse("look-around is not supported")
            if rest.startswith("?:"):
                self.at += 2
            elif rest.startswith("?<") and (end := self.pattern.find(">", self.at)) > 0:
                self.at = end + 1
            else:
                raise self.refuse(f"the group '({rest}' is not supported")
        inner = self.alternatives()
        if self.peek() != ")":
            raise self.refuse("a group is not closed")
        self.at += 1
        return inner

    def quantifier(self) -> str:
        char = self.peek()
        if char and char in "*+?":
            self.at += 1
            text = char
        elif char == "{":
            end = self.pattern.find("}", self.at)
            body = self.pattern[self.at + 1 : end] if end > 0 else ""
            low, comma, high = body.partition(",")
            if not low.isdecimal() or not (low + high).isascii() or (high and not high.isdecimal()):
                raise self.refuse("'{' begins no repetition; write \\{ for the character itself")
            if len(low) > 9 or len(high) > 9 or max(int(low), int(high or 0)) > REPETITIONS.high:
                raise self.refuse(f"the repetition {{{body}}} is of more than {REPETITIONS.high:,}")
            if high and int(high) < int(low):
                raise self.refuse(f"the repetition {{{body}}} ends before it begins")
            self.at = end + 1
            text = f"{{{int(low)}{comma}{int(high) if high else ''}}}"
        else:
            return ""
        if self.peek() == "?":  # which of several matches comes first makes no difference to what matches
            self.at += 1
        if self.peek() and self.peek() in "*+?{":
            raise self.refuse(f"'{self.peek()}' repeats a repetition")
        return text

    def klass(self) -> Ranges:
        negated = self.peek() == "^"
        self.at += negated
        ranges: Ranges = []
        while self.peek() != "]":
            low = self.member()
            if self.peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                high = self.member()
                if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1] or high[0][0] != high[0][1]:
                    raise self.refuse("a class is the end of a range")
                if high[0][0] < low[0][0]:
                    raise self.refuse("a range of characters ends before it begins")
                ranges.append((low[0][0], high[0][0]))
            else:
                ranges += low
        self.at += 1
        result = _complement(ranges) if negated else _merge(ranges)
        if not result:
            raise self.refuse("a class without characters matches nothing")
        return result

    def member(self) -> Ranges:
        char = self.take()
        if char == "\\":
            return self.escape(in_class=True)
        return _single(self.code(char))

    def escape(self, *, in_class: bool) -> Ranges:
        char = self.take()
        shorthand = {"d": DIGITS, "w": WORD, "s": SPACES}.get(char.lower())
        if shorthand:
            return _complement(shorthand) if char.isupper() else [*shorthand]
        if char in CONTROLS:
            return _single(CONTROLS[char])
        if char == "b" and in_class:
            return [(8, 8)]
        if char in "bB":
            raise self.refuse(f"the word boundary \\{char} is not supported")
        if char in "pP":
            raise self.refuse(f"the property \\{char}{{…}} is not supported; write the characters as ranges")
        if char == "0" and not self.peek().isdecimal():
            return [(0, 0)]
        if char == "c" and self.peek().isascii() and self.peek().isalpha():
            return _single(ord(self.take()) % 32)
        if char == "x":
            return _single(self.hexadecimal(2))
        if char == "u":
            return _single(self.unicode())
        if char.isalnum():
            what = "the back-reference" if char.isdecimal() or char == "k" else "the escape"
            raise self.refuse(f"{what} \\{char} is not supported")
        return _single(self.code(char))

    def hexadecimal(self, n: int) -> int:
        digits = self.pattern[self.at : self.at + n]
        if len(digits) != n or any(c not in "0123456789abcdefABCDEF" for c in digits):
            raise self.refuse(f"an escape needs {n} hexadecimal digits")
        self.at += n
        return int(digits, 16)

    def unicode(self) -> int:
        if self.peek() == "{":
            end = self.pattern.find("}", self.at)
            self.at += 1
            code = self.hexadecimal(end - self.at) if 0 < end - self.at <= 6 else -1
            self.at += 1
        else:
            code = self.hexadecimal(4)
            if 0xD800 <= code < 0xDC00 and self.pattern[self.at : self.at + 2] == "\\u":
                self.at += 2
                low = self.hexadecimal(4)
                code = 0x10000 + ((code - 0xD800) << 10) + low - 0xDC00 if 0xDC00 <= low <= 0xDFFF else -1
        if not 0 <= code <= LAST or SURROGATES[0] <= code <= SURROGATES[1]:
            raise self.refuse("an escape names no character")
        return code


def translate_pattern(pattern: str, where: str, *, whole: bool = False) -> str:
    """An expression for all of a text that has a match of `pattern` somewhere, or with `whole` is one. It is without
    anchors; for a text to match, put it between ^ and $ (Rust) or use fullmatch (Python). GenerationError, with
    `where`, for an invalid pattern, or one that uses look-around, back-references, word boundaries, properties, or
    anchors elsewhere than at the ends of alternatives."""
    parser = _Parser(pattern, where)
    alternatives = parser.alternatives()
    if parser.peek():
        raise parser.refuse("a parenthesis closes no group")
    return _write_whole(parser, alternatives, whole, whole)


def _write_whole(parser: _Parser, alternatives: list[list[_Item]], begins: bool, ends: bool) -> str:
    texts = list[str]()
    for items in alternatives:
        first, last = begins, ends
        while items and items[0].anchor == "^":
            first, items = True, items[1:]
        while items and items[-1].anchor == "$":
            last, items = True, items[:-1]
        if len(items) == 1 and items[0].group is not None and not items[0].quantifier:
            texts.append(_write_whole(parser, items[0].group, first, last))
        else:
            texts.append(("" if first else ANYTHING) + _write_items(parser, items) + ("" if last else ANYTHING))
    return f"(?:{'|'.join(texts)})"


def _write_items(parser: _Parser, items: list[_Item]) -> str:
    texts = list[str]()
    for item in items:
        if item.anchor:
            raise parser.refuse(f"the anchor {item.anchor} is elsewhere than at an end")
        inner = item.text
        if item.group is not None:
            inner = f"(?:{'|'.join(_write_items(parser, items) for items in item.group)})"
        texts.append(inner + item.quantifier)
    return "".join(texts)


def _single(code: int) -> Ranges:
    return [(code, code)]


def _merge(ranges: Ranges) -> Ranges:
    """Sorted, without overlaps and without surrogates."""
    result: Ranges = []
    for low, high in sorted(ranges):
        if result and low <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(high, result[-1][1]))
        else:
            result.append((low, high))
    return [part for low, high in result for part in ((low, min(high, SURROGATES[0] - 1)),
            (max(low, SURROGATES[1] + 1), high)) if part[0] <= part[1]]  # fmt: skip


def _complement(ranges: Ranges) -> Ranges:
    result: Ranges = []
    start = 0
    for low, high in _merge(ranges):
        if start < low:
            result.append((start, low - 1))
        start = high + 1
    if start <= LAST:
        result.append((start, LAST))
    return _merge(result)


def _write(ranges: Ranges) -> str:
    ranges = _merge(ranges)
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _character(ranges[0][0])
    return f"[{''.join(_character(a) + (f'-{_character(b)}' if b > a else '') for a, b in ranges)}]"


def _character(code: int) -> str:
    char = chr(code)
    if char.isascii():
        return char if char.isalnum() else f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
