# SPDX-License-Identifier: Apache-2.0
"""A head on any text model: classes of texts, classes of tokens, or values of texts in place of the vocabulary."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.adapt.added import Added
from foundling.blocks.heads import pooled_width
from foundling.blocks.init import Role
from foundling.contracts.model import HeadLayout, Pool, Task
from foundling.errors import AdaptError
from foundling.limits import LABELS, shown

ACTIVATIONS = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu}
SCORE = "score"
"""the name under which a head is registered, which transformers' classifiers on decoders use"""
REWARD = "reward"
"""the label of a head that scores completions (objectives/preference.py)"""


@dataclass(frozen=True)
class HeadOptions:
    """AdaptError for labels that are none, empty or there twice, and for a standard deviation that is not positive."""

    kind: Task
    labels: tuple[str, ...]
    """names of the classes, or of the values"""
    pool: Pool | Literal[""] = ""
    """what the head reads by one projection; by default it is built like the family's published head"""
    mean: float = 0.0
    """regress: a predicted value is mean + std · score"""
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("classify", "tag", "regress"):
            raise AdaptError(f"the kind of the head is {shown(self.kind)}; expected classify, tag or regress")
        if self.pool not in ("", *get_args(Pool)):
            raise AdaptError(f"the pool of the head is {shown(self.pool)}; expected {', '.join(get_args(Pool))}")
        least = 1 if self.kind == "regress" else 2
        if len(self.labels) < least:
            raise AdaptError(f"{len(self.labels)} labels: {shown(list(self.labels))}; to {self.kind} takes {least}")
        LABELS.check(len(self.labels), "the number of labels", AdaptError)
        if repeated := sorted(label for label, n in Counter(self.labels).items() if n > 1 or not label):
            raise AdaptError(f"the label {shown(repeated[0])} is empty or there twice; name each class once")
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise AdaptError(f"mean {self.mean} and std {self.std}; expected a number and one above 0")


class Head(Added):
    """dropout, then a projection to one score a label, of what a `layout` says: states, or a dense layer of them with
    its activation and norm. Its parameters are no nn.Linear, so they are neither adapted nor quantised."""

    base = None
    own: tuple[str, ...] = ()  # pyright: ignore[reportIncompatibleVariableOverride]
    """names of its parameters while it is an adaptation; () once it is a part of the model (`absorb`)"""
    dense: nn.Parameter | None
    dense_bias: nn.Parameter | None
    norm_weight: nn.Parameter | None
    bias: nn.Parameter | None
    mix: nn.Parameter | None
    mix_scale: nn.Parameter | None

    def __init__(self, options: HeadOptions, layout: HeadLayout, d_model: int, d_states: int) -> None:
        """d_states: width of what it reads"""
        super().__init__()
        self.options, self.layout = options, layout
        dense = bool(layout.activation)
        width = d_model if dense else d_states

        def parameter(there: bool, *shape: int) -> nn.Parameter | None:
            return nn.Parameter(torch.zeros(shape)) if there else None

        self.mix, self.mix_scale = parameter(layout.n_mixed > 0, layout.n_mixed), parameter(layout.n_mixed > 0, 1)
        if self.mix_scale is not None:
            nn.init.ones_(self.mix_scale)
        self.dense = parameter(dense, width, d_states)
        self.dense_bias = parameter(dense and layout.dense_bias, width)
        self.norm_weight = parameter(bool(layout.norm_eps), width)
        if self.norm_weight is not None:
            nn.init.ones_(self.norm_weight)
        self.weight = nn.Parameter(torch.zeros(len(options.labels), width))
        self.bias = parameter(layout.bias, len(options.labels))
        self.dropout = nn.Dropout(layout.dropout)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of its parameters."""
        return tuple(name for name, _ in self.named_parameters())

    def roles(self) -> dict[str, Role]:
        matrices = {"weight": Role("head", self.weight.shape[1])}
        if self.dense is not None:
            matrices["dense"] = Role("hidden", self.dense.shape[1])
        return {part: matrices.get(part, Role("vector", 1)) for part in self.parts}

    def features(self, states: Tensor) -> Tensor:
        """states (..., D), or (..., L, D) of the layers that it mixes -> what the projection reads, without dropout"""
        if self.mix is not None and self.mix_scale is not None:
            weights = self.mix_scale.float() * torch.softmax(self.mix.float(), 0)
            states = (weights[:, None] * states.float()).sum(-2).to(states.dtype)
        if self.dense is not None:
            states = ACTIVATIONS[self.layout.activation](F.linear(states, self.dense, self.dense_bias))
        if self.norm_weight is not None:
            shape, weight = self.norm_weight.shape, self.norm_weight.float()
            states = F.layer_norm(states.float(), shape, weight, None, self.layout.norm_eps).to(states.dtype)
        return states

    def forward(self, states: Tensor) -> Tensor:
        """states (..., D) -> (..., n) float32. Rounded weights would move the scores: those of a probe are differences
        of large numbers where a state varies little around its mean."""
        x = self.dropout(self.features(states)).float()
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, self.weight.float(), None if self.bias is None else self.bias.float())


def add_head(model: Any, options: HeadOptions, generator: torch.Generator) -> Head:
    """Puts a head on any text model, as `model.score`, in place of one that is there, and returns it. The projection
    starts at zero, so that all classes are equally likely; a dense layer below it is drawn from the generator. The
    model says on itself that it has a task, and no longer generates or fills gaps; its head over the vocabulary stays,
    frozen. AdaptError for a model that reads no text, or a `pool` that it does not have."""
    head = head_for(model, options)
    if head.dense is not None:
        drawn = torch.randn(head.dense.shape, generator=generator) * head.dense.shape[1] ** -0.5
        head.dense.data.copy_(drawn)
    place, own = model.embedding.weight, head.weight
    if (place.device, place.dtype) != (own.device, own.dtype):  # fake tensors cannot be moved
        head.to(device=place.device, dtype=place.dtype)
    register(model, head)
    head.own = head.parts
    freeze_vocabulary(model)
    return head


def same_head(model: Any, options: HeadOptions) -> bool:
    """Whether the model has a head for this already, whose weights can be trained on: of the same kind, labels, mean
    and standard deviation, and where `pool` is given, with its layout."""
    head = getattr(model, SCORE, None)
    if not isinstance(head, Head) or (options.pool and head.layout != layout_for(model, options)):
        return False
    return replace(head.options, pool="") == replace(options, pool="")


def is_new(head: Head) -> bool:
    """Whether it is as `add_head` made it: nothing was learnt yet."""
    return not head.weight.any()


def freeze_vocabulary(model: Any) -> None:
    """Freezes the head over the vocabulary of a model that has another: nothing reads what it gives. What it shares
    with the embedding stays as it is."""
    if model.head is not None:
        shared = {id(p) for p in model.embedding.parameters()}
        for p in model.head.parameters():
            if id(p) not in shared:
                p.requires_grad_(False)


def head_for(model: Any, options: HeadOptions) -> Head:
    """The head, not yet on the model, its projection zero."""
    if not model.capabilities.takes_head:
        raise AdaptError(f"{type(model).__name__} reads no text on its own, so it takes no head; use a text model")
    layout = layout_for(model, options)
    d_model = model.config.d_model
    return Head(options, layout, d_model, pooled_width(layout.pool, d_model))


def is_projection(layout: HeadLayout) -> bool:
    """Whether the head is one projection of the states, without a dense layer or a norm."""
    return not layout.activation and not layout.norm_eps


def layout_for(model: Any, options: HeadOptions) -> HeadLayout:
    published = model.head_layout(options.kind)
    if not options.pool or (options.pool == published.pool and is_projection(published)):
        return published
    if options.kind == "tag" or options.pool in ("every", "model"):
        raise AdaptError(f"pool {options.pool!r} of a head to {options.kind}; this model has {published.pool!r}")
    return HeadLayout(options.pool, dropout=published.dropout, n_mixed=published.n_mixed)


def register(model: Any, head: Head) -> None:
    """Puts a head on the model, and says so in its capabilities."""
    model.score = head.train(model.training)
    model.capabilities = model.capabilities._replace(task=head.options.kind, generates=False, fills=False)


def absorb(model: Any) -> None:
    """Makes the head a part of the model, which is then saved and hashed with it (weights_hash), and no adapter."""
    for module in model.modules():
        if isinstance(module, Head):
            module.own = ()
