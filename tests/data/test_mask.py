# SPDX-License-Identifier: Apache-2.0
"""What is hidden: how often, as what, where never, and on what it depends."""

import pytest
import torch
from scipy.stats import chisquare

from foundling.data.transforms.mask import MaskedBatches
from foundling.errors import ConfigError

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
