# SPDX-License-Identifier: Apache-2.0
"""`foundling evaluate` in its own process: results, pages, resumption after a kill, replay, and what is refused."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import foundling as library
from foundling.evaluate.judge import Judge
from foundling.evaluate.judged import pairs_of
from foundling.evaluate.store import read_evaluation
from foundling.evaluate.subject import GeneratedText, Refusals, request_key
from foundling.models import build, family
from foundling.runtime.files import lock
from foundling.text import Tokenizer
from tests.e2e.tools import foundling, start

WORDS = "the cat sat on the mat and the dog sat on the log while a small bird looked at both of them"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny model, a task of choices, one of texts that are written, and a text."""
    root = tmp_path_factory.mktemp("evaluate")
    tokenizer = Tokenizer.train([WORDS, WORDS[::-1]], 320)
    torch.manual_seed(0)
    model: Any = build("llama", **family("llama").module.sized(tokenizer.vocab_size, 256, 32, 2))
    library.save(model, root / "tiny", tokenizer=tokenizer)
    words = WORDS.split()
    rows = [{"question": " ".join(words[i : i + 4]), "options": words[i : i + 3], "answer": i % 3} for i in range(16)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choice = {"name": "words", "kind": "choice", "options": "{options}", "answer": "{answer}"}
    written = {"name": "written", "answer": "{options}", "score": "contains", "max_tokens": 12}
    for name, spec in (("choice", choice), ("written", written)):
        (root / f"{name}.yaml").write_text(json.dumps({**spec, "data": "rows.jsonl", "prompt": "{question}"}))
    (root / "text.txt").write_text(WORDS * 20)
    return root


def test_results_items_and_page(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tasks = [place / "choice.yaml", place / "written.yaml", place / "text.txt"]
    done = foundling("evaluate", place / "tiny", *tasks, "--window", 64, "--stride", 32, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [row["task"] for row in answer["results"]] == ["words", "written", "text.txt"]
    record = read_evaluation(out)
    assert [len(record.items[name]) for name in ("words", "written", "text.txt")] == [16, 16, 1]
    choice, written, text = record.results
    assert choice.value == sum(choice.scores) / 16 and choice.low < choice.value < choice.high
    assert "ECE" in choice.figures and written.cost["new_tokens"] <= 16 * 12 and text.metric == "bits per byte"
    assert all(row.hashes["template"] and "float32 on cpu" in row.hashes["backend"] for row in record.results)
    assert record.about["family"] == "llama" and "words" in (out / "index.html").read_text()

    same = foundling("evaluate", place / "tiny", *tasks, "--window", 64, "--stride", 32, "--out", out)
    assert same.returncode == 0 and "answers were recorded before" in same.stderr
    assert read_evaluation(out).results[0].scores == choice.scores
    assert foundling("compare", out, out).returncode == 0

    more = foundling("evaluate", place / "tiny", place / "written.yaml", "--window", 64, "--stride", 32, "--out", out)
    assert more.returncode == 0 and [r.task for r in read_evaluation(out).results] == ["words", "text.txt", "written"]
    other = foundling("evaluate", place / "tiny", place / "written.yaml", "--chat", "--out", out)
    assert other.returncode == 2 and "holds an evaluation of 'tiny' with another template" in other.stderr

    gone = foundling("evaluate", out / "answers.jsonl", place / "choice.yaml", "--out", tmp_path / "replayed", "--json")
    assert gone.returncode == 0, gone.stderr
    assert json.loads(gone.stdout)["results"][0]["value"] == choice.value
    never = foundling("evaluate", out / "answers.jsonl", place / "choice.yaml", "--shots", 1, "--out", tmp_path / "n")
    assert never.returncode == 2 and "were never answered by 'tiny'" in never.stderr


def test_a_killed_evaluation_goes_on(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = [{"question": f"{i} {WORDS}", "options": ["mat"], "answer": 0} for i in range(400)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = json.loads((place / "written.yaml").read_text()) | {"max_tokens": 60}
    (tmp_path / "task.yaml").write_text(json.dumps(spec))
    command = ("evaluate", place / "tiny", tmp_path / "task.yaml", "--out", out)
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = start(*command)
        before = _lines(out)
        while _lines(out) < before + 5 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        code = process.wait()
        assert code == (75 if number == signal.SIGTERM else -number) and not (out / "evaluation.json").exists()
    other = foundling(*command[:-2], "--chat", "--out", out)
    assert other.returncode == 2 and "holds answers of 'tiny', or of another template" in other.stderr
    with open(out / "answers.jsonl", "a") as file:
        file.write('{"key": "half of a li')
    n = _lines(out)
    done = foundling(*command)
    assert done.returncode == 0 and f"{n:,} answers were recorded before" in done.stderr, done.stderr
    whole = foundling(*command[:-1], tmp_path / "again")
    assert whole.returncode == 0
    assert read_evaluation(out).items == read_evaluation(tmp_path / "again").items


def _lines(out: Path) -> int:
    file = out / "answers.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_seeds_plan_and_contamination(place: Path, tmp_path: Path) -> None:
    plan = foundling("evaluate", place / "tiny", place / "choice.yaml", place / "written.yaml", "--plan", "--json")
    (choice, written) = json.loads(plan.stdout)["tasks"]
    assert choice["items"] == 16 and choice["new_tokens"] == 0 and written["new_tokens"] == 16 * 12
    assert choice["tokens"] > 0 and choice["seconds"] > 0
    done = foundling("evaluate", place / "tiny", place / "choice.yaml", "--shots", 2, "--seeds", "0,1,2",
                     "--contamination", place / "text.txt", "--out", tmp_path / "out")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "words: mean of 3 seeds" in done.stdout and "words, seed 2: accuracy" in done.stdout
    record = read_evaluation(tmp_path / "out")
    assert len(record.results) == 3 and "contaminated items, share" in record.results[0].figures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "choice.yaml"], "nowhere"),
        (["tiny", "none.yaml"], "none.yaml"),
        (["tiny", "choice.yaml", "choice.yaml"], "two tasks have the name 'words'"),
        (["tiny", "choice.yaml", "--limit", "0"], "--limit is 0"),
        (["tiny", "choice.yaml", "--seeds", "a"], "--seeds is 'a'; expected whole numbers"),
        (["tiny", "choice.yaml", "--shots", "16"], "no items are left"),
        (["tiny", "choice.yaml", "--stride", "9999"], "a stride is at most a window"),
        (["tinny:model", "choice.yaml"], "expected PROVIDER:MODEL"),
        (["nothing.jsonl", "choice.yaml"], "no file of recorded answers"),
    ],
)
def test_what_is_refused_in_one_line(place: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    subject, *rest = arguments
    subject = str(place / subject) if (place / subject).exists() else subject
    rest = [str(place / word) if word.endswith(".yaml") else word for word in rest]
    done = foundling("evaluate", subject, *rest, "--out", tmp_path / "out", "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == answer["exit_code"] == 2 and message in answer["error"], answer
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_a_judge_between_two_evaluations(place: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        spec = json.loads((place / "written.yaml").read_text()) | {"temperature": 1.0, "seed": seed}
        (place / f"{name}.yaml").write_text(json.dumps(spec))
        done = foundling("evaluate", place / "tiny", place / f"{name}.yaml", "--limit", 6, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    command = ("judge", tmp_path / "a", tmp_path / "b", "--by", place / "wide", "--logprobs", "--json")
    tokenizer = Tokenizer.load(place / "tiny")
    wide: Any = build("llama", **family("llama").module.sized(tokenizer.vocab_size, 2048, 32, 1))
    library.save(wide, place / "wide", tokenizer=tokenizer)
    done = foundling(*command)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["wins"] + answer["losses"] + answer["ties"] == answer["n"] == 6 and answer["unparsed"] == 0
    assert [row["winner"] for row in answer["pairs"]].count("a") == answer["wins"]
    out, n = Path(answer["out"]), Path(answer["verdicts"]).read_bytes().count(b"\n")
    assert out == tmp_path / "a-to-b-by-wide" and n == 6 * 2 * 2
    assert json.loads(foundling(*command).stdout) == answer
    assert Path(answer["verdicts"]).read_bytes().count(b"\n") == n, "nothing was asked again"

    result = read_evaluation(out).results[0]
    assert result.task == "written, preferred to tiny" and result.value == answer["value"] and result.n == 6
    graph = json.loads(foundling("lineage", tmp_path, "--json").stdout)
    assert "judge" in {node["kind"] for node in graph["nodes"]} and "judged by" in json.dumps(graph)
    again = ("judge", tmp_path / "a", tmp_path / "b", "--logprobs", "--json")
    replayed = foundling(*again, "--by", answer["verdicts"], "--out", tmp_path / "replayed")
    assert json.loads(replayed.stdout)["pairs"] == answer["pairs"], replayed.stderr
    same = foundling("compare", out, tmp_path / "replayed", "--json")
    assert json.loads(same.stdout)["verdict"] == "same", same.stderr
    turned = foundling("judge", tmp_path / "b", tmp_path / "a", *command[3:])
    assert turned.returncode == 0 and abs(json.loads(turned.stdout)["value"] - (1 - answer["value"])) < 1e-9
    own = foundling(*again, "--by", place / "wide", "--out", tmp_path / "a")
    assert own.returncode == 2 and "none of a judge" in own.stdout and read_evaluation(tmp_path / "a").results
    other = foundling("judge", tmp_path / "a", tmp_path / "none", "--by", place / "tiny")
    assert other.returncode == 2 and "none" in other.stderr


def test_a_judge_that_says_nothing_readable_or_is_busy(place: Path, tmp_path: Path) -> None:
    for name in "ab":
        foundling("evaluate", place / "tiny", place / "written.yaml", "--limit", 2, "--out", tmp_path / name)
    out = tmp_path / "out"
    answer = json.dumps({"text": "I like both.", "cut": False, "n_prompt": 1, "n_tokens": 1})
    a, b = (read_evaluation(tmp_path / name) for name in "ab")
    lines = recorded_judge(pairs_of(a, b), json.loads(answer))
    (tmp_path / "judge.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ("judge", tmp_path / "a", tmp_path / "b", "--by", tmp_path / "judge.jsonl", "--out", out)
    done = foundling(*command)
    assert done.returncode == 2 and "none of 2 verdicts could be read; use --logprobs" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (out / "evaluation.json").exists()
    with lock(out):
        busy = foundling(*command)
    assert busy.returncode == 2 and str(out) in busy.stderr


def recorded_judge(pairs: Any, answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of a judge that was asked as a model without a chat template, and always wrote `answer`."""
    asked = list[Any]()

    class Writes(Refusals):
        name, hashes = "writer", {"model": "e" * 64}

        def generate(self, requests: Any) -> Any:
            asked.extend(requests)
            yield from ((i, GeneratedText(**answer)) for i in range(len(requests)))

    Judge(Writes(), chat=False).compare_all([(pair.prompt, pair.a, pair.b) for pair in pairs])
    return [
        {
            "key": request_key(Writes.hashes, "generate", request), "kind": "generate", "answer": answer,
            "request": [request.prompt, asdict(request.decoding)], "model": "writer", "hashes": Writes.hashes,
        }
        for request in asked
    ]  # fmt: skip


def test_consistency_and_canaries(place: Path, tmp_path: Path) -> None:
    done = foundling("consistency", place / "tiny", place / "choice.yaml", "--limit", 3, "--max-tokens", 4, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["hardware"]["answers"]["again"]["value"] == 0 == answer["hardware"]["logprobs"]["again"]["largest"]
    assert answer["hardware"]["logprobs"]["bfloat16"]["largest"] > 0 and "upper case" in answer["wording"]
    record = tmp_path / "canaries.json"
    first, second = (foundling("canary", place / "tiny", "--record", record) for _ in range(2))
    assert first.returncode == second.returncode == 0 and "the same" in second.stdout, first.stderr + second.stderr
