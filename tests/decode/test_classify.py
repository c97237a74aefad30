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
from foundling.adapt.soft import prompt_tuning, virtual_ids
from foundling.blocks.heads import scores
from foundling.blocks.init import initialise
from foundling.cli import main
from foundling.data.encoded import encode_examples
from foundling.data.examples import ingest_examples
from foundling.data.kinds import Columns
from foundling.data.transforms.examples import example_batches
from foundling.data.transforms.virtual import VirtualBatches
from foundling.decode.classify import Classifier, groups_within
from foundling.decode.prompts import pad_prompts
from foundling.errors import ConfigError, DataError, GenerationError, WeightsError
from foundling.evaluate.compare import compare
from foundling.evaluate.tasks.labels import classify, label_task, tag_task, value_task
from foundling.objectives.classify import Classify, Regress, Tag
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from foundling.text.tags import encode_words
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from foundling.weights.adapters import save_adapter
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


def trained(
    tokenizer: Tokenizer, options: HeadOptions, objective: Any, batches: Rows, out: Path, steps: int = 50
) -> Path:
    model = foundling.build("bert", **case("bert").family.module.sized(150, 32, 64, 2))
    initialise(model, generator("init"))
    add_head(model, options, generator("head"))
    state = TrainState.build(model, OptimOptions(optimizer="adamw", learning_rate=0.003))
    for _ in train(state, objective, batches, Schedule(steps), TrainOptions(16), Runtime()):
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
    encoded = encode_words(tokenizer, WORDS)
    tokens, _ = pad_prompts([one.ids for one in encoded], "cpu")
    targets, mask = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
    for row, one in enumerate(encoded):
        for at, tag in zip(one.firsts, ("O", "O", "B-PLACE", "O", "B-ANIMAL", "I-ANIMAL"), strict=True):
            targets[row, at], mask[row, at] = TAGS.index(tag), True
    rows = Rows([one.ids for one in encoded], {"targets": targets, "loss_mask": mask})
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


PAIRS = [(COW, CAT), (CAT, COW), ("the cat " * 20, COW), (COW, "the cat " * 20), ("a cow " * 20, "the cat " * 20)]


def test_pairs_as_transformers(sounds: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reader = transformers.PreTrainedTokenizerFast.from_pretrained(sounds)
    theirs = transformers.BertForSequenceClassification.from_pretrained(sounds).eval()
    classifier = Classifier.load(sounds)
    torch.nn.init.normal_(classifier.model.type_embedding.weight, std=1.0, generator=generator("types"))
    theirs.bert.embeddings.token_type_embeddings.weight.data.copy_(classifier.model.type_embedding.weight.data)
    found = classifier.classify([*PAIRS, COW], batch_size=4)
    assert ["cut" in answer for answer in found] == [False, False, True, True, True, False]
    for pair, ours in zip([*PAIRS, (COW,)], found, strict=True):
        read = reader(*pair, max_length=32, truncation="longest_first", return_token_type_ids=True, return_tensors="pt")
        with torch.no_grad():
            want = theirs(**read).logits[0].double().softmax(-1)
        assert [ours["scores"][name] for name in ANIMALS] == pytest.approx(want.tolist(), rel=1e-4, abs=1e-6)
    examples = [{"text": a, "pair": b, "label": answer["label"]} for (a, b), answer in zip(PAIRS, found, strict=False)]
    assert classify(classifier, label_task("pairs", examples)).answers == classifier.classify(PAIRS)


def test_the_command_reads_pairs(sounds: Path, places: Path, tmp_path: Path, capsys: Any) -> None:
    want = Classifier.load(sounds).classify([(COW, CAT), (CAT, COW)])
    code, out, _ = command(capsys, "classify", sounds, COW, "--pair", CAT, "--json")
    result = json.loads(out)["results"][0]
    assert code == 0 and (result["text"], result["pair"]) == (COW, CAT)
    assert result["probability"] == pytest.approx(want[0]["probability"], rel=1e-4)
    (tmp_path / "a.tsv").write_text(f"a\tb\n{COW}\t{CAT}\n{CAT}\t{COW}\n{COW}\t\n")
    fields = ("--file", tmp_path / "a.tsv", "--field", "a", "--pair-field")
    code, out, err = command(capsys, "classify", sounds, *fields, "b", "--json")
    results = json.loads(out)["results"]
    assert [r["probability"] for r in results] == pytest.approx([w["probability"] for w in want], rel=1e-4)
    assert [r["pair"] for r in results] == [CAT, COW] and "1 empty" in err
    (tmp_path / "a.txt").write_text(COW)
    for words, says in (
        ((sounds, *fields, "c"), "--pair-field"),
        ((sounds, "--file", tmp_path / "a.txt", "--pair-field", "b"), "no pairs"),
        ((sounds, COW, "--pair-field", "b"), "column of --file"),
        ((places, COW, "--pair", CAT), "not of a pair"),
    ):
        code, _, err = command(capsys, "classify", *words)
        assert code == 2 and says in err and err.count("\n") == 1, err


def wide_base(tokenizer: Tokenizer) -> Any:
    """With weights so large that every token counts."""
    model = foundling.build("bert", **case("bert").family.module.sized(tokenizer.vocab_size, 32, 64, 2))
    initialise(model, generator("init"))
    for number, weight in enumerate(p for p in model.parameters() if p.dim() > 1):
        torch.nn.init.normal_(weight, std=0.15, generator=generator("wide", number))
    return model


def prompt_tuned(options: HeadOptions, tokenizer: Tokenizer) -> Any:
    model = wide_base(tokenizer)
    add_head(model, options, generator("head"))
    torch.nn.init.normal_(model.score.weight, std=0.3, generator=generator("score"))
    prompt_tuning(model, 3, generator("prompt"))
    return model.eval()


@pytest.mark.parametrize("kind", ["tag", "classify"])
@torch.no_grad()
def test_a_soft_prompt_stands_before_words_and_pairs_as_in_training(kind: Any, tokenizer, tmp_path: Path) -> None:
    long = ["the", "zebrafish", "cow"] * 9
    tags = [{"words": words, "tags": [TAGS[i % 4] for i in range(len(words))]} for words in [*WORDS[:11], long]]
    pairs = [{"text": " ".join(r["words"]), "pair": f"{COW} {i}", "label": TAGS[i % 4]} for i, r in enumerate(tags)]
    rows = tags if kind == "tag" else pairs
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = None if kind == "tag" else Columns("text", "pair", "label")
    examples = ingest_examples(tmp_path / "a.jsonl", tmp_path / "examples", kind=kind, columns=columns)
    model = prompt_tuned(HeadOptions(kind, tuple(examples.labels)), tokenizer)
    n = len(virtual_ids(model))
    seq_len = model.config.max_seq_len - n
    split = encode_examples(tmp_path / "tokens", examples, Framing(tokenizer), seq_len=seq_len).train
    batch = VirtualBatches(example_batches(split, batch_size=len(split)), virtual_ids(model))[0]
    want = scores(model, batch).softmax(-1)
    assert want.flatten(0, -2).std(0).min() > 0.01, "texts differ"
    fields = [example.fields for example in examples.train]
    classifier = Classifier(model, tokenizer)
    if kind == "tag":
        answers = classifier.tag([one["words"] for one in fields])
        for row, answer in enumerate(answers):
            read = [tag for tag in answer["tags"] if tag["probability"] is not None]
            places = want[row][batch["loss_mask"][row]]
            assert [tag["probability"] for tag in read] == pytest.approx(places.max(-1).values.tolist(), rel=1e-4)
            assert [tag["tag"] for tag in read] == [examples.labels[i] for i in places.argmax(-1).tolist()]
    else:
        answers = classifier.classify([(one["text"], one["pair"]) for one in fields])
        assert "token_types" in batch
        for row, answer in enumerate(answers):
            assert [answer["scores"][name] for name in examples.labels] == pytest.approx(want[row].tolist(), rel=1e-4)
    assert sum("cut" in answer for answer in answers) == split.cut


def test_an_adapters_directory_classifies_and_values_are_judged_on_pairs(
    tokenizer, tmp_path: Path, capsys: Any
) -> None:
    foundling.save(wide_base(tokenizer), tmp_path / "base", tokenizer=tokenizer)
    model = prompt_tuned(HeadOptions("regress", ("metres",), mean=5, std=2), tokenizer)
    save_adapter(model, tmp_path / "adapter", base=tmp_path / "base")
    want = Classifier(model, tokenizer).classify(PAIRS)
    loaded = Classifier.load(tmp_path / "adapter")
    assert [a["value"] for a in loaded.classify(PAIRS)] == pytest.approx([a["value"] for a in want], rel=1e-4)
    examples = [{"text": a, "pair": b, "label": one["value"]} for (a, b), one in zip(PAIRS, want, strict=True)]
    assert classify(loaded, value_task("pairs", examples)).result.value == pytest.approx(0, abs=1e-3)
    alone = value_task("texts", [{"text": e["text"], "label": e["label"]} for e in examples])
    assert classify(loaded, alone).result.value > 0.1  # pyright: ignore[reportOptionalOperand]
    (tmp_path / "base").rename(tmp_path / "moved")
    moved = ("classify", tmp_path / "adapter", "--base-model", tmp_path / "moved", COW, "--pair", CAT)
    code, out, _ = command(capsys, *moved)
    shown, *texts = out.rstrip("\n").split("\t")
    assert code == 0 and float(shown) == pytest.approx(want[0]["value"], rel=1e-3) and texts == [COW, CAT]


def test_texts_are_cut_to_max_len_and_read_in_bounded_batches(sounds: Path, monkeypatch: Any) -> None:
    assert list(groups_within([5, 1, 9, 2, 30], 3, 18)) == [[1, 3, 0], [2], [4]]
    assert list(groups_within([4, 4, 4, 4], 9, 8)) == [[0, 1], [2, 3]] and not [*groups_within([], 1, 1)]
    classifier = Classifier.load(sounds, max_len=8)
    whole, short = "the cat meows in the house", "in the city the cow"
    shapes = []
    classifier.model.embedding.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    monkeypatch.setattr("foundling.decode.classify.TOKENS_AT_ONCE", 16)
    found = classifier.classify([f"{whole} and the garden", short, whole, short])
    assert shapes == [(2, 16), (2, 16)] and ["cut" in answer for answer in found] == [True, False, False, False]
    assert found[0]["scores"] == pytest.approx(found[2]["scores"], rel=1e-4)
    assert Classifier.load(sounds, max_len=99).longest == 32
    with pytest.raises(GenerationError, match="max_len is 0"):
        Classifier.load(sounds, max_len=0)
    with pytest.raises(DataError, match="2 tokens leave no room"):
        Classifier.load(sounds, max_len=2).classify([COW])
    with pytest.raises(DataError, match="surrogate"):
        classifier.classify(["\ud800"])


def test_values_in_their_own_unit(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lengths = torch.tensor([100.0 + 10 * PLACES.index(text.split()[2]) for text in TEXTS])
    options = HeadOptions("regress", ("metres",), mean=float(lengths.mean()), std=float(lengths.std()))
    rows = Rows([tokenizer.encode_framed(text) for text in TEXTS], {"labels": lengths})
    out = trained(tokenizer, options, Regress(), rows, tmp_path / "m", 150)
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
