# SPDX-License-Identifier: Apache-2.0
"""Our gradient of attention in bfloat16 against autograd's in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foundling.blocks.attention import Attend
from foundling.blocks.flash import applies
from foundling.blocks.mask import Mask


def inputs(rows: int, heads: int, groups: int, queries: int, keys: int) -> list[Tensor]:
    made = torch.Generator().manual_seed(rows + heads)
    shapes = ((rows, queries, heads), (rows, keys, groups), (rows, keys, groups))
    return [torch.randn(*s, 16, generator=made).bfloat16().transpose(1, 2).requires_grad_() for s in shapes]


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((5, 6, 2, 33, 33), "causal"), ((3, 4, 4, 7, 20), "all"), ((3, 6, 3, 24, 24), "packed"),
        ((1, 2, 1, 700, 700), "causal"),
    ],
)  # fmt: skip
def test_the_gradient_is_closer_to_float64_than_torchs(shape: tuple[int, ...], kind: str) -> None:
    q, k, v = inputs(*shape)
    documents = (torch.arange(shape[4]) // 10 - 1).expand(
        shape[0], -1
    )  # the first ten are padding: they see themselves
    packed = (documents[:, :, None] == documents[:, None]).tril()[:, None] if kind == "packed" else None
    mask = Mask(causal=kind == "causal", dense=packed)
    assert applies(q, k, v, mask.dense, mask.causal, 0.0)
    out = Attend(0.3)(q, k, v, mask)
    by = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    ask: dict[str, Any] = {"attn_mask": packed, "is_causal": kind == "causal", "scale": 0.3, "enable_gqa": True}
    plain = F.scaled_dot_product_attention(q, k, v, **ask)
    assert torch.equal(out, plain)
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    wanted = torch.autograd.grad(F.scaled_dot_product_attention(*exact, **ask), exact, by.double())
    ours, theirs = torch.autograd.grad(out, (q, k, v), by), torch.autograd.grad(plain, (q, k, v), by)
    for found, other, want in zip(ours, theirs, wanted, strict=True):
        error, their_error = ((t - want).norm() / want.norm() for t in (found, other))
        assert error < 0.005 and error < 1.1 * their_error


def test_a_query_that_sees_nothing_gets_no_gradient() -> None:
    q, k, v = inputs(2, 2, 2, 4, 4)
    seen = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    seen[0, :, 2] = False
    out = Attend()(q, k, v, Mask(causal=False, dense=seen))
    grads = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    assert all(grad.isfinite().all() for grad in grads) and not grads[0][0, :, 2].any()
