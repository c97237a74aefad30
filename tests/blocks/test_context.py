# SPDX-License-Identifier: Apache-2.0
"""The context of a forward pass: complete before the first layer, a pytree, and no mask where none is needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

import foundling
from foundling.blocks import mask as mask_file
from foundling.blocks import stack
from foundling.blocks.context import GLOBAL, LOCAL, Context, build_masks
from foundling.blocks.mask import Mask, MaskRule, Reach, build_mask
from foundling.decode.engine.engine import Engine, EngineOptions
from tests.contract.cases import case, tokens


def test_a_context_is_a_pytree() -> None:
    """Every tensor is a leaf, and what is not one comes back as it was."""
    a, b, c, d, e = (torch.full((1,), float(i)) for i in range(5))
    cache: Any = object()
    ctx = Context({"global": Mask(False, a)}, {"global": (b, c)}, memory=d, condition=e, cache=cache, index=3)
    leaves, spec = tree_flatten(ctx)
    assert {float(leaf) for leaf in leaves if isinstance(leaf, Tensor)} == {0, 1, 2, 3, 4}
    assert tree_unflatten(leaves, spec) == ctx
    doubled = tree_map(lambda t: 2 * t if isinstance(t, Tensor) else t, ctx)
    assert float(doubled.ropes["global"][1]) == 4 and float(doubled.memory) == 6
    assert doubled.cache is cache and doubled.index == 3 and not doubled.masks["global"].causal


def test_no_mask_where_only_causality_is_asked() -> None:
    x = torch.zeros(2, 5, 8)
    reaches = {GLOBAL: Reach(), LOCAL: Reach(window=5)}
    for causal in (True, False):
        masks = build_masks(reaches, MaskRule(causal=causal), 5, 5, x)
        assert masks[GLOBAL] == masks[LOCAL] == Mask(causal)
    assert build_mask(MaskRule(), 5, 5, x, needs_dense=True).dense is not None


def test_each_kind_of_layer_has_its_mask_and_equal_ones_share_it() -> None:
    x, documents = torch.zeros(1, 6, 8), torch.tensor([[0, 0, 0, 0, 1, 1]])
    rule = MaskRule(documents=documents)
    narrow = build_masks({GLOBAL: Reach(), LOCAL: Reach(window=2)}, rule, 6, 6, x)
    seen = narrow[LOCAL].dense
    assert seen is not None
    assert seen[0, 0].tolist() == [
        [s in (t - 1, t) and bool(documents[0, s] == documents[0, t]) for s in range(6)] for t in range(6)
    ]
    wide = build_masks({GLOBAL: Reach(), LOCAL: Reach(window=6)}, rule, 6, 6, x)
    assert wide[LOCAL] is wide[GLOBAL]


def test_a_window_without_causality_is_open_on_both_sides() -> None:
    x, o = torch.zeros(1, 5, 8), True
    local = build_masks({LOCAL: Reach(window=2)}, MaskRule(causal=False), 5, 5, x)[LOCAL].dense
    assert local is not None
    assert local[0, 0].tolist() == [
        [o, o, 0, 0, 0],
        [o, o, o, 0, 0],
        [0, o, o, o, 0],
        [0, 0, o, o, o],
        [0, 0, 0, o, o],
    ]
    documents = torch.tensor([[0, 0, 0, 1, 1]])
    local = build_masks({LOCAL: Reach(window=3)}, MaskRule(causal=False, documents=documents), 5, 5, x)[LOCAL].dense
    assert local is not None
    assert local[0, 0].tolist() == [
        [o, o, o, 0, 0],
        [o, o, o, 0, 0],
        [o, o, o, 0, 0],
        [0, 0, 0, o, o],
        [0, 0, 0, o, o],
    ]


def test_a_bias_is_in_the_dtype_of_the_scores() -> None:
    x, bias = torch.zeros(1, 3, 8), torch.arange(9.0).view(1, 1, 3, 3)
    mask = build_mask(MaskRule(), 3, 3, x, bias).dense
    assert mask is not None
    assert mask[0, 0].tolist() == [[0, -torch.inf, -torch.inf], [3, 4, -torch.inf], [6, 7, 8]]
    with torch.autocast("cpu", torch.bfloat16):
        mask = build_mask(MaskRule(), 3, 3, x, bias).dense
    assert mask is not None and mask.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "fields", "kinds"),
    [
        ("gemma2", {"window": 8}, 2), ("gemma2", {"window": 24}, 1), ("gemma3", {"window": 8}, 2),
        ("llama4", {"chunk": 8}, 2), ("t5", {"n_decoder_layers": 4}, 2), ("bloom", {}, 1),
    ],
)  # fmt: skip
def test_masks_are_built_once_a_forward(
    name: str, fields: dict[str, int], kinds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there are kinds of attention (T5: encoder and decoder, which reads all of a memory), however many
    layers there are."""
    of, calls = case(name), []
    model = of.tiny(n_layers=4, **fields)
    plain = mask_file.dense_mask
    monkeypatch.setattr(mask_file, "dense_mask", lambda *args: calls.append(args) or plain(*args))
    of.hidden(model, tokens(), documents=(torch.arange(24) > 9).long().repeat(2, 1))
    assert len(calls) == kinds


@pytest.mark.parametrize("name", ["t5", "bart", "transformer"])
def test_cross_attention_has_a_mask_only_where_something_is_restricted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, source = case(name).tiny(n_decoder_layers=3), tokens(2, 9), tokens(2, 7, seed=4)
    whole = model.encode(source)
    labelled = model.encode(source, documents=torch.zeros_like(source))
    masked, calls = model(x, memory=labelled).hidden, []
    monkeypatch.setattr(stack, "build_mask", lambda *args: calls.append(args) or build_mask(*args))
    assert torch.equal(model(x, memory=whole).hidden, masked) and not calls
    model(x, memory=labelled)
    assert len(calls) == 1
    cache = model.new_cache(2, 9, whole)
    for part in x.split(3, dim=1):
        last = model(part, cache=cache).hidden
    assert len(calls) == 1
    assert torch.allclose(last, masked[:, 6:], atol=1e-4)
    engine = Engine(model, EngineOptions(native=False))
    for prompts, more in (([[5, 6, 7], [8, 9, 4]], 0), ([[5, 6, 7], [8, 9]], 1)):
        before = len(calls)
        plain = foundling.generate(model, prompts, max_tokens=4, temperature=0)
        together = foundling.generate(engine, prompts, max_tokens=4, temperature=0)
        assert [a.tokens for a in together] == [a.tokens for a in plain]
        assert bool(len(calls) - before) == bool(more)
