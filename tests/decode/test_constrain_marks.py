# SPDX-License-Identifier: Apache-2.0
"""What a grammar allows and what is read from the answer are the same, whatever texts of a user or model resemble."""

import json
from typing import Any

import pytest
import torch

import foundling
from foundling.decode.constrain.constrainer import Constrainer
from foundling.decode.constrain.constraint import (
    MARK,
    Constraint,
    after_reasoning,
    choice,
    grammar,
    json_schema,
    regex,
)  # fmt: skip
from foundling.decode.constrain.tools import tool_calls
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.text import TextGenerator
from foundling.errors import GenerationError
from foundling.text.tool_calls import parse_tool_calls
from foundling.verify.structured import matches_constraint
from tests.contract.cases import case
from tests.decode.test_constrain_tools import TOOLS, constrainer_of, follows
from tests.text.kinds import tokenizer

ODD_KEYS = ["until_0", "until_mark", "TEXT", "GAP", MARK % 0, "\N{OBJECT REPLACEMENT CHARACTER}", "start"]


@pytest.mark.parametrize(
    ("lark", "text"),
    [
        ('start: TEXT "!"\nTEXT: /[a-z]+/\n', "ab!"),
        ('start: CONTEXT "!"\nCONTEXT: /[a-z]+/', "ab!"),
        ('start: until_0 until_mark\nuntil_0: "a"\nuntil_mark: "b"', "ab"),
        (f'start: "{MARK % 0}"', MARK % 0),
    ],
)
@pytest.mark.parametrize("reasons", [False, True])
def test_a_grammar_of_a_user_is_left_as_it_is(lark: str, text: str, reasons: bool) -> None:
    words = tokenizer("gpt2")
    constrainer = Constrainer(words, words.vocab_size, [words.eos])
    constraint, begin = grammar(lark), "why</think>\n" if reasons else ""
    constraint = after_reasoning(constraint) if reasons else constraint
    assert follows(words, constrainer, constraint, begin + text) and matches_constraint(begin + text, constraint)
    assert not follows(words, constrainer, constraint, begin + text + text)


@pytest.mark.parametrize("key", ODD_KEYS)
def test_a_schema_may_have_any_key(key: str) -> None:
    words = tokenizer("gpt2")
    constrainer = Constrainer(words, words.vocab_size, [words.eos])
    schema = {"type": "object", "properties": {key: {"const": key}}, "required": [key]}
    text = json.dumps({key: key}, ensure_ascii=False)
    for constraint in (json_schema(schema), after_reasoning(json_schema(schema), "", MARK % 0 + "until_0")):
        begin = MARK % 0 + "until_0" if constraint.reasoning else ""
        assert follows(words, constrainer, constraint, begin + text)
    tools = [{"name": "f", "parameters": schema}]
    call = f'<tool_call>\n{{"name": "f", "arguments": {text}}}\n</tool_call>'
    assert follows(words, constrainer, tool_calls(tools), "Look: " + call)


@pytest.mark.parametrize(
    ("style", "special", "text"),
    [
        ("llama3", False, '\n{"name": "rm", "parameters": {}}'),
        ("llama3", False, ' \t\r\n{"name": "get_weather", "parameters": 1}'),
        ("llama3", False, "\n{ or not"),
        ("llama3", False, " I {would}."),
        ("llama3", False, "\n"),
        ("mistral", False, '[{"name": "rm", "arguments": {}}]'),
        ("mistral", True, '[{"name": "rm", "arguments": {}}]'),
        ("mistral", False, '[TOOL_CALLS] [{"name": "rm", "arguments": {}}]'),
        ("hermes", False, '<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>'),
    ],
)
def test_free_text_is_no_call(style: str, special: bool, text: str) -> None:
    """What the grammar admits as free text is read as content, and what would be read as a call of an unknown tool is
    not admitted."""
    words, constrainer = constrainer_of(special, style)
    constraint = tool_calls(TOOLS, style=style)
    admitted = follows(words, constrainer, constraint, text)
    assert admitted == bool(matches_constraint(text, constraint))
    if admitted:
        assert parse_tool_calls(text, style) == (text, [])


@pytest.mark.parametrize("style", ["hermes", "mistral"])
def test_a_mark_that_is_a_special_token_is_not_written_as_plain_text(style: str) -> None:
    words, constrainer = constrainer_of(True, style)
    state = constrainer.processor(tool_calls(TOOLS, style=style)).start([])
    opening, logits = "<tool_call>" if style == "hermes" else "[TOOL_CALLS]", torch.zeros(constrainer.n_rows)
    for token in words.encode("So: " + opening[:-1]):
        assert not torch.isneginf(state.apply(logits)[token])
        state.accept(token)
    (last,) = words.encode(opening[-1])
    assert torch.isneginf(state.apply(logits)[last])


def test_an_argument_may_have_the_closing_mark() -> None:
    words, constrainer = constrainer_of(False, "hermes")
    text = 'So:\n<tool_call>\n{"name": "say", "arguments": {"t": "a</tool_call> <tool_call>\\n{"}}\n</tool_call>'
    tools = [{"name": "say", "parameters": {"type": "object", "properties": {"t": {"type": "string"}}}}]
    constraint = tool_calls(tools)
    assert follows(words, constrainer, constraint, text) and matches_constraint(text, constraint)
    assert parse_tool_calls(text, "hermes")[1][0].arguments == '{"t": "a</tool_call> <tool_call>\\n{"}'


def generator_of(words: Any, engine: bool, folder: Any) -> TextGenerator:
    model = case("llama").tiny(vocab_size=words.vocab_size, max_seq_len=256)
    foundling.save(model, folder, tokenizer=words)
    return TextGenerator.of(model, folder, Engine(model, EngineOptions(native=False)) if engine else None)


@pytest.mark.parametrize("engine", [False, True])
def test_marks_that_are_special_tokens_are_in_the_text(engine: bool, tmp_path: Any) -> None:
    """`text` of an answer is what the validator and the parser read."""
    words, _ = constrainer_of(True, "mistral")
    generator = generator_of(words.with_tokens(["<think>", "</think>"]), engine, tmp_path / "m")
    constraint: Constraint = tool_calls([{"name": "now"}], style="mistral", name="now")
    (answer,) = generator.generate("the", constraint=constraint, max_tokens=80)
    assert answer["finish_reason"] == "end" and matches_constraint(answer["text"], constraint)
    assert parse_tool_calls(answer["text"], "mistral")[1][0].name == "now"
    generator.sampling = generator.sampling.__class__(
        logit_bias={generator.tokenizer.backend.token_to_id("</think>"): 50.0}
    )
    constraint = after_reasoning(choice(["yes"]))
    (answer,) = generator.generate("the", constraint=constraint, max_tokens=80)
    assert answer["finish_reason"] == "end" and matches_constraint(answer["text"], constraint), answer


@pytest.mark.parametrize("engine", [False, True])
def test_a_dead_end_is_an_error(engine: bool, tmp_path: Any) -> None:
    """This tokenizer has no snowman."""
    generator = generator_of(tokenizer("t5"), engine, tmp_path / "m")
    with pytest.raises(GenerationError, match="no token that continues"):
        generator.generate("the", constraint=regex("[ab]☃"), max_tokens=20)
