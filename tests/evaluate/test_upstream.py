# SPDX-License-Identifier: Apache-2.0
"""Models behind an API, over real HTTP: layouts of providers, failures of networks."""

import re
import subprocess
import threading
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from foundling.errors import ConfigError, GenerationError
from foundling.evaluate.endpoint import is_loopback
from foundling.evaluate.subject import Decoding, GeneratedText, GenerateRequest, LikelihoodRequest
from foundling.evaluate.upstream import PROVIDERS, RENAMED, Upstream, subject_of
from foundling.limits import RESPONSE_BYTES
from tests.evaluate.provider_answers import SHAPES
from tests.evaluate.servers import Reply, Seen, chat, serving

KEY = "sk-test-4f9c0e7b1d2a"
FRANCE = GenerateRequest([{"role": "user", "content": "What is the capital of France?"}], Decoding(16))


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in {"OPENAI_API_KEY", *(variable for _, variable in PROVIDERS.values() if variable)}:
        monkeypatch.setenv(variable, KEY)
    yield


def ask(url: str, requests: list[GenerateRequest] | None = None, **options: Any) -> list[GeneratedText]:
    subject = Upstream(url, "m", **{"backoff": 0.001, "key_env": "OPENAI_API_KEY"} | options)
    return [answer for _, answer in sorted(subject.generate(requests or [FRANCE]))]


# --- providers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", PROVIDERS)
def test_answers_of_each_provider(provider: str) -> None:
    shape = SHAPES[provider]
    with serving(lambda seen, n: shape.answer) as server:
        subject = Upstream(server.url, "m", key_env=PROVIDERS[provider][1], rename=RENAMED.get(provider))
        assert list(subject.generate([FRANCE])) == [(0, GeneratedText(shape.text, shape.cut, *shape.tokens))]
        assert server.requests[0].path == "/v1/chat/completions"
        key = server.requests[0].headers.get("authorization")
        assert key == (f"Bearer {KEY}" if PROVIDERS[provider][1] else None)
        reported = str(shape.answer["model"])
        assert subject.hashes["backend"].startswith(f"reported: {reported}")
        assert (subject.usage.prompt_tokens, subject.usage.new_tokens) == shape.tokens


@pytest.mark.parametrize("provider", PROVIDERS)
def test_errors_of_each_provider(provider: str) -> None:
    with serving(lambda seen, n: SHAPES[provider].error) as server:
        with pytest.raises(GenerationError, match=SHAPES[provider].reason) as caught:
            ask(server.url)
        assert len(server.requests) == 1 and KEY not in str(caught.value)


def test_the_provider_of_a_name() -> None:
    for provider, (url, _) in PROVIDERS.items():
        subject = subject_of(f"{provider}:some/model:8b")
        assert (subject.model, subject.endpoint.url) == ("some/model:8b", url)
        assert subject.rename == RENAMED.get(provider, {})
    other = subject_of("llama3:8b@http://127.0.0.1:9999", key_env="")
    assert (other.name, other.endpoint.url) == ("llama3:8b@127.0.0.1:9999", "http://127.0.0.1:9999/v1")
    for spec, reason in (
        ("gpt-4o", "PROVIDER:MODEL"),
        ("opena:gpt-4o", "did you mean openai:gpt-4o"),
        ("openai:", "PROVIDER:MODEL"),
        ("m@http://example.org/v1", "use https"),
        ("m@https://example.org/v1?key=1", "a query"),
        ("m@https://me:secret@example.org/v1", "a user"),
        ("m@https:///v1", "not a URL"),
        ("m@https://example.org:port/v1", "not a URL"),
    ):
        with pytest.raises(ConfigError, match=reason) as caught:
            subject_of(spec)
        assert "secret" not in str(caught.value)


DOCS = (Path(__file__).resolve().parents[2] / "docs" / "judging.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\| [^|]+ \| `subject_of\((.+)\)` \| (\S+) \| (\w*) ?\|$", DOCS, re.M)


def test_every_provider_has_a_line_in_the_docs() -> None:
    assert [line.split(":")[0].strip('"') for line, _, _ in LINES] == list(PROVIDERS)


@pytest.mark.parametrize(("line", "url", "variable"), LINES)
def test_lines_of_the_docs(line: str, url: str, variable: str) -> None:
    provider, _, model = line.strip('"').partition(":")
    subject = subject_of(f"{provider}:{model}")
    assert (subject.endpoint.url, PROVIDERS[provider][1]) == (url, variable)
    with serving(lambda seen, n: SHAPES[provider].answer) as server:
        here = subject_of(f"{model}@{server.url}", key_env=variable, rename=subject.rename)
        assert [answer.text for _, answer in here.generate([FRANCE])] == [SHAPES[provider].text]
        assert server.requests[0].body["model"] == model
        limit = "max_completion_tokens" if provider == "openai" else "max_tokens"
        assert server.requests[0].body[limit] == 16


def test_fields_of_a_request() -> None:
    sampled = GenerateRequest("Hello", Decoding(8, ("\n", "b", "c", "d", "e"), 0.7, 0.9, 2**40 + 5))
    with serving(lambda seen, n: chat("x e y")) as server:
        (text,) = ask(server.url, [sampled], rename={"seed": "random_seed", "max_tokens": "max_completion_tokens"})
        ask(server.url, [sampled], omit=("temperature", "seed", "top_p"))
        assert text.text == "x "  # of the fifth stop string the server was not told
        first, second = (seen.body for seen in server.requests)
        assert first == {
            "model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_completion_tokens": 8,
            "temperature": 0.7, "stop": ["\n", "b", "c", "d"], "random_seed": (2**40 + 5) % 2**31, "top_p": 0.9,
        }  # fmt: skip
        assert set(second) == {"model", "messages", "max_tokens", "stop"}
    with pytest.raises(ConfigError, match="omit has 'temprature'; expected fields of max_tokens, seed, stop, temp"):
        Upstream(server.url, "m", omit=["temprature"])
    with pytest.raises(ConfigError, match="start is 'x'; it begins a text: use chat=False"):
        Upstream(server.url, "m", start="x")
    hashes = [Upstream(server.url, "m", omit=omit).hashes["template"] for omit in ((), ("seed",))]
    assert hashes == ["upstream chat", "upstream chat without seed"]


def test_the_openai_library_reads_the_same_answer() -> None:
    import openai

    with serving(lambda seen, n: chat("Paris.")) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY)
        theirs = client.chat.completions.create(
            model="m", messages=FRANCE.prompt, max_tokens=16, temperature=0.0
        )  # fmt: skip
        (ours,) = ask(server.url)
        assert (ours.text, ours.n_tokens) == (theirs.choices[0].message.content, theirs.usage.completion_tokens)
        a, b = server.requests
        assert (a.path, a.body, a.headers["authorization"]) == (b.path, b.body, b.headers["authorization"])


# --- failures --------------------------------------------------------------------------------------------------------


def test_what_goes_away_is_tried_again_after_the_time_that_the_server_says() -> None:
    in_a_second = formatdate(0, usegmt=True)  # long over
    replies = [
        Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.01"}),
        Reply(b"<html>busy</html>", 503, {"Retry-After": in_a_second}),
        Reply({"error": {"message": "overloaded"}}, 529, {"retry-after-ms": "5"}),
        Reply({"error": {"code": 502, "message": "provider down"}}, 200),
        chat("", choices=[{"finish_reason": "insufficient_system_resource", "message": {"content": ""}}]),
        chat("Paris."),
    ]
    with serving(lambda seen, n: replies[n]) as server:
        subject = Upstream(server.url, "m", backoff=0.001)
        assert [answer.text for _, answer in subject.generate([FRANCE])] == ["Paris."]
        assert subject.usage[:2] == (6, 5)


@pytest.mark.parametrize(
    ("reply", "reason", "tries"),
    [
        (Reply({"error": {"message": "x"}}, 500), "no answer after 3 tries .*HTTP 500: x", 3),
        (Reply({}, 429, {"Retry-After": "86400"}), "asks to wait 86,400 s", 1),
        (Reply({"error": {"message": "no credit", "code": "insufficient_quota"}}, 429), "HTTP 429: no credit", 1),
        (Reply(b"<html>Sign in</html>", headers={"Content-Type": "text/html"}), "answered no JSON .*Sign in", 1),
        (Reply(b'{"choices": ['), "answered no JSON", 1),
        (Reply(b"[" * 5000 + b"]" * 5000), "answered no JSON", 1),
        (Reply(b'{"choices"', length=5000), "broke within an answer", 3),
        (Reply({"choices": []}), "without choices", 1),
        (Reply({"choices": [{"message": {"content": 5}}]}), "is 5, no text", 1),
        (Reply([1, 2]), "without choices", 1),
        (Reply(None), "without choices", 1),
        (Reply(b"", 404), "HTTP 404: no reason; check URL", 1),
        (Reply({}, 201), "HTTP 201", 1),
        (Reply(b"", 302, {"Location": "https://elsewhere.example/v1"}), "another host .'elsewhere.example'", 1),
        (Reply(b"", 307, {"Location": "/v1/chat/completions"}), "redirects more than 3 times", 4),
        (Reply({"error": {"message": "bad\x1b[2J\nkey " + KEY}}, 400), "bad.*key", 1),
        (chat("", choices=[{"finish_reason": "error", "error": {"message": "gone"}}]), "broke off an answer: gone", 3),
    ],
)
def test_failures_are_one_line(reply: Any, reason: str, tries: int) -> None:
    with serving(lambda seen, n: reply) as server:
        with pytest.raises(GenerationError, match=reason) as caught:
            ask(server.url, retries=2)
        assert len(server.requests) == tries
        text = str(caught.value)
        assert KEY not in text and "\n" not in text and "\x1b" not in text and len(text) < 700


def test_a_redirect_on_the_same_host_is_followed() -> None:
    def answer(seen: Seen, n: int) -> Any:
        return chat("Paris.") if seen.path == "/new/v1" else Reply(b"", 308, {"Location": "/new/v1"})

    with serving(answer) as server:
        assert ask(server.url)[0].text == "Paris."
        assert server.requests[1].body == server.requests[0].body


def test_time_and_size_have_limits() -> None:
    hold = threading.Event()
    slow = Reply(chat("Paris."), drip=0.05)  # each byte is within the limit of a socket, the whole is not
    replies: list[Any] = [slow, Reply(b" " * (RESPONSE_BYTES.high + 1))]
    with serving(lambda seen, n: replies[n] if n < 2 else hold.wait(30)) as server:
        for options, reason in (
            ({"timeout": 0.3, "retries": 0}, "no whole answer within 0.3 s"),
            ({}, "more than 33,554,432 bytes"),
            ({"timeout": 0.2, "retries": 0}, "no whole answer within 0.2 s"),
        ):
            with pytest.raises(GenerationError, match=reason):
                ask(server.url, **options)
            assert server.left.wait(20)  # the connection was closed within the answer
        hold.set()
    with pytest.raises(GenerationError, match=r"no answer after 2 tries .*refused"):
        ask(server.url, retries=1)


def test_requests_run_at_once_and_keep_their_index() -> None:
    gate = threading.Barrier(4, timeout=20)

    def answer(seen: Seen, n: int) -> Any:
        gate.wait()  # four are there at the same time, or the test fails
        return chat(seen.body["messages"][0]["content"].upper())

    with serving(answer) as server:
        texts = ask(server.url, [GenerateRequest(f"text {i}", Decoding()) for i in range(16)], workers=4)
        assert [text.text for text in texts] == [f"TEXT {i}" for i in range(16)]
        assert server.most_at_once == 4


def test_answers_under_way_come_before_an_error() -> None:
    with serving(
        lambda seen, n: Reply({}, 400) if "5" in seen.body["messages"][0]["content"] else chat("ok")
    ) as server:
        got = []
        with pytest.raises(GenerationError, match="HTTP 400"):
            for index, _ in Upstream(server.url, "m", workers=2).generate(
                [GenerateRequest(str(i), Decoding()) for i in range(40)]
            ):
                got.append(index)
        assert sorted(got)[:5] == [0, 1, 2, 3, 4] and 5 not in got and len(server.requests) == len(got) + 1 < 40


def test_whoever_leaves_early_leaves_no_thread() -> None:
    go_on = threading.Event()
    with serving(lambda seen, n: chat("ok") if n == 0 else go_on.wait(30)) as server:
        answers = Upstream(server.url, "m", workers=3).generate([FRANCE] * 9)
        next(answers)
        answers.close()  # pyright: ignore[reportAttributeAccessIssue]
        for thread in threading.enumerate():
            if thread.name.startswith("upstream"):
                thread.join(20)
                assert not thread.is_alive()
        go_on.set()
        assert len(server.requests) <= 4


def test_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tmp_path / "pair.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(pair), "-out", str(tmp_path / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    pair.write_text(pair.read_text() + (tmp_path / "cert.pem").read_text())
    replies: list[Any] = [chat("Paris."), Reply(chat("Paris."), drip=0.05)]
    with serving(lambda seen, n: replies[n], certificate=pair) as server:
        with pytest.raises(GenerationError, match="certificate is not valid"):
            ask(server.url)
        assert server.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert ask(server.url)[0].text == "Paris."
        with pytest.raises(GenerationError, match="no whole answer within"):
            ask(server.url, timeout=0.3, retries=0)
        assert server.left.wait(20)


def test_what_a_model_cannot_do_is_refused_by_name() -> None:
    chatting, plain = (Upstream("http://127.0.0.1:9", "m", chat=chat) for chat in (True, False))
    for call, reason in (
        (lambda: chatting.loglikelihood([LikelihoodRequest("a", "b")]), "chat=False"),
        (lambda: chatting.rolling(["a"]), "chat=False"),
        (lambda: plain.generate([FRANCE]), "chat=True"),
        (lambda: plain.loglikelihood([LikelihoodRequest(FRANCE.prompt, "b")]), "no conversation"),
    ):
        with pytest.raises(GenerationError, match=reason):
            list(call())


def test_loopback_hosts() -> None:
    hosts = ["localhost", "127.0.0.1", "127.9.9.9", "::1", "10.0.0.1", "0.0.0.0", "localhost.example", "example.org"]
    assert [is_loopback(host) for host in hosts] == [True] * 4 + [False] * 4
