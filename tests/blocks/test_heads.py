# SPDX-License-Identifier: Apache-2.0
"""Heads of one number, and losses that arise on both sides of an encoder-decoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foundling.adapt.lora import LoRAOptions, lora
from foundling.adapt.quantize import quantize
from foundling.blocks.attention import Attention, CrossAttention
from foundling.blocks.heads import ScalarHead
from foundling.blocks.init import initialise, roles
from foundling.blocks.layer import CrossAttentionBlock, MoEBlock
from foundling.blocks.mlp import MLP
from foundling.blocks.moe import MoE, balance
from foundling.blocks.norm import RMSNorm
from foundling.blocks.seq2seq import EncoderDecoder, SourceEncoder
from foundling.errors import GenerationError, WeightsError
from foundling.models import build, family
from foundling.runtime.rng import generator
from foundling.weights.directory import save


def test_a_scalar_head_by_hand() -> None:
    head = ScalarHead(2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, -1.0]]))
    hidden = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]], [[0.5, 0.5], [1.0, 1.0], [0.0, 5.0]]])
    assert head(hidden).tolist() == [[3, -1, 4], [1, 2, -5]]
    assert head.of_rows(hidden).tolist() == [4, -5]
    assert head.of_rows(hidden, torch.tensor([[0, 0, -1], [0, -1, -1]])).tolist() == [-1, 1]
    assert head(hidden.bfloat16().float()).dtype == torch.float32


def test_a_scalar_head_on_a_model_has_a_stable_name_and_starts_at_zero() -> None:
    model = build("llama", **family("llama").module.sized(64, 32, 32, 1))
    model.score = ScalarHead(32)
    assert roles(model)["score.weight"].kind == "head"
    nn.init.ones_(model.score.weight)
    initialise(model, generator("init", 0))
    assert model.state_dict()["score.weight"].tolist() == [[0.0] * 32]
    assert not model.score(model(torch.arange(6).view(2, 3)).hidden).any()


def test_a_scalar_head_is_not_adapted_nor_quantised_nor_saved_by_accident(tmp_path: Path) -> None:
    for change in (
        lambda m: lora(m, LoRAOptions("*"), generator("lora", 0)),
        lambda m: quantize(untied(m), "*"),
    ):
        model = build("llama", **family("llama").module.sized(64, 32, 32, 1))
        model.score = ScalarHead(32)
        nn.init.ones_(model.score.weight)
        names = change(model)
        assert "layers.0.mixer.q" in names and "score" not in names and type(model.score) is ScalarHead
        assert model.score(torch.ones(2, 3, 32)).tolist() == [[32.0] * 3] * 2
    model = build("llama", **family("llama").module.sized(64, 32, 32, 1))
    model.score = ScalarHead(32)
    with pytest.raises(WeightsError, match=r"'score.weight' has no name in the published layout"):
        save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def untied(model: Any) -> Any:
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    return model


@dataclass(frozen=True)
class Config:
    vocab_size: int = 32
    d_model: int = 16
    max_seq_len: int = 32
    tie_embeddings: bool = True
    balance_weight: float = 0.5


def sparse_encoder_decoder() -> EncoderDecoder:
    norm = partial(RMSNorm, 16, 1e-5)
    encoder = SourceEncoder([MoEBlock(norm(), Attention(16, 2, 2, 8), norm(), MoE(16, 16, 4, 2, F.silu))], norm())
    layers = [
        CrossAttentionBlock(
            norm(), Attention(16, 2, 2, 8), norm(), CrossAttention(16, 2, 2, 8), norm(), MLP(16, 32, F.relu)
        ),
        MoEBlock(norm(), Attention(16, 2, 2, 8), norm(), MoE(16, 16, 4, 2, F.silu)),
    ]
    return EncoderDecoder(Config(), encoder, layers, norm())


def test_losses_of_both_sides_pass_through_an_encoder_decoder() -> None:
    torch.manual_seed(0)
    model, x = sparse_encoder_decoder(), torch.randint(0, 32, (2, 7))
    memory = model.encode(x)
    out = model(x, memory=memory)
    assert out.aux.keys() == {"encoder_router_balance", "router_balance"}
    assert all(term.weight == 0.5 and term.count == 1 for term in out.aux.values())
    _, routings = model.encoder(model.embed_tokens(x), torch.zeros_like(x))
    assert out.aux["encoder_router_balance"].sum == balance(routings)
    sum(term.sum for term in out.aux.values()).backward()
    routers = {name: p.grad for name, p in model.named_parameters() if name.endswith("router.weight")}
    assert len(routers) == 2 and all(grad is not None and grad.abs().sum() > 0 for grad in routers.values())


def test_a_memory_is_asked_for_and_not_taken_where_nothing_reads_it() -> None:
    model, x = sparse_encoder_decoder(), torch.zeros(1, 3, dtype=torch.int64)
    memory = model.encode(x)
    for call in (lambda: model(x), lambda: model.new_cache(1, 8)):
        with pytest.raises(GenerationError, match=r"memory=model.encode"):
            call()
    plain = build("llama", **family("llama").module.sized(32, 32, 32, 1))
    for call in (lambda: plain(x, memory=memory), lambda: plain.new_cache(1, 8, memory)):
        with pytest.raises(GenerationError, match="Llama reads no memory"):
            call()
