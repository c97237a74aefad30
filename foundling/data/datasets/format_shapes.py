# SPDX-License-Identifier: Apache-2.0
"""Instructions on the form of an answer; see format_rules.py."""

from __future__ import annotations

import json
from itertools import count

from foundling.data.datasets.draws import Draws
from foundling.data.datasets.format_rules import (
    EMOJI,
    ENDS,
    LENGTHS,
    WORDING,
    Arguments,
    Rule,
    one_of,
    sentence,
    sentences,
    text,
)

YES_NO = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
THINGS = ("map", "lamp", "coat", "book", "camera", "basket")


def _bullets(draws: Draws, topic: str, n: int) -> str:
    return "\n".join(f"* {s}" for s in sentences(draws, topic, n))


def _placeholders(draws: Draws, topic: str, n: int) -> str:
    parts = ["Dear [name]", "we met in [place]", "on [date]", "and spoke about [subject]"]
    return f"{' '.join(parts[:n])}. {text(draws, topic, 1)}"


def _sections(draws: Draws, topic: str, a: Arguments, less: int = 0) -> str:
    parts = sentences(draws, topic, a["num_sections"] - less)
    return "\n\n".join(f"{a['section_spliter']} {n}\n{part}" for n, part in enumerate(parts, 1))


def _indented(draws: Draws, topic: str, a: Arguments) -> str:
    return "\n".join(" " * n + s for n, s in zip(count(), sentences(draws, topic, 3)))


def _title_case(draws: Draws, topic: str, a: Arguments) -> str:
    return " ".join(word.capitalize() for word in text(draws, topic).split())


def _highlighted(draws: Draws, topic: str, n: int) -> str:
    return " ".join(f"*{s.rstrip('.')}*." for s in sentences(draws, topic, n))


def _listed(draws: Draws, topic: str, a: Arguments) -> str:
    return "\n".join(f"{a['sep']} {s}" for s in sentences(draws, topic, draws.between(2, 4)))


def _two_then_bullets(draws: Draws, topic: str, a: Arguments) -> str:
    first, second, *rest = sentences(draws, topic, 4)
    return "\n".join([f"{first} {second}", *(f"* {s}" for s in rest)])


def _sub_bullets(draws: Draws, topic: str, a: Arguments) -> str:
    parts = sentences(draws, topic, 4)
    return f"* {parts[0]}\n  - {parts[1]}\n* {parts[2]}\n  - {parts[3]}"


def _json(draws: Draws, topic: str, a: Arguments) -> str:
    return json.dumps({"topic": topic, "text": text(draws, topic, 1)})


def _template(draws: Draws, topic: str, a: Arguments) -> str:
    parts = sentences(draws, topic, 3)
    labels = ("My Answer:", "My Conclusion:", "Future Outlook:")
    return "\n".join(f"{label} {part}" for label, part in zip(labels, parts, strict=True))


def _repeated(draws: Draws, topic: str, a: Arguments) -> str:
    return f"{a['prompt_to_repeat']}\n{text(draws, topic)}"


def _emoji(draws: Draws, topic: str, a: Arguments) -> str:
    return " ".join(f"{s.rstrip('.')} {draws.pick(EMOJI)}." for s in sentences(draws, topic, 2))


def _options(draws: Draws) -> Arguments:
    return {"options": "/".join(draws.sample(THINGS, 3))}


SHAPES = (
    Rule("detectable_content:number_placeholders", ("Use at least {num_placeholders} placeholders in square brackets, "
         "such as [name].",), lambda d, t, a: _placeholders(d, t, a["num_placeholders"]),
         lambda d, t, a: _placeholders(d, t, a["num_placeholders"] - 1), one_of("num_placeholders", 2, 3, 4),
         body=True),
    Rule("detectable_content:postscript", ("Add a postscript that begins with {postscript_marker}",),
         lambda d, t, a: f"{text(d, t)}\n\n{a['postscript_marker']} {text(d, t, 1)}",
         arguments=one_of("postscript_marker", "P.S.", "P.P.S"), easy=True),
    Rule("detectable_format:number_bullet_lists", ("Answer with {num_bullets} bullet points that begin with *.",
         "Write exactly {num_bullets} bullet points (lines that begin with *)."),
         lambda d, t, a: _bullets(d, t, a["num_bullets"]),
         lambda d, t, a: _bullets(d, t, a["num_bullets"] + d.pick((-1, 1))), one_of("num_bullets", 2, 3, 4), easy=True,
         body=True),
    Rule("detectable_format:constrained_response", ("Answer with one of: My answer is yes. / My answer is no. / My "
         "answer is maybe.",), lambda d, t, a: d.pick(YES_NO), lambda d, t, a: d.pick(("Yes.", "No.", "Maybe.")),
         requests=("Do you like {t}?", "Are {t} worth a journey?")),
    Rule("detectable_format:number_highlighted_sections", ("Highlight at least {num_highlights} parts, as in *this "
         "part*.",), lambda d, t, a: _highlighted(d, t, a["num_highlights"]),
         lambda d, t, a: _highlighted(d, t, a["num_highlights"] - 1), one_of("num_highlights", 2, 3)),
    Rule("detectable_format:multiple_sections", ("Write {num_sections} sections that begin with {section_spliter} 1, "
         "{section_spliter} 2 and so on.",), _sections, lambda d, t, a: _sections(d, t, a, 1),
         lambda d: {"section_spliter": d.pick(("Section", "Part", "Chapter")), "num_sections": d.between(2, 4)},
         easy=True),
    Rule("detectable_format:json_format", ("Answer in JSON.", "Your whole answer should be one JSON object."), _json),
    Rule("detectable_format:title", ("Begin with a title in double angular brackets, such as <<title>>.",
         "Give your answer a title, as in <<title>>."), lambda d, t, a: f"<<{t.capitalize()}>>\n{text(d, t)}",
         lambda d, t, a: f"{t.capitalize()}\n{text(d, t)}", easy=True),
    Rule("combination:two_responses", ("Give two different answers, separated by ******",),
         lambda d, t, a: "\n******\n".join(sentences(d, t, 2))),
    Rule("combination:repeat_prompt", ("First repeat these words without change, then answer: {prompt_to_repeat}",),
         _repeated, arguments=one_of("prompt_to_repeat", "Here is what was asked", "You want to read a short text",
                                    "The question is an old one")),
    Rule("startend:end_checker", ("End with these words: {end_phrase}", "The last words must be: {end_phrase}"),
         lambda d, t, a: f"{text(d, t)} {a['end_phrase']}", arguments=one_of("end_phrase", *ENDS), easy=True),
    Rule("startend:quotation", ("Put your whole answer in double quotation marks.", "Wrap your answer in double "
         "quotation marks."), lambda d, t, a: f'"{text(d, t)}"', easy=True),
    Rule("format:newline", ("Write each word on a line of its own.",),
         lambda d, t, a: "\n".join(text(d, t, 1).split())),
    Rule("format:emoji", ("End each sentence with an emoji.",), _emoji),
    Rule("format:line_indent", ("Indent each line further than the one before.",), _indented,
         lambda d, t, a: "\n".join(sentences(d, t, 3))),
    Rule("format:list", ("Answer with a list whose items begin with {sep}",), _listed,
         lambda d, t, a: "\n".join(f"* {s}" for s in sentences(d, t, 3)), one_of("sep", "=>", "~~", "+++", "##")),
    Rule("format:thesis", ("Begin with a statement between <i> and </i>.",),
         lambda d, t, a: f"<i>{text(d, t, 1)}</i> {text(d, t)}"),
    Rule("format:sub-bullets", ("Use bullet points with * and under each of them a point with -.",), _sub_bullets,
         lambda d, t, a: _bullets(d, t, 3)),
    Rule("format:no_bullets_bullets", ("Write two sentences, then two bullet points with *.",), _two_then_bullets,
         lambda d, t, a: _bullets(d, t, 3)),
    Rule("format:title_case", ("Write All Words With a Capital Letter.",), _title_case),
    Rule("format:output_template", ("Fill in this template: My Answer: … My Conclusion: … Future Outlook: …",),
         _template),
    Rule("format:no_whitespace", ("Leave out all spaces and line breaks.",),
         lambda d, t, a: "".join(word.capitalize() for word in text(d, t, 1).split())),
    Rule("format:options", ("Answer with one of these alone: {options}",),
         lambda d, t, a: d.pick(a["options"].split("/")),
         lambda d, t, a: f"I would take {' and '.join(a['options'].split('/')[:2])}.", _options,
         requests=("What would you take with you to see {t}?", "What does a painter of {t} need most?")),
)  # fmt: skip
RULES = (*LENGTHS, *WORDING, *SHAPES)
WRAPPERS: dict[str, Rule] = {
    rule.kind: rule
    for rule in RULES
    if rule.kind in ("detectable_format:title", "detectable_content:postscript", "startend:end_checker")
}
"""instructions that can be added to another"""


def wrapped(body: str, kind: str, draws: Draws, topic: str, arguments: Arguments) -> str:
    """An answer that also follows a wrapper."""
    if kind == "detectable_format:title":
        return f"<<{topic.capitalize()}>>\n\n{body}"
    if kind == "startend:end_checker":
        return f"{body}\n\n{arguments['end_phrase']}"
    return f"{body}\n\n{arguments['postscript_marker']} {sentence('{T} need care.', topic)}"
