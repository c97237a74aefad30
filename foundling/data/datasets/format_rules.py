# SPDX-License-Identifier: Apache-2.0
"""Instructions that can be verified, each with an answer that follows it and one that does not, on any topic.

The kinds are those of verify/instruction_kinds: 24 of IFEval's 25, and of IFBench's 58 fifteen that count or look at
the form. All other kinds of IFBench (of words, sentences, ratios, repetitions, and its custom ones), and
language:response_language, are never learnt from. This file states instructions and knows no checker, which is of a
higher layer; the tests check each answer by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from foundling.data.datasets.draws import Draws

Arguments = dict[str, Any]
SENTENCES = (
    "Many people like {t}.", "{T} come in many forms.", "Old {t} tell a story.", "Not all {t} are alike.",
    "Some {t} are small and others are large.", "There is much to learn about {t}.",
    "Pictures of {t} are easy to find.", "Books about {t} are read all over the world.",
    "We know more about {t} every year.", "{T} need care.",
    "Friends can talk about {t} for hours.", "Children often ask about {t}.", "Nobody has seen all {t}.",
    "The first {t} were not like those of today.", "Painters and poets love {t}.", "It takes time to understand {t}.",
)  # fmt: skip
"""without commas, digits and capitals inside, of 3 to 10 words"""
JOINED = {
    "and": "{T} are old and new.", "but": "{T} are simple but strange.", "or": "Few {t} are ever lost or forgotten.",
    "so": "{T} matter so people protect them.", "yet": "{T} are quiet yet never dull.",
}  # fmt: skip
"""conjunction -> a sentence that has it and no other"""
WORDS = ("lamp", "window", "bucket", "letter", "basket", "ladder", "pencil", "button", "bottle", "blanket")
FIRST_WORDS = ("today", "often", "perhaps", "indeed", "surely", "usually")
ENDS = ("That is all.", "I hope this helps.", "What do you think?", "Any other questions?")
LETTERS = {"q": "Quick and quiet.", "x": "Mix and fix.", "z": "A lazy zigzag."}
"""letter -> words that have it twice or more"""
EMOJI = "🙂🌞🌿🎈"
CONTRACTIONS = ["don't", "can't", "isn't", "won't"]


def sentence(template: str, topic: str) -> str:
    return template.format(t=topic, T=topic.capitalize())


def sentences(draws: Draws, topic: str, n: int, without: Sequence[str] = ()) -> list[str]:
    """`n` different ones, none with a word of `without`."""
    usable = [s for s in SENTENCES if not set(without) & set(s.lower().strip(".").split())]
    return [sentence(s, topic) for s in draws.sample(usable, n)]


def text(draws: Draws, topic: str, n: int = 0) -> str:
    """Of two or three sentences, unless another number is asked for."""
    return " ".join(sentences(draws, topic, n or draws.between(2, 3)))


def _plain(draws: Draws, topic: str, arguments: Arguments) -> str:
    return text(draws, topic)


@dataclass(frozen=True)
class Rule:
    """`kind`: the identifier of the checker. `wordings` state the instruction, with its arguments in braces. `follow`
    and `fail` write an answer that follows it and one that does not."""

    kind: str
    wordings: tuple[str, ...]
    follow: Callable[[Draws, str, Arguments], str]
    fail: Callable[[Draws, str, Arguments], str] = _plain
    arguments: Callable[[Draws], Arguments] = lambda draws: {}
    requests: tuple[str, ...] = ()
    """what is asked for, instead of a text on the topic"""
    easy: bool = False
    """one of the few for tiny models"""
    body: bool = False
    """it may stand beside a wrapper (WRAPPERS)"""


def one_of(name: str, *values: Any) -> Callable[[Draws], Arguments]:
    return lambda draws: {name: draws.pick(values)}


# --- lengths ---------------------------------------------------------------------------------------------------------


def _number_of(name: str, *values: int) -> Callable[[Draws], Arguments]:
    return lambda draws: {name: draws.pick(values), "relation": draws.pick(("at least", "less than"))}


def _sentences(draws: Draws, topic: str, a: Arguments) -> str:
    n = a["num_sentences"]
    return text(draws, topic, n + draws.below(2) if a["relation"] == "at least" else draws.between(1, n - 1))


def _other_sentences(draws: Draws, topic: str, a: Arguments) -> str:
    n = a["num_sentences"]
    return text(draws, topic, draws.between(1, n - 1) if a["relation"] == "at least" else n + draws.below(2))


def until(draws: Draws, topic: str, n: int, count: Callable[[list[str]], int]) -> str:
    """Sentences until `count` of their words reaches `n`."""
    parts = sentences(draws, topic, len(SENTENCES))
    end = next(k for k in range(1, len(parts) + 1) if count(" ".join(parts[:k]).split()) >= n)
    return " ".join(parts[:end])


def _unique(words: list[str]) -> int:
    return len({word.strip(".").lower() for word in words})


def _words(draws: Draws, topic: str, a: Arguments) -> str:
    at_least = a["relation"] == "at least"
    return until(draws, topic, a["num_words"], len) if at_least else text(draws, topic, 1)


def _other_words(draws: Draws, topic: str, a: Arguments) -> str:
    return _words(draws, topic, a | {"relation": "less than" if a["relation"] == "at least" else "at least"})


def _paragraphs(mark: str) -> Callable[[Draws, str, int], str]:
    return lambda draws, topic, n: mark.join(sentences(draws, topic, n))


def _nth(draws: Draws, topic: str, a: Arguments, shift: int = 0) -> str:
    parts = sentences(draws, topic, a["num_paragraphs"])
    at = (a["nth_paragraph"] - 1 + shift) % len(parts)
    parts[at] = f"{a['first_word'].capitalize()} {parts[at][0].lower()}{parts[at][1:]}"
    return "\n\n".join(parts)


LENGTHS = (
    Rule("length_constraints:number_sentences", ("Use {relation} {num_sentences} sentences.",
         "Your answer should have {relation} {num_sentences} sentences."), _sentences, _other_sentences,
         _number_of("num_sentences", 2, 3, 4, 5), easy=True, body=True),
    Rule("length_constraints:number_words", ("Use {relation} {num_words} words.", "Answer in {relation} {num_words} "
         "words."), _words, _other_words, _number_of("num_words", 12, 15, 20, 25)),
    Rule("length_constraints:number_paragraphs", ("Write {num_paragraphs} paragraphs, separated by ***.",
         "There should be {num_paragraphs} paragraphs with the divider *** between them."),
         lambda d, t, a: _paragraphs("\n***\n")(d, t, a["num_paragraphs"]),
         lambda d, t, a: _paragraphs("\n***\n")(d, t, a["num_paragraphs"] + 1), one_of("num_paragraphs", 2, 3, 4)),
    Rule("length_constraints:nth_paragraph_first_word", ("Write {num_paragraphs} paragraphs with an empty line between "
         "them. Paragraph {nth_paragraph} must begin with the word {first_word}.",), _nth,
         lambda d, t, a: _nth(d, t, a, 1),
         lambda d: {"num_paragraphs": (n := d.between(2, 4)), "nth_paragraph": d.between(1, n),
                    "first_word": d.pick(FIRST_WORDS)}),
    Rule("count:word_count_range", ("Use {min_words} to {max_words} words.",),
         lambda d, t, a: until(d, t, a["min_words"], len), lambda d, t, a: text(d, t, 1),
         lambda d: {"min_words": (n := d.between(12, 30)), "max_words": n + d.between(12, 20)}),
    Rule("count:unique_word_count", ("Use at least {N} different words.",),
         lambda d, t, a: until(d, t, a["N"], _unique), lambda d, t, a: " ".join([text(d, t, 1)] * 4),
         one_of("N", 12, 15, 18, 20)),
)  # fmt: skip

# --- words -----------------------------------------------------------------------------------------------------------


def _keywords(draws: Draws, topic: str, a: Arguments) -> str:
    first, second = a["keywords"]
    return f"{text(draws, topic)} One may also think of a {first} and a {second}."


def _repeat(draws: Draws, topic: str, a: Arguments, less: int = 0) -> str:
    starts = ("Here is a {}.", "There is another {}.", "Further on stands a {}.", "At last comes a {}.")
    return " ".join([text(draws, topic), *(s.format(a["keyword"]) for s in starts[: a["frequency"] - less])])


def _with_contraction(draws: Draws, topic: str, a: Arguments) -> str:
    return f"{text(draws, topic)} You {draws.pick(CONTRACTIONS[:2])} count them all."


def _conjunctions(draws: Draws, topic: str, a: Arguments) -> str:
    return " ".join(sentence(JOINED[word], topic) for word in draws.sample(sorted(JOINED), a["small_n"]))


def _numbers(draws: Draws, topic: str, a: Arguments, more: int = 0) -> str:
    places = draws.shuffled(("north", "south", "east", "west", "middle", "centre", "valley", "hills"))
    parts = [f"There are {draws.between(2, 99)} {topic} in the {place}." for place in places]
    return " ".join(parts[: a["N"] + more])


def _capitals(draws: Draws, topic: str, a: Arguments) -> str:
    words = text(draws, topic, 3).split(" ")
    return " ".join([*(word.upper() for word in words[: a["capital_frequency"]]), *words[a["capital_frequency"] :]])


WORDING = (
    Rule("keywords:existence", ("Use the words {keywords}.", "Include the words {keywords} in your answer."), _keywords,
         arguments=lambda d: {"keywords": d.sample(WORDS, 2)}, body=True),
    Rule("keywords:existence", ("Be polite: say please and thank you.", "Answer in a polite tone with please and thank "
         "you."), lambda d, t, a: f"Thank you for asking. {text(d, t)} Please ask again.",
         arguments=lambda d: {"keywords": ["please", "thank you"]}, body=True),
    Rule("keywords:forbidden_words", ("Do not use the words {forbidden_words}.",),
         lambda d, t, a: " ".join(sentences(d, t, 2, a["forbidden_words"])),
         lambda d, t, a: " ".join([sentence(SENTENCES[0], t), *sentences(d, t, 1, ["many"])]),
         lambda d: {"forbidden_words": ["many", d.pick(("people", "much", "often", "find"))]}, body=True),
    Rule("keywords:forbidden_words", ("Be formal: do not use {forbidden_words}.", "Answer in a formal tone without "
         "{forbidden_words}."), _plain, _with_contraction, lambda d: {"forbidden_words": CONTRACTIONS}),
    Rule("keywords:frequency", ("Use the word {keyword} {relation} {frequency} times.",), _repeat,
         lambda d, t, a: _repeat(d, t, a, 1),
         lambda d: {"keyword": d.pick(WORDS), "frequency": d.between(2, 4), "relation": "at least"}),
    Rule("keywords:frequency", ("Be enthusiastic: use {relation} {frequency} exclamation marks.",),
         lambda d, t, a: text(d, t, 4).replace(".", "!"),
         arguments=lambda d: {"keyword": "!", "frequency": d.between(2, 4), "relation": "at least"}),
    Rule("keywords:letter_frequency", ("Let the letter {letter} appear {let_relation} {let_frequency} times.",),
         lambda d, t, a: f"{text(d, t)} {LETTERS[a['letter']]}",
         arguments=lambda d: {"letter": d.pick("qxz"), "let_frequency": 2, "let_relation": "at least"}),
    Rule("count:conjunctions", ("Use at least {small_n} different conjunctions, such as and, but or so.",),
         _conjunctions, lambda d, t, a: text(d, t, 1), one_of("small_n", 2, 3, 4)),
    Rule("count:numbers", ("Use exactly {N} numbers.",), _numbers, lambda d, t, a: _numbers(d, t, a, 1),
         one_of("N", 4, 6)),
    Rule("change_case:capital_word_frequency", ("Write {capital_relation} {capital_frequency} words in capital "
         "letters.",), _capitals, arguments=lambda d: {"capital_frequency": d.between(2, 5),
         "capital_relation": "at least"}),
    Rule("change_case:english_capital", ("Answer in English and in capital letters alone.",),
         lambda d, t, a: text(d, t, 4).upper()),
    Rule("change_case:english_lowercase", ("Answer in English and in lower case alone.",),
         lambda d, t, a: text(d, t, 4).lower(), easy=True),
    Rule("punctuation:no_comma", ("Do not use any commas.", "Leave out all commas."), _plain,
         lambda d, t, a: f"As many say, {t} need care. {text(d, t, 1)}"),
)  # fmt: skip
