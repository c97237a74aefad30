# SPDX-License-Identifier: Apache-2.0
"""A model of one server is served by another, which the official client asks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest

from foundling.errors import ConfigError, DataError, OutputError
from foundling.serve.errors import APIError
from foundling.serve.key_file import KeyFile
from foundling.serve.models import Price
from foundling.serve.options import ServeOptions
from foundling.serve.recording import Recording
from foundling.serve.server import Server
from foundling.serve.upstream import load_upstreams
from tests.serve import raw
from tests.serve.servers import Live, save_encoder, save_model, serving
from tests.serve.test_job_store import full_disk

KEY = "sk-upstream-0123456789"
MESSAGES: Any = [{"role": "user", "content": "the cat sat"}]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("upstream") / "llama", max_seq_len=8192)


@pytest.fixture(scope="module")
def far(directory: Path) -> Iterator[Live]:
    """The API behind."""
    with serving({"llama": directory}, keys=[KEY], max_queue=2) as server:
        yield server


def remote(url: str, record: Path | None = None) -> Callable[[Server], None]:
    def prepare(server: Server) -> None:
        specs = [f"near=llama@{url}/v1", f"wrong=llama@{url}/v1", f"none=no-such-model@{url}/v1"]
        envs = ["near=UPSTREAM_KEY", "wrong=WRONG_KEY", "none=UPSTREAM_KEY"]
        prices = {"near": Price(1.0, 2.0)}
        for served in load_upstreams(specs, server.options, key_envs=envs, record=record, prices=prices):
            server.pool.add_remote(served)

    return prepare


@pytest.fixture(scope="module", autouse=True)
def variables() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPSTREAM_KEY", KEY)
        patch.setenv("WRONG_KEY", "sk-not-the-key-987654321")
        yield


@pytest.fixture(scope="module")
def near(far: Live) -> Iterator[Live]:
    with serving({}, prepare=remote(far.url)) as server:
        yield server


def texts(stream: Any) -> tuple[str, Any]:
    """The text of a stream and the usage at its end."""
    text, usage = "", None
    for chunk in stream:
        assert chunk.model == "near"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += (choice.delta.content or "") if hasattr(choice, "delta") else choice.text
    return text, usage


def test_answers_are_those_of_the_api_behind(far: Live, near: Live) -> None:
    fields: Any = {"max_tokens": 12, "temperature": 0, "messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    there = far.client().chat.completions.create(model="llama", **fields)
    here = near.client().chat.completions.create(**({"model": "near"} | fields))
    assert here.choices == there.choices and here.model == "near" and here.usage and there.usage
    assert here.usage.prompt_tokens == there.usage.prompt_tokens and here.usage.completion_tokens == 12
    cost: Any = here.usage.model_dump()["cost"]
    assert cost == pytest.approx((there.usage.prompt_tokens + 2 * 12) / 1e6)
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    streamed, usage = texts(near.client().chat.completions.create(**({"model": "near"} | fields | options)))
    assert streamed == there.choices[0].message.content and usage == here.usage
    prompt: Any = {"max_tokens": 12, "temperature": 0, "prompt": ["the cat", "the dog"], "logprobs": 1}
    far_text = far.client().completions.create(model="llama", **prompt)
    assert near.client().completions.create(model="near", **prompt).choices == far_text.choices
    one: Any = {"model": "near", "max_tokens": 12, "temperature": 0, "prompt": "the cat", "stream": True}
    assert texts(near.client().completions.create(**one)) == (far_text.choices[0].text, None)
    raw.wait_for(lambda: len(near.lines) == 4)
    line = json.loads(near.lines[-1])
    assert line["completion_tokens"] == 12 and line["model"] == "near" and line["prompt_tokens"] > 0
    about = near.client().models.retrieve("near").model_dump()["foundling"]
    assert about["kind"] == "upstream" and far.url not in json.dumps(about)


def test_without_a_name_the_only_model_answers(near: Live) -> None:
    import httpx2

    reply = httpx2.post(f"{near.url}/v1/completions", json={"prompt": "the cat", "max_tokens": 2})
    assert reply.status_code == 200 and reply.json()["model"] == "near"
    reply = httpx2.post(f"{near.url}/tokenize", json={"model": "near", "prompt": "the cat"})
    assert reply.status_code == 400 and "behind another API" in reply.json()["error"]["message"]


def test_recorded_answers_are_not_asked_again_and_outlive_the_api(directory: Path, tmp_path: Path) -> None:
    record = tmp_path / "answers.jsonl"
    fields: Any = {"model": "near", "messages": MESSAGES, "max_tokens": 8, "temperature": 1}
    with serving({"llama": directory}, keys=[KEY]) as far, serving({}, prepare=remote(far.url, record)) as near:
        api = near.client().chat.completions.with_raw_response
        first, again = api.create(**fields), api.create(**fields)
        assert (first.headers["x-foundling-recorded"], again.headers["x-foundling-recorded"]) == ("miss", "hit")
        assert first.parse().choices == again.parse().choices
        assert again.parse().usage.model_dump()["cost"] == 0  # pyright: ignore[reportOptionalMemberAccess]
        other, _ = texts(near.client().chat.completions.create(**(fields | {"stream": True, "seed": 5})))
        assert near.metric("foundling_upstream_requests_total", source="asked", model="near") == 2
        assert far.metric("foundling_requests_total", route="/v1/chat/completions") == 2
        raw.wait_for(lambda: len(near.lines) > 1)
        assert json.loads(near.lines[1])["completion_tokens"] == 0, "a recorded answer is free"
    assert record.stat().st_mode & 0o077 == 0 and KEY not in record.read_text()
    record.write_bytes(record.read_bytes() + b'{"key": "torn')  # the process was killed
    with serving({}, prepare=remote(far.url, record)) as near:  # nobody is there any more
        client = near.client()
        whole, _ = texts(client.chat.completions.create(**(fields | {"stream": True})))
        assert whole == first.parse().choices[0].message.content
        assert client.chat.completions.create(**(fields | {"seed": 5})).choices[0].message.content == other
        assert near.metric("foundling_upstream_requests_total", source="recorded") == 2
        with pytest.raises(openai.InternalServerError, match="does not answer") as refused:
            client.chat.completions.create(**(fields | {"seed": 6}))
        assert refused.value.status_code == 503 and "Retry-After" in refused.value.response.headers
    record.write_text("something else\n")
    with pytest.raises(DataError, match="line 1: no recorded answer"):
        load_upstreams(["a=llama@http://127.0.0.1:1/v1"], ServeOptions(), record=record)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "status", "part"),
    [
        ({"model": "wrong"}, 502, "refuses this server (HTTP 401)"),
        ({"model": "none"}, 502, "refuses this server (HTTP 404)"),
        ({"max_tokens": 9000}, 400, "which leaves"),
        ({"n": 1}, 429, "takes no more requests for now"),
        ({"n": 3}, 400, "this server allows 2"),
        ({"n": 17}, 400, "this server allows 16"),
        ({"max_tokens": 1 << 20}, 400, "this server allows 65,536"),
    ],
)
def test_refusals_say_why_and_show_no_key(
    far: Live, near: Live, fields: Any, status: int, part: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"model": "near", "messages": MESSAGES, "max_tokens": 8, "stream": stream} | fields
    with contextlib.ExitStack() as stack:
        if status == 429:  # where as many run as may
            others: Any = far.client().chat.completions.create(
                model="llama", messages=MESSAGES, n=2, max_tokens=8000, stream=True
            )
            stack.enter_context(others)
        with pytest.raises(openai.APIStatusError) as refused:
            near.client().chat.completions.create(**body)
    raw.wait_for(lambda: far.metric("foundling_completions_open") == 0)
    assert refused.value.status_code == status and part in refused.value.message
    assert (status == 429) == ("retry-after" in refused.value.response.headers)
    shown = refused.value.response.text + caplog.text + "".join(near.lines)
    assert KEY not in shown and "not-the-key" not in shown and "Traceback" not in caplog.text


def test_who_leaves_a_stream_frees_the_api_behind(far: Live, near: Live) -> None:
    stream = near.client().chat.completions.create(model="near", messages=MESSAGES, max_tokens=8000, stream=True)
    next(iter(stream))
    before = far.metric("foundling_completions_cancelled_total")
    stream.close()
    raw.wait_for(lambda: far.metric("foundling_completions_cancelled_total") == before + 1)
    assert far.metric("foundling_completions_open") == 0
    served: Any = near.server.pool.remotes["near"]
    raw.wait_for(lambda: served.n_open == 0)


def test_what_breaks_off_is_an_error_of_the_stream(directory: Path) -> None:
    """A server that sends one event and closes the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            while not connection.recv(1 << 16).rstrip().endswith(b"}"):
                pass
            chunk = {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "a"}}]}
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
            connection.sendall(f"data: {json.dumps(chunk)}\n\n".encode())

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    with serving({}, prepare=remote(f"http://127.0.0.1:{listener.getsockname()[1]}")) as near:
        stream = near.client().chat.completions.create(model="near", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="the stream broke off"):
            list(stream)
    thread.join(10)
    listener.close()


class Slow(BaseHTTPRequestHandler):
    """An API that answers no request before `leave` is set, and then that it is busy."""

    leave, n = threading.Event(), 0

    def do_POST(self) -> None:
        type(self).n += 1
        self.leave.wait(60)
        self.send_response(503)
        self.send_header("Retry-After", "inf")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_who_leaves_frees_a_place_and_who_waits_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, which is busy: a request behind it that is abandoned is never sent."""
    far = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=far.serve_forever, daemon=True).start()
    options = ServeOptions(max_num_seqs=1, max_queue=2, queue_timeout=0.2)
    (served,) = load_upstreams([f"near=llama@http://127.0.0.1:{far.server_port}"], options)
    body: Any = {"model": "llama", "messages": MESSAGES}

    async def read() -> None:
        async for _ in served.stream("/chat/completions", body):
            pass

    async def use() -> None:
        first = asyncio.create_task(served.ask("/chat/completions", body))
        while not Slow.n:
            await asyncio.sleep(0.01)
        for function in (lambda: served.ask("/chat/completions", body), read):
            second = asyncio.create_task(function())
            await asyncio.sleep(0)
            with pytest.raises(APIError) as met:
                await served.ask("/chat/completions", body)
            assert met.value.status == 429 and served.n_open == 2
            with pytest.raises(APIError) as met:
                await second
            assert (met.value.status, met.value.code) == (503, "queue_timeout")
            while served.n_open != 1:
                await asyncio.sleep(0.01)
        Slow.leave.set()
        with pytest.raises(APIError) as met:
            await first
        assert met.value.status == 503 and met.value.headers == {"Retry-After": "3600"}
        await served.close()

    asyncio.run(use())
    far.shutdown()
    far.server_close()
    assert Slow.n in (1, 2)  # the first, and its retry


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_api_may_have_read_is_charged(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client leaves, or its time ends, before the API has answered."""
    go = threading.Event()
    api: Any = type("Own", (Slow,), {"leave": go, "n": 0})
    far = ThreadingHTTPServer(("127.0.0.1", 0), api)
    threading.Thread(target=far.serve_forever, daemon=True).start()
    body = {"model": "near", "prompt": "the cat sat on the mat", "max_tokens": 4, "stream": stream}
    with serving({}, prepare=remote(f"http://127.0.0.1:{far.server_port}")) as near:
        with raw.connect(near) as leaving:
            leaving.sendall(raw.completion(near, **body))
            raw.wait_for(lambda: api.n)
        raw.wait_for(lambda: len(near.lines) == 1)
        monkeypatch.setattr(near.server, "options", replace(near.server.options, request_timeout=0.3))
        reply = near.post("/v1/completions", **body)
        assert reply.status == 503 and "took over 0.3 s" in reply.json()["error"]["message"]
        raw.wait_for(lambda: len(near.lines) == 2)
        for line, status in zip(map(json.loads, near.lines), (499, 503), strict=True):
            assert line["status"] == status and line["prompt_tokens"] == 6 and line["completion_tokens"] == 0
        go.set()
    far.shutdown()
    far.server_close()


def test_a_quota_cuts_what_the_api_is_asked_for_and_no_recorded_answer(far: Live, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys", create=True)
    rich, poor = keys.create("rich", tokens=1000), keys.create("poor", tokens=30)
    fields: Any = {"model": "near", "messages": MESSAGES}
    record = tmp_path / "answers.jsonl"
    with serving({}, prepare=remote(far.url, record), key_file=keys.path) as near:
        served: Any = near.server.pool.remotes["near"]
        served.subject.rename["max_tokens"] = "max_completion_tokens"
        near.client(rich).chat.completions.create(**fields, max_tokens=300)
        again = near.client(poor).chat.completions.create(**fields, max_tokens=300)  # which it could not pay
        assert again.usage.completion_tokens == 300  # pyright: ignore[reportOptionalMemberAccess]
        near.client(poor).chat.completions.create(**fields)
    asked = [json.loads(line)["request"] for line in record.read_text().splitlines()]
    limits = [one["max_completion_tokens"] for one in asked]
    assert limits[0] == 300 and 0 < limits[1] < 30 and not any("max_tokens" in one for one in asked)


def test_an_answer_that_cannot_be_recorded_is_given_and_charged(far: Live, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys", create=True)
    key = keys.create("anna")
    record = tmp_path / "answers.jsonl"  # larger than the file of keys, which the limit leaves alone
    Recording(record).put("another", {}, {"choices": ["x" * (1 << 20)]})
    with serving({}, prepare=remote(far.url, record), key_file=keys.path) as near:
        for stream in (False, True):
            fields: Any = {"model": "near", "messages": MESSAGES, "max_tokens": 4, "stream": stream}
            with full_disk(record.stat().st_size + 20):
                answer = near.client(key).chat.completions.create(**fields)
                text = texts(answer)[0] if stream else answer.choices[0].message.content
            assert text
        raw.wait_for(lambda: keys.records()[0].completion_tokens == 8)
        assert near.client(key).chat.completions.with_raw_response.create(
            **fields | {"stream": False}
        ).headers["x-foundling-recorded"] == "miss"  # fmt: skip


def test_a_recording_stays_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two servers write into one file; a disk fills up; a line is torn, and one is damaged."""
    path = tmp_path / "answers.jsonl"
    first, second = Recording(path), Recording(path)
    answers = {f"key {n}": {"choices": [n]} for n in range(4)}
    for n, (key, answer) in enumerate(answers.items()):
        (first, second)[n % 2].put(key, {"n": n}, answer)
    assert [first.get(f"key {n}") for n in (0, 2)] == [{"choices": [0]}, {"choices": [2]}]
    assert [second.get(f"key {n}") for n in (1, 3)] == [{"choices": [1]}, {"choices": [3]}]
    size = path.stat().st_size
    with full_disk(size + 20), pytest.raises(OutputError):
        first.put("key 4", {}, {"choices": ["x" * 100]})
    assert path.stat().st_size == size and first.get("key 4") is None
    with open(path, "ab") as file:
        file.write(b'{"key": "torn')  # of a server that was killed
    first.put("key 5", {}, {"choices": [5]})
    assert first.get("key 5") == {"choices": [5]}
    third = Recording(path)
    assert {key: third.get(key) for key in answers} == answers and third.get("key 5") == {"choices": [5]}
    text = path.read_text()
    path.write_text(text.replace('"key 0"', '"key 9"').replace('"choices": [3]', '"choices": [3['))
    assert third.get("key 0") is None and third.get("key 3") is None  # rather than the answer of another request
    assert caplog.text.count("cannot be read") == 2 and third.get("key 5") == {"choices": [5]}


@pytest.mark.parametrize(
    ("specs", "envs", "message"),
    [
        (["near"], [], "expected NAME=PROVIDER:MODEL"),
        (["near=http://127.0.0.1/v1"], [], "no model of an API"),
        (["near=m@http://example.org/v1"], [], "use https"),
        (["near=m@https://example.org/v1"], ["near=NO_SUCH_VARIABLE"], "no key"),
        (["near=m@https://example.org/v1"], ["far=UPSTREAM_KEY"], "names far, which no --upstream does"),
        (["near=m@https://user:secret@example.org/v1"], [], "holds a user"),
    ],
)
def test_wrong_upstreams_are_refused_at_the_start(specs: list[str], envs: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        load_upstreams(specs, ServeOptions(), key_envs=envs)
    assert "secret" not in str(refused.value)


def test_only_chats_and_completions_are_passed_on(near: Live, tmp_path: Path) -> None:
    with pytest.raises(openai.BadRequestError, match="does not do this"):
        near.client().embeddings.create(model="near", input="the cat")
    with (
        pytest.raises(ConfigError, match="two models are called 'near'"),
        serving({"near": save_encoder(tmp_path / "bert")}, prepare=remote(near.url)),
    ):
        pass
