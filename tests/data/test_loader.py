# SPDX-License-Identifier: Apache-2.0
"""Shards and batches: every token where it should be, by number alone."""

import numpy as np
import pytest
import torch

from foundling.data import shards as shards_module
from foundling.data.loader import PackedBatches, evaluation_batches
from foundling.data.shards import TokenShards, write_shards
from foundling.errors import DataError
from foundling.text import Tokenizer

TEXTS = [f"text {i} " * (i % 5 + 1) for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 320)


@pytest.fixture
def shards(tokenizer, tmp_path) -> TokenShards:
    return write_shards(tmp_path, TEXTS, tokenizer)


def test_shards_hold_every_document_between_eos(shards, tokenizer) -> None:
    stream = shards.read(0, shards.n_tokens).tolist()
    expected = [t for text in TEXTS for t in [tokenizer.eos, *tokenizer.encode(text)]] + [tokenizer.eos]
    assert stream == expected
    assert shards.n_documents == 60 and shards.n_bytes == sum(len(t.encode()) for t in TEXTS)


def test_reading_across_files_is_the_same(tokenizer, tmp_path, monkeypatch) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    one = write_shards(tmp_path / "one", TEXTS, tokenizer)
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 37)
    many = write_shards(tmp_path / "many", TEXTS, tokenizer)
    assert len(many.arrays) > 5 and many.hash == one.hash
    for start, stop in ((0, 10), (30, 200), (36, 38), (74, 75)):
        assert np.array_equal(many.read(start, stop), one.read(start, stop))


def test_an_epoch_reads_every_window_once_and_epochs_differ(shards) -> None:
    batches = PackedBatches(shards, seq_len=16, batch_size=1, seed=0)
    epochs = [[tuple(batches.sample(k)) for k in range(e * batches.windows, (e + 1) * batches.windows)] for e in (0, 1)]
    offset, order = batches._order(0)
    assert sorted(order) == list(range(batches.windows))
    starts = sorted(offset + i * 16 for i in range(batches.windows))
    assert sorted(epochs[0]) == sorted(tuple(shards.read(s, s + 17)) for s in starts)
    assert epochs[0] != epochs[1]


def test_a_batch_depends_on_its_number_alone(shards) -> None:
    first = PackedBatches(shards, seq_len=16, batch_size=4, seed=1)
    history = [first[n] for n in range(30)]
    fresh = PackedBatches(shards, seq_len=16, batch_size=4, seed=1)
    for n in (29, 3, 17):
        assert all(torch.equal(fresh[n][k], history[n][k]) for k in history[n])
    other = PackedBatches(shards, seq_len=16, batch_size=4, seed=2)
    assert not torch.equal(other[0]["tokens"], history[0]["tokens"])


def test_ranks_share_a_batch_in_order(shards) -> None:
    whole = PackedBatches(shards, seq_len=16, batch_size=4, seed=1)[5]
    parts = [PackedBatches(shards, seq_len=16, batch_size=4, seed=1, rank=r, world_size=2)[5] for r in (0, 1)]
    for key in whole:
        assert torch.equal(torch.cat([p[key] for p in parts]), whole[key])


def test_documents_change_at_eos_and_targets_follow(shards) -> None:
    batch = PackedBatches(shards, seq_len=16, batch_size=8, seed=0)[0]
    assert torch.equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
    begins = batch["documents"].diff(dim=1) > 0
    assert torch.equal(begins, batch["tokens"][:, 1:] == shards.eos)


@pytest.mark.parametrize(("seq_len", "stride"), [(16, 16), (16, 8), (16, 5), (10_000, 100)])
def test_evaluation_counts_every_token_once_with_context(shards, seq_len: int, stride: int) -> None:
    counted = []
    for batch in evaluation_batches(shards, seq_len=seq_len, batch_size=3, stride=stride):
        counted += batch["targets"][batch["loss_mask"]].tolist()
    assert counted == shards.read(1, shards.n_tokens).tolist()


def test_too_little_text_is_said(tokenizer, tmp_path) -> None:
    small = write_shards(tmp_path, ["hello"], tokenizer)
    with pytest.raises(DataError, match="one window takes 64"):
        PackedBatches(small, seq_len=32, batch_size=1, seed=0)
    with pytest.raises(DataError, match="not a multiple of 2"):
        PackedBatches(small, seq_len=2, batch_size=3, seed=0, world_size=2)
