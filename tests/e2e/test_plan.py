# SPDX-License-Identifier: Apache-2.0
"""`foundling plan` by its users' door: what it says is what `raise` then does, and what cannot be is said in a line."""

import json

import pytest

from foundling.config import flattened
from foundling.models import count_parameters, family
from foundling.plan.flops import skeleton, training_flops_per_token
from tests.e2e.test_bad_input import fails
from tests.e2e.tools import corpus, foundling


def plan(*args: str) -> dict:
    done = foundling("plan", *args, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_optimal_is_what_raise_begins_with(tmp_path) -> None:
    data = corpus(tmp_path / "data")
    size = ("--seq-len", "64", "--vocab-size", "512", "--threads", "1", "--compile", "false")
    args = (data, "--tokens", "3072", "--seed", "3", *size)
    found = plan("optimal", *args)
    raised = foundling("raise", *args, "--out", tmp_path / "m", "--json")
    assert raised.returncode == 0, raised.stderr
    manifest = json.loads((tmp_path / "m" / "foundling.json").read_text())
    timed = ("train.checkpoint_every", "runtime.precision", "runtime.compile")  # depend on the speed of the moment
    same = [
        {k: v for k, v in flattened(recipe).items() if k not in timed}
        for recipe in (found["recipe"], manifest["recipe"])
    ]
    assert same[0] == same[1]
    for name in ("bits_per_byte", "loss", "flops", "params", "tokens"):
        assert found["prediction"][name] == manifest["prediction"][name]
    fields = found["recipe"]["model"]["fields"]
    best = {"d_model": fields["d_model"], "n_layers": fields["n_layers"]}
    assert any(best.items() <= size.items() for size in found["sizes"]) and len(found["sizes"]) > 5


def test_run_says_flops_time_memory_energy_and_loss_of_the_field_that_is_named(capsys, tmp_path) -> None:
    rows = [{"body": file.read_text()} for file in sorted(corpus(tmp_path / "data").rglob("*.txt"))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = [
        "run", str(tmp_path / "rows.jsonl"), "--d-model", "64", "--n-layers", "2", "--vocab-size", "512",
        "--seq-len", "64", "--tokens", "1e5",
    ]  # fmt: skip
    assert "body" in fails(capsys, "plan", *args)
    found = plan(*args, "--field", "body")
    model = skeleton("llama", family("llama").module.sized(512, 64, 64, 2))
    assert found["params"] == count_parameters(model)["total"]
    assert found["flops"] == training_flops_per_token(model, 64) * found["tokens"]
    assert found["tokens"] == found["steps"] * found["batch_size"] * 64 == pytest.approx(1e5, rel=0.02)
    assert found["seconds"] == pytest.approx(found["steps"] * found["step_seconds"]) and found["how"] == "timed"
    assert 2**27 < found["peak_bytes"] < 2**30
    parts = found["memory"]
    assert parts["peak"] < sum(size for name, size in parts.items() if name != "peak")
    assert found["joules"]["value"] > 0 and 0.5 < found["bits_per_byte"] < 8


def test_memory_of_a_published_size_and_what_makes_it_fit() -> None:
    found = plan("memory", "--preset", "llama-2-70b", "--seq-len", "1024", "--batch-size", "2")
    assert found["params"] == 68_976_648_192 and not found["fits"]  # the paper's 70B, counted
    assert found["training"]["weights"] == 4 * found["params"] == found["serving"]["float32"]
    assert found["serving"]["cache"] == 2 * 1024 * 80 * 2 * 8 * 128 * 4
    for way in found["ways"]:
        assert way["peak"] <= found["free_bytes"] + found["training"]["process"]
    small = plan("memory", "--d-model", "64", "--n-layers", "2")
    assert small["fits"] and small["ways"] == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["memory", "--preset", "gpt3"], "unknown preset 'gpt3'"),
        (["memory", "--preset", "clip-vit-base-patch32"], "family 'clip' is not raised from text"),
        (["memory", "--d-model", "64"], "--n-layers"),
        (["memory", "--preset", "gpt2", "--d-model", "64", "--family", "llama"], "leave one out"),
        (["memory", "--preset", "gpt2", "--seq-len", "4096"], "1024"),
        (["memory", "--preset", "gpt2", "--tokens", "5"], "takes no --tokens"),
        (["memory", "--preset", "gpt2", "--ranks", "0"], "--ranks is 0"),
        (["memory", "--preset", "gpt2", "--learning-rate", "0.1"], "takes no --learning-rate"),
        (["run", "--preset", "gpt2"], "--tokens"),
        (["run", "--preset", "gpt2", "--tokens", "-1"], "--tokens -1"),
        (["run", "--preset", "gpt2", "--tokens", "100"], "the least that works here is"),
        (["run", "--preset", "llama-2-70b", "--tokens", "1e9"], "GiB are free"),
        (["run", "--d-model", "64", "--n-layers", "2", "--minutes", "3", "--tokens", "1e5"], "not allowed"),
        (["optimal", "--minutes", "nan"], "--minutes"),
        (["optimal", "--ranks", "2"], "takes no --ranks"),
        (["optimal", "nowhere"], "nowhere"),
        (["best"], "invalid choice"),
    ],
)
def test_what_cannot_be_planned_is_said(capsys, args: list[str], says: str) -> None:
    assert says in fails(capsys, "plan", *args)


def test_a_corpus_smaller_than_a_batch_says_so(capsys, tmp_path) -> None:
    (tmp_path / "small.txt").write_text(" ".join(f"word{i * 7919 % 1009}" for i in range(400)))
    line = fails(capsys, "plan", "optimal", str(tmp_path / "small.txt"), "--tokens", "1e6", "--seq-len", "4096")
    assert "window" in line and "more text" in line
