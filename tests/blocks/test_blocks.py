# SPDX-License-Identifier: Apache-2.0
"""Blocks against arithmetic done another way."""

import math

import torch

from foundling.blocks.attention import Attend, Attention, dense_mask
from foundling.blocks.norm import LayerNorm, RMSNorm
from foundling.blocks.position import RoPE, positions_of, rotate
from foundling.contracts import Mask


def test_rope_turns_pairs_by_position_as_complex_numbers() -> None:
    """(x_i, x_{i+P/2}) is a complex number turned by position · theta^(−2i/P)."""
    x, positions = torch.randn(2, 3, 5, 8), torch.tensor([[0, 1, 2, 7, 30], [3, 3, 0, 1, 2]])
    turned = rotate(x, RoPE(8, 100.0)(positions))
    angles = positions[:, None, :, None] * 100.0 ** (-torch.arange(4) * 2 / 8)
    expected = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(()), angles)
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), -1), atol=1e-5, rtol=1e-5)


def test_rope_scores_depend_on_distance_alone() -> None:
    rope, q, k = RoPE(16, 1e4), torch.randn(16), torch.randn(16)

    def score(i: int, j: int) -> float:
        cos, sin = rope(torch.tensor([[i, j]]))
        a, b = rotate(torch.stack((q, k))[None, None], (cos, sin))[0, 0]
        return float(a @ b)

    assert math.isclose(score(3, 10), score(103, 110), abs_tol=1e-3)
    assert not math.isclose(score(3, 10), score(3, 11), abs_tol=1e-3)


def test_attention_by_loops() -> None:
    """Grouped heads, documents and causality, one score at a time."""
    torch.manual_seed(1)
    q, k, v = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    documents = torch.tensor([[0, 0, 1, 1, 1, -1]])
    out = Attend()(q, k, v, Mask(documents=documents))
    for head in range(4):
        for t in range(5):
            seen = [s for s in range(t + 1) if documents[0, s] == documents[0, t]]
            scores = torch.stack([q[0, head, t] @ k[0, head // 2, s] / 8**0.5 for s in seen])
            value = sum(w * v[0, head // 2, s] for w, s in zip(torch.softmax(scores, 0), seen, strict=True))
            torch.testing.assert_close(out[0, head, t], value, atol=1e-5, rtol=1e-5)
    assert out.isfinite().all()


def test_masks_by_hand() -> None:
    device = torch.device("cpu")
    both = dense_mask(Mask(causal=False, documents=torch.tensor([[0, 0, 1]])), 3, 3, device)
    assert both[0, 0].tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    cached = dense_mask(Mask(lengths=torch.tensor([2, 0])), 1, 4, device)
    assert cached[:, 0, 0].tolist() == [[True, True, True, False], [True, False, False, False]]


def test_positions_restart_in_every_document() -> None:
    documents = torch.tensor([[4, 4, 4, 9, 9, -1], [0, 1, 2, 2, 2, 2]])
    assert positions_of(documents, documents).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3]]
    assert positions_of(documents[:, :2], None).tolist() == [[0, 1]]


def test_norms_by_their_formulas_in_float32() -> None:
    x = torch.randn(3, 7) * 50 + 3
    rms, layer = RMSNorm(7, 1e-5), LayerNorm(7, 1e-5)
    for norm in (rms, layer):
        torch.nn.init.normal_(norm.weight)
    torch.testing.assert_close(rms(x), x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * rms.weight)
    centred = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close(
        layer(x), centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight
    )
    half = x.bfloat16()
    assert rms(half).dtype == torch.bfloat16
    torch.testing.assert_close(rms(half), rms(half.float()).bfloat16())


def test_attention_agrees_with_torchs_own() -> None:
    ours, theirs = Attention(32, 4, 4, 8, bias=True), torch.nn.MultiheadAttention(32, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]))
        theirs.out_proj.load_state_dict(ours.o.state_dict())
    x = torch.randn(2, 9, 32)
    hidden = torch.triu(torch.ones(9, 9, dtype=torch.bool), 1)
    expected, _ = theirs(x, x, x, attn_mask=hidden, need_weights=False)
    torch.testing.assert_close(ours(x, Mask()), expected, atol=1e-5, rtol=1e-5)
