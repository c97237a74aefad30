# SPDX-License-Identifier: Apache-2.0
"""Readings of single heads: what they move and what they look for, by their weights alone; and scores of induction,
which a model's behaviour gives (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Olsson et al.
2022, "In-context Learning and Induction Heads")."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.attention import Attention
from foundling.blocks.stack import Decoder
from foundling.errors import InterpretError
from foundling.interpret.lens import linear_part, skipping
from foundling.interpret.trace import check_attends, check_tokens, trace
from foundling.runtime.mode import evaluation_mode


class Head(NamedTuple):
    layer: int
    head: int


# --- readings of weights ---------------------------------------------------------------------------------------------

ROWS = 1024
"""tokens that are put through the model at a time"""


class _Done(Exception):
    """Ends a forward pass that has what it was for."""


class DirectPath:
    """The attention of a layer between bare embeddings and the residual stream, one token a text: other layers are
    skipped. The norms before and behind it take part by centring and gain; the scale of one behind depends on the other
    heads and is left out. Positions are those of a first token, where rotations do nothing."""

    def __init__(self, model: Any, layer: int) -> None:
        """InterpretError for a model that is no decoder, a layer without attention, one behind a prefix of an adapter,
        and one that adds to no residual stream (post-norm), where the direct path is no linear reading."""
        if not isinstance(model, Decoder) or model.reads_memory:
            raise InterpretError(f"{type(model).__name__} is no decoder that reads tokens alone")
        if not 0 <= layer < len(model.layers):
            raise InterpretError(f"there is no layer {layer}; the model has {len(model.layers)}, counted from 0")
        self.model, self.others = model, [other for at, other in enumerate(model.layers) if at != layer]
        if not any(isinstance(module, Attention) for module in model.layers[layer].modules()):
            raise InterpretError(f"layer {layer} of {type(model).__name__} has no attention")
        token = torch.zeros(1, 1, dtype=torch.int64, device=model.embedding.weight.device)
        with skipping(self.others):
            record = trace(model, token).stack[layer]
        record.heads[0].weights()  # refuses a prefix
        record.writes()  # refuses post-norm
        self.module = record.heads[0].module
        self.like = record.before[0]  # (1, D), in the type and on the device of the residual stream
        order, (behind, part) = list(record.outputs), (record.writer_of("mixer"), model.layers[layer])
        reads_norm = "mixer_norm" in order and order.index("mixer_norm") < order.index("mixer")
        self.before = linear_part(part.get_submodule("mixer_norm") if reads_norm else nn.Identity())
        self.behind = linear_part(part.get_submodule(behind) if behind != "mixer" else nn.Identity())

    def row(self, part: str, head: int) -> int:
        """Which of the rows of q, k or v is the head's."""
        if not 0 <= head < self.module.n_heads:
            raise InterpretError(f"there is no head {head}; the layer has {self.module.n_heads}, counted from 0")
        return head if part == "q" else head * self.module.n_kv_heads // self.module.n_heads

    def vectors(self, part: str, head: int, tokens: Tensor) -> Tensor:
        """(n, P): q, k or v of each of `tokens` (n,). No pass goes beyond them, and none reads over ROWS tokens."""
        check_tokens(self.model, tokens)
        at, row, parts = "qkv".index(part), self.row(part, head), list[Tensor]()

        def keep(attend: nn.Module, inputs: Any) -> None:
            parts.append(inputs[at][:, row, 0].float())
            raise _Done

        hook = self.module.attend.register_forward_pre_hook(keep)
        try:
            with evaluation_mode(self.model), skipping(self.others):
                for some in tokens.split(ROWS):
                    with suppress(_Done):
                        self.model(some[:, None])
        finally:
            hook.remove()
        return torch.cat(parts)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """q (n, P) and k (m, P) -> (n, m)"""
        scale = self.module.attend.scale
        return q @ k.T * (q.shape[-1] ** -0.5 if scale is None else scale)

    def reading(self, part: str, head: int) -> Tensor:
        """(D, P): what q, k or v makes of each dimension of the residual stream, whatever its projection is made of."""
        unit = self.before(torch.eye(self.like.shape[-1], device=self.like.device)).to(self.like.dtype)
        vectors = self._linear(getattr(self.module, part), unit).unflatten(-1, (-1, self.module.head_dim))
        return vectors[:, self.row(part, head)].float()

    def written(self, head: int, vectors: Tensor) -> Tensor:
        """(n, P) -> (n, D): what the head adds to the residual stream where these are the means of its values."""
        alone = vectors.new_zeros(len(vectors), self.module.n_heads, vectors.shape[-1])
        alone[:, self.row("q", head)] = vectors
        return self.behind(self._linear(self.module.o, alone.flatten(1).to(self.like.dtype)))

    def _linear(self, projection: nn.Module, x: Tensor) -> Tensor:
        return projection(x) - projection(torch.zeros_like(x[:1]))  # without its bias


@torch.no_grad()
def ov_reading(model: Any, head: Head, tokens: Tensor) -> Tensor:
    """(n, V): what the head adds to each logit when it attends to each of `tokens` (n,), before a cap on logits and
    through the gains of the norms behind it and at the end; their scales depend on the rest of the text and are left
    out, so that a row is compared with itself alone."""
    path = DirectPath(model, head.layer)
    vectors = linear_part(model.norm)(path.written(head.head, path.vectors("v", head.head, tokens))).to(path.like.dtype)
    return (model.head(vectors) - model.head(torch.zeros_like(vectors[:1]))).float()


@torch.no_grad()
def qk_reading(model: Any, head: Head, queries: Tensor, keys: Tensor) -> Tensor:
    """(n, m): the score with which the head attends from each of `queries` (n,) to each of `keys` (m,), by their
    embeddings alone, at a distance of 0 and before a cap on scores."""
    path = DirectPath(model, head.layer)
    return path.scores(path.vectors("q", head.head, queries), path.vectors("k", head.head, keys))


class SkipTrigrams(NamedTuple):
    """source … destination -> output: a head that stands at the destination attends to the source and raises the
    output (Elhage et al. 2021, "skip-trigrams")."""

    source: int
    destinations: list[tuple[int, float]]
    """tokens that attend to the source most, with their scores above those of the mean token: a softmax over keys is
    blind to what a query gives all of them"""
    outputs: list[tuple[int, float]]
    """tokens that attending to it raises most, with what is added to their logits, above the mean of all"""


@torch.no_grad()
def skip_trigrams(
    model: Any, head: Head, sources: Tensor, *, n: int = 5, ids: Tensor | None = None
) -> list[SkipTrigrams]:
    """The `n` strongest destinations and outputs of each of `sources` (m,), of `ids` (V,): the whole vocabulary by
    default; leave out the tokens that the model has hardly seen."""
    path = DirectPath(model, head.layer)
    ids = torch.arange(model.embedding.num_embeddings, device=sources.device) if ids is None else ids
    q, k = path.vectors("q", head.head, ids), path.vectors("k", head.head, sources)
    scores = path.scores(k - path.vectors("k", head.head, ids).mean(0), q)
    logits = ov_reading(model, head, sources)[:, ids]

    def best(values: Tensor) -> list[tuple[int, float]]:
        top = values.topk(min(n, len(values)))
        return list(zip(ids[top.indices].tolist(), top.values.tolist(), strict=True))

    logits = logits - logits.mean(1, keepdim=True)
    return [SkipTrigrams(int(s), best(a), best(b)) for s, a, b in zip(sources, scores, logits, strict=True)]


@torch.no_grad()
def composition(model: Any, earlier: Head, later: Head) -> dict[str, float]:
    """How much of what an earlier head writes a later one reads, as q, k and v: ‖A B‖ / (‖A‖ ‖B‖) in Frobenius norms,
    with B = W_O W_V of the earlier head and A the later one's W_Kᵀ W_Q, W_Qᵀ W_K or W_O W_V (Elhage et al. 2021,
    "Composition"), norms before and behind included as in DirectPath, those of queries and keys and rotations left out.
    Heads that have nothing to do with each other give about 1/√D: random directions share so much."""
    if not earlier.layer < later.layer:
        raise InterpretError(f"layer {earlier.layer} is not before layer {later.layer}")
    first, second = DirectPath(model, earlier.layer), DirectPath(model, later.layer)
    written = first.written(earlier.head, first.reading("v", earlier.head)).T
    q, k = (second.reading(part, later.head) for part in "qk")
    ov = second.written(later.head, second.reading("v", later.head)).T
    return {
        name: float((read @ written).norm() / (read.norm() * written.norm()).clamp_min(1e-30))
        for name, read in (("q", k @ q.T), ("k", q @ k.T), ("v", ov))
    }


# --- scores of behaviour ---------------------------------------------------------------------------------------------


class InductionScores(NamedTuple):
    """Of each layer that attends and each of its heads (N, H), on random tokens that are repeated once."""

    layers: tuple[int, ...]
    """the numbers of these layers in the model"""
    prefix_matching: Tensor
    """the mean weight from a token of the second copy to the token that followed it in the first one (Olsson et al.
    2022, "prefix matching")"""
    previous_token: Tensor
    """the mean weight from a token to the one before it"""
    first_loss: float
    """nats a token in the first copy, where nothing predicts it"""
    second_loss: float
    """nats a token in the second copy, without its first token"""

    def best(self) -> tuple[Head, float]:
        """The head of the highest prefix-matching score, and the score."""
        row, head = divmod(int(self.prefix_matching.argmax()), self.prefix_matching.shape[1])
        return Head(self.layers[row], head), float(self.prefix_matching[row, head])


@torch.no_grad()
def induction_scores(
    model: Any, draw: torch.Generator, *, rows: int = 8, length: int = 50, ids: Tensor | None = None,
    start: int | None = None,
) -> InductionScores:  # fmt: skip
    """`rows` texts of `length` random tokens and the same tokens again. `ids`: the tokens to draw from, by default the
    whole vocabulary; `start`: a token before each text. InterpretError for a model that is no decoder with
    attention, and where there is nothing to draw or to measure."""
    check_attends(model)
    if not model.capabilities.generates or model.capabilities.reads_source:
        raise InterpretError(f"{type(model).__name__} is no decoder that reads tokens alone")
    ids = torch.arange(model.config.vocab_size) if ids is None else ids
    if not len(ids) or rows < 1 or length < 2:
        raise InterpretError(f"{rows} rows of {length} of {len(ids)} tokens; give at least 1 row, 2 tokens a row, 1 id")
    half = ids[torch.randint(len(ids), (rows, length), generator=draw)]
    opening = [] if start is None else [torch.full((rows, 1), start)]
    n = len(opening)
    tokens = torch.cat([*opening, half, half], 1).to(model.embedding.weight.device)
    record = trace(model, tokens)
    second = torch.arange(n + length, n + 2 * length)
    later, maps = torch.arange(1, tokens.shape[1]), [heads.weights() for heads in record.heads]
    assert record.hidden is not None
    losses = token_losses(model, record.hidden, tokens)
    return InductionScores(
        tuple(number for number, layer in enumerate(record.stack) for _ in layer.heads),
        torch.stack([w[:, :, second, second - length + 1].mean((0, 2)) for w in maps]).float().cpu(),
        torch.stack([w[:, :, later, later - 1].mean((0, 2)) for w in maps]).float().cpu(),
        float(losses[:, : n + length - 1].mean()),
        float(losses[:, n + length :].mean()),
    )


@torch.no_grad()
def in_context_score(model: Any, tokens: Tensor, *, early: int = 50, late: int = 500, width: int = 1) -> float:
    """Mean loss of the `width` tokens from the `late`-th on, counted from 0, minus that of as many from the `early`-th
    on, in nats, over rows of `tokens` (B, T) (Olsson et al. 2022, "in-context learning score", of single tokens); below
    0 where the context helps. InterpretError for rows that end before, and for a `width` below 1."""
    if width < 1 or not 1 <= early < late or late + width > tokens.shape[1]:
        raise InterpretError(f"rows of {tokens.shape[1]} tokens have no tokens {early} and {late}, {width} wide")
    with evaluation_mode(model):
        losses = token_losses(model, model(tokens).hidden, tokens)
    first, last = (losses[:, at - 1 : at - 1 + width].mean() for at in (early, late))
    return float(last - first)


def token_losses(model: Any, hidden: Tensor, tokens: Tensor) -> Tensor:
    """(B, T − 1) nats: of token t + 1 in column t. hidden (B, T, D) and tokens (B, T); the logits of one row at a
    time."""
    return torch.stack(
        [
            F.cross_entropy(model.logits(states[:-1]).float(), targets[1:], reduction="none")
            for states, targets in zip(hidden, tokens, strict=True)
        ]
    )
