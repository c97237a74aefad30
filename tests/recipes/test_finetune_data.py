# SPDX-License-Identifier: Apache-2.0
"""Which examples choose the best weights: none of a prompt that is trained on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundling.config import from_dict
from foundling.data.encoded import EncodedSplit, encode_examples
from foundling.data.examples import ingest_examples
from foundling.recipes.finetune_data import VALIDATION_SHARE, count_examples, validation_split
from foundling.recipes.recipe import Recipe
from foundling.text.framing import Framing, TextSpec
from foundling.text.tokenizer import Tokenizer
from tests.text.kinds import TEXTS

CASES = [("dpo", False), ("reward", False), ("chat", False), ("seq2seq", False), ("seq2seq", True)]
"""kind, and whether the model encodes the source"""


def recipe(kind: str) -> Recipe:
    sections = {
        "data": {"source": "rows"}, "model": {}, "objective": {"kind": kind}, "optim": {}, "schedule": {},
        "runtime": {"device": "cpu", "precision": "float32", "threads": 1, "compile": False},
        "train": {"total_steps": 1, "seq_len": 96, "batch_size": 1, "micro_batch_size": 1, "evaluate_every": 1},
    }  # fmt: skip
    return from_dict(Recipe, sections, where="recipe")


def row(kind: str, prompt: str, n: int) -> dict[str, Any]:
    if kind in ("dpo", "reward"):
        return {"prompt": prompt, "chosen": f"yes {n}", "rejected": f"no {n}"}
    names = ("source", "target") if kind == "seq2seq" else ("prompt", "completion")
    return dict(zip(names, (prompt, f"yes {n}"), strict=True))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 384)


def split_of(folder: Path, tokenizer: Tokenizer, kind: Any, encodes: bool, prompts: list[str]) -> EncodedSplit:
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row(kind, prompt, n)) + "\n" for n, prompt in enumerate(prompts)))
    examples = ingest_examples(data, folder / "examples", kind="preference" if kind in ("dpo", "reward") else kind)
    spec = TextSpec(n_rows=384, reads_source=encodes)
    return encode_examples(folder / "tokens", examples, Framing(tokenizer, spec), seq_len=96).train


def prompts_in(split: EncodedSplit, tokenizer: Tokenizer) -> list[str]:
    """Of each text, that which it says before its answer."""
    texts = list[str]()
    for example in (split.example(i) for i in range(len(split))):
        ids = example["source"] if "source" in example else example["tokens"][~example["mask"]]
        words = tokenizer.decode(ids.tolist()).split()
        texts.append(words[words.index("say") + 1])
    return texts


@pytest.mark.parametrize(("kind", "encodes"), CASES)
def test_a_prompt_is_trained_on_or_validated(kind: str, encodes: bool, tokenizer: Tokenizer, tmp_path) -> None:
    split = split_of(tmp_path, tokenizer, kind, encodes, [f"say {i % 50} now" for i in range(250)])
    train, validation = validation_split(split, recipe(kind))
    assert validation is not None
    learnt, validated = (prompts_in(part, tokenizer) for part in (train, validation))
    assert learnt and validated and not set(learnt) & set(validated)
    assert sorted(learnt + validated) == sorted(prompts_in(split, tokenizer)), "each example once"
    share = VALIDATION_SHARE * count_examples(split, recipe(kind))
    assert share - 5 < count_examples(validation, recipe(kind)) <= share, "of 5 examples a prompt"


@pytest.mark.parametrize(("kind", "encodes"), CASES)
def test_distinct_prompts_are_chosen_one_by_one_and_a_single_one_is_divided(
    kind: str, encodes: bool, tokenizer: Tokenizer, tmp_path
) -> None:
    """The first of them as before prompts counted, so that models of older releases are reproduced."""
    for name, prompts in (("distinct", [f"say {i} now" for i in range(60)]), ("single", ["say 7 now"] * 60)):
        (folder := tmp_path / name).mkdir()
        if name == "single" and kind in ("dpo", "reward"):
            continue  # no comparison of a held-out prompt is left to train on
        split = split_of(folder, tokenizer, kind, encodes, prompts)
        _, validation = validation_split(split, recipe(kind))
        assert validation is not None
        n = count_examples(split, recipe(kind))
        expected = np.sort(np.random.default_rng(0).permutation(n)[: int(VALIDATION_SHARE * n)])
        first = [split.places[i] for i in range(len(split)) if i == 0 or split.places[i] != split.places[i - 1]]
        assert sorted(set(validation.places.tolist())) == [first[i] for i in expected]


def test_prompts_with_few_examples_alone_are_no_validation(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Three prompts of seventy examples each and a single one: that one alone would say nothing."""
    prompts = [f"say word{n % 3}" for n in range(210)] + ["say other"]
    split = split_of(tmp_path, tokenizer, "chat", False, prompts)
    _, validated = validation_split(split, recipe("chat"))
    assert validated is not None and len(validated) == int(VALIDATION_SHARE * len(split)) > 10
