# SPDX-License-Identifier: Apache-2.0
"""Chats by the official client: what it reads is what this library computes from the same directory."""

import json
from typing import Any

import openai
import pytest

import foundling
from foundling.decode.text import TextGenerator
from foundling.weights.loading import load
from tests.serve.servers import Live, serving

HELLO: list[Any] = [{"role": "user", "content": "the cat sat on"}]
NAMES = ["tiny", "recurrent", "translator"]


def ask(live: Live, model: str = "tiny", messages: Any = HELLO, **options: Any) -> Any:
    return live.client().chat.completions.create(model=model, messages=messages, **({"max_tokens": 12} | options))


def refused(live: Live, model: str = "tiny", messages: Any = HELLO, **options: Any) -> Any:
    """The error of a request that has to be refused with 400: its body."""
    with pytest.raises(openai.BadRequestError) as error:
        ask(live, model, messages, **options)
    body: Any = error.value.body
    assert set(body) == {"message", "type", "param", "code"} and body["type"] == "invalid_request_error"
    return body


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_those_of_the_library(live: Live, directories, name: str) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": "a table"},
        {"role": "user", "content": [{"type": "text", "text": "the cat "}, {"type": "text", "text": "sat"}]},
        {"role": "assistant", "content": "on the mat"},
        {"role": "user", "content": "and the dog"},
    ]
    as_templates_see = [
        {"role": "system", "content": "a table"}, {"role": "user", "content": "the cat sat"}, *messages[2:]
    ]  # fmt: skip
    for sampling in ({"temperature": 0}, {"temperature": 1.5, "top_p": 0.9}):
        generator = TextGenerator.load(directories[name], **sampling)
        expected = generator.chat(as_templates_see, n=3, seed=7, max_tokens=20, logprobs=2)
        reply = ask(live, name, messages, n=3, seed=7, max_tokens=20, logprobs=True, top_logprobs=2, **sampling)
        assert [c.message.content for c in reply.choices] == [one["text"] for one in expected]
        assert [c.index for c in reply.choices] == [0, 1, 2]
        assert {c.message.role for c in reply.choices} == {"assistant"}
        assert {c.finish_reason for c in reply.choices} == {"length"}
        n_prompt = len(generator.framing.chat(as_templates_see))
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (n_prompt, 60)
        assert reply.usage.total_tokens == n_prompt + 60 and reply.model == name and reply.object == "chat.completion"
        for choice, one in zip(reply.choices, expected, strict=True):
            for entry, theirs in zip(choice.logprobs.content, one["logprobs"], strict=True):
                assert entry.logprob == pytest.approx(max(theirs["logprob"], -9999.0), abs=1e-4)
                assert [t.logprob for t in entry.top_logprobs] == pytest.approx(
                    [max(t["logprob"], -9999.0) for t in theirs["top_logprobs"]], abs=1e-4
                )


def test_log_probabilities_are_those_of_generate(live: Live, directories) -> None:
    served, model = live.model("tiny"), load(directories["tiny"])
    ids = served.framing.chat(HELLO)
    (expected,) = foundling.generate(
        model, [ids], max_tokens=10, temperature=0, logprobs=5, logit_bias=dict(served.no_rows)
    )
    (choice,) = ask(live, max_tokens=10, temperature=0, logprobs=True, top_logprobs=5).choices
    assert [e.token_id for e in choice.logprobs.content] == expected.tokens
    assert expected.logprobs and expected.top_logprobs
    for entry, logprob, top in zip(choice.logprobs.content, expected.logprobs, expected.top_logprobs, strict=True):
        assert entry.logprob == pytest.approx(logprob, abs=1e-4) and len(entry.top_logprobs) == 5
        assert {t.token_id: t.logprob for t in entry.top_logprobs} == pytest.approx(top, abs=1e-4)
        assert bytes(entry.bytes) == served.spellings[entry.token_id]
    whole = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
    assert whole.decode("utf-8", "replace") == choice.message.content


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_is_the_same_answer_in_parts(live: Live, name: str) -> None:
    options = dict(n=3, seed=3, temperature=1.2, max_tokens=24, logprobs=True, top_logprobs=1)
    whole = ask(live, name, **options)
    texts, reasons, tokens, roles = ["", "", ""], [None] * 3, [[], [], []], [None] * 3
    usages, ids = [], set()
    for chunk in ask(live, name, stream=True, stream_options={"include_usage": True}, **options):
        assert chunk.object == "chat.completion.chunk" and chunk.model == name
        ids.add(chunk.id)
        usages.append(chunk.usage)
        for choice in chunk.choices:
            i = choice.index
            assert reasons[i] is None, "nothing follows the end of a choice"
            roles[i] = roles[i] or choice.delta.role
            texts[i] += choice.delta.content or ""
            reasons[i] = choice.finish_reason
            tokens[i] += choice.logprobs.content if choice.logprobs else []
    assert len(ids) == 1 and roles == ["assistant"] * 3
    assert texts == [c.message.content for c in whole.choices]
    assert reasons == [c.finish_reason for c in whole.choices]
    assert tokens == [c.logprobs.content for c in whole.choices]
    assert usages[:-1] == [None] * (len(usages) - 1)
    for field in ("prompt_tokens", "completion_tokens", "total_tokens"):  # how many were cached is another thing
        assert getattr(usages[-1], field) == getattr(whole.usage, field)


def test_a_stream_is_written_as_server_sent_events(live: Live) -> None:
    reply = live.post(
        "/v1/chat/completions", model="tiny", messages=HELLO, stream=True, max_tokens=5,
        stream_options={"include_usage": True},
    )  # fmt: skip
    assert reply.status == 200 and reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-store"
    *events, last, nothing = reply.body.split(b"\n\n")
    assert nothing == b"" and last == b"data: [DONE]"
    assert all(event.startswith(b"data: {") and b"\n" not in event and b"\r" not in event for event in events)
    values = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert values[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert values[-2]["choices"][0]["finish_reason"] == "length"
    assert values[-1]["choices"] == [] and values[-1]["usage"]["completion_tokens"] == 5


def test_a_stop_string_ends_an_answer_across_tokens(live: Live) -> None:
    whole = ask(live, temperature=0, max_tokens=24, logprobs=True).choices[0]
    text, pieces = whole.message.content, [entry.token for entry in whole.logprobs.content]
    # two characters of two tokens, whole ones, and the first time that they come
    edges = [sum(map(len, pieces[:i])) for i in range(1, len(pieces))]
    edge = next(e for e in edges if "�" not in (s := text[e - 1 : e + 1]) and text.find(s) == e - 1 and e > 3)
    stop = text[edge - 1 : edge + 1]
    for stops in (stop, ["never there", stop]):
        choice = ask(live, temperature=0, max_tokens=24, stop=stops).choices[0]
        assert (choice.message.content, choice.finish_reason) == (text[: edge - 1], "stop")
    parts = [c.choices[0] for c in ask(live, temperature=0, max_tokens=24, stop=stop, stream=True)]
    assert "".join(p.delta.content or "" for p in parts) == text[: edge - 1] and parts[-1].finish_reason == "stop"


def test_a_seed_repeats_an_answer_and_none_does_not(live: Live) -> None:
    options = dict(temperature=3.0, max_tokens=16)
    one, again, other = (ask(live, seed=seed, **options).choices[0].message.content for seed in (1, 1, 2))
    assert one == again != other
    assert ask(live, **options).choices[0].message.content != ask(live, **options).choices[0].message.content
    assert ask(live, seed=-5, **options).choices[0].message.content


def test_biases_and_penalties_reach_the_model(live: Live) -> None:
    served = live.model("tiny")
    (token,) = served.tokenizer.encode(" cat")
    assert ask(live, logit_bias={str(token): 100}, max_tokens=3).choices[0].message.content == " cat" * 3
    end = served.framing.ends[0]
    choice = ask(live, logit_bias={str(end): 100}).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("", "stop")
    bias = {str(token): 100}
    for name in ("presence_penalty", "frequency_penalty"):
        forced = ask(live, logit_bias=bias, temperature=0, max_tokens=3, **{name: 2.0}).choices[0].message.content
        assert forced == " cat" * 3
        freed = ask(live, logit_bias={str(token): 40}, temperature=0, max_tokens=30, **{name: 2.0})
        plain = ask(live, logit_bias={str(token): 40}, temperature=0, max_tokens=30)
        generator = TextGenerator.load(served.directory, temperature=0, logit_bias={token: 40.0}, **{name: 2.0})
        assert freed.choices[0].message.content == generator.chat(HELLO, max_tokens=30)[0]["text"]
        assert freed.choices[0].message.content.count(" cat") <= plain.choices[0].message.content.count(" cat")
    for name, value in (("top_k", 1), ("min_p", 1.0)):  # both leave the likeliest token alone
        reply = ask(live, temperature=2.0, extra_body={name: value})
        assert reply.choices[0].message.content == ask(live, temperature=0).choices[0].message.content


def test_limits_of_tokens(live: Live) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        reply = ask(live, **({"max_tokens": openai.omit} | {name: 4}))
        assert reply.usage.completion_tokens == 4 and reply.choices[0].finish_reason == "length"
    n_prompt = ask(live).usage.prompt_tokens
    longest = live.model("tiny").model.config.max_seq_len - n_prompt
    assert ask(live, max_tokens=openai.omit).usage.completion_tokens == longest  # as many as there is place for
    assert ask(live, max_tokens=longest).usage.completion_tokens == longest
    assert refused(live, max_tokens=longest + 1)["code"] == "context_length_exceeded"
    long = [{"role": "user", "content": "a " * 300}]
    error = refused(live, messages=long)
    assert error["code"] == "context_length_exceeded" and "256" in error["message"]


@pytest.mark.parametrize(
    "options, param",
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 1 << 20}, "top_logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e9}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"seed": "1"}, "seed"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1²": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 100.5}}, "logit_bias.5"),
        ({"stop": ["a" * 257]}, "stop.0"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "sit"}}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"stop": ["a"] * 100}, "stop"),
        ({"stop": ""}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages.0.role"),
        ({"extra_body": {"wizardry": 1}}, "wizardry"),
        ({"extra_body": {"stream_options": {"wizardry": 1}}}, "stream_options.wizardry"),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_by_name(live: Live, options: dict[str, Any], param: str) -> None:
    error = refused(live, **options)
    assert str(error["param"]).startswith(param) and "\n" not in error["message"] and len(error["message"]) < 400


def test_the_same_seed_gives_the_same_bytes_under_load(directories) -> None:
    """In deterministic mode, while eight other clients ask for other things."""
    import threading

    with serving({"tiny": directories["tiny"]}, deterministic=True, max_num_seqs=8) as live:
        body = dict(model="tiny", messages=HELLO, seed=5, temperature=1.3, max_tokens=24, n=2, logprobs=True)
        alone = live.post("/v1/chat/completions", **body).body
        streamed = live.post("/v1/chat/completions", **body, stream=True).body
        stop, n_others = threading.Event(), [0] * 8

        def disturb(i: int) -> None:
            while not stop.is_set():
                messages = [{"role": "user", "content": "a dog " * (i + 1) + str(n_others[i])}]
                reply = live.post("/v1/chat/completions", model="tiny", messages=messages, max_tokens=9 + i)
                assert reply.status == 200
                n_others[i] += 1

        threads = [threading.Thread(target=disturb, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        try:
            while not all(n_others):
                assert all(thread.is_alive() for thread in threads)
            for _ in range(8):
                assert live.post("/v1/chat/completions", **body).body == alone
                assert live.post("/v1/chat/completions", **body, stream=True).body == streamed
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        other = json.loads(live.post("/v1/chat/completions", **(body | {"seed": 6})).body)
        assert other["id"] != json.loads(alone)["id"] and other["choices"] != json.loads(alone)["choices"]
