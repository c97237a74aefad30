# SPDX-License-Identifier: Apache-2.0
"""Cached answers over real HTTP: the same answer again, streamed or not, and never that of another key."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from foundling.decode.response_cache import ResponseCache
from foundling.errors import ConfigError, GenerationError
from foundling.serve.answer_cache import AnswerCache, CacheOptions, Query
from foundling.serve.cached import use_answer_cache
from foundling.serve.keys import Caller
from foundling.serve.models import EmbeddingModel, Price, load_served
from foundling.serve.options import ServeOptions
from foundling.serve.protocol import CompletionBody
from foundling.serve.server import Server
from tests.serve import raw
from tests.serve.servers import Live, save_encoder, save_model, serving

KEYS = ["first-key-of-a-test", "second-key-of-a-test"]
SAMPLED: Any = {"model": "llama", "max_tokens": 10, "temperature": 2}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("cache") / "llama", max_seq_len=8192)


def caching(**options: Any) -> Callable[[Server], None]:
    def prepare(server: Server) -> None:
        server.pool.prices["llama"] = Price(1, 1)
        use_answer_cache(server, CacheOptions(**options))

    return prepare


@pytest.fixture(scope="module")
def live(directory: Path) -> Iterator[Live]:
    """Every request is cached, so that an answer that was sampled anew would show."""
    with serving({"llama": directory}, keys=KEYS, prepare=caching(every=True, max_answers=100)) as server:
        yield server


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def ask(live: Live, key: str = KEYS[0], **fields: Any) -> tuple[str | None, Any]:
    """(hit, miss or no header, the answer)"""
    api = live.client(key)
    kind = api.chat.completions if "messages" in fields else api.completions
    raw = kind.with_raw_response.create(**(SAMPLED | fields))
    return raw.headers.get("x-foundling-cache"), raw.parse()


def ask_stream(live: Live, **fields: Any) -> tuple[str | None, str, Any]:
    """(hit or miss, the text, usage)"""
    state, stream = ask(live, stream=True, stream_options={"include_usage": True}, **fields)
    text, usage = "", None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += (choice.delta.content or "") if hasattr(choice, "delta") else choice.text
    return state, text, usage


def test_the_same_request_gets_the_same_answer_and_is_free(live: Live) -> None:
    n = len(live.lines)
    state, first = ask(live, messages=user("the cat"), logprobs=True, top_logprobs=2)
    again_state, again = ask(live, messages=user("the cat"), logprobs=True, top_logprobs=2)
    assert (state, again_state) == ("miss", "hit") and again.choices == first.choices and again.id != first.id
    assert again.usage.completion_tokens == first.usage.completion_tokens == 10
    assert again.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens
    assert first.usage.model_dump()["cost"] > 0 and again.usage.model_dump()["cost"] == 0
    raw.wait_for(lambda: len(live.lines) == n + 2)
    charged = [json.loads(line) for line in live.lines[-2:]]
    assert [line["completion_tokens"] for line in charged] == [10, 0] and charged[1]["dollars"] == 0
    state, text, usage = ask_stream(live, messages=user("the cat"), logprobs=True, top_logprobs=2)
    assert state == "hit" and text == first.choices[0].message.content and usage == again.usage


def test_a_stream_is_cached_for_streams_and_whole_answers(live: Live) -> None:
    state, text, usage = ask_stream(live, prompt="the dog", logprobs=1, n=2)
    again_state, again, again_usage = ask_stream(live, prompt="the dog", logprobs=1, n=2)
    assert (state, again_state) == ("miss", "hit") and len(again) == len(text)
    assert again_usage.completion_tokens == usage.completion_tokens == 20
    state, whole = ask(live, prompt="the dog", logprobs=1, n=2)
    assert state == "hit" and "".join(choice.text for choice in whole.choices) == again
    assert all(len(choice.logprobs.tokens) == 10 for choice in whole.choices)
    assert {choice.finish_reason for choice in whole.choices} == {"length"}


def test_a_key_never_sees_the_answer_of_another(live: Live) -> None:
    mine, first = ask(live, prompt="a secret of the first key")
    yours, other = ask(live, KEYS[1], prompt="a secret of the first key")
    assert (mine, yours) == ("miss", "miss") and first.choices != other.choices
    assert ask(live, prompt="a secret of the first key")[1].choices == first.choices
    assert ask(live, KEYS[1], prompt="a secret of the first key")[1].choices == other.choices


@pytest.mark.parametrize(
    "fields",
    [{"prompt": "a cap"}, {"temperature": 1.5}, {"max_tokens": 9}, {"seed": 3}, {"stop": ["x"]}, {"top_p": 0.5},
     {"logit_bias": {"65": 1}}, {"n": 2}, {"prompt": [70, 71]}, {"suffix": None, "echo": True}],
)  # fmt: skip
def test_another_request_is_no_hit(live: Live, fields: Any) -> None:
    ask(live, prompt="a cat")
    assert ask(live, prompt="a cat")[0] == "hit"
    assert ask(live, **({"prompt": "a cat"} | fields))[0] == "miss"


def test_errors_and_broken_streams_are_not_kept(live: Live) -> None:
    n = live.metric("foundling_answer_cache_answers")
    with pytest.raises(Exception, match="which leaves"):
        ask(live, prompt="a mat", max_tokens=9000)
    stream = live.client().completions.create(**SAMPLED | {"prompt": "a log", "max_tokens": 8000, "stream": True})
    next(iter(stream))
    stream.close()
    raw.wait_for(lambda: live.metric("foundling_completions_open") == 0)
    assert live.metric("foundling_answer_cache_answers") == n
    assert live.metric("foundling_answer_cache_bytes") == live.server.answer_cache.answers.n_bytes  # type: ignore


def test_only_answers_that_are_the_same_each_time_unless_the_operator_asks(directory: Path) -> None:
    with serving({"llama": directory}, prepare=caching()) as live:
        assert ask(live, prompt="a cat")[0] is None
        for fields in ({"seed": 1}, {"temperature": 0}, {"extra_body": {"top_k": 1}}):
            assert [ask(live, prompt="a cat", **fields)[0] for _ in range(2)] == ["miss", "hit"]
        assert live.metric("foundling_answer_cache_hit_ratio") == 0.5
        assert live.metric("foundling_answer_cache_requests_total", result="hit") == 3
        import httpx2

        for action in ("unload", "load"):  # another model may stand there now
            assert httpx2.post(f"{live.url}/v1/models/llama/{action}").status_code == 200
        assert ask(live, prompt="a cat", seed=1)[0] == "miss"


def test_by_meaning(directory: Path, tmp_path: Path) -> None:
    embedder: Any = load_served("e", str(save_encoder(tmp_path / "bert")), ServeOptions())
    assert isinstance(embedder, EmbeddingModel)
    vectors = {i: vector for i, vector, _ in embedder.embedder.embed(["the cat meows.", "the cat meows", "cow"])}
    near, far = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    assert far < near

    def prepare(server: Server) -> None:
        use_answer_cache(server, CacheOptions("meaning", (near + far) / 2), embedder.embedder)

    with serving({"llama": directory}, keys=KEYS, prepare=prepare) as live:
        greedy: Any = {"temperature": 0}
        state, first = ask(live, messages=user("the cat meows."), **greedy)
        assert state == "miss" and ask(live, messages=user("the cat meows"), **greedy)[0] == "hit"
        assert ask_stream(live, messages=user("the cat meows"), **greedy)[1] == first.choices[0].message.content
        assert live.metric("foundling_answer_cache_requests_total", result="similar") == 2
        others: Any = [
            {"messages": user("cow")},
            {"messages": user("the cat meows 2.")},
            {"messages": user("the cat meows"), "max_tokens": 9},
            {"messages": [{"role": "system", "content": "be brief"}, *user("the cat meows.")]},
            {"messages": [*user("the cat meows."), {"role": "assistant", "content": "the cat meows."}]},
            {"key": KEYS[1], "messages": user("the cat meows")},
            {"prompt": "the cat meows"},
        ]
        assert {ask(live, **greedy, **fields)[0] for fields in others} == {"miss"}
        long = "the cat meows. " * 12  # more than the embedder reads
        assert ask(live, messages=user(long), **greedy)[0] == "miss"
        assert ask(live, messages=user(long + "or not"), **greedy)[0] == "miss"
        assert ask(live, messages=user(long), **greedy)[0] == "hit"


def test_a_cache_that_fails_is_none(directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its embedder gives vectors that are not finite."""
    embedder: Any = load_served("e", str(save_encoder(tmp_path / "bert")), ServeOptions())
    with torch.no_grad():
        for parameter in embedder.embedder.model.parameters():
            parameter.fill_(float("nan"))

    def prepare(server: Server) -> None:
        use_answer_cache(server, CacheOptions("meaning"), embedder.embedder)

    with serving({"llama": directory}, keys=KEYS, prepare=prepare) as live:
        for text in ("the cat", "the cow"):
            state, answer = ask(live, messages=user(text), temperature=0)
            assert state == "miss" and answer.choices[0].message.content
        assert ask_stream(live, messages=user("the cat meows."), temperature=0)[1]
    assert "the answer cache failed: GenerationError" in caplog.text


def test_who_has_the_same_name_is_another_caller(directory: Path) -> None:
    """A key of the command line and one of a file, or keys of two files."""
    cache, served = AnswerCache(CacheOptions(every=True), in_turn), load_served("llama", str(directory), ServeOptions())
    body = CompletionBody(prompt="a cat")
    scopes = [cache.query(body, Caller("anna", True, owner=owner), served) for owner in ("a", "b", "a")]
    assert scopes[0] == scopes[2] != scopes[1]


def test_an_answer_that_is_too_large_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = AnswerCache(CacheOptions(max_bytes=10), in_turn)
    asyncio.run(cache.put(Query("scope", ""), b"0123456789"))
    assert asyncio.run(cache.get(Query("scope", ""))) == b"0123456789"
    monkeypatch.setattr(cache, "_put", None)
    asyncio.run(cache.put(Query("scope", ""), b"0123456789a"))


async def in_turn(function: Callable[[], Any]) -> Any:
    return function()


def test_wrong_options_are_refused() -> None:
    for options, message in (
        ({"mode": "similar"}, "expected one of exact, meaning"),
        ({"mode": "meaning"}, "--cache-embedder"),
        ({"threshold": 0.1}, "threshold is 0.1"),
        ({"max_bytes": 0}, "max_bytes is 0"),
    ):
        with pytest.raises(ConfigError, match=message), serving({}, prepare=caching(**options)):
            pass
    with pytest.raises(ConfigError, match="exclude each other"), serving({}, prepare=caching(), deterministic=True):
        pass


def test_a_response_cache_is_bounded_in_bytes() -> None:
    cache = ResponseCache[str](10, max_bytes=10, size_of=lambda query, response: len(query) + len(response))
    cache.put("a", "1234")
    cache.put("b", "1234")
    assert cache.n_bytes == 10 and cache.get("a") == "1234"
    cache.put("c", "12")  # b was used least recently
    assert (cache.get("a"), cache.get("b"), cache.get("c"), cache.n_bytes) == ("1234", None, "12", 8)
    cache.put("a", "1")
    assert cache.n_bytes == 5
    cache.put("d", "12345678901")
    assert cache.get("d") is None and cache.n_bytes == 5, "too large alone: the others stay"
    with pytest.raises(GenerationError, match="needs size_of"):
        ResponseCache(max_bytes=3)
