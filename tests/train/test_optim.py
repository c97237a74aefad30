# SPDX-License-Identifier: Apache-2.0
"""Optimisers against algebra and against torch's own."""

import pytest
import torch

from foundling.blocks.init import BASE_WIDTH, roles
from foundling.models import build, family
from foundling.train.optim import Muon, Optimizer, count_state, orthogonalise
from foundling.train.options import OptimOptions


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (2, 40, 8)])
def test_orthogonalise_keeps_directions_and_levels_sizes(shape) -> None:
    x = torch.randn(shape)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    y = orthogonalise(x)
    values = torch.linalg.svdvals(y)
    assert values.min() > 0.3 and values.max() < 1.3
    # same singular vectors: U^T y V is diagonal
    inner = u.mT @ y @ vh.mT
    off = inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))
    assert off.abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_the_state_is_as_large_as_counted(kind) -> None:
    model = build("llama", **family("llama").module.sized(64, 16, 256, 1))
    optimizer = Optimizer(model, OptimOptions(kind))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step(1.0, torch.tensor(0.0))
    assert count_state(model, optimizer.options) == sum(t.numel() for t in optimizer.state_tensors().values() if t.ndim)


def test_a_muon_step_by_hand() -> None:
    """The first momentum is (1 − μ) g; its Nesterov mix is a multiple of g; the step is lr · UVᵀ-like, decay apart."""
    p = torch.nn.Parameter(torch.randn(6, 6))
    before, grad = p.detach().clone(), torch.randn(6, 6)
    p.grad = grad
    Muon([p], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    torch.testing.assert_close(
        p.detach(), before * (1 - 0.05) - 0.1 * orthogonalise(grad[None])[0], atol=1e-5, rtol=1e-4
    )


def test_adamw_is_torchs_with_our_widths() -> None:
    torch.manual_seed(0)
    a = build("llama", **family("llama").module.sized(64, 16, 256, 1))
    b = build("llama", **family("llama").module.sized(64, 16, 256, 1))
    b.load_state_dict(a.state_dict())
    ours = Optimizer(a, OptimOptions(optimizer="adamw", learning_rate=0.01, weight_decay=0.1))
    wide = {"hidden", "head"}
    plain = torch.optim.AdamW(
        [
            {
                "params": [b.get_parameter(n)],
                "lr": 0.01 * (BASE_WIDTH / r.fan_in if r.kind in wide else 1),
                "weight_decay": 0.1 if r.kind == "hidden" else 0.0,
            }
            for n, r in roles(b).items()
        ],
        betas=(0.9, 0.95),
    )
    for _ in range(3):
        for (_, p), (_, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ours.step(1.0, torch.zeros(()))
        plain.step()
    for (name, p), (_, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name, atol=1e-6, rtol=1e-5)


def test_a_width_moves_what_it_computes_by_the_same_amount() -> None:
    """µP's promise: after one step the hidden state has moved by about as much at every width."""
    for kind in ("adamw", "muon"):
        moved = []
        for d_model in (64, 256, 1024):
            torch.manual_seed(0)
            x = torch.randn(64, d_model)
            model = build("llama", **family("llama").module.sized(64, 16, d_model, 1))
            layer = model.layers[0].ffn.gate
            torch.nn.init.normal_(layer.weight, std=d_model**-0.5)
            before = layer(x)
            (torch.tanh(before).square().sum() / 64).backward()
            optimizer = Optimizer(model, OptimOptions(optimizer=kind, learning_rate=0.01, weight_decay=0.0))
            optimizer.step(1.0, torch.zeros(()))
            moved.append(float((layer(x) - before).detach().square().mean().sqrt()))
        assert max(moved) / min(moved) < 2.5, (kind, moved)
