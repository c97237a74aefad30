# SPDX-License-Identifier: Apache-2.0
"""What one request may take, and what becomes of the others meanwhile: lengths, constraints that are slow to compile,
sources of encoders, failures of ours."""

import asyncio
import json
import logging
import threading
from dataclasses import replace
from typing import Any

import pytest

from foundling.decode.constrain import compilation
from foundling.decode.constrain.processor import ConstraintState
from foundling.decode.request import Request
from foundling.errors import GenerationError
from foundling.limits import ANSWER_LOGPROBS, CHECKS, COMPILATIONS, TOKENIZED
from foundling.serve import compiling, generation
from foundling.serve.reply import LargeJSON
from tests.serve import raw
from tests.serve.clients import ask, payload
from tests.serve.servers import Live, save_model, serving
from tests.serve.test_job_runner import until
from tests.serve.test_overload import is_idle, loads

HELLO: Any = [{"role": "user", "content": "the cat sat on"}]
CHOICE = {"type": "choice", "choice": ["mat", "log"]}
CALLS = (
    "{% for message in messages %}{{ message['content'] }}{% for call in message.get('tool_calls', []) %}"
    "<<{{ call.function.name }} {{ call.function.arguments | tojson }}>>{% endfor %}{% endfor %}"
)


def test_an_answer_without_a_limit_fits_the_memory_of_the_engine(directories) -> None:
    """Where there are fewer blocks than the model has positions."""
    models = {name: directories[name] for name in ("tiny", "translator")}
    with serving(models, cache_memory=40 << 10) as live:
        tiny, translator = live.model("tiny"), live.model("translator")
        assert tiny.capacity < tiny.model.config.max_seq_len
        chat = live.post("/v1/chat/completions", model="tiny", messages=HELLO).json()
        n_prompt = chat["usage"]["prompt_tokens"]
        assert chat["usage"]["total_tokens"] == tiny.capacity and chat["choices"][0]["finish_reason"] == "length"
        for name, path, body, most in (
            ("tiny", "/v1/chat/completions", {"messages": HELLO}, tiny.capacity - n_prompt),
            ("translator", "/v1/completions", {"prompt": "the cat"}, translator.capacity - 1),
        ):
            fits = live.post(path, model=name, max_tokens=most, **body)
            assert fits.status == 200 and fits.json()["usage"]["completion_tokens"] == most
            error = live.post(path, model=name, max_tokens=most + 1, **body).json()["error"]
            assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")
        long = live.post("/v1/completions", model="tiny", prompt="a " * tiny.capacity, max_tokens=1)
        assert long.status == 400 and long.json()["error"]["param"] == "prompt"
        assert f"{tiny.capacity:,}" in long.json()["error"]["message"]


def test_templates_see_the_arguments_of_calls_as_objects(tmp_path) -> None:
    directory = save_model(tmp_path / "model")
    config = directory / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": CALLS}))
    (directory / "foundling.json").unlink()  # which has the hash of the other template

    def messages(arguments: str) -> Any:
        call = {"id": "call_1", "type": "function", "function": {"name": "sit", "arguments": arguments}}
        return [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]

    with serving({"tiny": directory}) as live:
        reply = live.post("/tokenize", messages=messages('{"where": "mat"}')).json()
        assert "".join(t["text"] for t in reply["tokens"]) == 'the cat sat on<<sit {"where": "mat"}>>'
        assert live.post("/v1/chat/completions", messages=messages(""), max_tokens=1).status == 200
        for wrong in ("[1]", '{"where": ', '{"a": NaN}', "[" * 100_000, '"mat"'):
            for path in ("/tokenize", "/v1/chat/completions"):
                reply = live.post(path, messages=messages(wrong))
                assert reply.status == 400 and reply.json()["error"]["param"] == "messages", wrong
                assert "arguments" in reply.json()["error"]["message"]


def test_a_text_that_is_tokenized_has_a_limit(live: Live) -> None:
    word = live.post("/tokenize", model="tiny", prompt="cat" * 1000).json()
    assert word["count"] >= 1000 and len(word["tokens"]) == word["count"]
    many = "cat" * TOKENIZED.high
    bodies = [{"prompt": many}, {"messages": [{"role": "user", "content": many}]}]
    for body in bodies:
        reply = live.post("/tokenize", model="tiny", **body)
        assert reply.status == 400 and f"{TOKENIZED.high:,}" in reply.json()["error"]["message"]
    assert live.post("/detokenize", model="tiny", tokens=[5] * (TOKENIZED.high + 1)).status == 400
    assert live.post("/detokenize", model="tiny", tokens=[5] * TOKENIZED.high).status == 200


def test_large_json_is_what_json_makes_of_it() -> None:
    deep: Any = [{"a": [{"b": {"c": [[1, {"d": 'é\n"'}], []], "e": {}}}], "": None}, True, 1.5, "x", [], {}]
    for value in (deep, {"all": deep}, {}, [], 3):
        assert json.loads(LargeJSON(value).body) == value
        assert bytes(LargeJSON(value).body).decode() == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def test_slow_constraints_delay_no_other_request(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those beyond a few are told to come back, and whoever leaves takes its place in the queue along."""
    monkeypatch.setattr(compiling, "COMPILATIONS", COMPILATIONS._replace(high=3))
    quick = {"model": "tiny", "prompt": "a", "max_tokens": 2}
    assert live.post("/v1/completions", **quick, response_format=CHOICE).status == 200

    def give_back() -> None:
        while taken:
            compilation._processes.put(taken.pop())

    async def main() -> None:
        slow = [
            asyncio.create_task(ask(live.port, payload("/v1/completions", quick | {
                "response_format": {"type": "regex", "regex": f"a{{1,{n}}}"}})))
            for n in range(90, 102)
        ]  # fmt: skip
        await until(lambda: sum(task.done() for task in slow) >= 9)
        for task in slow:
            if task.done():
                status, headers, _ = task.result()
                assert status == 429 and int(headers["retry-after"]) >= 1
        # compiled before, and without a constraint
        for body in (quick | {"response_format": CHOICE}, quick):
            assert (await ask(live.port, payload("/v1/completions", body)))[0] == 200
        for body in ({"model": "tiny", "prompt": "a"}, {"model": "tiny", "messages": HELLO}):
            assert (await ask(live.port, payload("/tokenize", body)))[0] == 200
        pending = [task for task in slow if not task.done()]
        assert len(pending) == live.server.compiler.constraints.n_waiting == 3
        pending[-1].cancel()
        await until(lambda: live.server.compiler.constraints.n_waiting <= 2)
        give_back()
        assert [status for status, _, _ in await asyncio.gather(*pending[:-1])] == [200, 200]

    # compilations that take long have all processes
    taken = [compilation._processes.get(timeout=60) for _ in range(compilation.N_PROCESSES)]
    try:
        asyncio.run(main())
    finally:
        give_back()
    raw.wait_for(lambda: not live.server.compiler.constraints.n_waiting and is_idle(live))
    assert loads(live)


def test_a_check_ends_with_its_request(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its client, and with the time that the request may take; and few wait for one."""
    body, waiting = {"model": "tiny", "prompt": "a", "response_format": CHOICE}, live.server.compiler.answers
    assert live.post("/v1/completions", **body).status == 200  # from now on it is compiled
    go = threading.Event()
    monkeypatch.setattr(compiling, "matches_constraint", lambda text, constraint: go.wait(60))
    monkeypatch.setattr(compiling, "CHECKS", CHECKS._replace(high=1))
    try:
        with raw.connect(live) as leaving:
            leaving.sendall(raw.completion(live, **body))
            raw.wait_for(lambda: waiting.n_waiting == 1)
            busy = live.post("/v1/completions", **body)
            assert busy.status == 429 and busy.headers["retry-after"]
        raw.wait_for(lambda: not waiting.n_waiting and is_idle(live))
        monkeypatch.setattr(live.server, "options", replace(live.server.options, request_timeout=0.3))
        reply = live.post("/v1/completions", **body)
        assert reply.status == 503 and "took over 0.3 s" in reply.json()["error"]["message"]
        assert live.line(reply)["completion_tokens"] > 0
    finally:
        go.set()
    raw.wait_for(lambda: is_idle(live))


def test_an_answer_has_a_limit_of_log_probabilities(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "ANSWER_LOGPROBS", ANSWER_LOGPROBS._replace(high=120))
    chat = ("/v1/chat/completions", {"messages": HELLO, "logprobs": True})
    text = ("/v1/completions", {"prompt": [5] * 9})
    for (path, body), allowed, more in (
        (chat, {"top_logprobs": 9, "max_tokens": 12}, {"max_tokens": 13}),
        (chat, {"top_logprobs": 5, "max_tokens": 10, "n": 2}, {"top_logprobs": 6}),
        (text, {"logprobs": 9, "max_tokens": 3, "echo": True}, {"max_tokens": 4}),
        (text, {"logprobs": 9, "max_tokens": 6, "prompt": [[5]] * 2}, {"best_of": 2}),
    ):  # fmt: skip
        body = {"model": "tiny"} | body | allowed
        assert live.post(path, **body).status == 200, body
        error = live.post(path, **body | more).json()["error"]
        assert error["param"] == "logprobs" and "at most 120" in error["message"]
    assert live.post("/v1/completions", model="tiny", prompt="a", max_tokens=100, best_of=2).status == 200


def test_a_source_has_a_limit(live: Live) -> None:
    longest = live.model("translator").longest
    ids = [5] * longest
    assert live.post("/v1/completions", model="translator", prompt=ids, max_tokens=1).status == 200
    error = live.post("/v1/completions", model="translator", prompt=[*ids, 5], max_tokens=1).json()["error"]
    assert error["code"] == "context_length_exceeded" and error["param"] == "prompt"
    assert f"{longest:,}" in error["message"]


def test_sources_are_read_between_the_steps_of_other_requests(live: Live) -> None:
    worker = live.model("translator").worker

    async def main() -> int:
        short = worker.stream([Request([5, 6], 200)])
        await anext(short)
        long = worker.stream([Request([5] * 2000, 1) for _ in range(64)])
        waiting = asyncio.ensure_future(anext(long))
        for _ in range(6):
            await anext(short)
        n_read = len(worker.tickets)
        await short.aclose()
        await asyncio.gather(waiting)
        await long.aclose()
        return n_read

    assert live.call(main) < 64
    raw.wait_for(lambda: is_idle(live))


@pytest.mark.parametrize("error", [RuntimeError("at /a/secret/path"), GenerationError("the grammar takes too much")])
def test_our_own_failures_are_not_those_of_a_request(
    live: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fail(self: ConstraintState, logits: Any) -> Any:
        raise error

    monkeypatch.setattr(ConstraintState, "apply", fail)
    ours = isinstance(error, RuntimeError)
    body = dict(model="tiny", max_tokens=5, response_format=CHOICE)
    for path, what in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": HELLO})):
        for stream in (False, True):
            caplog.clear()
            with caplog.at_level(logging.ERROR, "foundling.serve"):
                reply = live.post(path, **body, **what, stream=stream)
            text = reply.body.decode()
            last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
            assert last["error"]["type"] == ("server_error" if ours else "invalid_request_error")
            assert ("secret" not in text) if ours else ("takes too much" in text)
            assert stream or reply.status == (500 if ours else 400)
            assert any("secret" in line and "req_" in line for line in caplog.messages) == ours
    monkeypatch.undo()
    assert loads(live)
