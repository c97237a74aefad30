# SPDX-License-Identifier: Apache-2.0
"""RWKV's weighted sums by their definition."""

import pytest
import torch
from torch import Tensor

from foundling.blocks.conv import segments_of
from foundling.blocks.rwkv import wkv


def by_definition(k: Tensor, v: Tensor, rate: Tensor, bonus: Tensor, documents: Tensor) -> Tensor:
    """One softmax for each token, in float64: over the tokens of its document up to it."""
    k, v, rate, bonus = (t.double() for t in (k, v, rate, bonus))
    out = torch.empty_like(v)
    for row, t in torch.cartesian_prod(*(torch.arange(n) for n in k.shape[:2])).tolist():
        seen = [j for j in range(t + 1) if documents[row, j] == documents[row, t]]
        weights = [k[row, j] + (bonus if j == t else -(t - 1 - j) * rate) for j in seen]
        out[row, t] = (torch.softmax(torch.stack(weights), 0) * v[row, seen]).sum(0)
    return out


@pytest.mark.parametrize("size", [1.0, 100.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 13])
def test_the_tree_is_the_definition_and_no_key_is_too_large(steps: int, size: float) -> None:
    draw = torch.Generator().manual_seed(steps)
    k, v = torch.randn(2, steps, 4, generator=draw) * size, torch.randn(2, steps, 4, generator=draw)
    rate, bonus = torch.rand(4, generator=draw) * 3 + 0.01, torch.randn(4, generator=draw)
    documents = torch.zeros(2, steps, dtype=torch.int64)
    documents[1, steps // 2 :] = 1
    expected = by_definition(k, v, rate, bonus, documents)
    found, _ = wkv(k, v, rate, bonus, None, segments_of(documents, None))
    # a float32 key of some hundred is itself rounded by 1e-5
    torch.testing.assert_close(found.double(), expected, atol=3e-6 * size, rtol=0)
    plain, _ = wkv(k[:1], v[:1], rate, bonus, None, None)
    torch.testing.assert_close(plain.double(), expected[:1], atol=3e-6 * size, rtol=0)


def test_a_state_of_zeros_is_empty_whatever_the_keys() -> None:
    """A cache begins with zeros: no max of 0 may drown keys far below it."""
    k, v = torch.full((1, 3, 2), -300.0), torch.randn(1, 3, 2)
    rate, bonus = torch.tensor([0.5, 2.0]), torch.zeros(2)
    fresh, sums = wkv(k, v, rate, bonus, torch.zeros(1, 3, 2), None)
    torch.testing.assert_close(fresh, wkv(k, v, rate, bonus, None, None)[0])
    torch.testing.assert_close(fresh[:, 0], v[:, 0])
    state = torch.stack([part[:, 2] for part in sums], 1)
    torch.testing.assert_close(wkv(k[:, 2:], v[:, 2:], rate, bonus, state, None)[0], fresh[:, 2:])


def test_gradients_are_finite_across_borders_and_with_large_keys() -> None:
    k, v = (torch.randn(1, 9, 3) * 80).requires_grad_(), torch.randn(1, 9, 3, requires_grad=True)
    rate, bonus = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    documents = torch.tensor([[0, 0, 0, 1, 2, 2, 2, -1, -1]])
    found, _ = wkv(k, v, rate, bonus, None, segments_of(documents, None))
    found[:, :7].sum().backward()
    for tensor in (k, v, rate, bonus):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
    expected = by_definition(k, v, rate, bonus, documents)
    (gradient,) = torch.autograd.grad(expected[:, :7].sum(), v)
    torch.testing.assert_close(v.grad, gradient, atol=1e-4, rtol=1e-4)
