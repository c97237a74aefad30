# SPDX-License-Identifier: Apache-2.0
"""A model raised with fill-in-the-middle writes what only the text after the gap can tell."""

import json
import random
from pathlib import Path

import pytest

from foundling.decode.text import Writer
from tests.e2e.tools import foundling

SIZE = [
    "--total-steps", "1200", "--batch-size", "16", "--seq-len", "64", "--d-model", "128", "--n-layers", "2",
    "--vocab-size", "512", "--compile", "false",
]  # fmt: skip


@pytest.mark.prove
def test_a_gap_is_filled_from_what_follows(tmp_path: Path) -> None:
    draw = random.Random(0)

    def word(syllables: int) -> str:
        return "".join(draw.choice("bcdfghklmnprstvz") + draw.choice("aeiou") for _ in range(syllables))

    things, values = [word(2) for _ in range(60)], [word(2) for _ in range(300)]
    pairs = {(draw.choice(things), draw.choice(values)) for _ in range(14_000)}
    asked, taught = sorted(pairs)[:100], sorted(pairs)[100:]
    with (tmp_path / "texts.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(60_000):
            thing, value = draw.choice(taught)
            file.write(json.dumps({"text": f"set {thing} to {value}. now {thing} is {value}."}) + "\n")
    foundling("raise", tmp_path / "texts.jsonl", *SIZE, "--fim-rate", "0.7", "--out", tmp_path / "run")
    writer = Writer.load(tmp_path / "run", temperature=0)
    filled = {
        suffix: sum(
            writer.write(f"set {thing} to", suffix=suffix.format(thing, value), max_tokens=12)[0]["text"].strip()
            == value
            for thing, value in asked
        )
        for suffix in (". now {0} is {1}.", ". now {0} is")
    }
    told, untold = filled.values()
    print(f"of 100 gaps {told} were filled as the text after them says, {untold} where it does not say")
    assert told >= 50 and untold <= 10
