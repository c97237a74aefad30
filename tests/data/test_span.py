# SPDX-License-Identifier: Apache-2.0
"""Span corruption: worked by hand, put together again, and the same whoever asks."""

import numpy as np
import pytest
import torch

from foundling.data.transforms.span import SpanBatches, corrupt, noise_mask
from foundling.errors import ConfigError
from foundling.runtime.rng import generator

SENTINELS = [99, 98, 97, 96, 95, 94, 93, 92]


def test_by_hand() -> None:
    """The paper's example, figure 2: Thank you [for inviting] me to your party [last] week."""
    tokens = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    mask = np.array([0, 0, 1, 1, 0, 0, 0, 0, 1, 0], bool)
    source, target = corrupt(tokens, mask, SENTINELS)
    assert source.tolist() == [1, 2, 99, 5, 6, 7, 8, 98, 10]
    assert target.tolist() == [99, 3, 4, 98, 9, 97]


@pytest.mark.parametrize("length", [3, 4, 10, 100, 512])
def test_as_much_is_hidden_as_was_asked(length: int) -> None:
    masks = np.stack([noise_mask(length, 0.15, 3.0, generator("mask", i)) for i in range(300)])
    assert (masks.sum(1) == max(round(length * 0.15), 1)).all()
    assert not masks[:, 0].any() and 0 < masks[:, -1].mean() < 0.6
    spans = (np.diff(masks.astype(int), axis=1) == 1).sum(1)
    assert (spans == max(round(max(round(length * 0.15), 1) / 3), 1)).all()
    assert masks[:, 1:].any(0).all(), "every place but the first may be hidden"


class Packed:
    def __init__(self) -> None:
        self.batch = {
            "tokens": torch.randint(2, 90, (4, 40), generator=generator("tokens")),
            "documents": torch.tensor([[0] * 15 + [1] * 2 + [2] * 18 + [-1] * 5] * 4),
            "sample_ids": torch.arange(4),
        }

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        return self.batch


def test_source_and_target_make_up_the_document_again() -> None:
    packed = Packed()
    batch = SpanBatches(packed, seed=3, sentinels=SENTINELS, eos=1)[0]
    assert batch["source"].shape == (4, 40) and batch["tokens"].shape == batch["targets"].shape
    for row in range(4):
        for document in range(3):
            source = batch["source"][row][batch["source_documents"][row] == document].tolist()
            target = batch["targets"][row][batch["documents"][row] == document].tolist()
            whole = packed.batch["tokens"][row][packed.batch["documents"][row] == document].tolist()
            if document == 1:
                assert source == whole and target == []
                continue
            assert target[-1] == 1
            spans = {}
            for token in target[:-1]:
                if token in SENTINELS:
                    spans[token] = []
                else:
                    spans[list(spans)[-1]].append(token)
            assert [t for s in source for t in spans.get(s, [s])] == whole
    read = batch["tokens"][0][batch["documents"][0] == 2].tolist()
    assert read == [0, *batch["targets"][0][batch["documents"][0] == 2].tolist()[:-1]]
    assert torch.equal(batch["loss_mask"], batch["documents"] >= 0)


def test_what_is_hidden_depends_on_seed_and_sample_alone() -> None:
    packed = Packed()
    one = SpanBatches(packed, seed=3, sentinels=SENTINELS, eos=1)[0]
    other = SpanBatches(packed, seed=4, sentinels=SENTINELS, eos=1)[0]
    assert not torch.equal(one["source"], other["source"])
    packed.batch = {name: value[[2, 0]] for name, value in packed.batch.items()}
    again = SpanBatches(packed, seed=3, sentinels=SENTINELS, eos=1)[0]
    for name, value in one.items():
        assert torch.equal(again[name], value[[2, 0]]), name


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in (dict(density=1.0), dict(mean_span=0.5), dict(sentinels=[])):
        with pytest.raises(ConfigError):
            SpanBatches(Packed(), **(dict(seed=0, sentinels=SENTINELS, eos=1) | wrong))


@pytest.mark.slow
def test_a_model_learns_to_fill_in() -> None:
    """T5 by the ordinary loop and Causal: words that recur are found again."""
    from foundling.objectives.causal import Causal
    from foundling.runtime.device import Runtime
    from foundling.train.loop import train
    from foundling.train.options import TrainOptions
    from foundling.train.schedule import Schedule
    from tests.contract.cases import case

    class Counting:
        """Rows that count upwards from somewhere: what is hidden follows from what is not."""

        def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
            starts = torch.randint(2, 20, (16, 1), generator=generator("count", n))
            return {
                "tokens": starts + torch.arange(30),
                "documents": torch.zeros(16, 30, dtype=torch.int64),
                "sample_ids": torch.arange(16) + 16 * n,
            }

    batches = SpanBatches(Counting(), seed=0, sentinels=[63, 62, 61, 60], eos=1, density=0.2)
    steps = train(case("t5").state(), Causal(), batches, Schedule(80, warmup_steps=5), TrainOptions(16), Runtime())
    losses = [step.loss for step in steps]
    assert losses[0] > 3.5 and sum(losses[-5:]) / 5 < 2.0, losses[::10]
