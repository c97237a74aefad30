# SPDX-License-Identifier: Apache-2.0
"""Recorded answers of a server: they replay after it is gone, and an evaluation that was killed goes on."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from foundling.errors import DataError, GenerationError
from foundling.evaluate.recorded import Recorded, read_answers, replay
from foundling.evaluate.runners import run
from foundling.evaluate.subject import Decoding, GeneratedText, GenerateRequest, Refusals
from foundling.evaluate.task import Task, exact_match
from foundling.evaluate.upstream import Upstream
from tests.evaluate.servers import Seen, chat, serving

KEY = "sk-test-4f9c0e7b1d2a"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


CAPITALS = {"France": "Paris", "Kenya": "Nairobi", "Peru": "Lima", "Japan": "Tokyo"}
TASK: Task[Any] = Task(
    "capitals", sorted(CAPITALS.items()), lambda e: f"Capital of {e[0]}?", exact_match(lambda e: e[1]),
    decoding=Decoding(8),
)  # fmt: skip


def capital(seen: Seen, n: int) -> Any:
    country = seen.body["messages"][0]["content"].split()[-1].rstrip("?")
    return chat(CAPITALS[country] if country != "Peru" else "Cusco", system_fingerprint=f"fp_{n // 2}")


def test_an_evaluation_replays_after_its_model_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    with serving(capital) as server:
        subject = Upstream(server.url, "m", workers=1)
        live = run(TASK, Recorded(file, subject))
        assert live.result.value == 0.75 and len(server.requests) == 4
        again = run(TASK, Recorded(file, Upstream(server.url, "m")))
        assert len(server.requests) == 4 and again.result.hashes == live.result.hashes
    gone = replay(file)
    offline = run(TASK, gone)
    assert (gone.name, gone.n_replayed) == (subject.name, 4)
    assert offline.answers == live.answers and offline.result.hashes == live.result.hashes
    assert offline.result.hashes["backend"] == "reported: m-2026-01-01 fp_0; m-2026-01-01 fp_1"
    assert {name: offline.result.cost[name] for name in ("prompt_tokens", "new_tokens")} == {
        "prompt_tokens": 48.0, "new_tokens": 12.0
    }  # fmt: skip
    copied = run(TASK, Recorded(tmp_path / "copy.jsonl", replay(file)))  # an evaluation records what it replays
    assert copied.result.hashes == live.result.hashes and len(list(read_answers(tmp_path / "copy.jsonl"))) == 4
    assert run(TASK, replay(tmp_path / "copy.jsonl")).answers == live.answers
    with pytest.raises(GenerationError, match="1 of 1 requests were never answered"):
        list(gone.generate([GenerateRequest("Capital of Chad?", Decoding(8))]))


def test_a_file_of_several_subjects_asks_for_one(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    with serving(capital) as server:
        for model in ("a", "b"):
            run(TASK, Recorded(file, Upstream(server.url, model)))
        host = server.url.removeprefix("http://")
    with pytest.raises(DataError, match=rf"2 subjects \(a@{host}, b@{host}\); name one"):
        replay(file)
    assert run(TASK, replay(file, name=f"b@{host}")).result.value == 0.75
    for name, reason in (("c", "no recorded answer of 'c'"), (None, "no file")):
        with pytest.raises(DataError, match=reason):
            replay(file if name else tmp_path / "none", name=name)
    lines = [{k: v for k, v in line.items() if k != "hashes"} for line in read_answers(file)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match="without the hashes"):
        replay(file)


PROGRAM = """
import sys
from pathlib import Path
from foundling.evaluate.recorded import Recorded
from foundling.evaluate.subject import Decoding, GeneratedText, GenerateRequest, Refusals
from foundling.evaluate.upstream import Upstream

subject = Recorded(Path(sys.argv[2]), Upstream(sys.argv[1], "m", workers=2))
for index, answer in subject.generate([GenerateRequest(f"text {i}", Decoding(8)) for i in range(30)]):
    print(index, flush=True)
"""


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    file, program, go_on = tmp_path / "answers.jsonl", tmp_path / "program.py", threading.Event()
    program.write_text(PROGRAM)

    def answer(seen: Seen, n: int) -> Any:
        if n >= 11:
            go_on.wait(30)  # until the process is dead
        return chat(seen.body["messages"][0]["content"].upper())

    with serving(answer) as server:
        command = [sys.executable, str(program), server.url, str(file)]
        root = Path(__file__).resolve().parents[2]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(root)}
        ) as it:
            assert it.stdout
            for _ in range(10):
                it.stdout.readline()
            it.send_signal(signal.SIGKILL)
        go_on.set()
        with open(file, "ab") as handle:  # what a kill within a line leaves
            handle.write(b'{"key": "half')
        recorded = {line["request"][0] for line in read_answers(file)}
        whole = len(recorded)
        n_asked = len(server.requests)
        assert 10 <= whole <= 11 and n_asked <= 13
        subject = Recorded(file, Upstream(server.url, "m"))
        texts = dict(subject.generate([GenerateRequest(f"text {i}", Decoding(8)) for i in range(30)]))
        assert {i: text.text for i, text in texts.items()} == {i: f"TEXT {i}" for i in range(30)}
        later = {seen.body["messages"][0]["content"] for seen in server.requests[n_asked:]}
        assert subject.n_replayed == whole and later == {f"text {i}" for i in range(30)} - recorded
        assert KEY not in file.read_text()


def test_a_reader_changes_nothing_and_a_writer_ends_the_last_line(tmp_path) -> None:
    path = tmp_path / "answers.jsonl"
    prompts = [GenerateRequest(text, Decoding()) for text in ("a", "b")]
    list(Recorded(path, Echo()).generate(prompts))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])  # the last answer is whole, its line has no end
    assert len(dict(replay(path).generate(prompts))) == 2 and path.read_bytes() == whole[:-1]
    assert len(dict(Recorded(path, Echo()).generate(prompts))) == 2 and path.read_bytes() == whole
    torn = whole + whole[:40]
    path.write_bytes(torn)
    assert len(dict(replay(path).generate(prompts))) == 2 and path.read_bytes() == torn
    Recorded(path, Echo())
    assert path.read_bytes() == whole


def test_half_of_a_character_is_recorded(tmp_path) -> None:
    path, request = tmp_path / "answers.jsonl", GenerateRequest("\ud83d", Decoding())
    (first,) = Recorded(path, Echo()).generate([request])
    (again,) = replay(path).generate([request])
    assert first == again and first[1].text == "\ud83d"


class Echo(Refusals):
    """Answers with the prompt."""

    name, kind, serves = "echo", "an echo", ("generate",)
    hashes = {"model": "echo"}

    def generate(self, requests):
        return ((i, GeneratedText(str(request.prompt))) for i, request in enumerate(requests))
