# SPDX-License-Identifier: Apache-2.0
"""Negative sampling by hand and against autograd; what is kept, drawn and reached, by hand."""

import math

import pytest
import torch

from foundling.objectives.skipgram import (
    keep_probability,
    negative_sampling_gradient,
    negative_sampling_loss,
    noise_distribution,
    reach_masks,
    skipgram_gradients,
)  # fmt: skip


def test_the_loss_by_hand() -> None:
    logits = torch.tensor([0.0, math.log(3), math.log(3)])
    positive, negative = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 0.0, 3.0])
    # σ(0) = 1/2, σ(log 3) = 3/4
    expected = [2 * math.log(2), -2 * math.log(3 / 4), -3 * math.log(1 / 4)]
    assert negative_sampling_loss(logits, positive, negative).tolist() == pytest.approx(expected)
    expected = [0.0, -2 / 4, 3 * 3 / 4]
    assert negative_sampling_gradient(logits, positive, negative).tolist() == pytest.approx(expected)


def test_a_large_score_has_a_finite_loss() -> None:
    one = torch.ones(2)
    loss = negative_sampling_loss(torch.tensor([1e4, -1e4]), one, one)
    assert loss.tolist() == [1e4, 1e4]


def test_gradients_are_those_of_autograd() -> None:
    draw = torch.Generator().manual_seed(0)
    words = torch.randn(2, 3, 4, generator=draw, dtype=torch.double, requires_grad=True)
    candidates = torch.randn(2, 5, 4, generator=draw, dtype=torch.double, requires_grad=True)
    positive, negative = (torch.rand(2, 3, 5, generator=draw, dtype=torch.double) for _ in range(2))
    negative_sampling_loss(words @ candidates.mT, positive, negative).sum().backward()
    by_words, by_candidates = skipgram_gradients(words.detach(), candidates.detach(), positive, negative)
    torch.testing.assert_close(by_words, words.grad)
    torch.testing.assert_close(by_candidates, candidates.grad)


def test_frequent_words_are_subsampled() -> None:
    # shares 0.9, 0.09, 0.01 and s = 0.01: s/f = 1/90, 1/9, 1
    keep = keep_probability(torch.tensor([90, 9, 1]), 0.01)
    assert keep.tolist() == pytest.approx([math.sqrt(1 / 90) + 1 / 90, 1 / 3 + 1 / 9, 1.0])
    assert keep_probability(torch.tensor([90, 9, 1]), 0).tolist() == [1, 1, 1]


def test_negatives_are_drawn_by_counts_to_three_quarters() -> None:
    assert noise_distribution(torch.tensor([16, 1])).tolist() == pytest.approx([8 / 9, 1 / 9])


def test_masks_say_who_reaches_whom() -> None:
    window, positions = 2, 3
    masks = reach_masks(window, positions)
    assert masks.shape == (3, 3, 3, 7)
    for left in range(3):
        for right in range(3):
            for i in range(positions):
                reached = {i - n for n in range(1, left + 1)} | {i + n for n in range(1, right + 1)}
                columns = {int(j) - window for j in masks[left, right, i].nonzero().flatten()}
                assert columns == reached
