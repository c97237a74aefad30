# SPDX-License-Identifier: Apache-2.0
"""MXFP4 (Open Compute Project 2023, Microscaling Formats, section 5): blocks of 32 numbers of four bits, a sign, two
bits of exponent and one of fraction (E2M1), with one power of two a block (E8M0). bfloat16 holds every product.

GPT-OSS publishes its experts so: NAME_blocks (E, out, in / 32, 16) and NAME_scales (E, out, in / 32), two numbers a
byte, the first in its lower half, for what is NAME (E, in, out) without quantisation."""

from __future__ import annotations

import torch
from torch import Tensor

from foundling.errors import WeightsError
from foundling.weights.tensors import FLOATS, Tensors

MXFP4 = "mxfp4"
BLOCKS, SCALES = "_blocks", "_scales"
BYTES_PER_BLOCK, EXPONENT_BIAS, NOT_A_NUMBER = 16, 127, 255
_POSITIVE = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
NUMBERS = torch.cat((_POSITIVE, -_POSITIVE))
"""(16,) what four bits stand for"""


def dequantised(blocks: Tensor, scales: Tensor) -> Tensor:
    """blocks (…, G, 16) and scales (…, G), uint8 -> (…, 32 G) float32"""
    halves = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2)
    return torch.ldexp(NUMBERS.to(blocks.device)[halves.int()], (scales.int() - EXPONENT_BIAS)[..., None]).flatten(-2)


class MXFP4Tensors(Tensors):
    """The tensors of a directory, each pair of NAME_blocks and NAME_scales as NAME, in bfloat16."""

    def __init__(self, tensors: Tensors) -> None:
        packed = [name.removesuffix(BLOCKS) for name in tensors if name.endswith(BLOCKS)]
        self.packed = {name for name in packed if name + SCALES in tensors}
        for name in self.packed:
            if name in tensors:
                raise WeightsError(f"{tensors.path}: has both '{name}' and '{name + BLOCKS}'; remove one")
        self.pairs = tensors
        whole = {key: file for key, file in tensors.files.items() if _stem(key) not in self.packed}
        super().__init__(whole | {name: tensors.files[name + BLOCKS] for name in self.packed}, tensors.path)

    def dtype(self, name: str) -> str:
        return MXFP4.upper() if name in self.packed else super().dtype(name)

    def shape(self, name: str, dtypes: tuple[str, ...] = FLOATS) -> tuple[int, ...]:
        if name not in self.packed:
            return super().shape(name, dtypes)
        blocks, scales = (self.pairs.shape(name + part, ("U8",)) for part in (BLOCKS, SCALES))
        if len(blocks) != 4 or blocks[-1] != BYTES_PER_BLOCK or scales != blocks[:-1]:
            raise WeightsError(
                f"{self.path}: '{name + BLOCKS}' is {list(blocks)} and '{name + SCALES}' {list(scales)}, expected [E, "
                f"out, in / 32, {BYTES_PER_BLOCK}] and the same without its end"
            )
        return blocks[0], 2 * BYTES_PER_BLOCK * blocks[2], blocks[1]

    def read(self, name: str) -> Tensor:
        """WeightsError for a scale that is not a number or makes one infinite."""
        if name not in self.packed:
            return super().read(name)
        n_experts, width, rows = self.shape(name)
        blocks, scales = (self.pairs.read(name + part) for part in (BLOCKS, SCALES))
        out = torch.empty(n_experts, rows, width, dtype=torch.bfloat16, device=blocks.device)
        for expert in range(n_experts):  # one by one: their floats take eight times their bytes
            numbers = dequantised(blocks[expert], scales[expert])
            if bool((scales[expert] == NOT_A_NUMBER).any()) or not bool(numbers.isfinite().all()):
                raise WeightsError(f"{self.path}: '{name + SCALES}' holds scales that are no finite numbers")
            out[expert] = numbers
        return out.mT


def _stem(name: str) -> str:
    return name.removesuffix(BLOCKS).removesuffix(SCALES)
