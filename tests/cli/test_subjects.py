# SPDX-License-Identifier: Apache-2.0
"""Options of models behind an API on the command line, over real HTTP: what is sent, and what is refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from foundling.cli import main
from foundling.cli.subjects import chats
from foundling.evaluate.canary import PROMPTS
from foundling.evaluate.recorded import Recorded, replay
from foundling.evaluate.subject import Decoding, GenerateRequest
from foundling.evaluate.upstream import PROVIDERS, Upstream
from tests.evaluate.servers import Seen, chat, echo, serving

KEY = "sk-test-4f9c0e7b1d2a"
ROWS = [{"question": f"{i} and {i} are", "options": ["more", "less"], "answer": 0} for i in range(3)]


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in {variable for _, variable in PROVIDERS.values() if variable}:
        monkeypatch.setenv(variable, KEY)


@pytest.fixture
def tasks(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    common = {"data": "rows.jsonl", "prompt": "{question}"}
    choice = {"name": "choice", "kind": "choice", "options": "{options}", "answer": "{answer}", **common}
    written = {"name": "written", "answer": "{options}", "score": "contains", "max_tokens": 8, **common}
    (tmp_path / "choice.yaml").write_text(json.dumps(choice))
    (tmp_path / "written.yaml").write_text(json.dumps(written))
    return {name: str(tmp_path / f"{name}.yaml") for name in ("choice", "written")}


def foundling(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, dict[str, Any], str]:
    """(exit code, the object on stdout, stderr) of the command line in this process"""
    with pytest.raises(SystemExit) as caught:
        main([*map(str, words), "--json"])
    out, err = capsys.readouterr()
    return int(str(caught.value.code)), json.loads(out), err


def completions(seen: Seen, n: int) -> Any:
    """Echoes words as tokens; "more" is likelier than others, and the first has no log-probability."""
    words = re.findall(r"<s>|\s*[^\s<]+", seen.body["prompt"])
    return echo([*words, "."], [None, *(-0.5 if word.endswith("more") else -2.0 for word in words[1:]), -1.0])


def test_evaluate_sends_a_url_no_key_but_the_named_one(
    tasks: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (file := tmp_path / "key").write_text("sk-from-the-file")
    file.chmod(0o600)
    monkeypatch.setenv("MINE", "sk-of-this-server")
    with serving(lambda seen, n: chat("more")) as server:
        for options, key in (
            ([], None),
            (["--key-env", "MINE"], "Bearer sk-of-this-server"),
            (["--key-file", file], "Bearer sk-from-the-file"),
        ):
            out = tmp_path / f"out{len(server.requests)}"
            code, _, err = foundling(
                capsys, "evaluate", f"m@{server.url}", tasks["written"], "--out", out, "--workers", 1, *options
            )
            assert code == 0, err
            assert {seen.headers.get("authorization") for seen in server.requests[-3:]} == {key}
            assert {seen.path for seen in server.requests[-3:]} == {"/v1/chat/completions"}
        assert server.most_at_once == 1 and server.requests[-1].body["temperature"] == 0


def test_log_probabilities_of_an_api_by_the_command_line(
    tasks: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(completions) as server:
        subject = f"m@{server.url}"
        words = ("evaluate", subject, tasks["choice"], "--completions", "--omit", "temperature", "--start", "<s>")
        code, value, err = foundling(capsys, *words, "--out", tmp_path / "out", "--timeout", 5)
        assert code == 0, err
        assert value["results"][0]["value"] == 1.0
        assert {seen.path for seen in server.requests} == {"/v1/completions"}
        assert all("temperature" not in seen.body and seen.body["echo"] for seen in server.requests)
        assert value["results"][0]["hashes"]["template"] == "upstream completions without temperature after '<s>'"
        code, value, _ = foundling(capsys, "evaluate", subject, tasks["choice"], "--out", tmp_path / "chat")
        assert code == 2 and "--completions" in value["error"]


def test_judge_and_canary_take_the_same_options(
    tasks: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(seen: Seen, n: int) -> Any:
        prompt = seen.body["messages"][0]["content"]
        return chat("[[A]]" if "judge" in prompt else "more")

    with serving(answer) as server:
        for name in ("a", "b"):
            assert not foundling(
                capsys, "evaluate", f"{name}@{server.url}", tasks["written"], "--out", tmp_path / name
            )[0]
        n = len(server.requests)
        options = ("--key-env", "OPENAI_API_KEY", "--omit", "temperature,seed", "--workers", 1)
        judged = ("judge", tmp_path / "a", tmp_path / "b", "--by", f"j@{server.url}", *options)
        code, value, err = foundling(capsys, *judged)
        assert code == 0 and len(value["pairs"]) == 3, err
        watched = ("canary", f"c@{server.url}", "--record", tmp_path / "canaries.json", *options)
        _, watched_value, err = foundling(capsys, *watched)
        assert watched_value["verdict"] == "recorded", err
        after = server.requests[n:]
        assert len(after) == 6 + 3 * len(PROMPTS)
        assert {seen.headers["authorization"] for seen in after} == {f"Bearer {KEY}"}
        assert not any("temperature" in seen.body for seen in after)
    # the judge is gone: its verdicts replay
    again = foundling(capsys, *judged[:4], value["verdicts"], "--out", tmp_path / "again.jsonl")
    assert again[0] == 0 and again[1]["pairs"] == value["pairs"], again


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("m@http://127.0.0.1:9", "--dtype", "bfloat16"), "--dtype: .*behind an API.*leave it out"),
        (("m@http://127.0.0.1:9", "--chat"), "--chat: "),
        (("openai:m", "--window", "64"), "--window: openai:m is a model behind an API"),
        (("openai:m", "--base-model", "x"), "--base-model: "),
        (("answers.jsonl", "--truncate"), "--truncate: answers.jsonl holds recorded answers"),
        (("answers.jsonl", "--workers", "2"), "--workers: "),
        ((".", "--key-env", "OPENAI_API_KEY"), "--key-env: . is a directory.*behind an API"),
        ((".", "--completions"), "--completions: "),
        (("m@http://127.0.0.1:9", "--start", "<s>"), "start is '<s>'.*--completions"),
        (("m@http://127.0.0.1:9", "--omit", "temprature"), "omit has 'temprature'; expected fields of"),
        (("m@http://127.0.0.1:9", "--workers", "0"), "workers is 0"),
        (("m@http://127.0.0.1:9", "--timeout", "0"), "timeout is 0"),
        (("m@http://127.0.0.1:9", "--key-env", "NOT_SET"), "set the environment variable NOT_SET"),
        (("m@http://127.0.0.1:9", "--key-env", "A", "--key-file", "B"), "not allowed with argument --key-env"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(
    words: tuple[str, ...], reason: str, tasks: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, value, _ = foundling(capsys, "evaluate", words[0], tasks["written"], *words[1:])
    assert code == 2 and re.search(reason, value["error"]), value


def test_consistency_is_of_a_directory(tasks: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for subject in ("openai:m", "m@http://127.0.0.1:9", "answers.jsonl"):
        code, value, _ = foundling(capsys, "consistency", subject, tasks["written"])
        assert code == 2 and f"{subject} is no directory" in value["error"]


def test_who_is_asked_in_a_conversation(tmp_path: Path) -> None:
    for chat_api, prompt in ((True, [{"role": "user", "content": "Hello"}]), (False, "Hello")):
        answer = chat("ok") if chat_api else chat("", choices=[{"text": "ok"}])
        with serving(lambda seen, n, answer=answer: answer) as server:
            subject = Upstream(server.url, "m", chat=chat_api)
            assert chats(subject) is chat_api
            file = tmp_path / f"{chat_api}.jsonl"
            list(Recorded(file, subject).generate([GenerateRequest(prompt, Decoding(8))]))
        assert chats(replay(file)) is chat_api
