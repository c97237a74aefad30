# SPDX-License-Identifier: Apache-2.0
"""Every kind of run through the real command line: raised, checked, used, resumed after SIGKILL, reproduced."""

import json
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest

import foundling as library
from foundling.cli import parse
from foundling.cli.flags import given_keys
from foundling.errors import ConfigError, MismatchError
from foundling.recipes.models import check_unused, find_origin
from foundling.recipes.recipe import ObjectiveSpec, Recipe, Request
from foundling.recipes.sizes import size_fields
from foundling.text import Tokenizer
from tests.e2e.test_bad_input import fails
from tests.e2e.tools import TINY, corpus, files, foundling, kill_after_checkpoint, raised, start, weights

KINDS = {"llama": "causal", "mamba2": "causal", "bert": "masked", "t5": "span", "bart": "infill", "lstm": "causal",
         "elmo": "bilm", "lstm_seq2seq": "span"}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return corpus(tmp_path_factory.mktemp("runs") / "data")


@pytest.fixture(scope="module")
def llama(data: Path) -> Path:
    out = data.parent / "llama"
    raised(data, "--tokens", "3072", *TINY, "--out", out)
    return out


def manifest(directory: Path) -> dict:
    return json.loads((directory / "foundling.json").read_text())


QUICK = ("bert",)
"""what differs most from the llama of the other tests here; the others run in `make test-slow`"""


@pytest.mark.parametrize("family", [pytest.param(f, marks=[] if f in QUICK else pytest.mark.slow) for f in KINDS])
def test_one_family_of_each_kind_is_raised_killed_resumed_and_reproduced(
    family: str, data: Path, tmp_path: Path
) -> None:
    args = [data, "--tokens", "3072", *TINY, "--family", family]
    out = tmp_path / "whole"
    result = raised(*args, "--out", out)
    about = manifest(out)
    assert about["recipe"]["objective"]["kind"] == KINDS[family] and about["recipe"]["model"]["family"] == family
    assert result["actual"][result["metric"]] > 0 and result["params"] > 0
    assert ("loss" in about["prediction"]) == (KINDS[family] == "causal")
    assert foundling("check", out).returncode == 0
    if KINDS[family] in ("masked", "bilm"):
        filled = foundling("fill", out, "the model ___ data", "--json")
        assert filled.returncode == 0, filled.stderr
        assert len(json.loads(filled.stdout)["gaps"]) == 1
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert sum(e["loss"] for e in log[-4:]) < sum(e["loss"] for e in log[:4])

    broken = tmp_path / "broken"
    kill_after_checkpoint([*args, "--out", broken], broken)
    assert foundling("raise", "--out", broken, "--resume").returncode == 0
    assert weights(broken) == weights(out)
    again = foundling("reproduce", out, "--out", tmp_path / "again", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["identical"], again.stderr


def test_a_seq2seq_answers(data: Path, tmp_path: Path) -> None:
    raised(data, "--tokens", "3072", *TINY, "--family", "t5", "--out", tmp_path / "t5")
    answered = foundling("generate", tmp_path / "t5", "--prompt", "the model reads data", "--max-tokens", "5", "--json")
    assert answered.returncode == 0, answered.stderr


@pytest.mark.slow
def test_a_preset_with_a_change(data: Path, tmp_path: Path) -> None:
    sizes = ["--preset", "gpt2", "--model.n-layers", "1", "--model.d-model", "48", "--model.n-heads", "2"]
    rest = TINY[: TINY.index("--d-model")] + TINY[TINY.index("--threads") :]
    raised(data, "--tokens", "1536", *rest, "--total-steps", "4", *sizes, "--out", tmp_path / "o")
    fields = manifest(tmp_path / "o")["recipe"]["model"]["fields"]
    assert (fields["n_layers"], fields["d_model"], fields["vocab_size"]) == (1, 48, 50257)
    assert library.load(tmp_path / "o").config.max_seq_len == 1024


def test_a_directory_is_trained_further(data: Path, llama: Path, tmp_path: Path) -> None:
    steps = [*TINY[: TINY.index("--d-model")], *TINY[TINY.index("--threads") :]]
    result = raised(data, "--tokens", "3072", *steps, "--from", llama, "--out", tmp_path / "more")
    about = manifest(tmp_path / "more")
    assert about["parents"] == [{"name": "llama", "weights_hash": weights(llama)}]
    before = manifest(llama)["result"]["actual"]["bits_per_byte"]
    assert result["actual"]["bits_per_byte"] < before
    assert Tokenizer.load(tmp_path / "more").backend.to_str() == Tokenizer.load(llama).backend.to_str()
    assert "no loss prediction for continued training" in (tmp_path / "more" / "README.md").read_text()
    moved = tmp_path / "moved"
    shutil.copytree(llama, moved)
    about["recipe"]["model"]["directory"] = "elsewhere/llama"  # as it was called there
    (tmp_path / "more" / "foundling.json").write_text(json.dumps(about))
    lost = foundling("reproduce", tmp_path / "more", "--out", tmp_path / "again")
    assert lost.returncode == 2 and "elsewhere/llama" in lost.stderr and "--parent" in lost.stderr
    again = foundling("reproduce", tmp_path / "more", "--parent", moved, "--out", tmp_path / "again", "--json")
    assert json.loads(again.stdout)["identical"], again.stderr


def test_a_written_recipe_can_be_given_again(data: Path, llama: Path, tmp_path: Path) -> None:
    """Its sections have every field, those of other objectives and optimisers too."""
    recipe = manifest(llama)["recipe"]
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    raised(data, "--tokens", "3072", "--config", tmp_path / "recipe.yaml", "--out", tmp_path / "again")
    assert weights(tmp_path / "again") == weights(llama)
    more = {"directory": str(llama), "fields": recipe["model"]["fields"], "weights_hash": weights(llama)}
    assert find_origin(more).fields == recipe["model"]["fields"]
    with pytest.raises(ConfigError, match=r"leave --model\.n-layers out"):
        find_origin(more | {"fields": {"n_layers": 1}})
    with pytest.raises(MismatchError, match="the recipe was resolved with 000000000000"):
        find_origin(more | {"weights_hash": "0" * 64})
    check_unused({"optim": recipe["optim"] | {"optimizer": "adamw"}, "schedule": {"kind": "cosine"}})


def test_a_teacher_teaches_a_smaller_model(data: Path, llama: Path, tmp_path: Path) -> None:
    small = [*TINY[: TINY.index("--d-model")], *TINY[TINY.index("--threads") :], "--d-model", "32", "--n-layers", "1"]
    result = raised(data, "--tokens", "3072", *small, "--teacher", llama, "--out", tmp_path / "student")
    about = manifest(tmp_path / "student")
    assert about["recipe"]["objective"]["teacher_hash"] == weights(llama)
    assert result["baselines"]["teacher"] > 0 and about["kind"] == "distilled model"


def test_an_interrupted_reproduction_is_continued(data: Path, llama: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    kill_after_checkpoint([llama, "--out", again], again, command="reproduce")
    assert (again / "run" / "recipe.yaml").exists()
    checkpoints = set((again / "run" / "checkpoints").glob("step-*"))
    process = start("reproduce", llama, "--out", again)
    while process.poll() is None and set((again / "run" / "checkpoints").glob("step-*")) <= checkpoints:
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)  # told to stop, it saves and keeps what it has
    process.communicate()
    assert process.returncode == 75 and (again / "run" / "recipe.yaml").exists()
    (again / "run" / "recipe.yaml").unlink()  # as after a crash while the plan was written down
    done = foundling("reproduce", llama, "--out", again, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["identical"], done.stderr
    assert manifest(again)["request"] == manifest(llama)["request"]
    before = files(again)
    once_more = foundling("reproduce", llama, "--out", again, "--json")  # as after a signal while it was published
    assert json.loads(once_more.stdout) == json.loads(done.stdout) and files(again) == before, once_more.stderr
    shutil.copytree(llama, tmp_path / "copy")  # it has the weights, but was not made again
    done = foundling("reproduce", llama, "--out", tmp_path / "copy")
    assert done.returncode == 2 and "is not empty, and was not changed" in done.stderr


def test_the_command_of_a_record_asks_for_the_same(data: Path, llama: Path) -> None:
    words = shlex.split(json.loads((llama / "report.json").read_text())["command"])
    args = parse(words[1:])
    assert given_keys(args) == manifest(llama)["request"]["given"]
    assert args.tokens == 3072 and words[2] == str(data)


def test_overrides_choose_among_the_sizes_that_they_fit(data: Path, tmp_path: Path) -> None:
    """n_kv_heads 2 does not divide every ladder size's heads, and n_heads 2 implies the rest."""
    for flags, expected in (
        (["--model.n-kv-heads", "2"], {"n_kv_heads": 2}),
        (["--model.n-heads", "4"], {"n_heads": 4, "n_kv_heads": 4}),
        (
            ["--d-model", "64", "--n-layers", "1", "--model.n-heads", "1"],
            {"n_heads": 1, "n_kv_heads": 1, "head_dim": 64},
        ),
    ):
        request = Request(str(data), given=given_keys(parse(["raise", *flags])))
        origin = find_origin(request.get("model"))
        for fields in size_fields(origin, 320, 32, ObjectiveSpec("causal")):
            assert expected.items() <= fields.items()
    with pytest.raises(ConfigError, match="not a multiple"):
        size_fields(find_origin({"fields": {"n_heads": 3, "n_kv_heads": 2}}), 320, 32, ObjectiveSpec("causal"))


@pytest.mark.parametrize("optimizer", ["muon", pytest.param("adamw", marks=pytest.mark.slow)])
def test_the_plan_is_of_the_optimizer_that_runs(optimizer: str, data: Path, tmp_path: Path) -> None:
    """AdamW keeps two moments of each matrix, Muon one: memory is predicted for the one that was asked for."""
    size = ["--d-model", "128", "--n-layers", "2", "--vocab-size", "320", "--seq-len", "32", "--batch-size", "4"]
    done = foundling("plan", "run", data, *size, "--tokens", "3072", "--optimizer", optimizer, "--json")
    found = json.loads(done.stdout)
    head = 320 * 128
    matrices = found["params"] - 2 * head - 5 * 128
    moments = 2 * found["params"] - (matrices if optimizer == "muon" else 0)
    assert found["memory"]["optimizer"] == 4 * moments and found["optimizer"] == optimizer


@pytest.mark.slow
def test_plans_of_other_objectives(data: Path, llama: Path) -> None:
    size = ["--d-model", "32", "--n-layers", "1", "--seq-len", "32", "--tokens", "3072", "--batch-size", "4"]
    for flags in (["--family", "bart"], ["--family", "t5"], ["--family", "bert"], ["--teacher", llama]):
        done = foundling("plan", "run", data, *size, *flags, "--json")
        assert done.returncode == 0 and "loss" not in json.loads(done.stdout), (flags, done.stderr)
    done = foundling("plan", "run", data, "--from", llama, "--tokens", "3072", "--seq-len", "32", "--json")
    assert done.returncode == 0 and "loss" not in json.loads(done.stdout), done.stderr


@pytest.mark.slow
def test_ema_is_what_is_published_and_resumes(data: Path, tmp_path: Path) -> None:
    args = [data, "--tokens", "3072", *TINY, "--ema-decay", "0.9"]
    raised(*args, "--out", tmp_path / "whole")
    kill_after_checkpoint([*args, "--out", tmp_path / "broken"], tmp_path / "broken")
    assert foundling("raise", "--out", tmp_path / "broken", "--resume").returncode == 0
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")
    raised(data, "--tokens", "3072", *TINY, "--out", tmp_path / "plain")
    assert weights(tmp_path / "plain") != weights(tmp_path / "whole")


def test_the_source_is_read_once(data: Path, llama: Path) -> None:
    size = sum(p.stat().st_size for p in data.rglob("*.txt"))
    assert manifest(llama)["result"]["source_bytes"] == size


def test_what_does_not_fit_together_is_refused(capsys, data: Path, llama: Path, tmp_path: Path) -> None:
    other = shutil.copytree(llama, tmp_path / "other")
    tokens = (other / "tokenizer.json").read_text().replace("<|spare_1|>", "<|unlike|>")
    (other / "tokenizer.json").write_text(tokens)
    for args, says in (
        (["--from", llama, "--teacher", other], "have different tokens; both need the same tokenizer"),
        (["--family", "gpt2", "--preset", "llama-3-8b"], "leave one out"),
        (["--from", llama, "--model.n-layers", "3"], "leave --model.n-layers out"),
        (["--from", llama, "--vocab-size", "512"], "leave vocab_size 512 out"),
        (["--vocab-size", "384", "--model.vocab-size", "320"], "the tokenizer has 384 tokens, the model 320 rows"),
        (["--family", "bart", "--model.max-seq-len", "16"], "makes targets of 24 tokens, the model writes 16"),
        (["--family", "t5", "--model.n-heads", "0"], "'n_heads' is 0, out of range"),
        (["--objective", "masked"], "is not for llama"),
        (["--objective", "distill"], "--teacher"),
        (["--family", "elmo", "--teacher", llama], "objective 'distill' is not for elmo"),
        (["--model.n-layer", "3"], "did you mean 'n_layers'"),
        (["--preset", "gpt-2"], "did you mean 'gpt2'"),
        (["--from", tmp_path / "nowhere"], "nowhere"),
        (["--from", ""], "--model.directory is empty"),
        (["--teacher", ""], "--objective.teacher is empty"),
        (["--mask-rate", "0.3"], "--mask-rate is not for the objective 'causal'"),
        (["--family", "bert", "--fim-rate", "0.5"], "--fim-rate is not for"),
        (["--optimizer", "adamw", "--momentum", "0.9"], "--momentum is Muon's"),
        (["--schedule", "cosine", "--decay-share", "0.5"], "--decay-share is for --schedule wsd"),
        (["--weight-decay", "-5"], "'weight_decay' is -5"),
        (["--betas", "[2, 3]"], "'betas'"),
        (["--model.max-seq-len", "foo"], "'max_seq_len' is 'foo'"),
    ):
        assert says in fails(capsys, "raise", data, "--tokens", "3072", *args, "--out", tmp_path / "o"), args
        assert not (tmp_path / "o").exists(), args


def test_runs_of_the_first_format_are_read_and_refused_by_name(tmp_path: Path) -> None:
    """tests/golden/run was written by foundling 0.1 (commit cb9b851)."""
    golden = Path(__file__).parents[1] / "golden"
    assert foundling("check", golden / "run").returncode == 0
    done = foundling("generate", golden / "run", "--prompt", "the model", "--max-tokens", "4", "--json")
    assert done.returncode == 0, done.stderr
    done = foundling("reproduce", golden / "run", "--out", tmp_path / "again")
    assert done.returncode == 2 and "install that version to reproduce it" in done.stderr
    (tmp_path / "old" / "run").mkdir(parents=True)
    (tmp_path / "old" / "run" / "request.json").write_text((golden / "unfinished_request.json").read_text())
    done = foundling("raise", "--out", tmp_path / "old", "--resume")
    assert done.returncode == 2 and "foundling 0.1" in done.stderr


def test_the_kinds_share_no_copies() -> None:
    """A kind of run is a script over run.py: short, and no twelve lines of one stand in another."""
    folder = Path(library.__file__).parent / "recipes"
    lines = {
        name: (folder / f"{name}.py").read_text().splitlines() for name in ("pretrain", "masked", "seq2seq", "distill")
    }
    for name, text in lines.items():
        assert len(text) <= 150, name
    runs = {name: {tuple(text[i : i + 12]) for i in range(len(text) - 11)} for name, text in lines.items()}
    for a in runs:
        for b in runs:
            assert a == b or not runs[a] & runs[b], (a, b)
    assert Recipe.__dataclass_fields__["seed"].default == 0
