# SPDX-License-Identifier: Apache-2.0
"""The 25 kinds of IFEval (Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models", table 1)."""

from __future__ import annotations

import re

from foundling.verify.instruction_kinds.kind import Kind, compare
from foundling.verify.instruction_kinds.wording import joined_words, language, sentences, words
from foundling.verify.structured import json_value

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def existence(text: str, prompt: str, keywords: list[str]) -> bool:
    return all(keyword.strip().casefold() in text.casefold() for keyword in keywords)


def frequency(text: str, prompt: str, keyword: str, frequency: int, relation: str) -> bool:
    return compare(text.casefold().count(keyword.strip().casefold()), relation, frequency)


def forbidden_words(text: str, prompt: str, forbidden_words: list[str]) -> bool:
    return not any(
        re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE) for word in forbidden_words
    )


def letter_frequency(text: str, prompt: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return compare(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def response_language(text: str, prompt: str, language: str) -> bool:
    return _language(text) == language


_language = language


def number_sentences(text: str, prompt: str, num_sentences: int, relation: str) -> bool:
    return compare(len(sentences(text)), relation, num_sentences)


def number_paragraphs(text: str, prompt: str, num_paragraphs: int) -> bool:
    """Paragraphs are separated by ***; the first and the last may be empty."""
    paragraphs = [paragraph.strip() for paragraph in text.split("***")]
    for end in (0, -1):
        if paragraphs and not paragraphs[end]:
            del paragraphs[end]
    return all(paragraphs) and len(paragraphs) == num_paragraphs


def number_words(text: str, prompt: str, num_words: int, relation: str) -> bool:
    return compare(len(words(text)), relation, num_words)


def nth_paragraph_first_word(text: str, prompt: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are separated by empty lines."""
    paragraphs = [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    first = paragraphs[nth_paragraph - 1].split()[0].lstrip("\"'“‘*_")
    return re.split(r"[.,?!'\"“”’*_:;]", first, maxsplit=1)[0].lower() == first_word.strip().lower()


def number_placeholders(text: str, prompt: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]\n]*\]", text)) >= num_placeholders


def postscript(text: str, prompt: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip().lower()
    # P.P.S and P. P. S. are one marker; so are P.S. and p. s.
    pattern = {"p.p.s": r"p\.\s?p\.\s?s", "p.s.": r"p\.\s?s\."}.get(marker, re.escape(marker))
    return bool(re.search(pattern, text.lower()))


def number_bullet_lists(text: str, prompt: str, num_bullets: int) -> bool:
    lines = [line.strip() for line in text.split("\n")]
    return sum(bool(re.match(r"\*(?!\*).|-", line)) for line in lines) == num_bullets


def constrained_response(text: str, prompt: str) -> bool:
    return any(option in text for option in OPTIONS)


def number_highlighted_sections(text: str, prompt: str, num_highlights: int) -> bool:
    """*italic* and **bold** of Markdown, on one line each; none of them empty."""
    spans = re.findall(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*", text)
    return sum(bool("".join(span).strip()) for span in spans) >= num_highlights


def multiple_sections(text: str, prompt: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def json_format(text: str, prompt: str) -> bool:
    return json_value(text).follows


def title(text: str, prompt: str) -> bool:
    """<<…>> in one line, not empty."""
    lines = [line[max(line.find("<<"), 0) : line.rfind(">>") + 2] for line in text.split("\n") if ">>" in line]
    return any(line.startswith("<<") and line.strip("<> ") for line in lines)


def two_responses(text: str, prompt: str) -> bool:
    """Separated by six asterisks."""
    parts = [part.strip() for part in text.split("******")]
    if len(parts) > 1 and not parts[0]:
        del parts[0]
    if len(parts) > 1 and not parts[-1]:
        del parts[-1]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def repeat_prompt(text: str, prompt: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, prompt: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str, prompt: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def capital_word_frequency(text: str, prompt: str, capital_frequency: int, capital_relation: str) -> bool:
    capitals = sum(word.isupper() for word in joined_words(text))
    return compare(capitals, capital_relation, capital_frequency)


def english_capital(text: str, prompt: str) -> bool:
    return text.isupper() and _language(text) == "en"


def english_lowercase(text: str, prompt: str) -> bool:
    return text.islower() and _language(text) == "en"


def no_comma(text: str, prompt: str) -> bool:
    return "," not in text


KINDS = {
    "keywords:existence": Kind(existence, {"keywords": "texts"}),
    "keywords:frequency": Kind(frequency, {"keyword": "text", "frequency": "count", "relation": "relation"}),
    "keywords:forbidden_words": Kind(forbidden_words, {"forbidden_words": "texts"}),
    "keywords:letter_frequency": Kind(
        letter_frequency, {"letter": "letter", "let_frequency": "count", "let_relation": "relation"}
    ),
    "language:response_language": Kind(response_language, {"language": "text"}, "py3langid"),
    "length_constraints:number_sentences": Kind(number_sentences, {"num_sentences": "count", "relation": "relation"}),
    "length_constraints:number_paragraphs": Kind(number_paragraphs, {"num_paragraphs": "count"}),
    "length_constraints:number_words": Kind(number_words, {"num_words": "count", "relation": "relation"}),
    "length_constraints:nth_paragraph_first_word": Kind(
        nth_paragraph_first_word, {"num_paragraphs": "count", "nth_paragraph": "count", "first_word": "text"}
    ),
    "detectable_content:number_placeholders": Kind(number_placeholders, {"num_placeholders": "count"}),
    "detectable_content:postscript": Kind(postscript, {"postscript_marker": "text"}),
    "detectable_format:number_bullet_lists": Kind(number_bullet_lists, {"num_bullets": "count"}),
    "detectable_format:constrained_response": Kind(constrained_response, {}),
    "detectable_format:number_highlighted_sections": Kind(number_highlighted_sections, {"num_highlights": "count"}),
    "detectable_format:multiple_sections": Kind(
        multiple_sections, {"section_spliter": "text", "num_sections": "count"}
    ),
    "detectable_format:json_format": Kind(json_format, {}),
    "detectable_format:title": Kind(title, {}),
    "combination:two_responses": Kind(two_responses, {}),
    "combination:repeat_prompt": Kind(repeat_prompt, {"prompt_to_repeat": "text"}),
    "startend:end_checker": Kind(end_checker, {"end_phrase": "text"}),
    "startend:quotation": Kind(quotation, {}),
    "change_case:capital_word_frequency": Kind(
        capital_word_frequency, {"capital_frequency": "count", "capital_relation": "relation"}
    ),
    "change_case:english_capital": Kind(english_capital, {}, "py3langid"),
    "change_case:english_lowercase": Kind(english_lowercase, {}, "py3langid"),
    "punctuation:no_comma": Kind(no_comma, {}),
}
"""the identifiers and arguments of the data set google/IFEval"""
