# SPDX-License-Identifier: Apache-2.0
"""The final answer of a solution, in the formats that data sets publish and models write.

In their order: the last line `#### 72` (GSM8K), the last `\\boxed{…}` (MATH), the last `Answer: …`, `A: …` or `The
answer is …` in one of fourteen languages, a text that is nothing but an answer, what follows the last `=` of the last
sentence, the last number of the last sentence, and the last number of the text.
"""

from __future__ import annotations

import re

from foundling.verify.calculator import without_annotations
from foundling.verify.exact import rational, value_of
from foundling.verify.expressions import NoExpression, parse
from foundling.verify.number_words import begins_with_number_word, has_number_words
from foundling.verify.numbers import DIGITS, NUMBER, normalise, read_quantity, show, without_bars

TAIL = 1 << 16
"""characters at the end of a text in which an answer is sought"""
MAX_ANSWER = 4_000
"""characters of an answer"""

OPTION = re.compile(r"\(([A-Za-z])\)|([A-Z])[).:]?")
_OPTION_AND_TEXT = re.compile(
    r"\(([A-J])\)(?=[\s:.,;]|$)|([A-J])\)(?=\s)|([A-J])[.:](?=\s+\S)|"
    r"([A-J])(?:,\s+(?=not\b|because\b|since\b|as\b|so\b|which\b)|\s+(?=because\b|since\b))"
)
_OPTION_BEHIND = re.compile(r"\b(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer)\s+(?:\(([A-J])\)|([A-J]))[).]?$")
_VERDICT = re.compile(r"(yes|no|true|false)(?:[,;:.—–]|\s+(?:because|since|as)\b)", re.IGNORECASE)
_COMPOUND = re.compile(
    rf"(?<![\w.,]){DIGITS}\s?([^\W\d_]+)(?:,?\s+and|,)?\s+{DIGITS}\s?([^\W\d_]+)"
    rf"(?:(?:,?\s+and|,)?\s+{DIGITS}\s?[^\W\d_]+)?"
)
_CASES = re.compile(r"(?<!\w)([a-zA-Z])\s*=\s*[^=]{1,80}?(?:,?\s+or|,?\s+and|,)\s+\1\s*=\s*[^=]{1,80}$")
"""x = 3 or x = -2"""
_ASIDES = (
    re.compile(r"(?<=\S)\s*\([^()]*\)[\s.!]*$"),
    re.compile(rf",\s*(?:or\s|which is\s|that is\s|i\.e\.,?\s)?[^\s,]{{0,2}}{DIGITS}[^,]{{0,80}}?\bthan\b[^,]*$"),
)
"""what ends a sentence behind its answer: (5 red, 5 green), and ", 5 more than before"."""
_LABEL = r"[*_]*\s*(?:\([^()\n]{0,40}\)\s*)?"
_PHRASES = re.compile(
    rf"(?:\b(?:answer|ans|option|choice|result){_LABEL}"
    r"(?:\bis\b|\bwas\b|\bequals\b|\b(?:would|will|must|should) be\b|:|：|=)"
    r"|^[ \t*_]*A[*_]*\s?:|\bAnswer[*_]*[ \t]*\n|antwort\s+(?:lautet|ist|is)\b|\bAntwort\s*:|respuesta\s+(?:es\b|:)"
    r"|respuesta\s*:|réponse\s+est\b|réponse\s*:|risposta\s+è|risposta\s*:|resposta\s+é|resposta\s*:"
    r"|ответ\s*(?:—|–|-|:|это)"
    r"|jibu\s+ni\b|jibu\s*:|odpowiedź\s*(?:to|:)|答案(?:是|为|：|:)|答えは|答え(?:：|:)"
    r"|คำตอบ(?:คือ|:)|సమాధానం(?:\s*:)?|উত্তর(?:\s*(?:হল|:))?)"
    r"[*_]*\s?:?[*_]*",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(
    r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bNo)(?<!\bvs)(?<=[^\s.])[.!?](?=[\s\"')*]|$)(?!\s*\d)|[。！？।]"
)
_FILLER = re.compile(
    r"(?:(?:about|approximately|roughly|around|exactly|only|just|simply|equal|equals|to|that|therefore|a total of|be|"
    r"at least|at most|no more than|no less than|up to|a minimum of|a maximum of|"
    r"thus|so|now|still|then|is)\b[:\s]*)+",
    re.IGNORECASE,
)
_TIME = re.compile(r"(?<![\d:])\d{1,2}:\d{2}(?::\d{2})?(?:\s?[ap]\.?m\b\.?)?(?!:?\d)", re.IGNORECASE)
_CLAUSE = re.compile(
    r"\b(?:is|are|was|were|has|have|had|gets?|costs?|pays?|makes?|equals|needs?|gives?|takes?|totals?|so|thus|therefore|"
    r"it|he|she|they|we)\b",
    re.IGNORECASE,
)
"""what "so it is 5" has, and "May 5" has not"""
_WRAPPERS = (
    ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("__", "__"), ("`", "`"), ('"', '"'),
    ("“", "”"), ("'", "'"), ("*", "*"),
)  # fmt: skip
_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|boldsymbol)\s*\{([^{}]*)\}")
_MATH = re.compile(r"\$\$([^$]+)\$\$|\$(?=[^\s$])([^$\n]*[^\s$\\])\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def final_answer(text: str) -> str | None:
    """The answer as text: numbers in one form ("$1,250.50" as 1250.5, "1 1/2" as 3/2, "18 dollars" as 18), options
    without parentheses, expressions and words without markup. None where the text has no answer.

    >>> final_answer("He pays 3 * $6 = <<3*6=18>>$18.\\n#### 18"), final_answer(r"so $x = \\\\boxed{\\\\frac{3}{4}}$.")
    ('18', '3/4')
    """
    text = without_bars(without_annotations(text[-TAIL:])).strip()
    if not text:
        return None
    for marked in (_after_hashes(text), boxed(text)):
        if marked is not None and (answer := _settle(marked)):
            return answer
    for match in reversed(list(_PHRASES.finditer(text))):
        content = text[match.end() :].lstrip()
        if content and (answer := _settle(_sentence(content))):
            return answer
    return _without_marks(text) or None


def _after_hashes(text: str) -> str | None:
    at = text.rfind("####")
    if at < 0:
        return None
    content, _, rest = text[at:].lstrip("#").strip(" \t").partition("\n")
    # "#### Step 2" is a heading
    return content if not rest.strip() or read_quantity(plain(content)) else None


def boxed(text: str) -> str | None:
    """What the last \\boxed{…} or \\fbox{…} holds, braces inside included; None where there is none that ends."""
    at = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if at < 0:
        return None
    content = text[at:].removeprefix("\\boxed").removeprefix("\\fbox").lstrip()
    if not content.startswith("{"):
        return content.split("$")[0].split()[0] if content.split("$")[0].split() else None
    depth = 0
    for match in re.finditer(r"\\.|[{}]", content, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if not depth:
            return content[1 : match.start()]
    return None


def _sentence(text: str) -> str:
    """The first sentence of the first line."""
    line = text.split("\n", 1)[0][:MAX_ANSWER]
    end = next((m for m in _SENTENCE_END.finditer(line) if line[: m.start()].count("$") % 2 == 0), None)
    return line[: end.start()] if end else line


def plain(text: str) -> str:
    """An answer without the markup around it: dollar signs of LaTeX, bold, quotes, \\boxed, \\text, a final stop."""
    text = text[:MAX_ANSWER].strip()
    if "\\boxed" in text or "\\fbox" in text:
        text = boxed(text) or text
    for _ in range(8):
        before = text
        text = _COMMAND.sub(r" \1 ", text).strip()
        text = text.replace("\\%", "%").replace("\\$", "$").replace("{,}", ",").replace("{:}", ":")
        text = re.sub(r",\s*\\!\s*(?=\d{3})", ",", text)
        text = re.sub(r"\\[!,;:](?=\s|\d|\\|$|[a-z])|~", " " if "~" in text else "", text).strip()
        if text.count("**") % 2:  # the other half stands outside
            text = re.sub(r"^\*\*|\*\*$", "", text).strip()
        for left, right in _WRAPPERS:
            inner = text[len(left) : len(text) - len(right)]
            if len(text) > len(left + right) and text.startswith(left) and text.endswith(right) and left not in inner:
                text = inner.strip()
        text = re.sub(r"(?<![\d)}])!+$|(?<!\.)\.$", "", text.rstrip(",;:?。")).strip()
        if text == before:
            break
    return text


def _settle(content: str) -> str:
    """The one form of an answer, from the text that holds it and little else."""
    text = re.sub(r"^(?:option|choice|letter)\s+(?=\S)", "", plain(content), flags=re.IGNORECASE)
    if option := OPTION.fullmatch(text):
        letter = option[1] or option[2]
        return letter.upper() if letter.lower() <= "j" else letter
    if option := _OPTION_AND_TEXT.match(text):
        return next(filter(None, option.groups()))
    if option := _OPTION_BEHIND.search(text):
        return option[1] or option[2]
    if verdict := _VERDICT.match(text):
        return verdict[1]
    text = _mathematics(text)
    text = _FILLER.sub("", text, count=1) if _FILLER.match(text) and _FILLER.sub("", text, count=1) else text
    if number := _number(text):
        return number
    sides = text.rsplit("=", 1)
    listed = re.search(r"[,;]\s|\b(?:and|or)\b|[<>\\!]$", sides[0])
    if len(sides) == 2 and not listed and (number := _number(plain(sides[1]))):
        return number
    if not _is_words(text) and _is_expression(text):
        return " ".join(text.split())
    words, match = text.split(), NUMBER.match(normalise(text))
    # a time, a date, LaTeX, 3 hours and 20 minutes
    longer = r"[:/\-]\d|[^\W\d]|\s*\\|\s\w+(?:,|,?\sand)\s\d"
    if (
        match and not re.match(longer, normalise(text)[match.end() :]) and not _compound(text)
        and not begins_with_number_word(normalise(text)[match.end() :])  # 5 squared
        and (number := read_quantity(match[0]))
    ):  # fmt: skip
        return str(number)
    numbers = NUMBER.findall(normalise(text))
    if len(numbers) == 1 and len(words) > 3 and "\\" not in text and (number := read_quantity(numbers[0])):
        return str(number)
    return " ".join(words)


def _number(text: str) -> str | None:
    """One form for a number or a fraction of LaTeX; None for any other text."""
    if number := read_quantity(text):
        return str(number)
    match = re.fullmatch(r"([-+]?\s*\d*\s*\\[dtc]?frac[-+{}\d\s]+)((?:\s[a-zA-Z]+){0,4})", text)
    if not match or has_number_words(match[2]):
        return None
    try:
        value = rational(value_of(parse(match[1])))
    except NoExpression:
        return None
    return None if value is None else show(value, ratio=True)


def _mathematics(text: str) -> str:
    """The formula of a sentence that has one; several with nothing but "and" between them, as a list."""
    matches = list(_MATH.finditer(text))
    if not matches:
        return text
    between = _MATH.sub("", text)
    parts = [next(filter(None, match.groups())).strip() for match in matches]
    if len(parts) > 1 and not re.search(r"\w", re.sub(r"\b(?:and|or)\b", "", between)):
        return ", ".join(parts)
    behind = text[matches[0].end() :].lstrip()
    return plain(parts[0] + ("%" if behind.startswith("%") else ""))


def _is_words(text: str) -> bool:
    return all(not character.isdigit() and (character.isalpha() or character in " -'") for character in text) and (
        len(text) > 1
    )


def _is_expression(text: str) -> bool:
    try:
        parse(text)
    except NoExpression:
        return False
    return True


def _unmarked(text: str) -> str:
    """Formulas and words of a sentence alike, without the marks of LaTeX around the formulas."""
    return _MATH.sub(lambda match: next(filter(None, match.groups())), text)


def _compound(sentence: str) -> str | None:
    """The last quantity of two units of one dimension, if no number is behind it: 4 hours and 20 minutes."""
    matches = list(_COMPOUND.finditer(sentence))
    if not matches or NUMBER.search(normalise(sentence[matches[-1].end() :])):
        return None
    first, second = (read_quantity(f"1 {name}") for name in matches[-1].groups())
    same = first and second and first.dimension and first.dimension == second.dimension and first.size > second.size
    return matches[-1][0] if same else None


def _without_marks(text: str) -> str | None:
    if "\n" not in text and len(text) <= MAX_ANSWER:
        short = plain(text)
        few = len(short.split()) < (7 if NUMBER.match(normalise(short)) else 5) and not (
            _CLAUSE.search(short) and NUMBER.search(normalise(short))
        )
        if OPTION.fullmatch(short) or _OPTION_AND_TEXT.match(short) or _is_expression(short) or few:
            return _settle(short)
    lines = [line for line in text.split("\n") if line.strip()]
    line = lines[-1][-MAX_ANSWER:]
    if OPTION.fullmatch(plain(line)):
        return _settle(line)
    ends = [match.end() for match in _SENTENCE_END.finditer(line.rstrip()[:-1])]
    sentence = line[ends[-1] :] if ends else line
    if cases := _CASES.search(plain(_unmarked(sentence))):
        return cases[0]
    if len(sides := plain(sentence).rsplit("=", 1)) == 2 and sides[1].strip():
        answer = _settle(sides[1])
        if read_quantity(answer) or _is_expression(answer):
            return answer
    if time := list(_TIME.finditer(sentence)):
        return time[-1][0]
    for aside in _ASIDES:
        if (shorter := aside.sub("", sentence)) != sentence and NUMBER.search(normalise(shorter)):
            sentence = shorter
    if compound := _compound(sentence):
        return compound
    for part in (plain(_mathematics(sentence)), sentence, line, text):
        numbers = [number for match in NUMBER.finditer(normalise(part)) if (number := read_quantity(match[0]))]
        if numbers:
            return str(numbers[-1])
    short = plain(lines[-1])
    return _settle(short) if len(short.split()) < 5 else None
