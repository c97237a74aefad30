# SPDX-License-Identifier: Apache-2.0
"""Encoders distilled by DistilBERT's losses, through the real command line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import foundling as library
from foundling.blocks.init import initialise
from foundling.config import from_dict
from foundling.contracts.records import RunRecord
from foundling.data.loader import PackedBatches
from foundling.data.shards import TokenArray
from foundling.models import build
from foundling.plan.estimate import estimate_memory
from foundling.plan.flops import matmul_parameters, training_flops_per_token
from foundling.plan.memory import NO_TEACHER
from foundling.recipes.estimate import memory_estimate, shape_of
from foundling.recipes.learning import learning_for
from foundling.recipes.models import build_model, find_origin, objective_of
from foundling.recipes.recipe import Recipe, Request
from foundling.recipes.sizes import student_origin
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from tests.contract.cases import case
from tests.e2e.test_bad_input import fails
from tests.e2e.tools import TINY, corpus, foundling, kill_after_checkpoint, raised, weights

SIZES = ("--d-model", "--n-layers", "--vocab-size")
UNSIZED = [a for i, a in enumerate(TINY) if a not in SIZES and TINY[i - 1] not in SIZES]
"""TINY without the sizes, which a student has from its teacher"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return corpus(tmp_path_factory.mktemp("distil") / "data")


@pytest.fixture(scope="module")
def bert(data: Path) -> Path:
    out = data.parent / "bert"
    raised(data, "--tokens", "3072", *TINY, "--n-layers", "4", "--family", "bert", "--out", out)
    return out


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    """Models of several families, without a tokenizer."""
    folder = tmp_path_factory.mktemp("untrained")
    for name, fields in (("llama", {}), ("t5", {}), ("elmo", {}), ("bert", {}), ("roberta", {"masked": False})):
        library.save(case(name).tiny(**fields), folder / name)
    return folder


def manifest(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "foundling.json").read_text())


def first_losses(recipe: Recipe, data: Path, started: Any) -> list[float]:
    """Of the text before any step: of the model as training starts, and of one with random weights."""
    assert recipe.objective.teacher
    tokenizer = Tokenizer.load(recipe.objective.teacher)
    learning = learning_for(recipe, tokenizer)
    tokens = TokenArray([file.read_text() for file in sorted(data.rglob("*.txt"))], tokenizer)
    batch = learning.transform(PackedBatches(tokens, seq_len=recipe.train.seq_len, batch_size=32, seed=0))[0]
    random = build(recipe.model.family, **recipe.model.fields)
    initialise(random, generator("init", recipe.seed))
    terms = [learning.objective(model, batch)["loss"] for model in (started, random)]
    return [float(term.sum.detach()) / int(term.count) for term in terms]


def test_a_student_has_half_of_its_teachers_layers(data: Path, bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    done = foundling(
        "raise", data, "--tokens", "3072", *UNSIZED, "--family", "distilbert", "--teacher", bert, "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert "the student starts from the teacher's embeddings, head and layers 0, 3" in done.stderr
    about, result = manifest(out), manifest(out)["result"]
    recipe = from_dict(Recipe, about["recipe"], where="recipe")
    assert recipe.objective.kind == "distill" and recipe.objective.teacher_hash == weights(bert)
    assert {"n_layers": 2, "d_model": 32, "max_seq_len": 32}.items() <= recipe.model.fields.items()
    assert about["kind"] == "distilled masked language model" and result["metric"] == "loss"
    teacher = manifest(bert)["result"]["actual"]["loss"]
    assert result["baselines"] == {"teacher": pytest.approx(teacher, abs=2e-5)}, "on the same masks"
    record = RunRecord.from_dict(json.loads((out / "report.json").read_text()))
    assert record.samples and [r.metric for r in record.results] == ["pseudo-perplexity"]
    theirs, ours = library.load(bert), build_model(recipe)  # as training starts
    for place, layer in enumerate((0, 3)):
        for name, p in theirs.layers[layer].named_parameters():
            assert torch.equal(ours.layers[place].get_parameter(name), p)
    first = json.loads((out / "log.jsonl").read_text().splitlines()[0])["loss"]
    started, random = first_losses(recipe, data, ours)
    assert first == pytest.approx(started, rel=0.3) and random > 2 * started, "training began there"
    filled = foundling("fill", out, "the model ___ data", "--json")
    assert filled.returncode == 0 and len(json.loads(filled.stdout)["gaps"]) == 1, filled.stderr


@pytest.mark.slow
def test_a_student_is_killed_resumed_and_reproduced(data: Path, bert: Path, tmp_path: Path) -> None:
    for family, more in (("distilbert", []), ("bert", ["--n-layers", "3", "--model.d-ff", "64"])):
        args = [data, "--tokens", "3072", *UNSIZED, "--family", family, *more, "--teacher", bert]
        out, broken = tmp_path / family, tmp_path / f"{family}-broken"
        raised(*args, "--out", out)
        kill_after_checkpoint([*args, "--out", broken], broken)
        assert foundling("raise", "--out", broken, "--resume").returncode == 0
        assert weights(broken) == weights(out)
        again = foundling("reproduce", out, "--out", tmp_path / f"{family}-again", "--json")
        assert again.returncode == 0 and json.loads(again.stdout)["identical"], again.stderr


@pytest.mark.slow
def test_a_student_of_another_shape_starts_at_random(data: Path, bert: Path, tmp_path: Path) -> None:
    for family, more, says in (
        ("distilbert", ["--model.d-ff", "64"], "its layer 0 computes in another way"),
        ("modernbert", [], "its layer 0 computes in another way"),
        ("bert", ["--n-layers", "5"], "it has 5 layers, its teacher 4"),
    ):
        args = ["--family", family, *more, "--teacher", bert, "--out", tmp_path / family]
        done = foundling("raise", data, "--tokens", "3072", *UNSIZED, *args)
        assert done.returncode == 0 and f"note: the student starts at random: {says}" in done.stderr, done.stderr


@pytest.mark.slow
def test_plans_of_a_student(data: Path, bert: Path) -> None:
    """They count the teacher: its weights, and the FLOPs of its forward pass."""
    teacher = library.load(bert)  # frozen, so that training it is its forward pass
    stored = sum(p.nbytes for p in teacher.parameters())
    forward = training_flops_per_token(teacher.requires_grad_(False), 32)
    sizes = ("--seq-len", "32", "--batch-size", "4", "--vocab-size", str(teacher.config.vocab_size))
    alone = ["--family", "distilbert", "--d-model", "32", "--n-layers", "2", "--model.max-seq-len", "32", *sizes]
    student = ["--family", "distilbert", "--teacher", bert, *sizes[:4]]
    for what, more in (("memory", []), ("run", [data, "--tokens", "3072"]), ("optimal", [data, "--tokens", "3072"])):
        done = [foundling("plan", what, *more, *args, "--json") for args in (student, alone)]
        assert [d.returncode for d in done] == [0, 0], done[0].stderr + done[1].stderr
        found, without = (json.loads(d.stdout) for d in done)
        if what == "optimal":
            found, without = found["prediction"], without["prediction"]
            own = without["flops"] / without["tokens"]
            assert found["flops"] / found["tokens"] == pytest.approx(own + forward)
            continue
        assert found["params"] == without["params"] < manifest(bert)["result"]["params"]
        part = "training" if what == "memory" else "memory"
        assert found[part]["weights"] == without[part]["weights"] + stored
        assert found["flops_per_token"] == without["flops_per_token"] + forward
        assert what == "memory" or found["flops"] == found["flops_per_token"] * found["tokens"]


def test_a_teacher_costs_its_weights_and_a_forward_pass(untrained: Path) -> None:
    for name in ("llama", "bert"):
        teacher = library.load(untrained / name).requires_grad_(False)
        stored, forward = sum(p.nbytes for p in teacher.parameters()), training_flops_per_token(teacher, 16)
        assert forward > 2 * matmul_parameters(teacher), "attention counts too"
        model = {"family": name, "fields": {"d_model": 64, "n_layers": 1}}
        given = {"model": model, "objective": {"teacher": str(untrained / name)}, "train": {"seq_len": 16}}
        found = memory_estimate(request := Request("builtin:stdlib", given=given))
        shape = replace(shape_of(request)[0], frozen=NO_TEACHER)
        alone = estimate_memory(shape, free=2**30, held=2**30, process=found["training"]["process"])
        assert found["params"] == alone["params"]
        for part in ("weights", "peak"):
            assert found["training"][part] == alone["training"][part] + stored
        assert found["flops_per_token"] == alone["flops_per_token"] + forward


def test_the_sizes_of_students(untrained: Path) -> None:
    """Of the families that share fields with the teacher's; what is given comes first."""
    for family, fields, expected in (
        ("distilbert", {}, {"n_layers": 1, "d_model": 64, "n_heads": 2, "d_ff": 256, "vocab_size": 64}),
        ("bert", {"n_layers": 2, "n_heads": 4}, {"n_layers": 2, "n_heads": 4, "n_types": 2}),
        ("roberta", {"max_seq_len": 32}, {"max_seq_len": 32, "pooled": False}),
        ("albert", {}, {"n_layers": 1, "d_embed": 16}),
        ("modernbert", {"d_ff": 96}, {"n_layers": 1, "d_ff": 96, "window": 16}),
    ):
        given = {"model": {"family": family, "fields": fields}, "objective": {"teacher": str(untrained / "bert")}}
        request = Request("builtin:stdlib", given=given)
        origin = student_origin(find_origin(request.get("model")), objective_of(request))
        assert origin.fields and expected.items() <= origin.fields.items(), family


def test_teachers_and_students_that_do_not_fit_are_refused(capsys, data: Path, untrained: Path, tmp_path: Path) -> None:
    bert = ["--family", "bert", "--teacher", untrained / "bert"]
    for args, says in (
        (["--family", "bert", "--teacher", untrained / "llama"], "is of the kind 'decoder' (llama), its student of"),
        (["--teacher", untrained / "bert"], "is of the kind 'encoder' (bert), its student of the kind 'decoder'"),
        (["--family", "distilbert", "--teacher", untrained / "t5"], "is of the kind 'seq2seq' (t5)"),
        (["--teacher", untrained / "t5"], "is of the kind 'seq2seq' (t5)"),
        (["--family", "bert", "--teacher", untrained / "elmo"], "of the family 'elmo', which is not distilled"),
        (["--family", "bert", "--teacher", untrained / "roberta"], "has no head over its vocabulary"),
        ([*bert, "--alpha", "0.3"], "--alpha is not for the objective 'distill' of a model of the kind 'encoder'"),
        ([*bert, "--fim-rate", "0.5"], "--fim-rate is not for"),
        ([*bert, "--objective", "masked"], "and no other objective"),
        ([*bert, "--d-model", "128"], "the student has d_model 128, its teacher 64; give --model.d-model 64"),
        ([*bert, "--model.vocab-size", "128"], "has vocab_size 128, its teacher 64; give --model.vocab-size 64"),
        ([*bert, "--model.max-seq-len", "96"], "has max_seq_len 96, its teacher 64; give --model.max-seq-len 64"),
        ([*bert, "--model.masked", "false"], "give --model.masked true"),
        ([*bert, "--model.n-heads", "3"], "d_model 64 is not a multiple of n_heads 3"),
        (["--preset", "distilbert-base", "--teacher", untrained / "bert"], "the student has vocab_size 30522"),
        (["--teacher", untrained / "llama", "--mask-rate", "0.3"], "--mask-rate is not for the objective 'distill'"),
    ):
        assert says in fails(capsys, "raise", data, "--tokens", "3072", *args, "--out", tmp_path / "o"), args
        assert not (tmp_path / "o").exists(), args
    assert "--seq-len 65 is more than the 64 tokens" in fails(capsys, "plan", "memory", *bert, "--seq-len", "65")
