# SPDX-License-Identifier: Apache-2.0
"""How much is held out: the share that was asked for, to within one document, and at most so many bytes."""

import random

import pytest

from foundling.data.ingest import ingest
from foundling.data.sources import Document


def documents(count: int, size: int) -> list[Document]:
    """All different, of `size` bytes each."""
    rng = random.Random(0)
    return [Document(f"{n}.txt", "".join(rng.choices("abcdefghij klmnop", k=size - 1)) + "\n") for n in range(count)]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_the_share_is_that_asked_for(share: float, tmp_path) -> None:
    size = 500
    found = ingest(documents(200, size), tmp_path / "corpus", share=share)
    assert share * 200 * size <= found.held_out_bytes < share * 200 * size + size
    assert found.train_bytes + found.held_out_bytes == 200 * size and found.removed_bytes == 0


def test_at_most_max_bytes(tmp_path) -> None:
    found = ingest(documents(200, 500), tmp_path / "corpus", share=0.3, max_bytes=2_000)
    assert 2_000 <= found.held_out_bytes < 2_500


def test_a_document_over_four_shares_is_not_held_out_whole(tmp_path) -> None:
    """One is a third of the text: of the others the share is met."""
    large = documents(1, 50_000)[0]
    for seed in range(8):
        found = ingest([*documents(200, 500)[1:], large], tmp_path / str(seed), seed=seed, share=0.05)
        assert large not in found.held_out
        assert 0.05 * 149_500 <= found.held_out_bytes < 0.05 * 149_500 + 500


def test_the_tail_of_a_single_document_is_two_shares(tmp_path) -> None:
    text = "\n".join(document.text.replace("\n", "") for document in documents(400, 100))
    found = ingest([Document("one.txt", text)], tmp_path / "corpus", share=0.05)
    wanted = 2 * 0.05 * len(text)
    assert found.train_documents == 1 and 0.75 * wanted <= found.held_out_bytes <= 1.25 * wanted


def test_a_document_that_would_take_it_past_four_shares_is_passed_over(tmp_path) -> None:
    """Most of the text is in documents of nearly four shares: one may stand alone, none is added to others."""
    large = [Document(f"large {n}", document.text) for n, document in enumerate(documents(12, 18_000))]
    for seed in range(8):
        found = ingest([*documents(72, 400)[12:], *large], tmp_path / str(seed), seed=seed, share=0.0188)
        wanted = 0.0188 * (60 * 400 + 12 * 18_000)
        assert wanted - 1 <= found.held_out_bytes <= 4 * wanted
