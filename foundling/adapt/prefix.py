# SPDX-License-Identifier: Apache-2.0
"""Prefix tuning (Li & Liang 2021): every self-attention reads learned keys and values before those of its tokens.

They belong to no document and have no position: every query sees them, whatever its window, chunk or place in a packed
row. A cache does not hold them. The reparametrisation of section 4.3 is left out: it serves training alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.adapt.added import Added, freeze_base
from foundling.adapt.rewrite import matches, rewrite
from foundling.adapt.soft import cycled, token_embedding
from foundling.blocks.attention import Attend
from foundling.blocks.encoder import Encoder
from foundling.blocks.init import Role
from foundling.blocks.mask import Mask
from foundling.blocks.seq2seq import EncoderDecoder
from foundling.blocks.stack import Decoder
from foundling.errors import AdaptError
from foundling.limits import VIRTUAL_TOKENS
from foundling.runtime.mode import evaluation_mode

PATTERN = "*layers.*.mixer.attend"
"""Self-attention; an encoder's and a decoder's, but not the decoder's of a memory."""
START_STD = 0.02
"""Of keys and values that start random: small, so that the model changes little at first."""


class PrefixAttend(Added):
    """An `Attend` with keys `k` and values `v` (K, n, P) before those that it is called with."""

    own = ("k", "v")
    base: Any

    def __init__(self, base: Attend, k: Tensor, v: Tensor) -> None:
        super().__init__()
        self.base, self.n = base, k.shape[1]
        self.k, self.v = nn.Parameter(k.float()), nn.Parameter(v.float())

    @property
    def softcap(self) -> float | None:
        return self.base.softcap

    @property
    def scale(self) -> float | None:
        return self.base.scale

    @property
    def dropout(self) -> float:
        return self.base.dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """q (B, H, T, P), k and v (B, K, S, P) -> (B, H, T, P)"""
        rows = len(k), -1, -1, -1
        k = torch.cat((self.k.to(k.dtype).expand(rows), k), dim=2)
        v = torch.cat((self.v.to(v.dtype).expand(rows), v), dim=2)
        if (dense := mask.dense) is not None:
            visible = True if dense.dtype == torch.bool else 0.0
            return self.base(q, k, v, Mask(mask.causal, F.pad(dense, (self.n, 0), value=visible)))
        if not mask.causal:
            return self.base(q, k, v, mask)
        # causality without a mask counts queries and keys from the first on: queries that nobody reads stand before
        return self.base(F.pad(q, (0, 0, self.n, 0)), k, v, mask)[:, :, self.n :]

    def roles(self) -> dict[str, Role]:
        return dict.fromkeys(self.own, Role("adapter", self.k.shape[-1]))


def prefixable(model: Any) -> dict[str, Attend]:
    """Name -> attention, for those that a prefix can stand before. AdaptError where there is none."""
    modules = dict(model.named_modules())
    if any(isinstance(m, PrefixAttend) for m in modules.values()):
        raise AdaptError("the model has a prefix already; load the base again to begin anew")
    matched = {name: m for name, m in modules.items() if isinstance(m, Attend) and matches(name, PATTERN)}
    if not matched:
        raise AdaptError(f"{type(model).__name__} has no self-attention that a prefix could stand before; use lora(…)")
    return matched


def prefix_tuning(model: Any, n: int, generator: torch.Generator, init_ids: Sequence[int] | None = None) -> list[str]:
    """Adds `n` keys and values to every self-attention, in place, freezes the base, and returns the names.

    They start as small random numbers, or as the keys and values of `init_ids`, repeated or cut to n (section 4.2:
    better where examples are few). With rotary positions these are as if the tokens stood right before the text.
    AdaptError for a model without self-attention or with a prefix already, and for ids outside the vocabulary."""
    VIRTUAL_TOKENS.check(n, "n", AdaptError)
    matched = prefixable(model)
    start = {} if init_ids is None else _read(model, matched, init_ids, n)
    for name, attend in matched.items():
        mixer: Any = model.get_submodule(name.rpartition(".")[0])
        if name in start:
            k, v = start[name]
        else:
            shape = mixer.n_kv_heads, n, mixer.head_dim
            k, v = (torch.randn(shape, generator=generator) * START_STD for _ in range(2))
        device = next(mixer.parameters()).device
        rewrite(model, {name: attend}, lambda m, k=k, v=v, device=device: PrefixAttend(m, k.to(device), v.to(device)))
    freeze_base(model)
    return list(matched)


@torch.no_grad()
def _read(model: Any, matched: dict[str, Attend], init_ids: Sequence[int], n: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> keys and values (K, n, P) that each attention reads of these tokens; an image's attention reads none."""
    _, embedding = token_embedding(model)
    device = embedding.weight.device
    tokens = torch.tensor([cycled(init_ids, n, embedding.num_embeddings)], device=device)
    rotates = getattr(model, "rope", None) is not None and not getattr(model.config, "tempered", False)
    places = {"positions": torch.arange(-n, 0, device=device)[None]} if rotates else {}
    with evaluation_mode(model), _recorded(matched) as seen:
        if isinstance(model, EncoderDecoder):
            model(tokens, memory=model.encode(tokens))
        elif isinstance(model, Decoder):
            model(tokens, **places)
        elif isinstance(model, Encoder):
            model.encode(tokens)
        else:
            model.text.encode(tokens)
    return seen


@contextmanager
def _recorded(matched: dict[str, Attend]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Fills the dictionary, as the model is called, with the keys and values of the first row."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Any:
        return lambda module, inputs: seen.update({name: (inputs[1][0].clone(), inputs[2][0].clone())})

    hooks = [attend.register_forward_pre_hook(hook(name)) for name, attend in matched.items()]
    try:
        yield seen
    finally:
        for handle in hooks:
            handle.remove()
