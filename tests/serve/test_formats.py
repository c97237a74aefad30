# SPDX-License-Identifier: Apache-2.0
"""The form of an answer over HTTP: JSON Schema, patterns, grammars, choices, calls of tools, reasoning before them."""

import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from foundling.serve.formats import AnswerForm, AnswerStream
from foundling.serve.protocol import ChatBody
from tests.serve.servers import Live, save_model, serving

SCHEMA = {
    "type": "object", "required": ["name", "legs"], "additionalProperties": False,
    "properties": {"name": {"enum": ["cat", "dog"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 9}},
}  # fmt: skip
ASK: Any = [{"role": "user", "content": "the cat sat"}]
TOOLS: Any = [
    {"type": "function", "function": {"name": "sit", "parameters": {
        "type": "object", "required": ["where"], "additionalProperties": False,
        "properties": {"where": {"enum": ["mat", "log"]}}}}},
    {"type": "function", "function": {"name": "bark", "parameters": {
        "type": "object", "required": ["loud"], "additionalProperties": False,
        "properties": {"loud": {"type": "boolean"}}}}},
]  # fmt: skip
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}{# </think> #}"
)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Serves a model whose template begins the reasoning."""
    directory = save_model(tmp_path_factory.mktemp("thinks") / "model", tokens=["<think>", "</think>"])
    config = directory / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": THINKING}))
    (directory / "foundling.json").unlink()  # which has the hash of the other template
    with serving({"thinker": directory}) as live:
        yield live


def ask(live: Live, **options: Any) -> Any:
    model = options.pop("model", "tiny")
    options = {"temperature": 1.5, "seed": 3, "max_tokens": 120} | options
    return live.client().chat.completions.create(model=model, messages=ASK, **options).choices[0]


def streamed(live: Live, **options: Any) -> tuple[str, list[Any], str]:
    """The content, the calls and the reason that the deltas of a stream amount to."""
    stream = live.client().chat.completions.create(
        messages=ASK, stream=True, **({"model": "tiny", "temperature": 1.5, "seed": 3, "max_tokens": 120} | options)
    )
    content, calls, reason = "", [], ""
    for chunk in stream:
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        calls += choice.delta.tool_calls or []
        reason = choice.finish_reason or reason
    return content, calls, reason


def as_format(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema, "strict": True}}


@pytest.mark.parametrize("model", ["tiny", "recurrent", "translator"])
def test_a_schema_is_followed_by_every_kind_of_model(live: Live, model: str) -> None:
    if model == "translator":  # no conversation: an encoder-decoder of this size reads a text
        body = {"model": model, "prompt": "cat", "response_format": as_format(SCHEMA), "max_tokens": 120, "seed": 3}
        text = live.post("/v1/completions", **body).json()["choices"][0]["text"]
    else:
        text = ask(live, model=model, response_format=as_format(SCHEMA)).message.content
    value = json.loads(text)
    assert value.keys() == {"name", "legs"} and value["name"] in ("cat", "dog") and value["legs"] in range(10)


@pytest.mark.parametrize(
    ("form", "fits"),
    [
        ({"type": "regex", "regex": "[a-c]{3}-[0-9]{2}"}, lambda t: len(t) == 6 and t[3] == "-"),
        ({"type": "grammar", "grammar": 'start: "a" ("b" | "c") "d"'}, lambda t: t in ("abd", "acd")),
        ({"type": "choice", "choice": ["mat", "log"]}, lambda t: t in ("mat", "log")),
        ({"type": "json_object"}, lambda t: json.loads(t) == {}),
    ],
)
def test_other_forms(live: Live, form: Any, fits: Any) -> None:
    choice = ask(live, response_format=form, logit_bias=bias(live, "}"))
    assert choice.finish_reason == "stop" and fits(choice.message.content)


def test_a_text_is_free(live: Live) -> None:
    free = ask(live, temperature=0, max_tokens=8)
    assert ask(live, response_format={"type": "text"}, temperature=0, max_tokens=8).message == free.message


def test_a_stream_amounts_to_the_same_answer(live: Live) -> None:
    for options in ({"response_format": as_format(SCHEMA)}, {"tools": TOOLS, "tool_choice": "required"}):
        choice = ask(live, **options)
        content, calls, reason = streamed(live, **options)
        assert (choice.message.content or "", choice.finish_reason) == (content, reason)
        functions = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
        assert functions == [(call.function.name, call.function.arguments) for call in calls]


def test_calls_have_the_same_ids_in_deterministic_mode_and_others_in_each_answer(live: Live, directories) -> None:
    text = '<tool_call>\n{"name": "bark", "arguments": {"loud": true}}\n</tool_call>'
    form = form_of(live)
    ids = [call["id"] for n in (0, 1) for call in form.message(f"{text}\n{text}", n)["tool_calls"]]
    assert len({*ids}) == 4 and all(re.fullmatch("call_[0-9a-f]{24}", one) for one in ids)
    options = {"tools": TOOLS, "tool_choice": "required"}
    first, other = (ask(live, **options).message.tool_calls for _ in range(2))
    assert first and first[0].function == other[0].function and first[0].id != other[0].id
    with serving({"tiny": directories["tiny"]}, deterministic=True) as same:
        for call in (lambda: ask(same, **options).message.tool_calls, lambda: streamed(same, **options)[1]):
            first, other = ([one.id for one in call()] for _ in range(2))
            assert first and first == other


def test_a_named_tool_is_called_once_with_valid_arguments(live: Live) -> None:
    choice = ask(live, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "sit"}})
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, choice.finish_reason) == ("function", "sit", "tool_calls")
    assert json.loads(call.function.arguments)["where"] in ("mat", "log") and choice.message.content is None


def test_required_calls_some_tool_and_one_where_parallel_calls_are_refused(live: Live) -> None:
    for seed in range(4):
        choice = ask(live, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=seed)
        (call,) = choice.message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert arguments.get("where") in ("mat", "log") if call.function.name == "sit" else arguments["loud"] in (0, 1)


def test_a_conversation_goes_on_after_a_call(live: Live) -> None:
    call = ask(live, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "bark"}}).message.tool_calls[0]
    messages: Any = [
        *ASK, {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "woof"},
    ]  # fmt: skip
    answer = live.client().chat.completions.create(model="tiny", messages=messages, tools=TOOLS, max_tokens=4)
    assert answer.usage is not None and answer.usage.completion_tokens == 4


def test_choice_none_leaves_the_answer_free(live: Live) -> None:
    free = ask(live, temperature=0, max_tokens=8)
    assert ask(live, tools=TOOLS, tool_choice="none", temperature=0, max_tokens=8).message == free.message


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"response_format": as_format({"type": "array", "uniqueItems": True})}, "uniqueItems"),
        ({"response_format": as_format({"type": "strin"})}, "strin"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"response_format": {"type": "regex", "regex": "(?=a)b"}}, "look"),
        ({"response_format": {"type": "regex", "regex": "a", "choice": ["b"]}}, "choice"),
        ({"response_format": {"type": "grammar", "grammar": 'begin: "x"'}}, "start"),
        ({"response_format": {"type": "choice", "choice": []}}, "choice"),
        ({"response_format": as_format(SCHEMA), "tools": TOOLS}, "exclude"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "fly"}}}, "fly"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "sit"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(live: Live, options: Any, word: str) -> None:
    with pytest.raises(openai.BadRequestError, match=word):
        ask(live, **options)


def test_reasoning_comes_first_and_apart(thinker: Live) -> None:
    options = {"model": "thinker", "response_format": {"type": "choice", "choice": ["mat", "log"]}}
    end = thinker.model("thinker").tokenizer.backend.token_to_id("</think>")
    # a random model does not end its reasoning by itself
    choices = [ask(thinker, **options, logit_bias={str(end): 60.0}, temperature=8, seed=seed) for seed in range(8)]
    assert {choice.finish_reason for choice in choices} == {"stop"}
    assert {choice.message.content for choice in choices} <= {"mat", "log"}
    assert any(choice.message.reasoning_content for choice in choices)
    assert not any("think>" in choice.message.reasoning_content for choice in choices)


def form_of(live: Live, style: str = "hermes") -> AnswerForm:
    """How answers with tools are read, in another style than the model's template too."""
    body = ChatBody.model_validate({"messages": ASK, "tools": TOOLS})
    form = AnswerForm(body, live.model("tiny"), live.model("tiny").framing.chat(ASK), "chatcmpl-1")
    form.style = style
    return form


def amount(form: AnswerForm, text: str, size: int, *, cut: bool) -> tuple[str, str, int]:
    """The content, the reasoning and the number of calls of a stream in pieces of this size."""
    stream, sums = AnswerStream(form, 0), {"content": "", "reasoning_content": ""}
    deltas = [stream.add(text[at : at + size]) for at in range(0, len(text), size)] + [stream.finish(cut=cut)]
    for delta in deltas:
        for name in sums:
            sums[name] += delta.get(name, "")
    return sums["content"], sums["reasoning_content"], len(deltas[-1].get("tool_calls", []))


def amount_of(message: dict[str, Any]) -> tuple[str, str, int]:
    content, reasoning = message["content"] or "", message.get("reasoning_content", "")
    return content, reasoning, len(message.get("tool_calls", []))


def test_deltas_never_take_back_what_was_sent(live: Live) -> None:
    """Reasoning, text and calls in pieces of every size amount to the message."""
    form = form_of(live)
    call = '<tool_call>\n{"name": "sit", "arguments": {"where": "mat"}}\n</tool_call>'
    for text in (
        "plain",
        f"first {call}",
        f"<think>\nwhy\n</think>\n\nso {call}",
        "<think>\nnever",
        "a <tool_cat",
        "<thin",
    ):
        for size in (1, 2, 3, 7, 1000):
            assert amount(form, text, size, cut=False) == amount_of(form.message(text, 0))


@pytest.mark.parametrize(
    ("style", "text", "content"),
    [
        ("hermes", 'so <tool_call>\n{"name": "sit", "arguments": {"where": "mat"}}\n</tool_call>\n'
                   '<tool_call>\n{"name": "bark", "arguments": {"loud": true}}\n</tool_call>', "so <"),
        ("mistral", 'so [TOOL_CALLS] [{"name": "sit", "arguments": {"where": "mat"}}]', "so ["),
        ("llama3", '{"name": "sit", "parameters": {"where": "mat"}}', ""),
    ],
)  # fmt: skip
def test_a_part_of_a_call_is_never_shown_as_text(live: Live, style: str, text: str, content: str) -> None:
    """An answer that is cut anywhere has whole calls, and the text before them."""
    form, counts = form_of(live, style), set()
    for end in range(len(text) + 1):
        message = form.message(text[:end], 0, cut=True)
        assert content.startswith(message["content"] or ""), text[:end]
        counts.add(len(message.get("tool_calls", [])))
        for size in (1, 5, 1000):
            assert amount(form, text[:end], size, cut=True) == amount_of(message)
    assert counts == {0, text.count('"name"')} | {1}


def test_a_call_that_is_cut_is_no_content(live: Live) -> None:
    for end in ({"max_tokens": 14}, {"stop": "name"}):
        options = {"tools": TOOLS, "tool_choice": "required"} | end
        choice = ask(live, **options)
        assert (choice.message.content or "", choice.message.tool_calls, choice.finish_reason) == ("", None, "length")
        assert streamed(live, **options) == ("", [], "length")


def test_an_answer_that_a_stop_string_cuts_does_not_look_complete(live: Live) -> None:
    options = {"response_format": as_format(SCHEMA), "stop": ["legs"]}
    choice = ask(live, **options)
    assert choice.finish_reason == "length" and "legs" not in choice.message.content
    assert streamed(live, **options) == (choice.message.content, [], "length")
    whole = ask(live, response_format={"type": "regex", "regex": "aaa(bbb)?"}, stop=["bb"], logit_bias=bias(live, "b"))
    assert whole.finish_reason in ("stop", "length")
    assert (whole.finish_reason == "stop") == (whole.message.content == "aaa")


def bias(live: Live, text: str) -> dict[str, float]:
    return {str(token): 50.0 for token in live.model("tiny").tokenizer.encode(text)}
