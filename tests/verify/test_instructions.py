# SPDX-License-Identifier: Apache-2.0
"""Every kind of instruction, by hand-written texts that follow and that do not; what is unknown is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundling.errors import DataError
from foundling.verify.instruction_kinds.wording import ends_with_emoji, sentences, syllables
from foundling.verify.instructions import KINDS, check, follows, loose_variants, score
from tests.verify.instruction_cases import CASES, IFBENCH, IFEVAL


def test_each_kind_has_cases() -> None:
    assert set(CASES) == set(KINDS)
    assert len(IFEVAL) == 25
    assert len(IFBENCH) == 58


@pytest.mark.parametrize("kind", list(CASES))
def test_kind(kind: str) -> None:
    arguments, right, wrong = CASES[kind]
    assert right and wrong
    for text in right:
        assert follows(text, kind, **arguments), text
    for text in wrong:
        assert not follows(text, kind, **arguments), text


@pytest.mark.parametrize("kind", list(CASES))
def test_an_empty_answer_follows_nothing(kind: str) -> None:
    assert not follows("", kind, **CASES[kind][0])
    assert not follows(" \n", kind, **CASES[kind][0])


@given(st.sampled_from(list(CASES)), st.text(max_size=200))
def test_any_text_is_judged(kind: str, text: str) -> None:
    if KINDS[kind].needs:
        return
    assert follows(text, kind, **CASES[kind][0]) in (True, False)


@pytest.mark.parametrize("kind", [kind for kind in CASES if not KINDS[kind].needs])
def test_long_answers_are_judged(kind: str) -> None:
    """Regular expressions with backtracking would take minutes for one of these."""
    for unit in ["(", "a ", "*", "\n", '"', "<<", "<i>", "Question 1\n", "a.", "[", "1,", "- \n", "P. "]:
        assert follows(unit * (30_000 // len(unit)), kind, **CASES[kind][0]) in (True, False)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("count:worlds", {}, "unknown"),
        ("count:numbers", {}, "lacks the argument N"),
        ("count:numbers", {"N": 2, "M": 3}, "it takes N"),
        ("count:numbers", {"N": 2.5}, "a whole number"),
        ("count:numbers", {"N": -1}, "a whole number"),
        ("count:numbers", {"N": True}, "a whole number"),
        ("keywords:existence", {"keywords": "sea"}, "a list"),
        ("keywords:frequency", {"keyword": "a", "frequency": 1, "relation": "at most"}, "less than, at least"),
        ("keywords:letter_frequency", {"letter": "ab", "let_frequency": 1, "let_relation": "less than"}, "one char"),
        ("ratio:stop_words", {"percentage": 101}, "100"),
    ],
)  # fmt: skip
def test_refused(kind: str, arguments: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        follows("text", kind, **arguments)


def test_loose_follows_where_a_variant_does() -> None:
    text = "Sure, here it is:\n*nospace*"
    result = check(text, "", ["format:no_whitespace", "punctuation:no_comma"], [{"N": None}, None])
    assert result.strict == (False, False)
    assert result.loose == (True, True)
    assert len(loose_variants("a\n*b*\nc")) == 8


def test_score_by_hand() -> None:
    kinds = ["punctuation:no_comma", "format:no_whitespace"]
    results = [check(text, "", kinds, [{}, {}]) for text in ("a", "a b", "a, b", "*a*\nb c")]
    scores = score(results)
    assert (scores.prompts, scores.instructions) == (4, 8)
    assert scores.prompt_strict == 1 / 4
    assert scores.prompt_loose == 2 / 4  # "*a*" alone has neither
    assert scores.instruction_strict == 4 / 8
    assert scores.instruction_loose == 5 / 8
    assert scores.by_kind["punctuation:no_comma"] == (4, 3, 3)


def test_kwargs_of_the_data_set_are_taken() -> None:
    """Null for what a kind does not take, and whole numbers as 3.0."""
    row = json.loads('{"N": 3.0, "keyword": null, "relation": null}')
    assert check("1 2 3", "", ["count:numbers"], [row]).strict == (True,)


def test_number_of_arguments() -> None:
    with pytest.raises(DataError, match="one for each"):
        check("a", "", ["punctuation:no_comma"], [])


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("Dr. No pays $3.50. Why?", 2), ("He came at 5 p.m. and left.", 1), ("One… two.", 2),
        ("1. Do it.\n2. Stop.", 2),
        ('He said "go." Then left.', 2), ("No end", 1), ("A heading\n\nA text.", 2), ("猫です。犬です。", 2), ("", 0),
        ("J. R. Smith wrote it.", 1), ("What?! No.", 2),
    ],
)  # fmt: skip
def test_sentences(text: str, n: int) -> None:
    assert len(sentences(text)) == n


@given(st.text(alphabet="ab .!?\n\"'1", max_size=80))
def test_sentences_lose_nothing(text: str) -> None:
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_syllables() -> None:
    words = {
        "cat": 1, "cake": 1, "table": 2, "running": 2, "walked": 1, "wanted": 2, "paper": 2, "banana": 3,
        "beautiful": 3, "every": 2, "computer": 3, "the": 1, "people": 2, "idea": 3, "being": 2, "strength": 1,
    }  # fmt: skip
    wrong = [word for word, n in words.items() if syllables(word) != n]
    assert wrong == ["every", "idea"]  # an estimate: groups of vowels are not always one syllable


def test_emoji_with_modifiers() -> None:
    assert ends_with_emoji("hi 👍🏽")
    assert ends_with_emoji("family 👨‍👩‍👧!")
    assert not ends_with_emoji("hi 5")
