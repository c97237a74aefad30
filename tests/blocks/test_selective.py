# SPDX-License-Identifier: Apache-2.0
"""The selective scan against the recurrence written down token by token."""

import pytest
import torch
from torch import Tensor

from foundling.blocks.selective import scan_, selective_scan


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 13])
def test_a_parallel_scan_is_the_recurrence(n: int, backwards: bool) -> None:
    decay, x = torch.rand(2, n, 3, dtype=torch.float64), torch.randn(2, n, 3, dtype=torch.float64)
    expected, before = x.clone(), 1 if backwards else -1
    for t in range(n - 2, -1, -1) if backwards else range(1, n):
        expected[:, t] += decay[:, t] * expected[:, t + before]
    scan_(decay, x, backwards=backwards)
    torch.testing.assert_close(x, expected)


def by_steps(x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, c: Tensor, fresh: Tensor | None, state: Tensor):
    """Gu & Dao 2023, algorithm 2."""
    y = []
    for t in range(x.shape[1]):
        decay = torch.exp(-rate * dt[:, t, None])
        if fresh is not None:
            decay = decay * ~fresh[:, t, None, None]
        state = decay * state + (dt * x)[:, t, None] * b[:, t, :, None]
        y.append((state * c[:, t, :, None]).sum(1))
    return torch.stack(y, 1), state


def drawn(rows: int, steps: int, channels: int, n: int, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    x, dt, rate = normal(rows, steps, channels), normal(rows, steps, channels).exp(), normal(n, channels).exp()
    tensors = [x, dt, rate, normal(rows, steps, n), normal(rows, steps, n), normal(rows, n, channels)]
    return [t.requires_grad_() for t in tensors]


@pytest.mark.parametrize("chunk", [1, 4, 5, 64])
@pytest.mark.parametrize("documents", [False, True])
def test_chunks_and_their_gradients_are_those_of_the_steps(chunk: int, documents: bool) -> None:
    """With borders at the start, inside a chunk, one behind the other, and on a chunk's edge."""
    *tensors, state = drawn(2, 13, 3, 4)
    fresh = None
    if documents:
        fresh = torch.zeros(2, 13, dtype=torch.bool)
        fresh[0, [0, 5, 6]] = fresh[1, 8] = True
    y, last, _ = selective_scan(*tensors, fresh, state, chunk)
    torch.testing.assert_close((y, last), by_steps(*tensors, fresh, state))
    assert torch.autograd.gradcheck(
        lambda *t: selective_scan(*t[:5], fresh, t[5], chunk)[:2], (*tensors, state), fast_mode=True
    )


def test_decays_that_vanish_lose_nothing() -> None:
    """Products that underflow within a chunk, in float32: a form that divides by them would give 0/0."""
    *tensors, state = (t.detach().float() for t in drawn(1, 64, 2, 3))
    tensors[1] = tensors[1] * torch.where(torch.arange(64) % 5 == 0, 100.0, 0.01)[:, None]
    y, last, _ = selective_scan(*tensors, None, state, 64)
    expected = by_steps(*(t.double() for t in tensors), None, state.double())
    torch.testing.assert_close((y.double(), last.double()), expected, rtol=1e-4, atol=1e-4)


def test_the_operator_says_the_truth_about_itself() -> None:
    *tensors, state = (t.detach().float().requires_grad_() for t in drawn(2, 13, 3, 4))
    torch.library.opcheck(selective_scan, (*tensors, torch.zeros(2, 13, dtype=torch.bool), state, 4))


def test_autocast_changes_no_bit_of_it() -> None:
    *tensors, state = (t.detach().float().requires_grad_() for t in drawn(2, 13, 3, 4))
    found = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y, last, _ = selective_scan(*tensors, None, state, 4)
            grads = torch.autograd.grad(y.square().sum() + last.sum(), [*tensors, state])
        found.append((y, last, *grads))
    for plain, under in zip(*found, strict=True):
        assert torch.equal(plain, under)
