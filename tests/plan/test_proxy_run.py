# SPDX-License-Identifier: Apache-2.0
"""A first look at a text: the same each time, of training text alone, and telling of how much there is to learn."""

import random
from pathlib import Path

from foundling.recipes import corpus
from foundling.recipes.probing import look
from foundling.runtime.device import Runtime


def text(tmp_path: Path, name: str, words: int) -> str:
    """40 documents of words drawn from so many: the fewer, the sooner learnt."""
    chance = random.Random(0)
    known = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(words)]
    folder = tmp_path / name
    folder.mkdir()
    for n in range(40):
        (folder / f"{n}.txt").write_text(f"{n}: " + " ".join(chance.choices(known, k=3000)))
    return str(folder)


def test_a_look_is_the_same_twice_and_tells_easy_text_from_hard(tmp_path: Path) -> None:
    seen = {}
    for name, words in (("easy", 8), ("hard", 4000)):
        found, _ = corpus.read(text(tmp_path, name, words), "text")
        tokenizer = corpus.train_tokenizer(found, 320)
        seen[name], _ = look(found, tokenizer, "llama", 64, Runtime(threads=1))
        if name == "easy":
            assert look(found, tokenizer, "llama", 64, Runtime(threads=1))[0] == seen[name]
    assert seen["easy"].look < 0.5 * seen["hard"].look < 0.5 * 8
    assert seen["easy"].scale < 0.5 * seen["hard"].scale


def test_pieces_are_of_the_training_text_and_of_many_documents(tmp_path: Path) -> None:
    found, _ = corpus.read(text(tmp_path, "some", 500), "text")
    training = [document.text for document in found.train()]
    size = found.train_bytes // 10
    pieces = list(corpus.pieces(found, size))
    sources = [next(n for n, whole in enumerate(training) if piece in whole) for piece in pieces]
    assert len(set(sources)) == len(pieces) > 20
    assert 0.5 * size < sum(map(len, pieces)) < 1.5 * size
    assert pieces == list(corpus.pieces(found, size))
    assert not any(piece in document.text for piece in pieces for document in found.held_out)
    assert sum(map(len, corpus.pieces(found, 10 * size))) >= 0.95 * found.train_bytes
