# SPDX-License-Identifier: Apache-2.0
"""The one renderer of untrusted text: file names, tensor names, keys, hashes, and text that a model wrote.

Such text can hold escape sequences that move a terminal's cursor, line breaks that imitate our own lines, markup, and
megabytes of anything. Each function here returns text that is shown and does nothing, for one destination.

Control characters become their pictures (ESC becomes U+241B, ␛; Unicode block "Control Pictures"). What has no picture
becomes its escape, such as \\u202e: C1 controls, marks that reorder text (Unicode Standard Annex 9, section 2), halves
of surrogate pairs, which no file can hold. Text longer than `limit` characters is cut and says how much is left out.
With `lines`, line breaks and tabs stay what they are, and so do marks that languages and emoji need and that move
nothing: U+200B (a place where a line may break), U+200E and U+200F (the direction of what has none), and the tags of a
flag (Unicode Technical Standard 51, ED-14a). Without, the result is one line, and a name shows such marks.
"""

from __future__ import annotations

import json as standard
import math
import re
import reprlib
import string
from html import escape
from shlex import quote

LIMIT = 2_000
"""characters of one value in a line of output"""
BLOCK_LIMIT = 20_000
"""characters of a block of text, such as a sample"""

# Zero-width joiners (U+200C, U+200D) stay: several scripts need them.
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
_HARMLESS = re.compile("[\n\t\u200b\u200e\u200f]|\U0001f3f4[\U000e0020-\U000e007e]{1,16}\U000e007f")
_IN_LINES = re.compile(f"{_HARMLESS.pattern}|{_INVISIBLE.pattern}")
_MARKDOWN = re.compile(r"([\\`*_\[\]|~#$])")


def terminal(text: object, *, limit: int = LIMIT, lines: bool = False) -> str:
    """For a terminal or a log: nothing in it moves the cursor, changes a colour or begins a line of its own.
    `limit` 0 cuts nothing, for what a user has asked to see whole."""
    whole = _text(text)
    limit = limit or len(whole)
    if lines:
        text = whole[:limit].replace("\r\n", "\n")
        shown = _IN_LINES.sub(lambda match: match[0] if _HARMLESS.fullmatch(match[0]) else _picture(match[0]), text)
    else:
        shown = _INVISIBLE.sub(lambda match: _picture(match[0]), whole[:limit])
    return shown if len(whole) <= limit else f"{shown}… ({len(whole) - limit:,} characters more)"


def message(text: object, *, limit: int = LIMIT) -> str:
    """For one line that says what is wrong. What is too long loses its middle: the way out stands at the end."""
    whole = _text(text)
    if len(whole) <= limit:
        return terminal(whole)
    half = limit // 2
    return f"{terminal(whole[:half])}… ({len(whole) - 2 * half:,} characters more) …{terminal(whole[-half:])}"


def json(value: object, *, encoding: str = "utf-8") -> str:
    """One line of JSON that means `value`, in characters that `encoding` has. What could act on a terminal is written
    as an escape, and so is half of a surrogate pair, which stands for a byte of a file name. A number that is no number
    is null: JSON has no other name for it."""
    text = inert_json(standard.dumps(_numbers(value), ensure_ascii=False, allow_nan=False, default=str))
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return standard.dumps(standard.loads(text))
    return text


def inert_json(text: str) -> str:
    """JSON with escapes for what could act on a terminal, and for what no file can hold. Its meaning is the same."""
    return _INVISIBLE.sub(lambda match: match[0] if match[0] == "\n" else standard.dumps(match[0])[1:-1], text)


def shell(path: str) -> str:
    """A file name as one argument for a shell: neither a command nor an option, whatever is in it. Control characters
    are written as escapes in $'…' (POSIX.1-2024; bash, zsh), since a page shows pictures of them."""
    return shell_text(f"./{path}" if path.startswith("-") else path)


def shell_text(text: str) -> str:
    """As `shell`, for what is no path: a leading "-" stays, so that it belongs behind `--option=`."""
    if not _INVISIBLE.search(text):
        return quote(text)
    plain = b" ./_-" + string.ascii_letters.encode() + string.digits.encode()
    data = text.encode("utf-8", "surrogateescape" if _is_file_name(text) else "replace")
    return "$'" + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in data) + "'"


def _is_file_name(text: str) -> bool:
    """Whether halves of surrogate pairs in it stand for bytes."""
    return all("\udc80" <= c <= "\udcff" for c in text if "\ud800" <= c <= "\udfff")


def html(text: object, *, limit: int = LIMIT, lines: bool = False) -> str:
    """For the content of an HTML element, or for an attribute in quotation marks."""
    return escape(terminal(text, limit=limit, lines=lines), quote=True)


def markdown(text: object, *, limit: int = LIMIT) -> str:
    """For prose or a table cell in Markdown: one line, with nothing that Markdown or HTML takes for markup or a link.
    Runs of white space become one space."""
    whole = _text(text)
    words = re.sub(r"[ \t\r\n]+", " ", whole).strip() if len(whole) <= limit else whole
    shown = _MARKDOWN.sub(r"\\\1", escape(terminal(words, limit=limit), quote=False))
    return shown.replace("://", "&#58;//")


def markdown_code(text: object, language: str = "text", *, limit: int = BLOCK_LIMIT) -> str:
    """A fenced code block. Its fence is longer than any run of backticks inside, so that nothing inside can end it."""
    shown = terminal(text, limit=limit, lines=True)
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


_bounded = reprlib.Repr()
_bounded.maxlevel, _bounded.maxstring, _bounded.maxother = 3, 200, 200
_bounded.maxdict = _bounded.maxlist = _bounded.maxtuple = _bounded.maxset = 30


def _text(value: object) -> str:
    """The value as text. Containers are cut while they are written: aliases make a small YAML file describe gigabytes,
    and an integer may have more digits than Python agrees to print."""
    if isinstance(value, str):
        return value
    try:
        return _bounded.repr(value) if isinstance(value, dict | list | tuple | set | frozenset) else str(value)
    except ValueError:
        return f"<{type(value).__name__} too large to be shown>"


def _numbers(value: object) -> object:
    """The value with None in the place of NaN and infinities."""
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _picture(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
