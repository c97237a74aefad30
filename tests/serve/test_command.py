# SPDX-License-Identifier: Apache-2.0
"""The options of `foundling serve` and `foundling key`: each reaches the server, and none is silently ignored."""

import argparse
from dataclasses import fields, replace
from typing import Any

import pytest

from foundling.cli import main, make_parser, serve
from foundling.runtime.device import default_device
from foundling.serve.options import ServeOptions


def options(*words: str, has_keys: bool = False) -> ServeOptions:
    return serve._options(make_parser("serve").parse_args(["serve", *words]), has_keys)


def test_every_option_of_a_server_has_a_flag_and_one_default() -> None:
    default = replace(ServeOptions(), device=default_device())
    assert options() == default and options(has_keys=True) == replace(default, max_logprobs=20)
    values: dict[str, Any] = {
        "host": "127.0.0.2", "port": 9000, "max_queue": 7, "queue_timeout": 1.5, "request_timeout": 2.5, "max_body": 10,
        "max_upload": 20, "max_n": 3, "max_prompts": 4, "max_tokens": 5, "max_logprobs": 6, "max_connections": 8,
        "shutdown_seconds": 9.5, "max_num_seqs": 11, "weights": "bfloat16", "device": "cpu", "flag_threshold": 0.25,
    }  # fmt: skip
    others = {"cache_memory": ["--cache-gib", "2"], "deterministic": ["--deterministic"],
              "harmless": ["--harmless", "fine", "--harmless", "nice"]}  # fmt: skip
    assert values.keys() | others.keys() == {field.name for field in fields(ServeOptions)}
    words = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    expected = ServeOptions(**values, cache_memory=2 << 30, deterministic=True, harmless=("fine", "nice"))
    assert options(*words, *(word for more in others.values() for word in more), has_keys=True) == expected


def test_the_help_says_each_default_once() -> None:
    parser: Any = make_parser("serve")
    actions = next(one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    text = " ".join(actions.choices["serve"].format_help().split())
    for part in ("address to listen at (default 127.0.0.1)", "(default 20 with keys, else no cap)", "(default 600.0)",
                 "keys and values of a model (default 1)", "limits that are rarely changed:"):  # fmt: skip
        assert part in text, part
    assert "default None" not in text and text.count("(default 256)") == 2  # of two limits


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["serve", "notes", "--cache-every"], "--cache-every does nothing without --answer-cache"),
        (["serve", "notes", "--cache-embedder", "bert"], "--cache-embedder does nothing without --answer-cache"),
        (["serve", "notes", "--cache-threshold", "0.95"], "--cache-threshold does nothing without --answer-cache"),
        (["serve", "notes", "--answer-cache", "exact", "--cache-embedder", "bert"], "is for --answer-cache meaning"),
        (["serve", "notes", "--record", "answers.jsonl"], "--record does nothing without --upstream"),
        (["serve", "notes", "--job-method", "lora"], "--job-method does nothing without --state"),
        (["serve", "notes", "--max-fine-tuned", "4"], "--max-fine-tuned does nothing without --state"),
        (["serve", "notes", "--evaluate-jobs"], "--evaluate-jobs does nothing without --state"),
        (["serve", "notes", "--price", "note=1,2"], "--price names 'note', which is not served; did you mean 'notes'?"),
        (["key", "create", "anna", "--tokens", "abc"], "argument --tokens: expected a whole number or none"),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else "",
)
def test_what_would_be_ignored_is_refused(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and says in error and len(error.splitlines()) == 1
