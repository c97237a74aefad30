# SPDX-License-Identifier: Apache-2.0
"""Texts rearranged to fill in their middles: nothing lost, the same ones chosen whatever the order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundling.data.shards import write_shards
from foundling.data.transforms.fim import chosen, encode, middle_out
from foundling.text import Tokenizer

TEXTS = [f"def f{i}(x):\n    return x + {i} # naïve 漢字\n" * (i % 7 + 1) for i in range(200)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 384)


@given(st.text(max_size=60))
def test_three_parts_make_the_text(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    assert "".join(middle_out(text)) == text


def test_the_rate_is_kept_and_each_text_chooses_for_itself(tokenizer: Tokenizer) -> None:
    assert 70 < sum(chosen(text, 0.5) for text in TEXTS) < 130
    assert encode(TEXTS[::-1], tokenizer, 0.5, 32)[::-1] == encode(TEXTS, tokenizer, 0.5, 32)
    assert encode(TEXTS, tokenizer, 0.0, 32) == tokenizer.encode_batch(TEXTS)


def test_every_piece_reads_back_and_fits_a_window(tokenizer: Tokenizer) -> None:
    assert tokenizer.fim is not None
    before, after, middle = tokenizer.fim
    for text, ids in zip(TEXTS, encode(TEXTS, tokenizer, 1.0, 32), strict=True):
        whole, lengths = "", []
        for piece in " ".join(map(str, ids)).split(f" {tokenizer.eos} "):
            of = [int(i) for i in piece.split()]
            assert of[0] == before and of.count(after) == of.count(middle) == 1
            s, m = of.index(after), of.index(middle)
            assert s < m
            whole += "".join(tokenizer.decode(part) for part in (of[1:s], of[m + 1 :], of[s + 1 : m]))
            lengths.append(len(of))
        assert whole == text and max(lengths) <= 2 * 32


def test_shards_hold_what_was_encoded(tokenizer: Tokenizer, tmp_path) -> None:
    shards = write_shards(tmp_path, TEXTS, tokenizer, lambda texts: encode(texts, tokenizer, 0.5, 32))
    expected = [i for ids in encode(TEXTS, tokenizer, 0.5, 32) for i in (tokenizer.eos, *ids)]
    assert np.array_equal(shards.read(0, shards.n_tokens), [*expected, tokenizer.eos])
    assert shards.n_bytes == sum(len(text.encode()) for text in TEXTS)
