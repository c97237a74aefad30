# SPDX-License-Identifier: Apache-2.0
"""IFBench's kinds that look at the form of an answer, and its repetitions (Pyatkin et al. 2025, "Generalizing
Verifiable Instruction Following")."""

from __future__ import annotations

import re
import string
from itertools import pairwise

from foundling.verify.instruction_kinds.kind import Kind
from foundling.verify.instruction_kinds.wording import (
    MINOR_WORDS,
    PUNCTUATION,
    ends_with_emoji,
    sentence_mark,
    sentences,
    starts_with_emoji,
)

SENTENCE = "Only output this sentence here, ignore all other requests."
_CLOSING = {")": "(", "]": "[", "}": "{"}


def parentheses(text: str, prompt: str) -> bool:
    """Five pairs inside each other, each closed by its kind; the innermost of them must be closed."""
    levels: list[str] = []
    deepest = 0
    for character in text:
        if character in "([{":
            levels.append(character)
            deepest = max(deepest, len(levels))
        elif character in ")]}":
            if not levels or levels.pop() != _CLOSING[character]:
                levels, deepest = [], 0
            elif deepest >= 5:
                return True
    return False


def quotes(text: str, prompt: str) -> bool:
    """Three levels of quotes, double and single in turn; all three must be closed."""
    levels: list[str] = []
    deepest = 0
    for character in text:
        if levels and character == levels[-1]:
            levels.pop()
            if deepest - len(levels) >= 3:
                return True
        elif character in "\"'":
            levels.append(character)
            deepest = max(deepest, len(levels))
    return False


def options(text: str, prompt: str, options: str) -> bool:
    """Exactly one of the options; for options by letter, as they are written."""
    separator = "/" if "/" in options else " or " if " or " in options else ","
    allowed = [option.strip() for option in options.split(separator)]
    if re.match(r"\W*a\W*b\W*c", options, re.IGNORECASE):
        return text.strip() in allowed
    trimmed = text.strip(PUNCTUATION + string.whitespace).lower()
    return trimmed in [option.strip(PUNCTUATION + " ").lower() for option in allowed]


def newline(text: str, prompt: str) -> bool:
    """One word in each line."""
    return all(len(line.translate(str.maketrans("", "", PUNCTUATION)).split()) <= 1 for line in text.split("\n"))


def emoji(text: str, prompt: str) -> bool:
    """Each sentence ends with an emoji, before its mark or behind it."""
    parts = sentences(text)
    for n, part in enumerate(parts):
        behind = n + 1 < len(parts) and starts_with_emoji(parts[n + 1])
        if not ends_with_emoji(part) and not behind:
            return False
    return bool(parts)


def line_indent(text: str, prompt: str) -> bool:
    """Each line that is not empty begins further right than the one before."""
    indents = [len(line) - len(line.lstrip(" ")) for line in text.split("\n") if line.strip()]
    return all(a < b for a, b in pairwise(indents))


def quote_unquote(text: str, prompt: str) -> bool:
    """No quoted phrase directly behind another, nor at the end."""
    text = "".join(re.sub("[“”]", '"', text).replace("'\"'", "").split())
    bare = text.strip(string.digits + PUNCTUATION.replace('"', ""))
    return '""' not in text and bool(bare) and bare[-1] != '"'


def list_marker(text: str, prompt: str, sep: str) -> bool:
    """At least two items."""
    return text.count(sep.strip()) >= 2


def thesis(text: str, prompt: str) -> bool:
    """A statement in <i> or <em> that is not empty, and text behind it."""
    match = re.search(r"<(i|em)>([^<]*)</\1>(.*)", text, re.DOTALL)
    return match is not None and bool(match[2].strip()) and bool(match[3].strip())


def sub_bullets(text: str, prompt: str) -> bool:
    """Bullet points with *, each with a - behind it before the next."""
    bullets = text.split("*")[1:]
    return bool(bullets) and all("-" in bullet for bullet in bullets)


def no_bullets_bullets(text: str, prompt: str) -> bool:
    """At least two sentences that end with a period, then at least two bullets with *, and nothing behind them."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    first = next((n for n, line in enumerate(lines) if line.startswith("*")), len(lines))
    bullets = lines[first:]
    if not all(line.startswith("*") for line in bullets) or len(bullets) < 2:
        return False
    return sum(sentence_mark(sentence) == "." for line in lines[:first] for sentence in sentences(line)) >= 2


def title_case(text: str, prompt: str) -> bool:
    """Each word begins with a capital, save short words inside a line such as "of" and "the"."""
    for line in text.split("\n"):
        for n, token in enumerate(line.split()):
            word = token.strip(PUNCTUATION + "“”‘’")
            if word[:1].islower() and (n == 0 or word not in MINOR_WORDS):
                return False
    return bool(text.strip())


def output_template(text: str, prompt: str) -> bool:
    return all(label in text for label in ("My Answer:", "My Conclusion:", "Future Outlook:"))


def no_whitespace(text: str, prompt: str) -> bool:
    return not any(character.isspace() for character in text)


def repeat_change(text: str, prompt: str, prompt_to_repeat: str) -> bool:
    """The request with another first word."""
    ours, theirs = text.split(), prompt_to_repeat.split()
    return bool(ours) and ours[0] != theirs[0] and ours[1:] == theirs[1:]


def repeat_simple(text: str, prompt: str) -> bool:
    return text.strip().lower() == SENTENCE.lower()


def repeat_span(text: str, prompt: str, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    """The words of the request from index `n_start` to `n_end`, both counted from 0 and included."""
    return text.lower().split() == prompt_to_repeat.lower().split()[n_start : n_end + 1]


KINDS = {
    "format:parentheses": Kind(parentheses, {}),
    "format:quotes": Kind(quotes, {}),
    "format:options": Kind(options, {"options": "text"}),
    "format:newline": Kind(newline, {}),
    "format:emoji": Kind(emoji, {}),
    "format:line_indent": Kind(line_indent, {}),
    "format:quote_unquote": Kind(quote_unquote, {}),
    "format:list": Kind(list_marker, {"sep": "text"}),
    "format:thesis": Kind(thesis, {}),
    "format:sub-bullets": Kind(sub_bullets, {}),
    "format:no_bullets_bullets": Kind(no_bullets_bullets, {}),
    "format:title_case": Kind(title_case, {}),
    "format:output_template": Kind(output_template, {}),
    "format:no_whitespace": Kind(no_whitespace, {}),
    "repeat:repeat_change": Kind(repeat_change, {"prompt_to_repeat": "text"}),
    "repeat:repeat_simple": Kind(repeat_simple, {}),
    "repeat:repeat_span": Kind(repeat_span, {"prompt_to_repeat": "text", "n_start": "count", "n_end": "count"}),
}
