# SPDX-License-Identifier: Apache-2.0
"""Blocks against arithmetic done another way."""

import math

import torch

from foundling.blocks.attention import Attend, Attention
from foundling.blocks.context import GLOBAL, Context
from foundling.blocks.mask import Mask, MaskRule, build_mask, dense_mask
from foundling.blocks.moe import GroupedLinear
from foundling.blocks.norm import LayerNorm, RMSNorm
from foundling.blocks.position import RoPE, RopeScaling, positions_of, rotate


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
    out = Attend()(q, k, v, build_mask(MaskRule(documents=documents), 6, 6, q))
    for head in range(4):
        for t in range(5):
            seen = [s for s in range(t + 1) if documents[0, s] == documents[0, t]]
            scores = torch.stack([q[0, head, t] @ k[0, head // 2, s] / 8**0.5 for s in seen])
            value = sum(w * v[0, head // 2, s] for w, s in zip(torch.softmax(scores, 0), seen, strict=True))
            torch.testing.assert_close(out[0, head, t], value, atol=1e-5, rtol=1e-5)
    assert out.isfinite().all()


def test_masks_by_hand() -> None:
    device = torch.device("cpu")
    both = dense_mask(MaskRule(causal=False, documents=torch.tensor([[0, 0, 1]])), 3, 3, device)
    assert both[0, 0].tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    cached = dense_mask(MaskRule(lengths=torch.tensor([2, 0])), 1, 4, device)
    assert cached[:, 0, 0].tolist() == [[True, True, True, False], [True, False, False, False]]


def test_chunks_are_counted_from_a_documents_begin() -> None:
    """By loops; then the same places as a cache would ask for them, row by row from another length on."""
    documents = torch.tensor([[4, 4, 4, 4, 9, 9, 9, 9, 9, 9, -1], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    begins = torch.tensor([[0] * 4 + [4] * 7, [0] * 11])
    device, n = torch.device("cpu"), 11
    whole = dense_mask(MaskRule(documents=documents, chunk=3), n, n, device)[:, 0]
    for row in range(2):
        for t in range(n - 1):
            mine = (t - int(begins[row, t])) // 3
            seen = [
                s <= t and documents[row, s] == documents[row, t] and (s - int(begins[row, s])) // 3 == mine
                for s in range(n)
            ]
            assert whole[row, t].tolist() == [bool(x) for x in seen], (row, t)
    assert whole.any(-1).all(), "no softmax is over nothing"
    assert torch.equal(dense_mask(MaskRule(chunk=3), n, n, device)[0, 0], whole[1])
    lengths = torch.tensor([6, 2])
    rows = torch.stack([documents[row, at : at + 3] for row, at in enumerate(lengths.tolist())])
    cached = dense_mask(MaskRule(documents=rows, key_documents=documents, lengths=lengths, chunk=3), 3, n, device)[:, 0]
    for row, at in enumerate(lengths.tolist()):
        assert torch.equal(cached[row], whole[row, at : at + 3])


def test_positions_restart_in_every_document() -> None:
    documents = torch.tensor([[4, 4, 4, 9, 9, -1], [0, 1, 2, 2, 2, 2]])
    assert positions_of(documents, documents).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3]]
    assert positions_of(documents[:, :2], None).tolist() == [[0, 1]]


def test_frequencies_of_llama_4_have_no_passage() -> None:
    """Where both factors are one, a rate is slowed or it is not."""
    rates, scaling = 0.5 ** torch.arange(12), RopeScaling("llama3", 16.0, 1.0, 1.0, 512)
    expected = [r if 512 * r / (2 * math.pi) > 1 else r / 16 for r in rates.tolist()]
    torch.testing.assert_close(scaling.slowed(rates, 1e4, torch.zeros(1, 1)), torch.tensor(expected))


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
    torch.testing.assert_close(ours(x, Context({GLOBAL: Mask()})), expected, atol=1e-5, rtol=1e-5)


def test_experts_are_linear_layers_side_by_side(request) -> None:
    """With one that no row goes to, at either end and in between; its gradient is zero, and not what memory held, which
    deterministic algorithms make NaN."""
    torch.use_deterministic_algorithms(True)
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    for ends in ([0, 3, 3, 7], [2, 2, 7, 7]):
        grouped, x = GroupedLinear(4, 6, 5), torch.randn(7, 6, requires_grad=True)
        y = grouped(x, torch.tensor(ends, dtype=torch.int32))
        pieces = zip([0, *ends[:-1]], ends, grouped.weight, strict=True)
        expected = torch.cat([x[begin:end] @ weight.T for begin, end, weight in pieces])
        torch.testing.assert_close(y, expected)
        upstream = torch.randn(7, 5)
        for found, wanted in zip(
            torch.autograd.grad(y, (x, grouped.weight), upstream),
            torch.autograd.grad(expected, (x, grouped.weight), upstream),
            strict=True,
        ):
            torch.testing.assert_close(found, wanted)
