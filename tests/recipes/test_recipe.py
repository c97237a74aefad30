# SPDX-License-Identifier: Apache-2.0
"""Recipes as data: nested, upgraded from the flat ones, checked before any work, and the flags made from them."""

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foundling.cli import parse
from foundling.cli.flags import field_docs, given_keys, recipe_fields
from foundling.config import dump_yaml, flattened, from_dict, load_yaml, merged
from foundling.errors import BudgetError, ConfigError
from foundling.models import build
from foundling.plan.budget import Budget
from foundling.recipes.publish import command
from foundling.recipes.recipe import DataSpec, ModelSpec, Recipe, Request, TrainSpec
from foundling.recipes.space import run_bytes
from foundling.recipes.upgrade import upgrade
from foundling.train.options import OptimOptions
from foundling.train.schedule import Schedule

FLAT = {
    "data": "notes", "total_steps": 24, "vocab_size": 320, "d_model": 32, "n_layers": 1, "seq_len": 32, "batch_size": 4,
    "micro_batch_size": 2, "threads": 1, "precision": "bfloat16", "compile": False, "device": "cpu", "data_share": 0.5,
    "fim_rate": 0.0, "family": "gpt2", "field": "text", "seed": 3, "optimizer": "adamw", "learning_rate": 0.01,
    "matrix_learning_rate": 0.02, "weight_decay": 0.0, "schedule": "cosine", "warmup_steps": 2, "decay_share": 0.8,
    "clip": 1.0, "checkpoint_every": 2, "checkpoint_activations": True,
}  # fmt: skip


def test_a_flat_recipe_of_format_1_is_read() -> None:
    recipe = from_dict(Recipe, merged({"objective": {"kind": "causal"}}, upgrade(FLAT)))
    assert recipe.data == DataSpec("notes", 320, "text", share=0.5)
    assert recipe.model == ModelSpec("gpt2", fields={"d_model": 32, "n_layers": 1})
    assert recipe.train == TrainSpec(24, 32, 4, 2, activation_checkpointing=True, checkpoint_every=2)
    assert recipe.optim == OptimOptions("adamw", learning_rate=0.01, weight_decay=0.0)
    assert recipe.make_schedule() == Schedule(24, "cosine", 2, 0.8) and recipe.seed == 3
    assert len(flattened(upgrade(FLAT))) == len(FLAT)  # no key is dropped
    assert upgrade(asdict(recipe)) == asdict(recipe)


def test_space_of_a_run_by_hand() -> None:
    """Three checkpoints, of weights and state, and the model once."""
    model = build("gpt2", d_model=32, n_layers=1, vocab_size=320, max_seq_len=32, n_heads=4, d_ff=128)
    n = sum(p.numel() for p in model.parameters())
    matrices = 12 * 32 * 32
    corpus: Any = SimpleNamespace(train_bytes=1000, held_out_bytes=100)
    recipe = from_dict(Recipe, merged({"objective": {"kind": "causal"}}, upgrade(FLAT)))
    tokens = 2 * (1000 // 4 + 100 // 2)  # half of the training text
    assert run_bytes(recipe, corpus, model) == tokens + 4 * (3 * 3 * n + n)
    muon = replace(recipe, optim=OptimOptions("muon"), train=replace(recipe.train, ema_decay=0.9))
    assert run_bytes(muon, corpus, model) == tokens + 4 * (3 * (4 * n - matrices) + n)


@pytest.mark.parametrize("out", ["-m", "a b;echo $HOME", "x\x1b[2J", "plain"])
def test_a_printed_command_is_one_that_a_shell_reads_back(out: str) -> None:
    request = Request("-notes'", licence="-my own", given={"data": {"field": "-text"}, "model": {"family": "gpt2"}})
    line = command(request, Path(out))
    shown = subprocess.run(
        ["bash", "-c", f"foundling() {{ printf '%s\\0' \"$@\"; }}; {line}"], capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]
    args = parse(shown)
    assert (Path(args.data), Path(args.out), args.licence) == (Path("-notes'"), Path(out), "-my own")
    assert given_keys(args) == request.given


def test_a_recipe_survives_yaml(tmp_path: Path) -> None:
    recipe = from_dict(Recipe, merged({"objective": {"kind": "causal"}}, upgrade(FLAT)))
    (tmp_path / "r.yaml").write_text(dump_yaml(recipe))
    assert from_dict(Recipe, load_yaml(tmp_path / "r.yaml")) == recipe


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"optim": {"learning_rat": 1}}, "did you mean 'learning_rate'"),
        ({"optim": {"learning_rate": -1}}, "'learning_rate' is -1"),
        ({"train": {"seq_len": "long"}}, "'seq_len' is 'long', expected int"),
        ({"train": {"batch_size": 0}}, "'batch_size' is 0"),
        ({"data": {"vocab_size": 1000}}, "multiple of 64"),
        ({"data": {"share": 0.0}}, "'share' is 0"),
        ({"objective": {"mask_rate": 1.0}}, "'mask_rate' is 1"),
        ({"objective": {"kind": "guess"}}, "'kind' is 'guess'"),
        ({"runtime": {"threads": -1}}, "'threads' is -1"),
        ({"schedule": {"warmup_steps": -1}}, "'warmup_steps' is -1"),
        ({"modell": {}}, "did you mean 'model'"),
        ({"train": {"ema_decay": 2.0}}, "'ema_decay' is 2"),
    ],
)
def test_what_was_given_is_checked_before_any_work(given: dict, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Request("data", given=given)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_budgets_are_positive_numbers(value: float) -> None:
    with pytest.raises(BudgetError, match="--tokens"):
        Budget("tokens", value)


def flags(*args: str) -> dict:
    return given_keys(parse(["raise", *args]))


def test_flags_set_what_they_name() -> None:
    given = flags("--learning-rate", "3e-3", "--model.n-kv-heads", "2", "--d-model=64", "--seed", "7", "--field", "1")
    assert given == {
        "optim": {"learning_rate": 3e-3}, "model": {"fields": {"n_kv_heads": 2, "d_model": 64}}, "seed": 7,
        "data": {"field": "1"},
    }  # fmt: skip
    assert flags("--from", "runs/a", "--model.rope-theta=5e5") == {
        "model": {"directory": "runs/a", "fields": {"rope_theta": 5e5}}
    }
    assert flags("--checkpoint-activations", "true") == flags("--train.activation-checkpointing", "true")


def test_every_key_of_the_recipe_has_a_flag_with_help() -> None:
    for key, (_, text, _) in recipe_fields().items():
        if key.split(".")[-1] not in ("betas", "momentum", "weight_decay"):  # whose names say it
            assert text, key
    assert "family" in field_docs(ModelSpec)


@pytest.mark.parametrize("command", [["--help"], ["raise", "--help"], ["plan", "--help"], ["generate", "--help"]])
def test_help_imports_neither_torch_nor_pydantic(command: list[str]) -> None:
    code = (
        "import sys\nfrom foundling.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'pydantic', 'yaml', 'tokenizers', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'{heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
