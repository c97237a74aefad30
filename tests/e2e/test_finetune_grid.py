# SPDX-License-Identifier: Apache-2.0
"""Every method of finetuning on every kind of examples: it learns, the result answers at once, a second run of the
recipe gives the same weights."""

import json
import math
import random
from pathlib import Path
from typing import Any, get_args

import pytest

from foundling.adapt.options import Method
from foundling.recipes.recipe import PREFERENCE_KINDS, ExampleKind
from tests.e2e.test_finetune import tuned, write_chats
from tests.e2e.tools import corpus, foundling, raised

WORDS = {"NOUN": ("river", "stone", "cloud"), "VERB": ("runs", "falls", "sings"), "ADJ": ("red", "cold")}
LABELLED = ("classify", "tag", "regress")
N = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    out = folder / "base"
    raised(
        corpus(folder / "text"), "--total-steps", "4", "--batch-size", "2", "--seq-len", "128", "--d-model", "32",
        "--n-layers", "2", "--vocab-size", "320", "--threads", "1", "--compile", "false", "--precision", "float32",
        "--out", out,
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def data(folder: Path) -> dict[str, Path]:
    chance = random.Random(2)

    def rows(name: str, row: Any) -> Path:
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row(i)) + "\n" for i in range(N)))
        return file

    def words(i: int) -> list[tuple[str, str]]:
        kinds = chance.choices([*WORDS], k=5)
        return [(chance.choice(WORDS[kind]), kind) for kind in kinds]

    conll = folder / "words.conll"
    conll.write_text("\n".join("".join(f"{w}\t{t}\n" for w, t in words(i)) for i in range(N)))
    return {
        "chat": write_chats(folder),
        "text": rows("text", lambda i: {"text": f"{i}: the river runs and the stone falls, {chance.random():.3f}"}),
        "classify": rows("classify", lambda i: {"text": f"{('win', 'dear')[i % 2]} {i}", "label": f"class {i % 2}"}),
        "regress": rows("regress", lambda i: {"text": f"{i} {'more ' * (i % 5)}", "value": float(i % 5)}),
        "seq2seq": rows("seq2seq", lambda i: {"source": f"{i} river", "target": f"{i} stone"}),
        "tag": conll,
    }  # fmt: skip


ANSWERS = {
    "chat": ("chat", "--max-tokens", "4"), "text": ("generate", "--prompt", "the river", "--max-tokens", "4"),
    "seq2seq": ("generate", "--prompt", "3 river", "--max-tokens", "4"), "classify": ("classify", "win 3"),
    "regress": ("classify", "3 more more"), "tag": ("classify", "river runs"),
}  # fmt: skip


def learnt(kind: str, result: dict[str, Any]) -> bool:
    """Better than what needs no model, or than before."""
    actual, without = result["actual"], result["baselines"]
    if kind in ("classify", "tag"):
        return actual["loss"] < math.log(2 if kind == "classify" else 3)
    return actual[result["metric"]] < without["the mean value" if kind == "regress" else "before"]


@pytest.mark.slow  # PREFERENCE_KINDS: test_align.py
@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("kind", [kind for kind in get_args(ExampleKind) if kind not in PREFERENCE_KINDS])
def test_each_method_learns_each_kind(
    kind: str, method: str, base: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    args = ["finetune", base, data[kind], "--as", kind, "--method", method, "--out", out]
    if method == "head" and kind not in LABELLED:
        refused = foundling(*args)
        assert refused.returncode == 2 and "use lora or full" in refused.stderr
        return
    if kind in LABELLED and method != "head":
        args += ["--probe", "false"]  # or nothing would be left to learn
    result = tuned(*args[1:], "--epochs", "4")
    assert learnt(kind, result), result
    command, *more = ANSWERS[kind]
    answer = foundling(command, out, *more, "--json", input="1: Rome\n")
    assert answer.returncode == 0, answer.stderr
    again = foundling("reproduce", out, "--out", tmp_path / "again", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["identical"], again.stderr
