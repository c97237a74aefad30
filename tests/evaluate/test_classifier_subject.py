# SPDX-License-Identifier: Apache-2.0
"""A classifier as a subject, against transformers' logits of the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from foundling.errors import ConfigError, DataError, GenerationError
from foundling.evaluate.classifier import ClassifierSubject
from foundling.evaluate.local import LocalModel
from foundling.evaluate.metrics import macro_f1
from foundling.evaluate.runners import run
from foundling.evaluate.subject import Decoding, GenerateRequest, LikelihoodRequest
from foundling.evaluate.subjects import load_subject
from foundling.evaluate.task_file import load_task
from foundling.models import build, family
from foundling.text import Tokenizer
from tests.evaluate.encoders import LABELS, TEXTS, bert, classifier, task_file

ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, (*LABELS, "positive"), strict=True)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("classifier")


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Any:
    return classifier(directory)


@pytest.fixture(scope="module")
def expected(directory: Path, theirs: Any) -> torch.Tensor:
    """(texts, labels) log-probabilities"""
    tokenizer = Tokenizer.load(directory)
    with torch.no_grad():
        rows = [theirs(torch.tensor([tokenizer.encode_framed(text)])).logits[0] for text in TEXTS]
    return torch.stack(rows).double().log_softmax(-1)


def test_log_probabilities_are_those_of_transformers_logits(directory: Path, expected: torch.Tensor) -> None:
    subject = load_subject(directory)
    assert isinstance(subject, ClassifierSubject)
    requests = [LikelihoodRequest(text, f" {label}") for text in TEXTS for label in LABELS]
    answers = dict(subject.loglikelihood(requests))
    assert sorted(answers) == list(range(12))
    values = torch.tensor([answers[i].logprob for i in range(12)]).view(4, 3)
    assert torch.allclose(values.double(), expected, atol=1e-5)
    assert [answers[i].greedy for i in range(12)] == (expected == expected.amax(1, keepdim=True)).flatten().tolist()
    assert answers[0].text == " negative"


def test_a_task_file_gives_accuracy_f1_and_calibration(directory: Path, expected: torch.Tensor, tmp_path: Path) -> None:
    subject = load_subject(directory)
    task = load_task(task_file(tmp_path, ROWS, kind="classify", prompt="{text}", answer="{label}"))
    result, items, _ = run(task, subject)
    best = expected.argmax(1).tolist()
    truth = [0, 1, 2, 2]
    assert result.scores == [float(a == b) for a, b in zip(best, truth, strict=True)] and result.metric == "accuracy"
    assert [[text.strip() for text, _ in item["choices"]] for item in items] == [list(LABELS)] * 4
    assert result.figures["macro F1"][0] == pytest.approx(macro_f1(truth, best).value)
    nll = -float(sum(expected[i, label] for i, label in enumerate(truth))) / 4
    assert result.figures["NLL"][0] == pytest.approx(nll, abs=1e-5)
    assert {"ECE", "Brier score", "temperature", "Matthews"} < set(result.figures)
    chosen = load_task(
        task_file(tmp_path, ROWS, name="c", kind="choice", prompt="{text}", answer="{label}", options=list(LABELS))
    )
    assert run(chosen, subject).result.scores == result.scores


def test_labels_that_are_numbers_are_no_places(tmp_path: Path) -> None:
    """Stars from 1 to 5: the answer 2 is the label "2" and not the third one."""
    rows = [{"text": f"t{i}", "label": i} for i in (1, 2, 5)]
    task = load_task(task_file(tmp_path, rows, kind="classify", prompt="{text}", answer="{label}"))
    assert task.continuations and task.target
    assert task.continuations(task.examples[1]) == [" 1", " 2", " 5"]
    assert [task.target(row) for row in task.examples] == [" 1", " 2", " 5"]
    rows = [{"text": "t", "label": 1}]
    options = ["negative {text}", "positive"]
    task = load_task(task_file(tmp_path, rows, name="p", kind="classify", prompt="{text}", answer="{label}",
                               options=options))  # fmt: skip
    assert task.target and task.target(task.examples[0]) == " positive", "a number that is no label is a place"


def test_a_language_model_does_the_same_task(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TEXTS, 320)
    model = build("llama", **family("llama").module.sized(tokenizer.vocab_size, 64, 32, 1))
    task = load_task(task_file(tmp_path, ROWS, kind="classify", prompt="{text} It is", answer="{label}"))
    result = run(task, LocalModel(model, tokenizer)).result
    assert result.n == 4 and "macro F1" in result.figures
    with pytest.raises(GenerationError, match="model is a model that generates text: tasks of kind retrieve need"):
        LocalModel(model, tokenizer).embed(TEXTS)
    with pytest.raises(GenerationError, match=r"kind images need .*; it does tasks of kind choice, classify, generate"):
        LocalModel(model, tokenizer).match([])


def test_hashes_tell_models_and_labels_apart(directory: Path, theirs: Any, tmp_path: Path) -> None:
    base = load_subject(directory).hashes
    assert set(base) == {"model", "template", "backend"} and base == load_subject(directory).hashes
    classifier(tmp_path / "other", seed=1)
    shutil.copy(directory / "tokenizer.json", tmp_path / "other")  # which training does not give twice
    other = load_subject(tmp_path / "other").hashes
    assert {name for name in base if base[name] != other[name]} == {"model"}
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["id2label"]["0"] = "bad"
    config["label2id"] = {"bad": 0, "neutral": 1, "positive": 2}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    assert load_subject(tmp_path / "other").hashes["template"] != base["template"]


def test_what_a_classifier_cannot_do_is_refused_by_name(directory: Path, theirs: Any, tmp_path: Path) -> None:
    subject = load_subject(directory, name="tiny")
    with pytest.raises(GenerationError, match="tiny has no label 'great'; its labels are negative, neutral, positive"):
        list(subject.loglikelihood([LikelihoodRequest("the dog", " great")]))
    with pytest.raises(GenerationError, match="it reads texts and no conversations; leave out system"):
        list(subject.loglikelihood([LikelihoodRequest([{"role": "user", "content": "a"}], " neutral")]))
    with pytest.raises(GenerationError, match=r"a classifier: it generates no text.*tasks of kind classify, choice"):
        list(subject.generate([GenerateRequest("the dog", Decoding())]))
    for ask, needs in ((subject.rolling, "predicts tokens"), (subject.embed, "embeds texts"),
                       (subject.match, "pictures and texts")):  # fmt: skip
        with pytest.raises(GenerationError, match=needs):
            list(ask([]))
    long = [LikelihoodRequest("the cat " * 40, " neutral"), LikelihoodRequest("the cat", " neutral")]
    with pytest.raises(GenerationError, match=r"1 of 2 texts are longer than the 24 tokens .* --truncate"):
        list(subject.loglikelihood(long))
    cut = dict(load_subject(directory, truncate=True).loglikelihood(long))
    assert cut[0].logprob != cut[1].logprob
    bert(tmp_path / "tags", "ForTokenClassification", num_labels=3)
    with pytest.raises(GenerationError, match="tags tags words; tasks of kind classify"):
        load_subject(tmp_path / "tags")
    with pytest.raises(ConfigError, match=r"generates no text; leave out window \(32\)"):
        load_subject(directory, window=32)
    with pytest.raises(ConfigError, match="masks no tokens; leave out positions"):
        load_subject(directory, positions=32)
    with pytest.raises(ConfigError, match="score 'exact' is unknown; use accuracy"):
        load_task(task_file(tmp_path, ROWS, kind="classify", prompt="{text}", answer="{label}", score="exact"))
    with pytest.raises(DataError, match=r"asks for \{label\}"):
        load_task(task_file(tmp_path, [{"text": "a"}], kind="classify", prompt="{text}", answer="{label}"))
