# SPDX-License-Identifier: Apache-2.0
"""Calls of tools in answers, and in answers that only look like some."""

import pytest

from foundling.text.tool_calls import STYLES, parse_tool_calls, shown_length, style_of

HERMES = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("style", "text", "content", "calls"),
    [
        ("hermes", HERMES, "", [("f", '{"x": "é"}')]),
        ("hermes", f"I look.\n{HERMES}\n{HERMES}", "I look.", [("f", '{"x": "é"}')] * 2),
        ("hermes", '<tool_call>{"name": "g"}</tool_call>', "", [("g", "{}")]),
        ("hermes", "no call", "no call", []),
        ("hermes", HERMES[:-5], HERMES[:-5], []),
        ("hermes", "<tool_call>\n{not json}\n</tool_call>", "<tool_call>\n{not json}\n</tool_call>", []),
        ("hermes", '<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', []),
        (
            "hermes",
            '<tool_call>{"name": "f", "arguments": []}</tool_call>',
            '<tool_call>{"name": "f", "arguments": []}</tool_call>',
            [],
        ),
        (
            "mistral",
            '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"y": 1}}]',
            "",
            [("f", "{}"), ("g", '{"y": 1}')],
        ),
        ("mistral", '[{"name": "f", "arguments": {}}]', '[{"name": "f", "arguments": {}}]', []),  # without the mark
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {}}] and', None, []),
        (
            "hermes",
            'So <tool_call>{"name": "f", "arguments": {"x": "</tool_call><tool_call>"}} </tool_call>.',
            "So .",
            [("f", '{"x": "</tool_call><tool_call>"}')],
        ),
        ("hermes", '<tool_call>{"name": "f"} x</tool_call>', None, []),
        ("hermes", HERMES + "<tool_call>", None, []),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": [1e999]}}</tool_call>', None, []),
        ("llama3", '{"name": "f", "parameters": {"x": -Infinity}}', None, []),
        ("mistral", "[1, 2]", "[1, 2]", []),
        ("mistral", "text", "text", []),
        ("llama3", '{"name": "f", "parameters": {"x": 1}}', "", [("f", '{"x": 1}')]),
        ("llama3", '\n {"name": "f", "parameters": {"x": 1}}\n', "", [("f", '{"x": 1}')]),
        ("llama3", '{"answer": 3}', '{"answer": 3}', []),
        ("llama3", '[{"name": "f", "parameters": {}}]', '[{"name": "f", "parameters": {}}]', []),
        ("hermes", "<tool_call>" + "[" * 100_000 + "</tool_call>", "<tool_call>" + "[" * 100_000 + "</tool_call>", []),
        ("hermes", "<tool_call>" * 1000, "<tool_call>" * 1000, []),
        ("llama3", '{"name": "f", "parameters": ' + '{"a": ' * 200 + "1" + "}" * 201, None, []),
    ],
)
def test_calls(style: str, text: str, content: str | None, calls: list[tuple[str, str]]) -> None:
    assert parse_tool_calls(text, style) == (text if content is None else content, calls)


def test_the_style_is_that_of_the_chat_template() -> None:
    assert style_of(None) == style_of("{{ messages }}") == style_of("…<tool_call>…") == "hermes"
    assert style_of("…[TOOL_CALLS]…") == "mistral"
    assert style_of('{"name": …, "parameters": …} <|python_tag|>') == "llama3"


@pytest.mark.parametrize(
    ("style", "answer"),
    [
        ("hermes", f"Let me see: 1 < 2.\n{HERMES}"),
        ("hermes", "a < b <tool_cal and no more"),
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {}}]'),
        ("llama3", '{"name": "f", "parameters": {}}'),
        ("llama3", "A plain answer."),
        ("mistral", '[{"name": "f", "arguments": {}}]'),
        ("mistral", "[TOOL and no more"),
    ],
)
def test_what_is_shown_of_an_answer_under_way_is_never_taken_back(style: str, answer: str) -> None:
    content, calls = parse_tool_calls(answer, style)
    shown = [shown_length(answer[:n], style) for n in range(len(answer) + 1)]
    assert shown == sorted(shown)
    assert all(content.startswith(answer[:n].strip()) for n in shown)
    if calls and not content:
        assert shown[-1] == 0
    assert set(STYLES) == {"hermes", "mistral", "llama3"}
