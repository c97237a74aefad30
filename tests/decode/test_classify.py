# SPDX-License-Identifier: Apache-2.0
"""A classifier, a tagger and a regression that are trained here answer from their directories, by command too."""

from __future__ import annotations

import json
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

import foundling
from foundling.adapt.heads import HeadOptions, add_head
from foundling.blocks.init import initialise
from foundling.cli import main
from foundling.decode.classify import Classifier
from foundling.decode.prompts import pad_prompts
from foundling.errors import ConfigError, GenerationError, WeightsError
from foundling.evaluate.compare import compare
from foundling.evaluate.tasks.labels import classify, label_task, tag_task, value_task
from foundling.objectives.classify import Classify, Regress, Tag
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.text.tags import encode_words
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from tests.contract.cases import case
from tests.decode.test_fill import PLACES, SOUNDS, word_pieces

ANIMALS = tuple(SOUNDS)
TEXTS = [f"in the {place} the {animal} {SOUNDS[animal]}." for animal in ANIMALS for place in PLACES]
WORDS = [text.rstrip(".").split() for text in TEXTS]
COW, CAT = "in the city the cow moos.", "in the house the cat meows."
TAGS = ("O", "B-PLACE", "B-ANIMAL", "I-ANIMAL")


class Rows:
    def __init__(self, rows: list[list[int]], columns: dict[str, Any], size: int = 16) -> None:
        self.tokens, self.documents = pad_prompts(rows, "cpu")
        self.columns, self.size = columns, size

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        chosen = torch.randperm(len(self.tokens), generator=generator("rows", n))[: self.size]
        whole = {"tokens": self.tokens, "documents": self.documents, "sample_ids": torch.arange(len(self.tokens))}
        return {name: column[chosen] for name, column in (whole | self.columns).items()}


def trained(tokenizer: Tokenizer, options: HeadOptions, objective: Any, batches: Rows, out: Path) -> Path:
    model = foundling.build("bert", **case("bert").family.module.sized(150, 32, 64, 2))
    initialise(model, generator("init"))
    add_head(model, options, generator("head"))
    state = TrainState.build(model, OptimOptions(optimizer="adamw", learning_rate=0.003))
    for _ in train(state, objective, batches, Schedule(50), TrainOptions(16), Runtime()):
        pass
    return foundling.save(model.eval(), out, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return word_pieces(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def sounds(tokenizer, tmp_path_factory) -> Path:
    labels = torch.tensor([ANIMALS.index(text.split()[4]) for text in TEXTS])
    rows = Rows([tokenizer.encode_framed(text) for text in TEXTS], {"labels": labels})
    out = tmp_path_factory.mktemp("sounds") / "m"
    return trained(tokenizer, HeadOptions("classify", ANIMALS), Classify(), rows, out)


@pytest.fixture(scope="module")
def places(tokenizer, tmp_path_factory) -> Path:
    encoded = [encode_words(tokenizer, words) for words in WORDS]
    tokens, _ = pad_prompts([ids for ids, _ in encoded], "cpu")
    targets, mask = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
    for row, (_, firsts) in enumerate(encoded):
        for at, tag in zip(firsts, ("O", "O", "B-PLACE", "O", "B-ANIMAL", "I-ANIMAL"), strict=True):
            targets[row, at], mask[row, at] = TAGS.index(tag), True
    rows = Rows([ids for ids, _ in encoded], {"targets": targets, "loss_mask": mask})
    out = tmp_path_factory.mktemp("places") / "m"
    return trained(tokenizer, HeadOptions("tag", TAGS), Tag(), rows, out)


def command(capsys: Any, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_classes(sounds: Path) -> None:
    classifier = Classifier.load(sounds)
    found = classifier.classify(TEXTS, batch_size=7)
    assert [f["label"] for f in found] == [text.split()[4] for text in TEXTS]
    assert found[0]["scores"].keys() == {*ANIMALS} and sum(found[0]["scores"].values()) == pytest.approx(1)
    one = classifier.classify([TEXTS[3]], top=2)[0]
    assert len(one["scores"]) == 2 and one["probability"] == pytest.approx(found[3]["probability"], rel=1e-4)
    assert classifier.classify(["the cat " * 40 + "meows"])[0]["cut"] and "cut" not in found[0]
    examples = [{"text": text, "label": text.split()[4]} for text in TEXTS]
    right = classify(classifier, label_task("sounds", examples))
    assert right.result.value == 1 and right.figures["macro F1"].value == 1 and right.result.hashes["model"]
    wrong = classify(classifier, label_task("sounds", [e | {"label": "cat"} for e in examples]))
    assert wrong.result.value == pytest.approx(1 / 6) and wrong.result.interval.startswith("Wilson")
    assert compare(right.result, right.result).difference == 0


@pytest.mark.slow
def test_as_transformers_pipeline(sounds: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reader = transformers.AutoTokenizer.from_pretrained(sounds)
    pipe = transformers.pipeline("text-classification", model=str(sounds), tokenizer=reader)
    for text, theirs in zip(TEXTS[::9], pipe(TEXTS[::9]), strict=True):
        ours = Classifier.load(sounds).classify([text])[0]
        assert theirs["label"] == ours["label"] and theirs["score"] == pytest.approx(ours["probability"], rel=1e-4)


def test_tags_and_spans(places: Path) -> None:
    tagger = Classifier.load(places)
    found = tagger.classify(["in the garden the cow moos", "the cat meows"])
    assert [tag["tag"] for tag in found[0]["tags"]] == ["O", "O", "B-PLACE", "O", "B-ANIMAL", "I-ANIMAL"]
    assert [(s["kind"], s["text"]) for s in found[0]["spans"]] == [("PLACE", "garden"), ("ANIMAL", "cow moos")]
    long = tagger.tag([["the"] * 40])[0]
    assert long["cut"] and len(long["tags"]) == 40
    assert [tag["probability"] is None for tag in long["tags"]] == [False] * 30 + [True] * 10  # beside [CLS], [SEP]
    examples = [{"words": w, "tags": ["O", "O", "B-PLACE", "O", "B-ANIMAL", "I-ANIMAL"]} for w in WORDS]
    result = classify(tagger, tag_task("places", examples))
    assert result.result.value == 1 and result.result.metric == "span F1" and len(result.result.scores) == len(WORDS)


def test_values_in_their_own_unit(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lengths = torch.tensor([100.0 + 10 * PLACES.index(text.split()[2]) for text in TEXTS])
    options = HeadOptions("regress", ("metres",), mean=float(lengths.mean()), std=float(lengths.std()))
    rows = Rows([tokenizer.encode_framed(text) for text in TEXTS], {"labels": lengths})
    out = trained(tokenizer, options, Regress(), rows, tmp_path / "m")
    classifier = Classifier.load(out)
    task = value_task("lengths", [{"text": t, "label": float(v)} for t, v in zip(TEXTS, lengths, strict=True)])
    found = classify(classifier, task)
    assert found.result.value is not None and found.result.value < 8 and found.result.lower_is_better
    assert found.figures["R²"].value > 0.9  # pyright: ignore[reportOptionalOperand]
    with pytest.raises(ConfigError, match="regress"):
        classify(classifier, label_task("x", [{"text": "a", "label": "b"}]))


def test_the_command(sounds: Path, places: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    code, out, _ = command(capsys, "classify", sounds, COW, CAT, "--top", "1")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["cow", "cat"]
    code, out, _ = command(capsys, "classify", sounds, "--json", COW)
    value = json.loads(out)
    assert value["results"][0]["label"] == "cow" and value["task"] == "classify" and len(value["labels"]) == 6
    assert "ANIMAL: cow moos" in command(capsys, "classify", places, COW.rstrip("."))[1]
    files = {"a.txt": f"{COW}\n\n{CAT}\n", "a.csv": f"id,text\n1,{COW}\n2,{CAT}\n",
             "a.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in (COW, CAT))}  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        code, out, err = command(capsys, "classify", sounds, "--file", tmp_path / name)
        assert [line.split()[0] for line in out.splitlines()] == ["cow", "cat"], name
        assert ("1 empty" in err) == (name == "a.txt")
    monkeypatch.setattr(sys, "stdin", StringIO(f"{CAT}\n{COW}\n"))
    assert [line.split()[0] for line in command(capsys, "classify", sounds)[1].splitlines()] == ["cat", "cow"]


def test_what_is_no_classifier_and_bad_input(sounds: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: Any) -> None:
    foundling.save(case("llama").tiny(), tmp_path / "llama", tokenizer=tokenizer)
    (tmp_path / "a.csv").write_text("id,body\n1,x\n")
    (tmp_path / "a.jsonl").write_text("{\n")
    for words, says in (
        (("classify", tmp_path / "llama", "a"), "foundling finetune"),
        (("classify", sounds, "--file", tmp_path / "a.csv"), "--field"),
        (("classify", sounds, "--file", tmp_path / "a.jsonl"), "damaged"),
        (("classify", sounds, "--file", tmp_path / "none"), "cannot be read"),
        (("classify", sounds, "a", "--file", "b"), "leave one"),
        (("classify", sounds, "a", "--top", "0"), "top is 0"),
    ):
        code, _, err = command(capsys, *words)
        assert code == 2 and says in err and err.count("\n") == 1, err
    with pytest.raises(WeightsError, match="no classifier"):
        Classifier.load(tmp_path / "llama")
    with pytest.raises(GenerationError, match="no head"):
        Classifier(case("llama").tiny(), tokenizer)
    with pytest.raises(GenerationError, match="no token"):
        Classifier.load(sounds).predict([[]])
