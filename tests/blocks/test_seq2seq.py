# SPDX-License-Identifier: Apache-2.0
"""Losses that arise on both sides of an encoder-decoder, and what reads a memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from foundling.blocks.attention import Attention, CrossAttention
from foundling.blocks.layer import CrossAttentionBlock, MoEBlock
from foundling.blocks.mlp import MLP
from foundling.blocks.moe import MoE, balance
from foundling.blocks.norm import RMSNorm
from foundling.blocks.seq2seq import EncoderDecoder, SourceEncoder
from foundling.errors import GenerationError
from foundling.models import build, family


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
