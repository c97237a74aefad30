# SPDX-License-Identifier: Apache-2.0
"""The log-probabilities of the reference: those of each completion alone, and the same bits after SIGKILL."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundling.adapt.options import AdaptOptions
from foundling.config import from_dict
from foundling.data.encoded import EncodedExamples, EncodedSplit, encode_examples
from foundling.data.examples import Examples, ingest_examples
from foundling.data.transforms.preference import comparison_batches, comparisons_of, longest_first, subset_of
from foundling.errors import ConfigError, MismatchError
from foundling.models import build
from foundling.objectives.preference import completion_logprobs
from foundling.recipes import preferences, progress
from foundling.recipes.finetune_plan import check_settings
from foundling.recipes.journal import Journal
from foundling.recipes.preferences import accuracy_of, add_reference
from foundling.recipes.progress import Bar, Progress
from foundling.recipes.recipe import Recipe, Request
from foundling.recipes.run import Run
from foundling.runtime.clock import Clock
from foundling.runtime.device import Runtime
from foundling.text.framing import Framing
from foundling.text.tokenizer import Tokenizer
from tests.processes import SERVER
from tests.text.kinds import TEXTS

ROWS, N_BATCHES, KILLED_AFTER = 4, 8, 5
CPU = Runtime("cpu", "float32", 1)


def rows(n: int) -> list[dict[str, Any]]:
    """Rankings of two and three, with answers of very different lengths."""
    answers = ["yes " * (1 + i % 3) for i in range(n)]
    return [
        {"prompt": f"say {i}", "ranked": [answers[i] * (1 + 9 * (i % 4 == 0)), f"no {i}", "never"][: 2 + i % 2]}
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Comparisons as examples and as tokens."""
    folder = tmp_path_factory.mktemp("preferences")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(4 * N_BATCHES)))
    examples = ingest_examples(folder / "data.jsonl", folder / "examples")
    encode_examples(folder / "tokens", examples, Framing(Tokenizer.train(TEXTS, 384)), seq_len=128)
    return folder


def encoded_in(folder: Path) -> EncodedExamples:
    splits = [EncodedSplit(folder / "tokens" / name) for name in ("train", "held_out")]
    return EncodedExamples(Examples.load(folder / "examples").kind, 128, *splits)


def model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes = dict(d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=64)
    return build("llama", vocab_size=384, **sizes)


def run_in(out: Path, shown: Progress | None = None) -> Run:
    run = Run(Request(data="comparisons"), out, shown or Progress(False), Clock(), Journal.load(out / "run"))
    sections = {
        "data": {"source": "comparisons"}, "model": {"directory": "the base"}, "objective": {"kind": "dpo"},
        "optim": {}, "schedule": {},
        "runtime": {"device": "cpu", "precision": "float32", "threads": 1, "compile": False},
        "train": {"total_steps": 1, "seq_len": 128, "batch_size": 4, "micro_batch_size": 4},
    }  # fmt: skip
    run.recipe = from_dict(Recipe, sections, where="recipe")
    return run


def reference_in(out: Path, folder: Path, shown: Progress | None = None, seed: int = 0) -> list[np.ndarray]:
    run, encoded = run_in(out, shown), encoded_in(folder)
    try:
        add_reference(run, model(seed), encoded, ROWS, CPU)
    finally:
        run.memory.done.set()
    assert encoded.train.reference is not None and encoded.held_out.reference is not None
    return [encoded.train.reference, encoded.held_out.reference]


def small_parts(least: int = 2) -> None:
    preferences.LEAST_BATCHES = least


def go_until_killed(out: Path, folder: Path) -> None:
    """In a process of its own: SIGKILL while the bar is at KILLED_AFTER batches."""
    small_parts()
    advance = Bar.advance

    def advance_or_die(bar: Bar, note: str = "") -> None:
        advance(bar, note)
        if bar.done == KILLED_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)

    Bar.advance = advance_or_die
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    reference_in(out, folder)


def test_each_is_that_of_the_completion_alone_and_the_lengths_of_a_batch_are_alike(folder: Path, tmp_path) -> None:
    train, encoded = reference_in(tmp_path, folder)[0], encoded_in(folder)
    groups = comparisons_of(encoded.train)
    for number, group in enumerate(groups):
        alone = comparison_batches(subset_of(encoded.train, [number]), batch_size=1)[0]
        with torch.inference_mode():
            expected = completion_logprobs(model(), alone)[0][0]
        torch.testing.assert_close(torch.from_numpy(train[group]), expected, rtol=1e-5, atol=1e-4)
    order = longest_first(encoded.train)
    positions = [
        sum(batch["tokens"].numel() for batch in comparison_batches(encoded.train, batch_size=ROWS, order=this))
        for this in (order, None)
    ]
    assert sorted(order.tolist()) == list(range(len(groups))) and positions[0] < 0.8 * positions[1]


def test_a_policy_that_is_its_reference_prefers_nothing(folder: Path, tmp_path) -> None:
    run, encoded = run_in(tmp_path), encoded_in(folder)
    add_reference(run, model(), encoded, ROWS, CPU)
    run.memory.done.set()
    values = preferences.preferences(model(), encoded.held_out, "dpo", ROWS, CPU)
    assert [len(each) for each in values] == [len(group) for group in comparisons_of(encoded.held_out)]
    assert not np.concatenate(values).any() and accuracy_of(values, "before").value == 0.5


def test_after_a_kill_it_goes_on_to_the_same_bits(folder: Path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(preferences, "LEAST_BATCHES", 2)
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    whole = reference_in(tmp_path / "whole", folder)
    process = SERVER.Process(target=go_until_killed, args=(tmp_path / "out", folder))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    files = sorted((tmp_path / "out" / "run" / "reference").glob("[!.]*"))
    assert [file.name for file in files] == ["train-000.bin", "train-001.bin"], "whole or absent"
    written = [file.stat().st_mtime_ns for file in files]
    (files[0].parent / "train-002.bin").write_bytes(b"not recorded")
    capsys.readouterr()
    resumed = reference_in(tmp_path / "out", folder, Progress())
    assert all(np.array_equal(a, b) for a, b in zip(resumed, whole, strict=True))
    assert [file.stat().st_mtime_ns for file in files] == written
    shown = [line.split()[1] for line in capsys.readouterr().err.splitlines() if line.startswith("  reference ")]
    assert shown[0].startswith("5/") and len(shown) == int(shown[-1].split("/")[1].rstrip(",")) - 4

    files[1].write_bytes(files[1].read_bytes()[:-1])  # damaged: computed again
    assert all(np.array_equal(a, b) for a, b in zip(reference_in(tmp_path / "out", folder), whole, strict=True))
    assert files[0].stat().st_mtime_ns == written[0] != files[1].stat().st_mtime_ns
    files[1].unlink()
    with pytest.raises(MismatchError, match=r"train-001\.bin.*could not be made again as it was"):
        reference_in(tmp_path / "out", folder, seed=1)


@pytest.mark.parametrize("kind", ["chat", "dpo", "ipo", "tag", "seq2seq"])
def test_a_pool_is_for_heads_on_whole_texts_a_reward_among_them(kind: str) -> None:
    check_settings({}, AdaptOptions("lora", pool="mean"), "reward")
    with pytest.raises(ConfigError, match=rf"\(classify, regress, reward\), not for '{kind}'"):
        check_settings({}, AdaptOptions("lora", pool="mean"), kind)
