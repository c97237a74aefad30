# SPDX-License-Identifier: Apache-2.0
"""One forward pass that records what each layer read and wrote, and what each head attended to.

Everything is read by forward hooks, so that any model is traced as it is: every family with attention from blocks, with
adapters and quantised weights too. Axis letters: B batch, T query, S key, D d_model, H heads, K kv heads, P head_dim.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from foundling.blocks.attention import Attend, Attention, CrossAttention
from foundling.blocks.mask import Mask
from foundling.contracts.model import named_layers
from foundling.errors import InterpretError
from foundling.runtime.mode import evaluation_mode

PARTS = ("mixer", "cross", "ffn")
ROUNDINGS = 32
"""by so many roundings may the parts of a layer differ from what it added"""


@dataclass(eq=False)
class HeadsRecord:
    """The heads of one attention, as they were called."""

    name: str
    """of the attention among the model's modules, such as layers.3.mixer"""
    module: Attention
    q: Tensor
    """(B, H, T, P), after positions were put in"""
    k: Tensor
    """(B, K, S, P)"""
    mask: Mask
    z: Tensor
    """(B, H, T, P), each head's mean of the values, before the output projection"""

    @property
    def reads_memory(self) -> bool:
        """whether the keys are those of an encoder's output"""
        return isinstance(self.module, CrossAttention)

    @torch.no_grad()
    def weights(self) -> Tensor:
        """(B, H, T, S), what each query attends to; rows sum to 1, and to less where an attention sink takes a part.

        Attention returns a mean of the values by its weights. With unit vectors for values these means are the weights,
        whatever the mask, the cap on scores or the sharing of keys between heads."""
        if not isinstance(self.module.attend, Attend):
            raise InterpretError(f"{self.name} stands behind a prefix of an adapter; load the base model without it")
        n_keys = self.k.shape[2]
        values = torch.eye(n_keys, dtype=self.q.dtype, device=self.q.device).expand(*self.k.shape[:2], -1, -1)
        with evaluation_mode(self.module):
            return self.module.attend(self.q, self.k, values, self.mask)

    @torch.no_grad()
    def outputs(self) -> Tensor:
        """(B, H, T, D), what each head adds to the output of the attention. Their sum, and the bias of the output
        projection where it has one, is that output."""
        nothing = self.z.new_zeros(self.z.shape[0], self.z.shape[2], self.z.shape[1] * self.z.shape[3])
        constant, parts = self.module.o(nothing), []
        for head in range(self.z.shape[1]):
            alone = torch.zeros_like(self.z)
            alone[:, head] = self.z[:, head]
            parts.append(self.module.o(alone.transpose(1, 2).flatten(2)) - constant)
        return torch.stack(parts, 1)


@dataclass(eq=False)
class LayerRecord:
    """One call of a layer."""

    name: str
    before: Tensor
    """(B, T, D), the residual stream that it read"""
    after: Tensor
    """(B, T, D), what it returned"""
    outputs: dict[str, Tensor] = field(default_factory=dict)
    """name of a part (mixer, cross, ffn, and their norms) -> what it returned, (B, T, D)"""
    heads: list[HeadsRecord] = field(default_factory=list)

    def writer_of(self, part: str) -> str:
        """The module whose output is added to the residual stream for a part: the norm behind it where there is one
        (Gemma 2, OLMo 2), else the part itself."""
        order = list(self.outputs)
        behind = [name for name in (f"{part}_post_norm", f"{part}_norm") if name in order]
        return next((name for name in behind if order.index(name) > order.index(part)), part)

    def writes(self) -> dict[str, Tensor]:
        """part -> (B, T, D), what each part added to the residual stream; their sum is after − before.

        InterpretError for a layer whose output is no such sum, as with norms after the sums (post-norm)."""
        written = {part: self.outputs[self.writer_of(part)] for part in PARTS if part in self.outputs}
        if not self._is_sum(list(written.values())):
            raise InterpretError(
                f"{self.name} does not add its parts to a residual stream (as with a norm after each sum), so logits "
                "are no sum over parts; choose a model with norms before its parts"
            )
        return written

    def _is_sum(self, parts: list[Tensor]) -> bool:
        if any(x.shape != self.after.shape for x in (self.before, *parts)):
            return False
        error = self.after - self.before - sum(parts)
        size = self.after.abs() + self.before.abs() + sum(x.abs() for x in parts)
        return bool((error.abs() <= ROUNDINGS * torch.finfo(error.dtype).eps * size).all())


@dataclass(eq=False)
class Trace:
    layers: list[LayerRecord] = field(default_factory=list)
    """in the order that they were called: of an encoder–decoder first those of the encoder"""
    tokens: Tensor | None = None
    """(B, T)"""
    inputs: dict[str, Any] = field(default_factory=dict)
    """what the model was called with besides"""
    hidden: Tensor | None = None
    """(B, T, D), what the model's `logits` reads; None where it has none"""

    @property
    def stack(self) -> list[LayerRecord]:
        """The layers that read the tokens, without those of an encoder–decoder's encoder."""
        return [layer for layer in self.layers if layer.name.startswith("layers.")]

    @property
    def heads(self) -> list[HeadsRecord]:
        """The self-attentions of the layers that read the tokens."""
        return [record for layer in self.stack for record in layer.heads if not record.reads_memory]


@contextmanager
def recording(model: nn.Module) -> Generator[Trace]:
    """Inside, every forward pass of the model adds to the trace."""
    trace, hooks, inside = Trace(), list[Any](), list[LayerRecord]()
    names = {module: name for name, module in model.named_modules()}

    def enter(layer: nn.Module, inputs: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            inside.append(LayerRecord(names[layer], inputs[0].detach(), inputs[0].detach()))

    def leave(layer: nn.Module, inputs: Any, output: Any) -> None:
        if inside and inside[-1].name == names[layer]:
            record = inside.pop()
            record.after = first_tensor(output)
            trace.layers.append(record)

    def part(name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if inside:
                inside[-1].outputs[name] = first_tensor(output)

        return keep

    def attended(attention: Attention, name: str) -> Any:
        def keep(attend: nn.Module, inputs: Any, output: Tensor) -> None:
            if inside:
                q, k, _, mask = inputs
                inside[-1].heads.append(HeadsRecord(name, attention, q.detach(), k.detach(), mask, output.detach()))

        return keep

    for layer in named_layers(model).values():
        hooks += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
        hooks += [child.register_forward_hook(part(name)) for name, child in layer.named_children()]
        for module in layer.modules():
            if isinstance(module, Attention):
                hooks.append(module.attend.register_forward_hook(attended(module, names[module])))
    try:
        yield trace
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def trace(model: Any, tokens: Tensor, *, documents: Tensor | None = None, source: Tensor | None = None) -> Trace:
    """One forward pass of `tokens` (B, T). `source` (B, S): what an encoder–decoder reads first. InterpretError for a
    model that does not read text by one stack of layers: a denoiser, a dual encoder."""
    check_reads_text(model)
    can = model.capabilities
    if can.reads_source != (source is not None):
        raise InterpretError(
            f"{type(model).__name__} reads {'a source: give one' if can.reads_source else 'no source'}"
        )
    with evaluation_mode(model), recording(model) as record:
        record.tokens, record.inputs = tokens, {"documents": documents}
        if source is not None:
            record.inputs["memory"] = model.encode(source)
        if can.generates or can.fills:
            record.hidden = model(tokens, **record.inputs).hidden
        else:
            model.encode(tokens, **record.inputs)
    return record


def check_reads_text(model: Any) -> None:
    """InterpretError for a model that reads no text by layers."""
    can = model.capabilities
    if can.denoises or can.modalities != ("text",):
        raise InterpretError(
            f"{type(model).__name__} reads no text by one stack of layers, so there is none to look at"
        )


def check_attends(model: Any) -> None:
    """InterpretError for a model without attention."""
    check_reads_text(model)
    if not any(isinstance(module, Attention) for layer in named_layers(model).values() for module in layer.modules()):
        raise InterpretError(f"{type(model).__name__} has no attention: its layers mix tokens by other means")


def check_tokens(model: Any, tokens: Tensor) -> None:
    """InterpretError for no tokens, and for one that the model has not."""
    n = model.embedding.num_embeddings
    if not tokens.numel() or int(tokens.min()) < 0 or int(tokens.max()) >= n:
        shown = ", ".join(map(str, tokens.flatten()[:5].tolist())) or "none"
        raise InterpretError(f"the tokens are {shown}; give some of the {n:,} of the model, from 0 to {n - 1:,}")


def first_tensor(output: Any) -> Tensor:
    """What a module returned, without what a router did."""
    return (output[0] if isinstance(output, tuple) else output).detach()
