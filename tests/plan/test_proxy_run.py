# SPDX-License-Identifier: Apache-2.0
"""A proxy run tells how hard a corpus is: the same each time, and lower for text that is easier to learn."""

import random
from pathlib import Path

from foundling.data.datasets import open_data
from foundling.data.ingest import ingest
from foundling.data.tokens import train_tokenizer
from foundling.models import family
from foundling.objectives.causal import Causal
from foundling.plan.probe import PROXY_SIZE, StepSpec
from foundling.recipes.probes import corpus_facts
from foundling.runtime.device import Runtime
from foundling.train.options import OptimOptions


def text(tmp_path: Path, name: str, words: int) -> str:
    """40 documents of words drawn from so many: the fewer, the sooner learnt."""
    chance = random.Random(0)
    known = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(words)]
    folder = tmp_path / name
    folder.mkdir()
    for n in range(40):
        (folder / f"{n}.txt").write_text(f"{n}: " + " ".join(chance.choices(known, k=3000)))
    return str(folder)


def test_facts_are_the_same_twice_and_tell_easy_text_from_hard(tmp_path: Path) -> None:
    seen = {}
    for name, words in (("easy", 8), ("hard", 4000)):
        corpus = ingest(open_data(text(tmp_path, name, words)), tmp_path / f"{name}-corpus")
        tokenizer = train_tokenizer(corpus, 320)
        fields = family("llama").module.sized(320, 64, *PROXY_SIZE)
        spec = StepSpec("llama", fields, Causal(), Runtime(threads=1), OptimOptions(), 16, 16, 64)
        seen[name], _ = corpus_facts(corpus, tokenizer, spec)
        if name == "easy":
            assert corpus_facts(corpus, tokenizer, spec)[0] == seen[name]
    assert seen["easy"].look < 0.5 * seen["hard"].look < 0.5 * 8
    assert seen["easy"].scale < 0.5 * seen["hard"].scale
