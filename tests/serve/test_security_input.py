# SPDX-License-Identifier: Apache-2.0
"""What a request may contain: one test for each kind of hole that servers of models have had."""

import http.client
import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from foundling.serve import guard
from foundling.serve.embeddings import EmbeddingBody
from foundling.serve.moderations import ModerationBody
from foundling.serve.playground import NextBody
from foundling.serve.protocol import Body, ChatBody, CompletionBody
from tests.serve import raw
from tests.serve.servers import KEY, Live, serving


@pytest.fixture(scope="module")
def locked(directories):
    """A server that needs a key."""
    with serving({"tiny": directories["tiny"]}, keys=[KEY], max_body=1 << 20) as live:
        yield live


# --- bodies ----------------------------------------------------------------------------------------------------------


def refused(live: Live, data: bytes, path: str = "/v1/completions", statuses=(400,)) -> str:
    """The message of a refusal."""
    reply = live.http("POST", path, data)
    assert reply.status in statuses, reply
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
    assert len(error["message"]) < 1000
    return error["message"]


def test_nothing_is_unpickled(live: Live) -> None:
    import pickle

    class Bomb:
        def __reduce__(self):
            return (print, ("executed",))

    data = pickle.dumps(Bomb())
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize"):
        refused(live, data, path)
    assert live.http("POST", "/v1/completions", data, headers={"Content-Type": "application/x-pickle"}).status == 400
    source = "\n".join(file.read_text() for file in Path(guard.__file__).parent.glob("*.py"))
    for word in ("pickle", "marshal", "torch.load", " eval(", " exec(", "yaml.load", "__import__", "shell=True"):
        assert word not in source, word


@pytest.mark.parametrize(
    "value",
    ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "-1", "1" * 400, "1" * 5000, "-" + "9" * 5000, "1e-400", "0.5",
     '"1"', "true", "[]", "{}", "9223372036854775808", "-9223372036854775809", "0x10", "1_000", "+1", "01", "1."],
    ids=lambda v: v[:20],
)  # fmt: skip
@pytest.mark.parametrize("field", ["max_tokens", "n", "best_of", "logprobs", "top_k", "seed", "temperature", "top_p",
                                   "repetition_penalty", "frequency_penalty", "logit_bias.5", "prompt"])  # fmt: skip
def test_a_strange_number_is_refused_or_used_never_worse(live: Live, field: str, value: str) -> None:
    name, dot, key = field.partition(".")
    inside = f'{{"{key}": {value}}}' if dot else f"[{value}]" if name == "prompt" else value
    prompt = "" if name == "prompt" else '"prompt": "a", '
    limit = "" if name == "max_tokens" else '"max_tokens": 2, '
    body = f'{{"model": "tiny", {prompt}{limit}"{name}": {inside}}}'.encode()
    reply = live.http("POST", "/v1/completions", body)
    assert reply.status in (200, 400), reply
    if reply.status == 400:
        assert len(reply.json()["error"]["message"]) < 1000
    if value in ("NaN", "Infinity", "1e400", "1" * 5000, "0x10") or (value == "-1" and "_" not in field and not dot):
        assert reply.status == 400 or (field == "seed" and value == "-1")


def test_deep_and_odd_json_is_refused(live: Live) -> None:
    for opening in ("[", '{"a":', '{"messages":[', '[{"":'):
        refused(live, opening.encode() * 100_000)
    deep = "[" * 5000 + "]" * 5000
    for path, body in (
        ("/v1/completions", f'{{"prompt": {deep}}}'), ("/v1/chat/completions", f'{{"messages": {deep}}}'),
        ("/v1/chat/completions", f'{{"messages": [], "tools": [{{"type": "function", "function": {deep}}}]}}'),
    ):  # fmt: skip
        assert "inside each other" in refused(live, body.encode(), path)
    for body in (b"", b"null", b"5", b'""', b"[]", b"\xff\xfe\x00", b'{"a": 1,}', b"{'a': 1}", b"\x00" * 64):
        refused(live, body)


@pytest.mark.parametrize(
    ("path", "model", "body"),
    [
        ("/v1/completions", CompletionBody, {"prompt": [[]] * 250_000}),
        ("/v1/completions", CompletionBody, {"prompt": ["a", *[1] * 250_000]}),
        ("/v1/completions", CompletionBody, {"prompt": "a"} | {f"x{n}": 1 for n in range(50_000)}),
        ("/v1/completions", CompletionBody, {"prompt": "a", "logit_bias": {str(n): "x" for n in range(50_000)}}),
        ("/v1/chat/completions", ChatBody, {"messages": [{}] * 250_000}),
        ("/v1/chat/completions", ChatBody, {"messages": [{"role": "user", "content": [{}] * 250_000}]}),
        ("/v1/chat/completions", ChatBody, {"messages": [{f"x{n}": 1 for n in range(50_000)}]}),
        ("/v1/embeddings", EmbeddingBody, {"input": [[]] * 250_000}),
        ("/v1/moderations", ModerationBody, {"input": [{}] * 250_000}),
        ("/playground/next", NextBody, {"tokens": [[]] * 250_000}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_body_of_many_faults_has_few_errors(live: Live, path: str, model: type[Body], body: dict[str, Any]) -> None:
    """Each takes time of the event loop."""
    with pytest.raises(ValidationError) as met:
        model.model_validate(body)
    assert met.value.error_count() <= 8
    if path.startswith("/v1"):
        refused(live, json.dumps(body).encode(), path)


@pytest.mark.parametrize(
    "text", ["\\ud800", "\\udfff\\ud800", "\\u0000", "\\u202e\\u2066", "\\r\\nSet-Cookie: a=b", "\x7f"]
)
def test_an_odd_text_is_refused_or_answered(live: Live, text: str) -> None:
    for path, body in (
        ("/v1/completions", f'{{"model": "{text}", "prompt": "a"}}'),
        ("/v1/completions", f'{{"prompt": "{text}", "max_tokens": 2, "stop": "{text}", "user": "{text}"}}'),
        ("/v1/chat/completions", f'{{"messages": [{{"role": "user", "content": "{text}"}}], "max_tokens": 2}}'),
        ("/v1/chat/completions", f'{{"messages": [{{"role": "{text}", "content": "a"}}], "{text}": 1}}'),
        ("/tokenize", f'{{"prompt": "{text}"}}'),
    ):  # fmt: skip
        reply = live.http("POST", path, body.encode())
        assert reply.status in (200, 400, 404), reply
        assert "set-cookie" not in reply.headers
        assert all(char >= " " for char in reply.body.decode()), reply.body


@pytest.mark.parametrize("name", ["..%2f..%2fetc%2fpasswd", "%2e%2e", "..", "a%00b", "%00", "a%0d%0aSet-Cookie:%20a=b",
                                  "%ff%fe", "tiny%2f..", "a" * 5000, "%7b%7b7*7%7d%7d", "C:%5cWindows",
                                  "http:%2f%2fevil.example", "hf:%2f%2fa%2fb"])  # fmt: skip
def test_a_name_is_no_path(live: Live, name: str) -> None:
    for method, path in (("GET", f"/v1/models/{name}"), ("POST", f"/v1/models/{name}/load"),
                         ("POST", f"/v1/models/{name}/unload"), ("GET", f"/static/{name}")):  # fmt: skip
        got = raw.answer(live, raw.request(path, method=method, live=live))
        assert raw.status(got) in (404, 405), got
        head, _, body = got.partition(b"\r\n\r\n")
        assert b"set-cookie" not in head.lower() and b"root:" not in body and b"49" not in body


def test_a_template_runs_only_as_the_models_own(live: Live, directories) -> None:
    """Messages are data of the template, whatever they look like; no request brings a template of its own."""
    attack = "{{ 7*7 }}{% for i in range(10**9) %}{{ cycler.__init__.__globals__.os.popen('id').read() }}{% endfor %}"
    messages = [{"role": "user", "content": attack, "name": attack}]
    ids = [t["id"] for t in live.post("/tokenize", messages=messages).json()["tokens"]]
    assert attack in live.model("tiny").tokenizer.backend.decode(ids, skip_special_tokens=False)
    assert live.post("/v1/chat/completions", messages=messages, max_tokens=1).status == 200
    for field in ("chat_template", "chat_template_kwargs", "template", "tools_template", "guided_json", "lora_request"):
        reply = live.post("/v1/chat/completions", messages=[{"role": "user", "content": "a"}], **{field: attack})
        assert reply.status == 400 and reply.json()["error"]["param"] == field


def test_an_endless_template_ends(directories, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(directories["tiny"], tmp_path / "endless")
    for file in (tmp_path / "endless").iterdir():
        if file.name == "foundling.json":
            file.unlink()
    config = tmp_path / "endless" / "tokenizer_config.json"
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    for template in (
        endless,
        "{{ 'a' * 10**9 }}",
        "{{ ().__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% if %}",
    ):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
        (tmp_path / "endless" / "chat_template.jinja").unlink(missing_ok=True)
        with serving({"tiny": tmp_path / "endless"}) as live:
            done = threading.Event()

            def ask(live: Live = live, done: threading.Event = done) -> None:
                reply = live.post("/v1/chat/completions", messages=[{"role": "user", "content": "a"}])
                assert reply.status == 400 and "template" in reply.json()["error"]["message"], reply
                done.set()

            thread = threading.Thread(target=ask)
            thread.start()
            assert live.http("GET", "/health").status == 200  # it does not stop the others
            thread.join()
            assert done.is_set()


def test_no_url_of_a_request_is_fetched(live: Live) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": url, "image_url": url}]
        for part in parts:
            reply = live.post("/v1/chat/completions", messages=[{"role": "user", "content": [part]}])
            assert reply.status == 400
        live.post("/v1/chat/completions", messages=[{"role": "user", "content": url}], max_tokens=1, user=url)
        live.post("/v1/completions", prompt=url, model=url, max_tokens=1)
        live.http("POST", "/v1/models/" + url.replace("/", "%2f") + "/load")
        live.http(
            "GET", "/v1/models", headers={"X-Forwarded-For": url, "Referer": url, "X-Forwarded-Host": "a.example"}
        )
        with pytest.raises(TimeoutError):
            listener.accept()


# --- HTTP ------------------------------------------------------------------------------------------------------------


def test_a_header_has_a_limit(live: Live) -> None:
    """Also where all of it comes at once."""

    def status(*lines: str, path: str = "/v1/models") -> int:
        return raw.status(raw.answer(live, raw.request(path, b"", *lines, method="GET", live=live)))

    assert status("X-Long: " + "a" * 1000) == 200
    assert status("X-Long: " + "a" * 100_000) in (400, 431)
    assert status("X-Long: " + "a" * 1_000_000) in (400, 431)
    assert status(*[f"X-{i}: {'b' * 1000}" for i in range(100)]) in (400, 431)
    assert status(*[f"X-{i}: b" for i in range(10_000)]) in (400, 431)
    assert status(path="/" + "a" * 100_000) in (400, 431)


def test_a_body_has_a_limit(locked: Live) -> None:
    most = locked.server.options.max_body
    big = b'{"prompt": "' + b"a" * most + b'"}'
    assert "larger than 1,048,576 bytes" in refused(locked, big, statuses=(413,))
    chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    data = raw.request("/v1/completions", b"", "Transfer-Encoding: chunked", live=locked) + chunk * 17 + b"0\r\n\r\n"
    assert raw.status(raw.answer(locked, data)) == 413
    unknown = raw.request("/login", b"a" * 5000, live=locked)
    assert raw.status(raw.answer(locked, unknown)) == 413


def test_a_slow_client_is_not_waited_for(directories, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for its body nor for its header, whose bytes may drip (slowloris)."""
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    monkeypatch.setattr("foundling.serve.run.HEADER_SECONDS", 1.0)
    with serving({}) as live:
        slow = raw.request("/v1/completions", b'{"a', "Content-Length: 1000", live=live)
        assert raw.status(raw.answer(live, slow)) == 408
        for begin in (b"", b"GET /health HTTP/1.1\r\nX-A: "):
            with raw.connect(live) as connection:
                connection.sendall(begin)
                ended = False
                for _ in range(200):
                    try:
                        connection.sendall(b"a" if begin else b"")
                        connection.settimeout(0.1)
                        ended = not connection.recv(1000)
                    except TimeoutError:
                        continue
                    except OSError:
                        ended = True
                    if ended:
                        break
                assert ended
        assert live.http("GET", "/health").status == 200


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 2", "Content-Length: 40"),
        ("Content-Length: 2", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: chunked, identity",),
        ("Content-Length: -1",),
        ("Content-Length: +2",),
        ("Content-Length: 2, 3",),
        ("Content-Length: 0x2",),
        ("Content-Length : 2",),
        ("X-A: b", " Transfer-Encoding: chunked", "Content-Length: 2", "Transfer-Encoding:", " chunked"),
        ("Host: localhost",),
        ("X-A: b\rContent-Length: 2",),
        ("X-A\x00: b",),
    ],
    ids=str,
)
def test_no_second_request_hides_in_a_first(live: Live, lines: tuple[str, ...]) -> None:
    inner = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = b"{}" + inner
    with raw.connect(live) as connection:
        if not any("ength" in line or "ncoding" in line for line in lines):
            lines = (*lines, "Content-Length: 2")
        connection.sendall(raw.request("/v1/completions", body, *lines, live=live))
        got, part = b"", b"-"
        connection.settimeout(10)
        while part:
            try:
                part = connection.recv(65536)
            except (ConnectionResetError, TimeoutError):
                break
            got += part
    assert got.count(b"HTTP/1.1 ") <= 1 and b"owned_by" not in got, got
    assert not got or raw.status(got) in (400, 501), got


def test_a_log_has_one_line_for_a_request(live: Live) -> None:
    evil = 'tiny"}\n{"status": 200, "key": "forged'
    reply = live.http("POST", "/v1/completions", {"model": evil, "prompt": "a"}, headers={"User-Agent": "a\tb"})
    assert reply.status == 404
    line = live.line(reply)
    assert (line["status"], line["route"]) == (404, "/v1/completions") and "model" not in line
    got = raw.answer(live, raw.request("/v1/models/a%0a%7b%22status%22:1%7d", method="GET", live=live))
    assert raw.status(got) == 404
    assert all("\n" not in line and json.loads(line)["id"].startswith("req_") for line in live.lines)


def test_a_web_socket_is_refused(live: Live) -> None:
    lines = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: a", "Sec-WebSocket-Version: 13")
    assert raw.status(raw.answer(live, raw.request("/v1/models", b"", *lines, method="GET", live=live))) != 101
    connection = http.client.HTTPConnection(live.host, live.port)
    for method in ("TRACE", "CONNECT", "PUT", "PATCH", "DELETE", "BREW"):
        connection.request(method, "/v1/models")
        reply = connection.getresponse()
        assert reply.status == 405 and json.loads(reply.read())["error"]["message"]
    connection.close()
