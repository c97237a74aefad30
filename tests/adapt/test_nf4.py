# SPDX-License-Identifier: Apache-2.0
"""NF4 by hand, and its error on normal weights against the paper's."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from foundling.adapt.nf4 import BLOCK, LEVELS, NF4Linear, from_nf4, to_nf4
from foundling.adapt.quantize import quantize
from foundling.errors import AdaptError
from foundling.runtime.rng import generator
from tests.contract.cases import case


def test_the_levels_are_quantiles_of_a_normal_distribution() -> None:
    """Section 3: of 8 equal parts of the negative half and 9 of the positive one, zero once, divided by the largest.
    The offset is that of appendix E: the mean of 1 − 1/32 and 1 − 1/30."""
    offset = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))
    positive = Normal(0.0, 1.0).icdf(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -Normal(0.0, 1.0).icdf(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat((negative, torch.zeros(1), positive.flip(0))) / positive.max()
    assert list(LEVELS) == pytest.approx(levels.tolist(), abs=2e-4)


def test_a_block_by_hand() -> None:
    """Levels times the scale of their block come back: both blocks have the scale 2, so their difference from the mean
    is zero, and no scale is rounded."""
    levels = torch.tensor(LEVELS)
    weight = 2 * torch.cat([levels, levels, levels, levels, levels.flip(0), torch.zeros(48)]).view(2, BLOCK)
    packed = to_nf4(weight)
    assert packed[0][:8].tolist() == [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF]
    assert packed[0][32:40].tolist() == [0xFE, 0xDC, 0xBA, 0x98, 0x76, 0x54, 0x32, 0x10] and packed[0][-1] == 0x77
    assert packed[1].tolist() == [128, 128] and packed[3] == 2.0
    assert torch.equal(from_nf4(packed, weight.shape, torch.float32), weight)
    near = torch.full((1, BLOCK), 0.12)  # between 0.0796 and 0.1609, nearer to the first
    near[0, 0] = -1.0
    assert from_nf4(to_nf4(near), near.shape, torch.float32)[0, 1] == torch.tensor(LEVELS[8])


def test_scales_are_rounded_to_8_bits() -> None:
    weight = torch.randn(200, 130, generator=generator("nf4")) * torch.linspace(0.1, 3, 200)[:, None]
    codes, scales, steps, mean = packed = to_nf4(weight)
    blocks = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(1)
    read = (scales.float() - 128) * steps.repeat_interleave(256)[: len(scales)] + mean
    assert ((read - largest).abs() <= steps.max() / 2 * 1.001).all()
    bits = 8 * sum(t.nbytes for t in packed) / weight.numel()
    assert bits < 4.2 and codes.dtype == torch.uint8
    back = from_nf4(packed, weight.shape, torch.float32)
    assert ((back - weight).abs().mean() / weight.abs().mean()) < 0.1


@pytest.mark.parametrize("weight", [torch.zeros(3, 5), torch.full((2, 64), 1e-42)])
def test_weights_of_nothing(weight: torch.Tensor) -> None:
    back = from_nf4(to_nf4(weight), weight.shape, torch.float32)
    assert back.shape == weight.shape and back.isfinite().all() and back.abs().max() <= 1e-38


def test_gradient_and_bytes() -> None:
    linear = nn.Linear(130, 64)
    packed = NF4Linear(linear)
    x = torch.randn(7, 130, generator=generator("x"), requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = packed(x)
    assert not any(t.is_floating_point() and t.numel() >= linear.weight.numel() for t in saved)
    plain = packed.dequantized()
    torch.testing.assert_close(y, plain(x))
    by = torch.randn(y.shape, generator=generator("by"))
    found, expected = (torch.autograd.grad(out, x, by)[0] for out in (y, plain(x)))
    torch.testing.assert_close(found, expected)
    assert packed.bfloat16().mean.dtype == torch.float32 and packed.dequantized().weight.dtype == torch.bfloat16


def test_the_bits_are_the_same_on_any_number_of_threads() -> None:
    """Of enough blocks that torch would sum them in parts: 65,536 to a thread."""
    weight = torch.randn(1 << 16, BLOCK, generator=generator("wide")).cumsum(1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(to_nf4(weight))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert found[0][3] == pytest.approx(float(weight.abs().amax(1).double().mean()), rel=1e-6)


def test_an_unknown_kind() -> None:
    model = case("llama").tiny()
    with pytest.raises(AdaptError, match="'int4'; expected one of int8, nf4"):
        quantize(model, kind="int4")  # pyright: ignore[reportArgumentType]
