# SPDX-License-Identifier: Apache-2.0
"""Our model class under lm-evaluation-harness against its own backend on the same weights: log-probabilities, texts and
scores of its tasks; and our own runner on the same items."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import foundling
from foundling.decode.engine.engine import EngineOptions
from foundling.evaluate.harness import HarnessModel
from foundling.evaluate.local import LocalModel
from foundling.evaluate.runners import run
from foundling.evaluate.task_file import load_task
from foundling.models import build, family
from foundling.text import Tokenizer

TEXTS = ["the cat sat on the mat and the dog sat on the log", "a small text about cats and dogs, sat at a table"]
ITEMS = [
    {"question": "the cat sat on", "options": ["the mat and the dog", "a table"], "answer": 0, "text": TEXTS[0] * 12},
    {"question": "a small text", "options": ["about cats", "about dogs", "the log"], "answer": 2, "text": TEXTS[1]},
    {"question": "the dog sat", "options": ["at a table", "on the log"], "answer": 1, "text": "the"},
    {"question": "dogs, sat", "options": ["at a table", "mat"], "answer": 0, "text": "a table, a mat " * 30},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """Trained for no step, but with a head that prefers some tokens by far, so that no two options are as likely."""
    tokenizer = Tokenizer.train(TEXTS, 320)
    torch.manual_seed(0)
    model: Any = build("llama", **family("llama").module.sized(tokenizer.vocab_size, 128, 32, 2))
    with torch.no_grad():
        model.head.weight.mul_(30)
    path = tmp_path_factory.mktemp("models") / "tiny"
    foundling.save(model, path, tokenizer=tokenizer)
    return path


def tasks(file: Path) -> list[dict[str, Any]]:
    """As a user of the harness writes them, with its own templates and few-shot examples."""
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": str(file)}, "test_split": "train"}
    shots = {"sampler": "first_n", "samples": [{"question": "a", "options": ["table"], "answer": 0}]}
    return [
        {
            "task": "choice", **data, "output_type": "multiple_choice", "doc_to_text": "Q: {{question}}\nA:",
            "doc_to_choice": "{{options}}", "doc_to_target": "answer", "num_fewshot": 1, "fewshot_config": shots,
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        {
            "task": "written", **data, "output_type": "generate_until", "doc_to_text": "{{question}}",
            "doc_to_target": "{{options[answer]}}", "generation_kwargs": {"until": ["cat"], "max_gen_toks": 7},
            "metric_list": [{"metric": "exact_match"}],
        },
        {
            "task": "texts", **data, "output_type": "loglikelihood_rolling", "doc_to_text": "",
            "doc_to_target": "{{text}}", "metric_list": [{"metric": "bits_per_byte"}],
        },
    ]  # fmt: skip


@pytest.mark.slow  # half of it is the harness' own imports
def test_the_harness_scores_our_model_as_its_own_backend_does(directory, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    file = tmp_path / "items.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))

    def scored(model: Any, **options: Any) -> dict[str, Any]:
        return lm_eval.simple_evaluate(model=model, tasks=tasks(file), log_samples=True, bootstrap_iters=0, **options)

    theirs: Any = HFLM(pretrained=str(directory), dtype="float32", device="cpu", batch_size=2)
    ours = HarnessModel(str(directory), engine=EngineOptions(native=False))
    for options in ({}, {"apply_chat_template": True, "fewshot_as_multiturn": False}):
        expected, found = scored(theirs, **options), scored(ours, **options)
        for task in ("choice", "written", "texts"):
            for name, value in expected["results"][task].items():
                if name.endswith(",none") and isinstance(value, float):
                    assert found["results"][task][name] == pytest.approx(value, abs=1e-4), (task, name)
            for a, b in zip(expected["samples"][task], found["samples"][task], strict=True):
                texts, numbers = _plain(a["resps"])
                assert _plain(b["resps"]) == (texts, pytest.approx(numbers, abs=1e-4, rel=1e-6))

    spec = {
        "name": "choice", "data": "items.jsonl", "kind": "choice", "prompt": "Q: {question}\nA:",
        "options": "{options}", "answer": "{answer}", "few_shot": {"n": 1, "chosen": "first", "data": "shots.jsonl"},
    }  # fmt: skip
    (tmp_path / "shots.jsonl").write_text('{"question": "a", "options": ["table"], "answer": 0}\n')
    for metric, score in (("acc", "accuracy"), ("acc_norm", "accuracy_per_byte")):
        (tmp_path / "task.yaml").write_text(json.dumps({**spec, "score": score}))
        result, items, _ = run(load_task(tmp_path / "task.yaml"), LocalModel.load(directory))
        expected = scored(theirs)
        assert result.value == expected["results"]["choice"][f"{metric},none"]
        for item, sample in zip(items, expected["samples"]["choice"], strict=True):
            assert [c[1] for c in item.get("choices", [])] == pytest.approx(
                [r[0][0] for r in sample["resps"]], abs=1e-4
            )


def _plain(responses: Any) -> tuple[list[str], list[float]]:
    """Texts and numbers of nested lists; whether a continuation is greedy is a number as well."""
    if isinstance(responses, list | tuple):
        parts = [_plain(part) for part in responses]
        return [text for texts, _ in parts for text in texts], [n for _, numbers in parts for n in numbers]
    return ([], [float(responses)]) if isinstance(responses, bool | float | int) else ([responses], [])
