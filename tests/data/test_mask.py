# SPDX-License-Identifier: Apache-2.0
"""What is hidden: how often, as what, where never, and on what it depends."""

import pytest
import tokenizers
import torch
from scipy.stats import chisquare

from foundling.data.transforms.mask import MaskedBatches, word_roles
from foundling.errors import ConfigError
from foundling.text import Tokenizer

MASK, V = 3, 50


class Given:
    """Rows of known tokens; sample ids as asked."""

    def __init__(self, ids: list[int], length: int = 400) -> None:
        self.ids, self.length = ids, length

    def __getitem__(self, n: int):
        tokens = torch.full((len(self.ids), self.length), 40)
        tokens[:, ::10] = 7
        documents = torch.zeros_like(tokens)
        documents[:, -50:] = -1
        return {
            "tokens": tokens, "targets": tokens, "documents": documents, "loss_mask": documents >= 0,
            "sample_ids": torch.tensor(self.ids),
        }  # fmt: skip


def test_what_is_hidden_follows_the_paper() -> None:
    batch = MaskedBatches(Given([*range(300)]), seed=0, mask=MASK, vocab_size=V, never=(7,))[0]
    asked, free = batch["loss_mask"], (batch["targets"] == 40) & (batch["documents"] >= 0)
    assert not asked[~free].any(), "neither padding nor what is kept"
    n = int(free.sum())
    assert abs(int(asked.sum()) - 0.15 * n) < 4 * (0.15 * 0.85 * n) ** 0.5
    shown = batch["tokens"][asked]
    counts = [int((shown == MASK).sum()), int((shown == 40).sum()), int(((shown != MASK) & (shown != 40)).sum())]
    share = [0.8 + 0.1 / V, 0.1 + 0.1 / V, 0.1 * (V - 2) / V]
    assert chisquare(counts, [s * len(shown) for s in share]).pvalue > 1e-3
    assert torch.equal(batch["tokens"][~asked], batch["targets"][~asked])


def test_it_depends_on_seed_and_sample_alone() -> None:
    def shown(ids, seed=0):
        return MaskedBatches(Given(ids), seed=seed, mask=MASK, vocab_size=V)[0]["tokens"]

    assert torch.equal(shown([4, 9])[1], shown([9, 2, 1])[0])
    assert not torch.equal(shown([4]), shown([5])) and not torch.equal(shown([4]), shown([4], seed=1))


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0])
def test_bad_rates(rate: float) -> None:
    with pytest.raises(ConfigError, match="rate"):
        MaskedBatches(Given([0]), seed=0, mask=MASK, vocab_size=V, rate=rate)


@pytest.mark.parametrize(
    ("pieces", "roles"),
    [
        (["the", "in", "##tend", "##ed", ",", "cat", "[SEP]"], [1, 1, 0, 0, 1, 1, 2]),
        (["Ġthe", "in", "Ġ(", "x", "Ċ", "def", ".", "ed", "</s>"], [1, 0, 1, 0, 2, 0, 2, 0, 2]),
        (["▁the", "in", "▁", "x", "。", "ed", "</s>"], [1, 0, 1, 0, 2, 0, 2]),
    ],
)
def test_what_each_token_does_to_a_word(pieces: list[str], roles: list[int]) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({piece: i for i, piece in enumerate(pieces)}, "[UNK]"))
    if "Ġthe" in pieces:
        backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([pieces[-1]])
    assert word_roles(Tokenizer(backend, {"eos_token": pieces[-1]})).tolist() == roles


def test_whole_words_are_hidden_or_shown() -> None:
    """Tokens 10 start a word, 11 continue it, 12 stand alone; 7 is never hidden and divides words."""
    roles = torch.tensor([1] * 11 + [0, 2] + [1] * (V - 13), dtype=torch.int8)
    row = [11, 10, 11, 11, 10, 12, 11, 11, 7, 11, 11]
    words = [0, 1, 1, 1, 2, 3, 4, 4, 5, 6, 6]
    documents = [0] * 9 + [0, 1]  # the last token begins another document
    words[-1] = 7

    class Rows:
        def __getitem__(self, n: int):
            rows = 400
            tokens = torch.tensor(row).repeat(rows, 1)
            return {
                "tokens": tokens, "targets": tokens, "documents": torch.tensor(documents).repeat(rows, 1),
                "loss_mask": torch.ones_like(tokens, dtype=torch.bool), "sample_ids": torch.arange(rows),
            }  # fmt: skip

    batch = MaskedBatches(Rows(), seed=0, mask=MASK, vocab_size=V, rate=0.3, never=(7,), words=roles)[0]
    hidden = batch["loss_mask"]
    assert not hidden[:, 8].any()
    for i in range(len(row)):
        for j in range(i):
            same = torch.equal(hidden[:, i], hidden[:, j])
            assert same == (words[i] == words[j])
    counts = hidden[:, [1, 4, 5, 6, 9, 10]].sum(0).tolist()
    assert all(abs(count - 120) < 4 * (400 * 0.3 * 0.7) ** 0.5 for count in counts), "each word at the rate asked for"


def test_a_vocabulary_without_marks_has_no_words() -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "</s>": 1}, "a"))
    with pytest.raises(ConfigError, match="where words begin"):
        word_roles(Tokenizer(backend, {"eos_token": "</s>"}))
