# SPDX-License-Identifier: Apache-2.0
"""Keys of models behind an API: where they come from, whom they are sent to, and that they show up nowhere."""

from pathlib import Path
from typing import Any

import pytest

from foundling.errors import ConfigError, GenerationError
from foundling.evaluate.endpoint import Secret
from foundling.evaluate.recorded import Recorded
from foundling.evaluate.subject import Decoding, GenerateRequest, LikelihoodRequest
from foundling.evaluate.upstream import PROVIDERS, Upstream, subject_of
from tests.evaluate.servers import Reply, Seen, chat, echo, serving

KEY = "sk-test-4f9c0e7b1d2a"
VARIABLES = sorted({variable for _, variable in PROVIDERS.values() if variable})
HELLO = GenerateRequest("Hello", Decoding(16))


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, KEY)


def sent(server: Any) -> str | None:
    return server.requests[-1].headers.get("authorization")


def test_a_url_gets_no_key_that_nobody_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file := tmp_path / "key").write_text("sk-from-the-file")
    file.chmod(0o600)
    monkeypatch.setenv("MINE", "sk-of-this-server")
    with serving(lambda seen, n: chat("ok")) as server:
        for spec in ("m", "openai:m", "mistral"):  # each variable of a provider is set
            for subject in (subject_of(f"{spec}@{server.url}"), Upstream(server.url, spec)):
                list(subject.generate([HELLO]))
                assert sent(server) is None
        for options, key in (
            ({"key_env": "MINE"}, "sk-of-this-server"),
            ({"key_file": file}, "sk-from-the-file"),
            ({"key_env": "MINE", "key_file": file}, "sk-from-the-file"),
        ):
            list(subject_of(f"m@{server.url}", **options).generate([HELLO]))
            assert sent(server) == f"Bearer {key}"
    for provider, (url, variable) in PROVIDERS.items():
        subject = subject_of(f"{provider}:m")
        assert subject.endpoint.url == url and bool(subject.endpoint.key) == bool(variable)
    # where the server asks for one, the message says how to give it
    with (
        serving(lambda seen, n: Reply({"error": {"message": "no"}}, 401)) as server,
        pytest.raises(GenerationError, match=r"no key was sent: .*--key-env.*--key-file"),
    ):
        list(subject_of(f"m@{server.url}").generate([HELLO]))


def test_a_key_is_read_from_a_private_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Upstream("https://api.example", "m", key_file=file)
    file.chmod(0o600)
    with serving(lambda seen, n: chat("ok")) as server:
        list(Upstream(server.url, "m", key_file=file).generate([HELLO]))
        assert sent(server) == f"Bearer {KEY}"
    monkeypatch.delenv("OPENAI_API_KEY")
    for url in ("https://api.example", "http://127.0.0.1:9"):
        with pytest.raises(ConfigError, match="no key; set the environment variable OPENAI_API_KEY"):
            Upstream(url, "m", key_env="OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="name of the key's environment variable") as caught:
        Upstream("https://api.example", "m", key_env=KEY)
    assert KEY not in str(caught.value)
    for bad in ("two words", "line\nbreak", "é", "x" * 9000):
        file.write_text(bad)
        with pytest.raises(ConfigError, match="not a key") as caught:
            Upstream("https://api.example", "m", key_file=file)
        assert bad not in str(caught.value)
    file.write_text("\n")
    with pytest.raises(ConfigError, match="no key; write it into"):
        Upstream("https://api.example", "m", key_file=file)
    for path, reason in ((tmp_path, "not a file|cannot be read"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(ConfigError, match=reason):
            Upstream("https://api.example", "m", key_file=path)


def parts_of_the_key(text: str) -> list[str]:
    """Eight characters of it in a row are too many."""
    return [KEY[i : i + 8] for i in range(len(KEY) - 7) if KEY[i : i + 8] in text]


REPEATED: list[Any] = [
    lambda pad: Reply({"error": {"message": pad + KEY}}, 400),
    lambda pad: Reply({"error": pad + KEY}, 400),
    lambda pad: Reply({"error": {"reason": pad + KEY}}, 400),
    lambda pad: Reply({"error": {pad + KEY: 1}}, 400),
    lambda pad: Reply((pad + KEY).encode(), 400),
    lambda pad: Reply((pad + KEY).encode()),
    lambda pad: Reply(b"<html>", headers={"Content-Type": pad + KEY}),
    lambda pad: Reply({"message": pad + KEY}),
    lambda pad: Reply({"note": pad + KEY}),
    lambda pad: Reply(b"", 302, {"Location": f"https://{pad}{KEY}.example/v1"}),
    lambda pad: chat("", choices=[{"finish_reason": "error", "error": {"message": pad + KEY}}]),
    lambda pad: chat("", choices=[{"message": {"content": {"text": pad + KEY}}}]),
]


@pytest.mark.parametrize("reply", REPEATED, ids=range(len(REPEATED)))
def test_no_part_of_a_key_is_shown_where_a_text_is_cut(reply: Any) -> None:
    """The key stands across each place where an error's text could end."""
    with serving(lambda seen, n: reply("x" * int(seen.body["messages"][0]["content"]))) as server:
        subject = Upstream(server.url, "m", key_env="OPENAI_API_KEY", retries=0)
        for end in (80, 120, 200, 500):
            for n in range(end - len(KEY) - 30, end, 10):  # the text in front of it takes up to 30
                with pytest.raises(GenerationError) as caught:
                    list(subject.generate([GenerateRequest(str(n), Decoding())]))
                assert not parts_of_the_key(str(caught.value)), (end, n, str(caught.value))


def test_no_part_of_a_key_is_in_what_is_recorded_of_a_model(tmp_path: Path) -> None:
    with serving(lambda seen, n: chat("ok", model="x" * 190 + KEY)) as server:
        subject = Upstream(server.url, "m", key_env="OPENAI_API_KEY")
        list(Recorded(tmp_path / "answers.jsonl", subject).generate([HELLO]))
    assert not parts_of_the_key((tmp_path / "answers.jsonl").read_text() + str(subject.hashes))


def test_a_key_that_is_echoed_in_tokens() -> None:
    tokens = [KEY[i : i + 2] for i in range(0, len(KEY), 2)]
    for pad in (["x" * n] for n in range(60, 110, 10)):
        with serving(lambda seen, n, pad=pad: echo(pad + tokens, [None] + [-1.0] * len(tokens))) as server:
            subject = Upstream(server.url, "m", key_env="OPENAI_API_KEY", chat=False)
            with pytest.raises(GenerationError, match="not those of the text") as caught:
                list(subject.loglikelihood([LikelihoodRequest("a", "b")]))
            assert not parts_of_the_key(str(caught.value))


def test_the_key_shows_up_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def answer(seen: Seen, n: int) -> Any:
        if n == 3:
            return Reply({"error": {"message": f"key {KEY} has no access"}}, 403)
        return chat(f"your key is {KEY}", system_fingerprint=f"fp {KEY}", model=KEY)

    with serving(answer) as server:
        subject = Upstream(server.url, "m", key_env="OPENAI_API_KEY", workers=1)
        recorded = Recorded(tmp_path / "answers.jsonl", subject)
        with pytest.raises(GenerationError, match="no access") as caught:
            list(recorded.generate([GenerateRequest(str(i), Decoding()) for i in range(5)]))
    import pickle
    import traceback

    with pytest.raises(TypeError):
        pickle.dumps(subject.endpoint.key)
    out, err = capfd.readouterr()
    shown = "".join(traceback.format_exception(caught.value)) + out + err + repr(vars(subject)) + str(recorded.hashes)
    shown += repr(vars(subject.endpoint)) + (tmp_path / "answers.jsonl").read_text()
    assert KEY not in shown and "your key is ***" in shown and repr(Secret("")) == "Secret()"
    assert KEY not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
