# SPDX-License-Identifier: Apache-2.0
"""`foundling generate` and `chat` with a constraint: what ends follows it, what is invalid is refused in one line."""

import json
from pathlib import Path

import pytest

from foundling.text import Tokenizer
from foundling.weights.directory import save
from tests.contract.cases import case
from tests.e2e.tools import environment, foundling
from tests.processes import run
from tests.text.kinds import TEXTS

SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"enum": [1, 2]}},
          "required": ["name", "age"]}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "tiny"
    words = Tokenizer.train(TEXTS, 384)
    save(case("llama").tiny(vocab_size=words.vocab_size, max_seq_len=128), out, tokenizer=words)
    return out


def written(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_every_option_holds_the_answer(directory: Path, tmp_path: Path) -> None:
    schema = written(tmp_path, "person.json", json.dumps(SCHEMA))
    lark = written(tmp_path, "sum.lark", 'start: /[0-9]/ ("+" /[0-9]/){1,3}\n')
    for options in (
        ["--json-schema", schema],
        ["--grammar", lark],
        ["--regex", "[a-c]{3}"],
        ["--choice", "yes", "--choice", "no"],
    ):
        done = foundling("generate", directory, "--prompt", "the", *options, "--n", 2, "--temperature", 1, "--json")
        assert done.returncode == 0, done.stderr
        for answer in json.loads(done.stdout)["answers"]:
            assert answer["finish_reason"] == "end" and answer["valid"] is True
    done = foundling("generate", directory, "--prompt", "the", "--json-schema", schema, "--max-tokens", 3, "--json")
    (answer,) = json.loads(done.stdout)["answers"]
    assert answer["finish_reason"] == "length" and answer["valid"] is False and answer["reason"]
    assert "it is cut at 3 tokens" in done.stderr


def test_chat_holds_each_answer(directory: Path) -> None:
    command = ["foundling", "chat", str(directory), "--base", "--choice", "yes", "--choice", "no", "--json"]
    done = run(command, 300, env=environment(), input="one\ntwo\n")
    assert done.returncode == 0, done.stderr
    assert [turn["valid"] for turn in json.loads(done.stdout)["turns"]] == [True, True]


@pytest.mark.parametrize(
    ("option", "content", "words"),
    [
        ("--json-schema", '{"type": "object", "not": {}}', "not at $.not is not supported"),
        ("--json-schema", '{"type": "obj"}', "type at $.type is 'obj'"),
        ("--json-schema", '{"type": ', "not JSON"),
        ("--json-schema", "[" * 100_000, "nested too deeply"),
        ("--json-schema", '{"a": 1, "a": 2}', "is there twice"),
        ("--json-schema", None, "cannot be read"),
        ("--json-schema", "x" * 300_000, "a schema or grammar has at most"),
        ("--json-schema", '{"type": "string", "pattern": "^(a{1,1000}){1,1000}$"}', "cannot be compiled"),
        ("--grammar", "start: nothing", "unknown name"),
        ("--grammar", None, "cannot be read"),
        ("--grammar", "", "expected a text with a rule"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_line(
    directory: Path, tmp_path: Path, option: str, content: str | None, words: str
) -> None:
    file = tmp_path / "none" if content is None else written(tmp_path, "file", content)
    done = foundling("generate", directory, "--prompt", "the", option, file)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1 and words in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--regex", "a("], "not closed"), (["--regex", r"\bx"], "word boundary"), (["--choice", ""], "not empty"),
        (["--regex", "a", "--choice", "b"], "not allowed with"), (["--grammar", "/"], "not a file"),
    ],
)  # fmt: skip
def test_an_option_that_is_wrong_is_refused_in_one_line(directory: Path, options: list[str], words: str) -> None:
    done = foundling("generate", directory, "--prompt", "the", *options)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1 and words in done.stderr
