# SPDX-License-Identifier: Apache-2.0
"""Calls of tools: their form is that of the style, their arguments follow the tool's schema, and they are read back."""

import json
from typing import Any

import pytest
import torch

from foundling.decode.constrain import tools as tools_module
from foundling.decode.constrain.constrainer import Constrainer
from foundling.decode.constrain.tools import tool_calls
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.request import Request
from foundling.decode.sampling import Sampling
from foundling.errors import GenerationError
from foundling.text import Tokenizer
from foundling.text.tool_calls import STYLES, parse_tool_calls
from foundling.verify.structured import matches_constraint
from tests.contract.cases import case
from tests.text.kinds import tokenizer

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 8},
                    "days": {"type": "integer", "minimum": 1, "maximum": 9},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"$ref": "#/$defs/n"}},
                "required": ["a", "b"],
                "additionalProperties": False,
                "$defs": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
            },
        },
    },
    {"name": "now"},
]
WEATHER = '{"name": "get_weather", "%s": {"city": "Oslo", "days": 3}}'
WRONG = '{"name": "get_weather", "%s": {"days": 3}}'


def constrainer_of(special: bool, style: str) -> tuple[Tokenizer, Constrainer]:
    words = tokenizer("gpt2")
    if special and STYLES[style].opening:
        words = words.with_tokens([mark for mark in STYLES[style][:2] if mark])
    return words, Constrainer(words, words.vocab_size, [words.eos])


def follows(words: Tokenizer, constrainer: Constrainer, constraint: Any, text: str) -> bool:
    """Whether the masks allow every token of the text, and the end after it."""
    state, logits = constrainer.processor(constraint).start([]), torch.zeros(constrainer.n_rows)
    for token in words.encode_marked(text):
        if torch.isneginf(state.apply(logits)[token]):
            return False
        state.accept(token)
    return state.complete() or not bool(torch.isneginf(state.apply(logits)[words.eos]))


def wrapped(style: str, *calls: str) -> str:
    calls = tuple(call % STYLES[style].arguments if "%s" in call else call for call in calls)
    if style == "hermes":
        return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
    return f"[TOOL_CALLS] [{', '.join(calls)}]" if style == "mistral" else calls[0]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_what_is_allowed(style: str, special: bool) -> None:
    words, constrainer = constrainer_of(special, style)
    one, bad, two = wrapped(style, WEATHER), wrapped(style, WRONG), wrapped(style, WEATHER, WEATHER)
    unknown = wrapped(style, '{"name": "rm", "%s": {}}')
    now = wrapped(style, '{"name": "now", "%s": {}}')
    free = "I do not know." if style == "llama3" else "I do not know {or} do."
    constraints = {
        "auto": tool_calls(TOOLS, style=style),
        "required": tool_calls(TOOLS, style=style, required=True),
        "single": tool_calls(TOOLS, style=style, required=True, parallel=False),
        "named": tool_calls(TOOLS, style=style, name="get_weather"),
    }
    several = style != "llama3"
    expected = {
        "auto": [one, now, free, "", free + one, *([two] if several else [])],  # llama3: a text that begins otherwise
        "required": [one, now, *([two] if several else [])],
        "single": [one, now],
        "named": [one],
    }
    for name, constraint in constraints.items():
        for text in [one, bad, two, unknown, now, free, free + one, "", one[:-3], one + " and"]:
            if style == "llama3" and text == two:
                continue
            allowed = text in expected[name]
            assert follows(words, constrainer, constraint, text) == allowed, (name, text)
            if name != "auto" or text != one + " and":  # a text after a call is not written, and is read
                assert bool(matches_constraint(text, constraint)) == allowed, (name, text)


@pytest.mark.parametrize("style", STYLES)
def test_calls_of_random_weights_are_valid(style: str) -> None:
    words = tokenizer("ours")
    model = case("llama").tiny(vocab_size=words.vocab_size, max_seq_len=512)
    constrainer = Constrainer(words, words.vocab_size, [words.eos])
    constraint = tool_calls(TOOLS, style=style, required=True, parallel=False)
    processor = constrainer.processor(constraint)
    requests = [Request([9, n], 200, Sampling(1.5), n, [words.eos], processors=[processor]) for n in range(12)]
    names = set[str]()
    for answer in Engine(model, EngineOptions(native=False)).generate(requests):
        assert answer.finish_reason == "end"
        text = constrainer.decode(answer.tokens)
        assert matches_constraint(text, constraint), text
        content, (call,) = parse_tool_calls(text, style)
        assert content == "" and isinstance(json.loads(call.arguments), dict)
        names.add(call.name)
    assert len(names) > 1


@pytest.mark.parametrize(
    ("tools", "options", "words"),
    [
        ([], {}, "expected a list of at least one"),
        (TOOLS[0], {}, "expected a list of at least one"),
        ([3], {}, "a tool is 3"),
        ([{"type": "code_interpreter"}], {}, "a tool is"),
        ([{"name": "a b"}], {}, "the name of tools[0]"),
        ([{"name": "a"}, {"name": "a"}], {}, "two tools are called a"),
        ([{"name": "a", "parameters": {"type": "string"}}], {}, "a JSON Schema of an object"),
        (
            [{"name": "a", "parameters": {"type": "object", "properties": {"p": {"not": {}}}}}],
            {},
            "not at $.properties.p.not",
        ),
        (TOOLS, {"name": "rm"}, "the tool 'rm' is unknown"),
        (TOOLS, {"style": "xml"}, "expected hermes, mistral, llama3"),
        ([{"name": f"t{n}"} for n in range(200)], {}, "the number of tools"),
    ],
)
def test_tools_that_are_none_are_refused_in_one_line(tools: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(GenerationError) as caught:
        tool_calls(tools, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_only_tools_that_may_be_called_are_read_and_as_many_as_a_grammar_may_have(monkeypatch: Any) -> None:
    read, normalize = list[Any](), tools_module.normalize_schema
    monkeypatch.setattr(tools_module, "normalize_schema", lambda schema: read.append(schema) or normalize(schema))
    tool_calls([*TOOLS, {"name": "wrong", "parameters": {"type": "object", "nothing": 1}}], name="add")
    assert len(read) == 1
    parameters = {"type": "object", "description": "x" * 40_000}
    with pytest.raises(GenerationError, match="the length of the tools' schemas"):
        tool_calls([{"name": f"t{n}", "parameters": parameters} for n in range(100)])
    assert len(read) == 3
