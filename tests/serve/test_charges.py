# SPDX-License-Identifier: Apache-2.0
"""What a request is charged, also where it fails or its client leaves; and requests that can never be answered."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from foundling.decode.constrain.processor import ConstraintState
from foundling.errors import GenerationError
from foundling.serve import compiling
from foundling.serve.key_file import KeyFile
from foundling.verify.structured import Verdict
from tests.serve import raw
from tests.serve.servers import KEY, Live, serving
from tests.serve.test_overload import is_idle

PROMPT = "the cat sat on the mat"


def charged(live: Live, reply: Any = None) -> tuple[int, int] | None:
    """Tokens of the prompt and of the answer, as the log has them; None where nothing was charged."""
    line = live.line(reply)
    return (line["prompt_tokens"], line["completion_tokens"]) if "prompt_tokens" in line else None


@contextmanager
def paused_step(live: Live) -> Iterator[threading.Event]:
    """Inside, the engine's next step waits; the event says that it has begun."""
    engine, begun, go = live.model("tiny").worker.engine, threading.Event(), threading.Event()
    forward = engine.runner.forward

    def wait(*args: Any) -> Any:
        begun.set()
        go.wait(60)
        return forward(*args)

    engine.runner.forward = wait
    try:
        yield begun
    finally:
        engine.runner.forward = forward
        go.set()


def test_a_client_that_leaves_is_charged_what_was_begun(directories) -> None:
    with serving({"tiny": directories["tiny"]}, max_num_seqs=1) as live:
        n_prompt = len(live.model("tiny").framing.prompt(PROMPT))
        for stream in (False, True):
            with paused_step(live) as begun:
                with raw.connect(live) as first, raw.connect(live) as second:
                    first.sendall(raw.completion(live, prompt=PROMPT, stream=stream))
                    assert begun.wait(60)
                    second.sendall(raw.completion(live, prompt="a", stream=stream))
                    raw.wait_for(lambda: live.model("tiny").worker.n_open == 2)
                    n_lines = len(live.lines)
                raw.wait_for(lambda n=n_lines: len(live.lines) == n + 2)
            raw.wait_for(lambda: is_idle(live))
            lines = [live.lines[-1], live.lines[-2]]
            # the second one only waited
            assert sorted("prompt_tokens" in line for line in lines) == [False, True]
            assert any(f'"prompt_tokens": {n_prompt}, "completion_tokens": 0' in line for line in lines)


def test_what_was_computed_is_charged_where_an_answer_fails(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    n_prompt = len(live.model("tiny").framing.prompt(PROMPT))
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "response_format": {"type": "regex", "regex": "a{9}"}}
    with monkeypatch.context() as patch:
        patch.setattr(compiling, "matches_constraint", lambda text, constraint: Verdict(False, "never"))
        for stream in (False, True):
            reply = live.post("/v1/completions", **body, stream=stream, n=2)
            assert b"fault of the server" in reply.body
            prompt_tokens, completion_tokens = charged(live, reply) or (0, 0)
            assert prompt_tokens == n_prompt and completion_tokens >= 2
    n_steps, apply = 0, ConstraintState.apply

    def fail(self: ConstraintState, logits: Any) -> Any:
        nonlocal n_steps
        n_steps += 1
        if n_steps > 3:
            raise GenerationError("too much")
        return apply(self, logits)

    monkeypatch.setattr(ConstraintState, "apply", fail)
    body |= {"response_format": {"type": "regex", "regex": "[ab]{20}"}, "logit_bias": {}}
    reply = live.post("/v1/completions", **body)
    assert reply.status == 400 and charged(live, reply) == (n_prompt, 3)


def test_what_was_computed_is_charged_where_nobody_can_judge_it(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live.server, "reward", object())  # which has no classifier
    chat = {"messages": [{"role": "user", "content": "a"}]}
    for path, body in (("completions", {"prompt": "a"}), ("chat/completions", chat)):
        reply = live.post(f"/v1/{path}", model="tiny", max_tokens=5, best_of=4, **body)
        assert reply.status == 500 and (charged(live, reply) or (0, 0))[1] == 20


def test_the_log_charges_nothing_for_what_is_refused(directories, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.sqlite", create=True)
    key = file.create("anna", tokens=5)
    with serving({"tiny": directories["tiny"]}, key_file=file.path, max_queue=4) as live:
        live.key = key
        first = live.post("/v1/completions", prompt="a", max_tokens=3)
        assert first.status == 200 and (charged(live, first) or (0, 0))[1] == 3
        used_up = live.post("/v1/completions", prompt="a", max_tokens=3)
        assert used_up.status == 429 and charged(live, used_up) is None
        file.change("anna", tokens=10_000)
        for wrong in ({"n": 5}, {"prompt": ["a"] * 5}, {"prompt": ["a"] * 3, "n": 2}, {"best_of": 5}):
            # not 429, which would ask to come back
            reply = live.post("/v1/completions", **({"prompt": "a", "max_tokens": 3} | wrong))
            assert reply.status == 400 and "4" in reply.json()["error"]["message"], wrong
            assert charged(live, reply) is None
        chat = live.post("/v1/chat/completions", messages=[{"role": "user", "content": "a"}], n=5)
        assert chat.status == 400 and chat.json()["error"]["param"] == "n"
    (record,) = file.records()
    assert record.requests == 1 and record.completion_tokens == 3


def test_a_prompt_alone_counts_no_token_of_an_answer(live: Live) -> None:
    reply = live.post("/v1/completions", model="tiny", prompt="a", max_tokens=0, echo=True, logprobs=1)
    assert reply.json()["usage"]["completion_tokens"] == 0 and (charged(live, reply) or (0, 1))[1] == 0


def test_a_request_counts_while_its_body_comes(directories, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.sqlite", create=True)
    key = file.create("anna", concurrent=1, requests_per_minute=2)
    with serving({"tiny": directories["tiny"]}, key_file=file.path) as live:
        live.key = key
        data = raw.completion(live, max_tokens=1)
        with raw.connect(live) as slow:
            slow.sendall(data[:-1])
            raw.wait_for(lambda: live.server.limiter.running)
            refused = raw.answer(live, raw.completion(live, max_tokens=1))
            assert raw.status(refused) == 429 and b"1 requests at a time" in refused
            slow.sendall(data[-1:])
            assert raw.status(raw.read(slow)) == 200
        assert b"2 requests a minute" in raw.answer(live, data)


def test_keys_of_a_file_unload_no_shared_model(directories, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.sqlite", create=True)
    tenant = file.create("anna")
    with serving({"tiny": directories["tiny"]}, keys=[KEY], key_file=file.path) as live:
        for way in ("unload", "load"):
            reply = live.http("POST", f"/v1/models/tiny/{way}", key=tenant)
            assert reply.status == 403 and "--api-key" in reply.json()["error"]["message"]
            assert live.http("POST", f"/v1/models/nobody/{way}", key=tenant).status == 404
        assert live.post("/v1/completions", prompt="a", max_tokens=1).status == 200
        for way, state in (("unload", "unloaded"), ("load", "loaded")):
            assert live.http("POST", f"/v1/models/tiny/{way}").json()["state"] == state


def test_metrics_name_no_model_of_a_key(directories) -> None:
    models = {name: directories[name] for name in ("tiny", "recurrent")}
    with serving(models, keys=[KEY, "another-key-1"]) as live:
        private = live.server.pool.add("ft:tiny:secret", str(directories["tiny"]))
        private.owner = live.server.keys.identify("another-key-1").owner  # pyright: ignore[reportOptionalMemberAccess]
        live.call(lambda: live.server.pool.load("ft:tiny:secret", private.owner))
        body = {"model": "ft:tiny:secret", "prompt": "a", "max_tokens": 5}
        assert live.http("POST", "/v1/completions", body, key="another-key-1").status == 200
        assert live.post("/v1/completions", **body).status == 404
        text = live.http("GET", "/metrics").body.decode()
        assert "secret" not in text
        assert 'foundling_tokens_total{kind="completion",model="fine-tuned"} 5.0' in text
        assert 'foundling_time_to_first_token_seconds_count{model="fine-tuned"} 1.0' in text
        assert 'foundling_completions_open{model="fine-tuned"} 0.0' in text
        assert 'foundling_completions_cancelled_total{model="tiny"} 0.0' in text
        assert 'foundling_cache_used_ratio{model="recurrent"}' in text
        live.http("POST", "/v1/models/recurrent/unload")
        text = live.http("GET", "/metrics").body.decode()
        assert 'foundling_cache_used_ratio{model="recurrent"}' not in text
        assert 'foundling_cache_used_ratio{model="tiny"}' in text


@pytest.mark.parametrize(
    ("body", "param", "word"),
    [
        ({"prompt": [1, -5]}, "prompt.1", "greater than or equal to 0"),
        ({"prompt": [[1], [2, "a"]]}, "prompt.1.1", "integer"),
        ({"prompt": ["a", 1]}, "prompt.1", "string"),
        ({"prompt": {"a": 1}}, "prompt", "string, or "),
        ({"prompt": "a", "stop": 5}, "stop", "string, or "),
        ({"prompt": "a", "stop": ["a", ""]}, "stop.1", "at least 1"),
        ({"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"schema": 3}}},
         "response_format.json_schema.schema", "dictionary, or "),
    ],
    ids=str,
)  # fmt: skip
def test_of_a_field_of_several_types_the_error_is_that_of_the_one_meant(
    live: Live, body: Any, param: str, word: str
) -> None:
    error = live.post("/v1/completions", model="tiny", **body).json()["error"]
    assert error["param"] == param and word in error["message"] and error["message"].startswith(f"{param}: ")


def test_any_loopback_address_answers_to_its_own_name(directories) -> None:
    with serving({"tiny": directories["tiny"]}, host="127.1.2.3") as live:
        assert live.http("GET", "/v1/models").status == 200
        assert live.http("GET", "/v1/models", headers={"Host": "127.1.2.4"}).status == 403
