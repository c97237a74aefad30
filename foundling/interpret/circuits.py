# SPDX-License-Identifier: Apache-2.0
"""Readings of single heads: what they move and what they look for, by their weights alone; and scores of induction,
which a model's behaviour gives (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Olsson et al.
2022, "In-context Learning and Induction Heads")."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foundling.blocks.norm import LayerNorm, RMSNorm
from foundling.blocks.stack import Decoder
from foundling.errors import InterpretError
from foundling.interpret.lens import skipping
from foundling.interpret.trace import HeadsRecord, LayerRecord, check_attends, trace
from foundling.runtime.mode import evaluation_mode


class Head(NamedTuple):
    layer: int
    head: int


# --- readings of weights ---------------------------------------------------------------------------------------------


def direct_path(model: Any, layer: int, tokens: Tensor) -> LayerRecord:
    """A layer's record when it reads the bare embedding of each of `tokens` (n,), one a row, with the norm before it:
    the direct path from the embedding to its heads. Positions are those of a first token, where rotations do nothing.

    InterpretError for a model that is no decoder, and for a layer without attention."""
    if not isinstance(model, Decoder) or model.reads_memory:
        raise InterpretError(f"{type(model).__name__} is no decoder that reads tokens alone")
    if not 0 <= layer < len(model.layers):
        raise InterpretError(f"there is no layer {layer}; the model has {len(model.layers)}, counted from 0")
    with skipping([other for at, other in enumerate(model.layers) if at != layer]):
        record = trace(model, tokens[:, None]).stack[layer]
    if not record.heads:
        raise InterpretError(f"layer {layer} of {type(model).__name__} has no attention")
    return record


@torch.no_grad()
def ov_reading(model: Any, head: Head, tokens: Tensor) -> Tensor:
    """(n, V): what the head adds to each logit when it attends to each of `tokens` (n,), through the gain of the final
    norm; its scale depends on the rest of the text and is left out, so that a row is compared with itself alone."""
    record = direct_path(model, head.layer, tokens)
    vectors = _checked(record.heads[0], head).outputs()[:, head.head, 0]
    if isinstance(model.norm, RMSNorm | LayerNorm):
        centred = vectors - vectors.mean(-1, keepdim=True) if isinstance(model.norm, LayerNorm) else vectors
        vectors = centred * _gain(model.norm)
    return (model.head(vectors) - model.head(torch.zeros_like(vectors))).float()


@torch.no_grad()
def qk_reading(model: Any, head: Head, queries: Tensor, keys: Tensor) -> Tensor:
    """(n, m): the score with which the head attends from each of `queries` (n,) to each of `keys` (m,), by their
    embeddings alone, at a distance of 0."""
    asked, answered = (_checked(direct_path(model, head.layer, ids).heads[0], head) for ids in (queries, keys))
    group = asked.q.shape[1] // answered.k.shape[1]
    q, k = asked.q[:, head.head, 0], answered.k[:, head.head // group, 0]
    scale = asked.module.attend.scale
    return (q @ k.T * (q.shape[-1] ** -0.5 if scale is None else scale)).float()


class SkipTrigrams(NamedTuple):
    """source … destination -> output: a head that stands at the destination attends to the source and raises the
    output (Elhage et al. 2021, "skip-trigrams")."""

    source: int
    destinations: list[tuple[int, float]]
    """tokens that attend to the source most, with their scores"""
    outputs: list[tuple[int, float]]
    """tokens that attending to it raises most, with what is added to their logits"""


def skip_trigrams(model: Any, head: Head, sources: Tensor, *, n: int = 5) -> list[SkipTrigrams]:
    """The `n` strongest destinations and outputs of each of `sources` (m,), over the whole vocabulary."""
    vocabulary = torch.arange(model.embedding.num_embeddings, device=sources.device)
    scores, logits = qk_reading(model, head, vocabulary, sources).T, ov_reading(model, head, sources)

    def best(values: Tensor) -> list[tuple[int, float]]:
        top = values.topk(min(n, len(values)))
        return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))

    return [SkipTrigrams(int(s), best(a), best(b)) for s, a, b in zip(sources, scores, logits, strict=True)]


@torch.no_grad()
def composition(model: Any, earlier: Head, later: Head) -> dict[str, float]:
    """How much of what an earlier head writes a later one reads, as q, k and v: ‖A B‖ / (‖A‖ ‖B‖) in Frobenius norms,
    with B = W_O W_V of the earlier head and A the later one's W_Kᵀ W_Q, W_Qᵀ W_K or W_O W_V (Elhage et al. 2021,
    "Composition"), the gain of the norm before it included. Rotations are left out."""
    if not earlier.layer < later.layer:
        raise InterpretError(f"layer {earlier.layer} is not before layer {later.layer}")
    first, second = (_matrices(model, head) for head in (earlier, later))
    written = first["o"] @ first["v"]
    qk, ov = second["q"].T @ second["k"], second["o"] @ second["v"]
    return {
        name: float((read @ written).norm() / (read.norm() * written.norm()).clamp_min(1e-30))
        for name, read in (("q", qk.T), ("k", qk), ("v", ov))
    }


def _matrices(model: Any, head: Head) -> dict[str, Tensor]:
    """q, k, v (P, D) and o (D, P) of a head, with the gain of the norm before it."""
    record = direct_path(model, head.layer, torch.zeros(1, dtype=torch.int64, device=model.embedding.weight.device))
    module, order = _checked(record.heads[0], head).module, list(record.outputs)
    gain: Tensor | float = 1.0
    if "mixer_norm" in order and order.index("mixer_norm") < order.index("mixer"):
        norm = model.layers[head.layer].mixer_norm
        gain = _gain(norm) if isinstance(norm, RMSNorm | LayerNorm) else 1.0
    width, shared = module.head_dim, head.head // (module.n_heads // module.n_kv_heads)

    def rows(projection: Any, at: int) -> Tensor:
        return projection.weight[at * width : (at + 1) * width].float() * gain

    o = module.o.weight[:, head.head * width : (head.head + 1) * width].float()
    return {"q": rows(module.q, head.head), "k": rows(module.k, shared), "v": rows(module.v, shared), "o": o}


def _gain(norm: RMSNorm | LayerNorm) -> Tensor:
    return norm.weight + norm.offset if isinstance(norm, RMSNorm) else norm.weight


def _checked(record: HeadsRecord, head: Head) -> HeadsRecord:
    if not 0 <= head.head < record.module.n_heads:
        raise InterpretError(f"there is no head {head.head}; the layer has {record.module.n_heads}, counted from 0")
    return record


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
    attention."""
    check_attends(model)
    if not model.capabilities.generates or model.capabilities.reads_source:
        raise InterpretError(f"{type(model).__name__} is no decoder that reads tokens alone")
    ids = torch.arange(model.config.vocab_size) if ids is None else ids
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
    """Mean loss of the `late`-th token minus that of the `early`-th one, in nats, over rows of `tokens` (B, T) (Olsson
    et al. 2022, "in-context learning score"); below 0 where the context helps. `width`: the mean of so many tokens
    around each. InterpretError for rows that end before."""
    if not 1 <= early < late or late + width > tokens.shape[1]:
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
