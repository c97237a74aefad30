# SPDX-License-Identifier: Apache-2.0
"""A model raised with fill-in-the-middle writes what only the text after the gap can tell."""

import itertools
import json
import random
from pathlib import Path

import pytest

from foundling.decode.text import TextGenerator
from tests.e2e.tools import foundling

SIZE = [
    "--total-steps", "1000", "--batch-size", "16", "--seq-len", "64", "--d-model", "128", "--n-layers", "2",
    "--vocab-size", "512", "--compile", "false",
]  # fmt: skip


@pytest.mark.slow
def test_a_gap_is_filled_from_what_follows(tmp_path: Path) -> None:
    """Every animal makes a sound of its own. Which one is meant is told by the sound behind the gap alone; the pairs of
    place and animal that are asked for were never read."""
    draw = random.Random(0)

    def words(n: int) -> list[str]:
        syllables = [a + b for a, b in itertools.product("bdfgklmnprstvz", "aeiou")]
        return ["".join(pair) for pair in draw.sample([*itertools.product(syllables, repeat=2)], n)]

    places, animals, sounds = words(30), words(10), words(10)
    pairs = [*itertools.product(places, range(10))]
    draw.shuffle(pairs)
    asked, taught = pairs[:100], pairs[100:]
    with (tmp_path / "texts.jsonl").open("w", encoding="utf-8") as file:
        for day in range(30_000):  # every text another: where one is cut, its hash says
            place, i = draw.choice(taught)
            file.write(json.dumps({"text": f"{day}: in {place} the {animals[i]} says {sounds[i]}."}) + "\n")
    done = foundling(
        "raise", tmp_path / "texts.jsonl", *SIZE, "--fim-rate", "0.7", "--out", tmp_path / "run", timeout=3000
    )
    assert done.returncode == 0, done.stderr[-2000:]
    writer = TextGenerator.load(tmp_path / "run", temperature=0)
    filled = []
    for tells in (True, False):
        answers = (
            writer.generate(f"{day}: in {place} the", suffix=f" says {sounds[i]}." if tells else "", max_tokens=8)[0][
                "text"
            ]
            for day, (place, i) in enumerate(asked)
        )
        filled.append(sum(text.strip() == animals[i] for text, (_, i) in zip(answers, asked, strict=True)))
    print(f"of 100 gaps {filled[0]} were filled as the text after them says, {filled[1]} where it does not say")
    assert filled[0] >= 80 and filled[1] <= 25
