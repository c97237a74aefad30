# SPDX-License-Identifier: Apache-2.0
"""Numbers as people and models write them, read as exact fractions: separators, percent signs, units, vulgar fractions.

When is a comma a decimal mark? With a point beside it, the mark that comes last is the decimal mark, and the other one
must separate groups of three digits: 1,234.5 and 1.234,5. Several commas separate thousands: 1,234,567, or lakhs:
12,34,567. A single comma separates thousands where one to three digits, the first no 0, stand before it and exactly
three after it: 3,500. Elsewhere it is a decimal mark: 3,5 and 0,500. A single point is a decimal mark: 1.234 is less
than two. Spaces and apostrophes separate groups of three digits: 1 234 567, 1'234.

A number in parentheses is the number, not its negative, which is a habit of accountants alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from foundling.verify.number_words import DIGIT_SCALES, has_number_words, more_behind, read_words, scale_behind

MAX_DIGITS = 4_000
"""digits of a number, and its largest decimal exponent; longer ones are text"""

_CHARACTERS = {
    **dict.fromkeys("−‐‑‒–﹣－", "-"), **dict.fromkeys("×⋅·∙＊", "*"), "÷": "/", "⁄": "/", "∕": "/", "＋": "+",
    **dict.fromkeys("\u00a0\u2007\u2008\u2009\u200a\u202f\u2002\u2003\u3000", " "), "’": "'", "＝": "=", "％": "%",
    "٪": "%", "，": ",", "．": ".", "、": ",", "（": "(", "）": ")", "＄": "$", "：": ":", "\u200b": "",
}  # fmt: skip
_FRACTIONS = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
    "⅙": "1/6", "⅚": "5/6", "⅐": "1/7", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8", "⅑": "1/9", "⅒": "1/10",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_TABLE = str.maketrans(_CHARACTERS)

CURRENCIES = "$€£¥₹₽฿"
DIGITS = r"(?:\d{1,3}(?:[ ']\d{3})+(?!\d)(?:[.,]\d+)?|\d++(?:[.,]\d++)*|(?<![\d.,])[.]\d+)"
"""digits with marks between them; a run of digits is not split, or 99…9:9 would take a time of its square"""
_MIXED = re.compile(r"(\d+)\s+(?:and\s+)?(\d+)\s*/\s*(\d+)")
_TIMES_TEN = r"(?:\*|x|\\times|\\cdot)\s*)?10\s*(?:\^|\*\*)\s*"
_POWER = re.compile(rf"(?:({DIGITS})\s*{_TIMES_TEN}(?:\{{([+-]?\d+)\}}|\(?([+-]?\d+)\)?)")
_SCIENTIFIC = re.compile(rf"({DIGITS})[eE]([+-]?\d+)")
_RATIO = re.compile(rf"({DIGITS})\s*/\s*({DIGITS})")
NUMBER = re.compile(
    rf"(?<![\w.,)\]])(?<!\d:)(?:[-+]\s?)?(?:[{CURRENCIES}]\s?)?-?"
    rf"(?:\d+\s+(?:and\s+)?\d+/\d+(?![\d.,]*\d)|{DIGITS}\s*(?:\*|x|\\times|\\cdot)\s*10\s?(?:\^|\*\*)\s?[({{]?[+-]?\d+[)}}]?"
    rf"|{DIGITS}[eE][+-]?\d+|{DIGITS}\s?/\s?\d+(?!\d|[.,/]\d)|{DIGITS})(?!\d*:\d)"
    rf"(?:\s?%|(?:\s+(?i:{'|'.join(DIGIT_SCALES)})\b(?!-[a-zA-Z]))+)?"
)
"""a number inside a text"""

UNITS = {
    "currency": {
        "$": 1, "usd": 1, "dollar": 1, "dollars": 1, "cent": Fraction(1, 100), "cents": Fraction(1, 100),
        "¢": Fraction(1, 100),
    },
    "euro": {"€": 1, "eur": 1, "euro": 1, "euros": 1},
    "pound sterling": {"£": 1, "gbp": 1},
    "yen": {"¥": 1, "yen": 1, "jpy": 1}, "rupee": {"₹": 1, "rupee": 1, "rupees": 1, "inr": 1}, "rouble": {"₽": 1},
    "length": {
        "m": 1, "meter": 1, "meters": 1, "metre": 1, "metres": 1, "km": 1000, "kilometer": 1000, "kilometers": 1000,
        "kilometre": 1000, "kilometres": 1000, "cm": Fraction(1, 100), "centimeter": Fraction(1, 100),
        "centimeters": Fraction(1, 100), "centimetres": Fraction(1, 100), "mm": Fraction(1, 1000),
        "millimeters": Fraction(1, 1000), "mile": Fraction("1609.344"), "miles": Fraction("1609.344"),
        "foot": Fraction("0.3048"), "feet": Fraction("0.3048"), "ft": Fraction("0.3048"), "inch": Fraction("0.0254"),
        "inches": Fraction("0.0254"), "yard": Fraction("0.9144"), "yards": Fraction("0.9144"),
    },
    "mass": {
        "g": 1, "gram": 1, "grams": 1, "kg": 1000, "kilogram": 1000, "kilograms": 1000, "mg": Fraction(1, 1000),
        "lb": Fraction("453.59237"), "lbs": Fraction("453.59237"), "pound": Fraction("453.59237"),
        "pounds": Fraction("453.59237"), "ounce": Fraction("28.349523125"), "ounces": Fraction("28.349523125"),
    },
    "time": {
        "s": 1, "sec": 1, "second": 1, "seconds": 1, "min": 60, "mins": 60, "minute": 60, "minutes": 60, "h": 3600,
        "hr": 3600, "hrs": 3600, "hour": 3600, "hours": 3600, "day": 86400, "days": 86400, "week": 604800,
        "weeks": 604800,
    },
    "months": {"month": 1, "months": 1, "year": 12, "years": 12},
    "volume": {"l": 1, "liter": 1, "liters": 1, "litre": 1, "litres": 1, "ml": Fraction(1, 1000)},
    "speed": {"km/h": 1, "kmh": 1, "kph": 1, "mph": Fraction("1.609344"), "m/s": Fraction("3.6")},
    "angle": {"°": 1, "degree": 1, "degrees": 1, "\\degree": 1, "^\\circ": 1, "^{\\circ}": 1, "^°": 1},
    "celsius": {"°c": 1, "degrees celsius": 1}, "fahrenheit": {"°f": 1, "degrees fahrenheit": 1},
    "area": {"cm^2": Fraction(1, 10000), "m^2": 1, "km^2": 1_000_000},
}  # fmt: skip
"""dimension -> unit -> how many of the dimension's first unit. Other words behind a number are no units."""
_DIMENSIONS = {unit: (dimension, Fraction(size)) for dimension, units in UNITS.items() for unit, size in units.items()}


@dataclass(frozen=True)
class Quantity:
    """`value` as written, so 50 for 50%. `dimension` and `size` of its unit, "" and 1 without a known one."""

    value: Fraction
    percent: bool = False
    dimension: str = ""
    size: Fraction = Fraction(1)
    ratio: bool = False
    """written as a fraction"""

    def __str__(self) -> str:
        """The value without its unit: 6/8 as 3/4, 2.50 as 2.5, with the percent sign that changes its meaning."""
        return show(self.value, self.ratio) + "%" * self.percent


def show(value: Fraction, ratio: bool = False) -> str:
    """As a whole number, a decimal of at most 12 digits behind the point, or a fraction, which `ratio` prefers."""
    if value.denominator == 1:
        return str(value.numerator)
    if ratio or 10**12 % value.denominator:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * (10**12 // value.denominator)).rjust(13, "0")
    return f"{'-' * (value < 0)}{digits[:-12]}.{digits[-12:].rstrip('0')}"


def without_unit(text: str) -> str:
    """An expression without the known unit behind it, for 3\\sqrt{2} cm."""
    match = re.fullmatch(r"(.*[\d)}])\s*([^\W\d_]+(?:\^2|/[a-z]+)?|°[CF]?)", text, re.DOTALL)
    return match[1] if match and match[2].lower() in _DIMENSIONS else text


def normalise(text: str) -> str:
    """One way to write minus signs, spaces, digits of any script, superscripts and vulgar fractions."""
    if not text.isascii():
        text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", text)
        text = re.sub("(\\d?)([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒])", lambda m: f"{m[1]}{' ' * bool(m[1])}{_FRACTIONS[m[2]]}", text)
        text = re.sub(r"[^\x00-\x7f]", lambda m: str(int(m[0])) if m[0].isdecimal() else m[0], text.translate(_TABLE))
    return text


def read_decimal(text: str) -> Fraction | None:
    """Digits with marks between them, by the rule above; None where the marks contradict it."""
    text = re.sub(r"(?<=\d)[ '](?=\d{3})", "", text)
    if sum(character.isdigit() for character in text) > MAX_DIGITS or not re.fullmatch(r"[\d.,]*\d\.?", text):
        return None
    text, marks = text.rstrip("."), re.findall("[.,]", text.rstrip("."))
    if not marks:
        return Fraction(int(text))
    last, others = marks[-1], set(marks[:-1])
    whole, _, part = text.rpartition(last)
    if last in others:  # several of one kind
        if len(others) > 1 or not re.fullmatch(rf"\d{{1,3}}(?:{re.escape(last)}\d{{2,3}})*", whole) or len(part) != 3:
            return None
        if last == "." and not re.fullmatch(r"\d{1,3}(?:\.\d{3})*", whole):
            return None
        return Fraction(int(re.sub("[.,]", "", text)))
    if others:  # the other one separates thousands
        mark = re.escape(others.pop())
        if not re.fullmatch(rf"\d{{1,3}}(?:{mark}\d{{2,3}})*{mark}\d{{3}}", whole):
            return None
        return Fraction(f"{re.sub('[.,]', '', whole)}.{part}")
    if last == "," and len(part) == 3 and re.fullmatch(r"[1-9]\d{0,2}", whole):
        return Fraction(int(whole + part))
    return Fraction(f"{whole or 0}.{part}")


def _read_magnitude(text: str) -> Fraction | None:
    if match := _MIXED.fullmatch(text):
        whole, top, bottom = (read_decimal(part) for part in match.groups())
        return whole + top / bottom if whole is not None and top is not None and bottom else None
    if match := _RATIO.fullmatch(text):
        top, bottom = read_decimal(match[1]), read_decimal(match[2])
        return top / bottom if top is not None and bottom else None
    if match := _SCIENTIFIC.fullmatch(text) or _POWER.fullmatch(text):
        exponent = match[2] or match[3]
        if len(exponent) > 6 or abs(int(exponent)) > MAX_DIGITS:
            return None
        number = read_decimal(match[1]) if match[1] else Fraction(1)
        return None if number is None else number * Fraction(10) ** int(exponent)
    return read_decimal(text)


_LEADING = re.compile(rf"\s*((?i:negative|minus)\b|[-+]?)\s*(?:(USD|EUR|GBP)\s*|\\?([{CURRENCIES}])\s*|)([-+]?)\s*")
_BODY = re.compile(
    rf"(?:\d+\s+(?:and\s+)?\d+\s*/\s*\d+(?![\d.,]*\d)|"
    rf"(?:{DIGITS}\s*{_TIMES_TEN}(?:\{{[+-]?\d+\}}|\(?[+-]?\d+\)?)|{DIGITS}[eE][+-]?\d+|{DIGITS}\s*/\s*{DIGITS}|"
    rf"{DIGITS})"
)
_WORD_BEHIND = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*\.?(?:\s+[^\W\d_]+(?:[-'][^\W\d_]+)*){0,5}")


def read_quantity(text: str) -> Quantity | None:
    """A text that is one number, with a sign, a currency, a percent sign or a unit; None for any other text.

    >>> read_quantity("$1,250.50"), read_quantity("3 1/2 %").percent
    (Quantity(value=Fraction(2501, 2), percent=False, dimension='currency', size=Fraction(1, 1), ratio=False), True)
    """
    text = without_bars(normalise(text)).strip()
    while text.startswith("(") and text.endswith(")") and len(text) < 200 and "," not in text:  # (1,2) is a pair
        text = text[1:-1].strip()
    if not text or len(text) > 2 * MAX_DIGITS:
        return None
    start = _LEADING.match(text)
    assert start
    if start[1] and start[4]:
        return None
    read = _read_body(text[start.end() :])
    if read is None:
        return None
    value, rest, ratio = read
    name, attached = start[2] or start[3] or "", not rest[:1].isspace()
    rest = rest.strip()
    percent = bool(re.match(r"\\?%|percent\b|per cent\b", rest))
    rest = re.sub(r"^(?:\\?%|percent\b|per cent\b)\s*", "", rest).rstrip(".").strip()
    unit = rest.lower() if rest.lower() in _DIMENSIONS else ""
    for word in (rest.lower().split() or [""])[:1]:
        unit = unit or (word if word in _DIMENSIONS else "")
    if rest and not unit and not _WORD_BEHIND.fullmatch(rest):
        return None
    if not unit and (
        len(rest) == 1 or (attached and re.fullmatch("[a-z]{2}", rest.lower()) and rest.lower() not in _ENDINGS)
    ):
        return None  # variables: 2x, 2xy
    if has_number_words(rest[len(unit) :]):  # 5 or six
        return None
    if unit and not re.fullmatch(r"[^\W\d]*|\s[^\d,;=]{0,60}", rest[len(unit) :]):  # "3 hours and 20 minutes"
        return None
    dimension, size = _DIMENSIONS.get(unit or name.lower(), ("", Fraction(1)))
    negative = start[1] not in ("", "+") or start[4] == "-"
    return Quantity(-value if negative else value, percent, dimension, size, ratio)


def _read_body(text: str) -> tuple[Fraction, str, bool] | None:
    """The number that a text begins with, in digits, in words, or both; the text behind it; whether it is a ratio."""
    if body := _BODY.match(text.lower()):
        value, rest = _read_magnitude(body[0].strip()), text[body.end() :]
        if value is None:
            return None
        ratio = "/" in body[0]
        if scaled := scale_behind(rest):
            return value * scaled[0], rest[scaled[1] :], ratio
        if more := more_behind(rest, value):
            return more[0], rest[more[1] :], True
        return value, rest, ratio
    words = read_words(text)
    return None if words is None else (words[0], text[words[1] :], words[0].denominator > 1)


_ENDINGS = ("st", "nd", "rd", "th", "am", "pm")
"""letters behind digits that are no variables"""


_REPEATING = re.compile(r"(?<![\d.])(\d*+)\.(\d*+)\\(?:overline|bar)\s*(?:\{\s*(\d{1,100})\s*\}|(\d))")


def without_bars(text: str, form: str = "{}") -> str:
    """Repeating decimals as fractions: 0.1\\overline{6} is 1/6.

    >>> without_bars(r"x = 0.\\overline{3}")
    'x = 1/3'
    """

    def fraction(match: re.Match[str]) -> str:
        whole, part, period = match[1] or "0", match[2], match[3] or match[4]
        if len(whole) + len(part) > 100:
            return match[0]
        value = Fraction(int(whole + part)) + Fraction(int(period), 10 ** len(period) - 1)
        return form.format(value / 10 ** len(part))

    return _REPEATING.sub(fraction, text) if "\\" in text else text
