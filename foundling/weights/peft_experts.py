# SPDX-License-Identifier: Apache-2.0
"""LoRA of experts in the layout of peft for transformers 5, which holds all experts of a layer in two parameters:
gate_up_proj and down_proj of a module M. Their updates are M.base_layer.lora_A and lora_B (gate_up) and M.lora_A and
lora_B (down); where only one parameter has an update, it is M's. lora_A (E · rank, in) has the experts one after the
other, lora_B (out, rank · E) has them by turns (peft's ParamWrapper)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foundling.adapt.bank import LowRank
from foundling.errors import WeightsError
from foundling.weights import keys, peft_config
from foundling.weights.adapter_layout import PREFIX, Source

LIVE = {"block_sparse_moe": "mlp"}
"""part of a module's name in checkpoints -> its name in transformers 5"""
TURNED = {"llama4"}
"""families whose parameters are (E, in, out) without saying so to peft, which takes in for out"""


class Fused(NamedTuple):
    """One parameter: the experts' gate and up, or their down."""

    owner: str
    """the module with the parameter"""
    parameter: str
    """gate_up_proj or down_proj"""
    parts: tuple[str, ...]
    """the projections of ours"""
    n_experts: int
    n_in: int
    n_out: int
    """of all parts together"""
    interleaved: bool
    turned: bool

    @property
    def module(self) -> str:
        return f"{self.owner}.{self.parameter}"

    def names(self, *, inner: bool) -> tuple[str, str]:
        """Of lora_A and lora_B in the file."""
        owner = f"{PREFIX}{self.owner}" + (".base_layer" if inner else "")
        return f"{owner}.lora_A.weight", f"{owner}.lora_B.weight"

    def shapes(self, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
        n_in, n_out = (self.n_out, self.n_in) if self.turned else (self.n_in, self.n_out)
        return (rank * self.n_experts, n_in), (n_out, rank * self.n_experts)

    def to_file(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """a (E, R, in), b (E, out, R) -> lora_A, lora_B"""
        if self.turned:
            a, b = b.mT, a.mT
        return a.flatten(0, 1).contiguous(), b.permute(1, 2, 0).flatten(1).contiguous()

    def to_ours(self, lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
        a = lora_a.unflatten(0, (self.n_experts, -1))
        b = lora_b.unflatten(1, (-1, self.n_experts)).permute(2, 0, 1)
        return (b.mT.contiguous(), a.mT.contiguous()) if self.turned else (a, b.contiguous())

    def rows_to_theirs(self, parts: list[Tensor]) -> Tensor:
        """(E, out of each part, R) -> (E, out, R)"""
        return torch.stack(parts, 2).flatten(1, 2) if self.interleaved else torch.cat(parts, 1)

    def rows_to_ours(self, whole: Tensor) -> list[Tensor]:
        n = len(self.parts)
        return [whole[:, part::n] for part in range(n)] if self.interleaved else list(whole.chunk(n, 1))


def fused_experts(links: list[keys.Link], experts: Mapping[str, Any], family: str) -> list[Fused]:
    """`experts`: name -> GroupedLinear of ours. Two for each layer with experts, in the order of the model."""
    owners, interleaved = dict[str, str](), set[str]()
    for link in links:
        for name in (name.removesuffix(".weight") for name in link.ours):
            if name in experts:
                owner = link.theirs[0].partition(".experts.")[0] + ".experts"
                owners[name] = ".".join(LIVE.get(part, part) for part in owner.split("."))
                interleaved |= {name} if "interleaved_experts" in link.key.transforms else set()
    found = []
    for prefix in dict.fromkeys(name.rpartition(".")[0] for name in experts):
        for parameter, leaves in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
            parts = tuple(f"{prefix}.{leaf}" for leaf in leaves)
            if all(part in owners for part in parts):
                sizes = [experts[part] for part in parts]
                n_out = sum(part.out_features for part in sizes)
                shape = sizes[0].n_experts, sizes[0].in_features, n_out
                found.append(
                    Fused(owners[parts[0]], parameter, parts, *shape, parts[0] in interleaved, family in TURNED)
                )
    return found


def write(fused: Fused, a: Tensor, b: Tensor, *, inner: bool) -> dict[str, Tensor]:
    """a (E, R, in), b (E, out, R) -> tensors by their names in the file"""
    return dict(zip(fused.names(inner=inner), fused.to_file(a, b), strict=True))


def read(source: Source, fused: Fused, dtype: torch.dtype) -> dict[str, LowRank]:
    """The update of each part, of the whole rank that the file has; {} if the parameter has none. Which of the two it
    belongs to is told by its shape."""
    for inner in (True, False):
        name_a, name_b = fused.names(inner=inner)
        if name_a not in source:
            continue
        rows, n_in = source.shape(name_a, 2)
        shape_a, shape_b = fused.shapes(rows // fused.n_experts)
        if (n_in, source.shape(name_b, 2)[0]) != (shape_a[1], shape_b[0]):
            continue  # of the other parameter, or of neither: then it stays unknown
        if rows % fused.n_experts or not rows:
            raise WeightsError(
                f"{source.tensors.path}: tensor '{name_a}' has {rows} rows, expected a multiple of {fused.n_experts}"
            )
        source.expect(name_b, shape_b)
        a, b = fused.to_ours(source.take(name_a, shape_a, dtype), source.take(name_b, shape_b, dtype))
        rank = rows // fused.n_experts
        alpha = peft_config.alpha(source, fused.module, rank)
        parts = zip(fused.parts, fused.rows_to_ours(b), strict=True)
        return {name: LowRank(rank, alpha, a, rows_of.contiguous()) for name, rows_of in parts}
    return {}
