# SPDX-License-Identifier: Apache-2.0
"""Words, sentences, syllables, emoji and languages, by rules of our own: the checkers that were published with IFEval
and IFBench use NLTK's, spaCy's and syllapy's data, which is downloaded when they run.

Tokens are what white space separates; their punctuation at both ends is dropped, and what is left empty is no token.
Words are runs of letters and digits (`\\w+`), as both papers count them. A sentence ends at `.`, `!`, `?` or `…`
(also several, and closing quotes or parentheses behind them) before white space or the end of the text, or at `。！？`
anywhere; not behind an abbreviation, an initial, or the number of a list's item. An empty line ends a sentence as well.
"""

from __future__ import annotations

import re
import string

PUNCTUATION = string.punctuation
_ABBREVIATIONS = {
    "mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "vs", "etc", "inc", "ltd", "co", "no", "vol", "fig", "e.g",
    "i.e", "a.m", "p.m", "u.s", "u.k", "ph.d", "capt", "lt", "gen", "rev", "approx", "dept", "est", "cf", "al",
}  # fmt: skip
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]*_]*+(?=\s|$)|[。！？]+[」』”]?|\n\s*\n")
_LAST_TOKEN = re.compile(r"\S+$")

STOP_WORDS = frozenset(
    # pronouns and determiners
    "i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers "  # noqa: SIM905
    "herself it its itself they them their theirs themselves this that these those who whom whose which what a an the "
    "all any both each few more most other some such no nor not only own same so than too very "
    # auxiliaries
    "am is are was were be been being have has had having do does did doing can could will would shall should may "
    "might must don doesn didn isn aren wasn weren hasn haven hadn won wouldn shouldn couldn mightn mustn needn ain "
    "shan ma s t d ll m o re ve y "
    # prepositions, conjunctions and adverbs of place and time
    "and but if or because as until while of at by for with about against between into through during before after "
    "above below to from up down in out on off over under again further then once here there when where why how "
    "just now".split()
)
PRONOUNS = frozenset(
    "i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers "  # noqa: SIM905
    "herself it its itself they them their theirs themselves".split()
)
MINOR_WORDS = frozenset(
    "a an the and but or nor for so yet as at by from in into of off on onto out over per to up via with vs".split()  # noqa: SIM905
)
"""what titles write in lower case"""


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def joined_words(text: str) -> list[str]:
    """Words with the hyphens and apostrophes inside them: well-known, don't."""
    return re.findall(r"\w+(?:[-'’]\w+)*", text)


def tokens(text: str) -> list[str]:
    """Lower-case tokens without the punctuation around them."""
    stripped = (token.strip(PUNCTUATION) for token in text.lower().split())
    return [token for token in stripped if token]


def without_punctuation(text: str) -> str:
    return text.translate(str.maketrans("", "", PUNCTUATION))


def sentences(text: str) -> list[str]:
    """By the rule above, without the white space around them.

    >>> sentences("Dr. No pays 3.50. Why? ")
    ['Dr. No pays 3.50.', 'Why?']
    """
    result, start, end = list[str](), 0, len(text.rstrip())
    for match in _END.finditer(text):
        before = _LAST_TOKEN.search(text[max(start, match.start() - 40) : match.start()])
        token = before[0].lstrip("(\"'“‘*_").lower() if before else ""
        stops_here = match[0].strip() != "." or not (
            token in _ABBREVIATIONS
            or re.fullmatch(r"[a-z]", token)
            or (token.isdigit() and not text[start : match.start() - len(token)].strip())
        )
        if stops_here or match.end() >= end:
            result.append(text[start : match.end()].strip())
            start = match.end()
    result.append(text[start:].strip())
    return [sentence for sentence in result if sentence]


def sentence_mark(sentence: str) -> str:
    """The mark that ends a sentence, behind which quotes and markup may stand; "" without one."""
    bare = sentence.rstrip("\"'”’)]*_ ")
    return bare[-1:] if bare[-1:] in ".!?" else ""


_VOWELS = re.compile(r"[aeiouyàáâäèéêëìíîïòóôöùúûü]+")


def syllables(word: str) -> int:
    """Groups of vowels; a final e is silent unless it is the only one or ends -le behind a consonant, and so is the e
    of -ed behind anything but d and t. An estimate: it is right for about nine words in ten of English."""
    word = word.lower()
    count = len(_VOWELS.findall(word))
    if word.endswith("e") and not re.search(r"[^aeiouy]le$", word) and not re.search(r"[aeiouy]e$", word):
        count -= 1
    if re.search(r"[^aeioudty]ed$", word) or re.search(r"[^aeiouycsxzhg]es$", word):
        count -= 1
    if re.search(r"[^aeiouy]ia[nl]?$|eo[nr]?$|io$|[aeiou]ing$|[st]m$", word):
        count += 1
    return max(count, 1)


_EMOJI = re.compile(
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u21aa\u231a-\u23ff\u24c2\u25aa-\u27bf\u2934-\u2935\u2b05-\u2b55"
    "\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
)
_JOINERS = "\u200d\ufe0f\ufe0e\u20e3" + "".join(chr(n) for n in range(0x1F3FB, 0x1F400))


def ends_with_emoji(text: str) -> bool:
    text = text.rstrip().rstrip(PUNCTUATION + "…").rstrip(_JOINERS + " ")
    return bool(text) and bool(_EMOJI.match(text[-1]))


def starts_with_emoji(text: str) -> bool:
    return bool(_EMOJI.match(text.lstrip().lstrip(PUNCTUATION)))


def is_japanese(text: str) -> bool:
    return bool(re.search("[\u3040-\u30ff\u31f0-\u31ff\u4e00-\u9fff\uff66-\uff9d]", text))


def language(text: str) -> str:
    """The ISO 639-1 code of a text's language by py3langid, "" for a text without letters."""
    if not any(character.isalpha() for character in text):
        return ""
    import py3langid

    return py3langid.classify(text.lower() if text.isupper() else text)[0]
