# SPDX-License-Identifier: Apache-2.0
"""Weights that were read from a GGUF file's blocks are packed as they were stored: packing rounds nothing again."""

import ctypes
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor, nn

from foundling.decode.native.build import load_library
from foundling.decode.native.decoder import DecoderProgram
from foundling.decode.native.program import FORMS, WITH_MINIMUM, Op, Rows, find_blocks, pack
from foundling.weights.convert import gguf as convert
from tests.contract.cases import case

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
OUT, IN = 40, 96
INT8, INT4 = FORMS.index("int8"), FORMS.index("int4")


def weights() -> Tensor:
    """Rows of usual weights, and groups of zeros, of one number, of two, of a large offset, of tiny numbers."""
    torch.manual_seed(5)
    weight = torch.randn(OUT, IN) * 0.05
    weight[3, :32] = 0
    weight[4] = 0.0371
    weight[5, :32] = torch.where(torch.rand(32) > 0.5, 0.3, 0.1)
    weight[6] = 3 + weight[6] * 0.01
    weight[7] *= 1e-4
    return weight


def dequantised(weight: Tensor, kind: str) -> Tensor:
    number = gguf.GGMLQuantizationType[kind]
    return torch.tensor(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), number), number))


def linear(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    made.weight = nn.Parameter(weight)
    return made


def product(linears: list[nn.Linear], form: Any) -> Tensor:
    """(in, out): what native code makes of the unit vectors, which 8 bits hold, so each is a row of the weights."""
    width = linears[0].in_features
    program = DecoderProgram(case("llama").tiny(), form, width)
    x, y = torch.eye(width), torch.full((width, sum(m.out_features for m in linears)), torch.nan)
    ops = program._linear(linears, form, x, y)
    table, rows = (Op * len(ops))(*ops), Rows(count=width)
    program.native.foundling_run(program.team, table, ctypes.c_int32(len(ops)), ctypes.byref(rows))
    return y


def equal(packed: Tensor, stored: Tensor) -> None:
    """Within the rounding of float32 at the size of each row."""
    size = stored.abs().amax(1, keepdim=True)
    assert bool(((packed - stored).abs() <= 4e-7 * size).all()), float(((packed - stored).abs() / size).max())


@pytest.mark.parametrize(
    ("kind", "form", "packed_as"),
    [("Q4_0", "int4", INT4), ("Q4_1", "int4", WITH_MINIMUM), ("Q8_0", "int8", INT8)],
)
def test_stored_weights_are_the_packed_ones(kind: str, form: str, packed_as: int) -> None:
    stored = linear(dequantised(weights(), kind))
    assert pack([stored], form).form == packed_as
    equal(product([stored], form).T, stored.weight.detach())


def test_blocks_that_leave_their_ends_unused() -> None:
    """As those of a file that was quantised by importance: neither q = 0 nor q = 15 occurs, nor -8 · scale."""
    torch.manual_seed(6)
    scale = (torch.rand(OUT, 3, 1) * 0.01 + 1e-3).half().float()
    for minimum in (-8 * scale, (torch.randn(OUT, 3, 1) * 0.05).half().float()):
        stored = linear((torch.randint(2, 13, (OUT, 3, 32)) * scale + minimum).flatten(1))
        assert pack([stored], "int4").form == WITH_MINIMUM
        equal(product([stored], "int4").T, stored.weight.detach())


def test_what_lies_on_no_grid_is_rounded_as_before() -> None:
    stored = linear(weights())
    assert pack([stored], "int4").form == INT4
    packed = product([stored], "int4").T
    torch.testing.assert_close(packed, dequantised(weights(), "Q4_0"), rtol=0, atol=1e-2)
    assert not torch.allclose(packed, stored.weight.detach(), atol=1e-3)


def test_a_minimum_beyond_float16_is_no_block() -> None:
    """No file has such a block; 8 · scale still holds the weights."""
    torch.manual_seed(7)
    stored = linear(torch.randint(0, 16, (OUT, IN)) * 1e4 + 7e4)
    assert pack([stored], "int4").form == INT4
    assert bool(((product([stored], "int4").T - stored.weight.detach()).abs() <= 22e4 / 8).all())


def test_one_projection_of_a_fused_one_may_lie_on_a_grid() -> None:
    """As of a file that stores the values in more bits: they get the minima of their ranges, the others stay exact."""
    stored, other = linear(dequantised(weights(), "Q4_1")), linear(weights().flip(0) * 2)
    assert pack([stored, other], "int4").form == WITH_MINIMUM
    packed = product([stored, other], "int4").T
    equal(packed[:OUT], stored.weight.detach())
    low, high = other.weight.detach().unflatten(1, (-1, 32)).aminmax(dim=2)
    step, size = ((end / 15).repeat_interleave(32, 1) for end in (high - low, high.abs().maximum(low.abs())))
    assert bool(((packed[OUT:] - other.weight.detach()).abs() <= 0.5 * step + 0.01 * size).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_grid_is_found_where_the_import_rounded_it(dtype: torch.dtype) -> None:
    """`foundling import --dtype bfloat16`: no worse than that rounding."""
    stored = linear(dequantised(weights(), "Q4_1").to(dtype))
    assert pack([stored], "int4").form == WITH_MINIMUM
    torch.testing.assert_close(product([stored], "int4").T, stored.weight.detach().float(), rtol=0, atol=2**-7 * 0.3)


def test_a_grid_is_found_in_every_group_that_bfloat16_rounded() -> None:
    """One group that is not found would cost a whole matrix its minima. 22 seeds of 10,000 groups."""
    parts = []
    for seed in range(22):
        made = torch.randn(1250, 256, generator=torch.Generator().manual_seed(seed))
        parts.append(dequantised(made * 0.05 + (seed % 3) * 0.02, "Q4_1"))
    exact = torch.cat(parts)
    stored = linear(exact.bfloat16())
    blocks = find_blocks([stored])
    assert blocks is not None
    scale, minimum = blocks.view(torch.float16).float().unbind(-1)
    groups, size = exact.unflatten(1, (-1, 32)), exact.unflatten(1, (-1, 32)).abs().amax(2, keepdim=True)
    by = torch.where(scale != 0, 1 / scale, 0).unsqueeze(-1)
    q = ((groups - minimum.unsqueeze(-1)) * by).round().clamp(0, 15)
    error = (minimum.unsqueeze(-1) + scale.unsqueeze(-1) * q - groups).abs() / size
    assert float(error.max()) <= 2**-7


def test_normal_weights_are_never_taken_for_a_grid() -> None:
    """By chance 32 numbers lie within an eighth of a step of a grid once in 10^17 groups."""
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.randn(20_000, 320, generator=torch.Generator().manual_seed(3)).to(dtype).float() * 0.05
        blocks = torch.zeros(20_000, 10, 2, dtype=torch.int16)
        native = load_library()
        native.foundling_find_blocks.restype = ctypes.c_int64
        pointers = (ctypes.c_void_p(weight.data_ptr()), ctypes.c_void_p(blocks.data_ptr()))
        # forced, it goes on after a group that is no grid, and counts those that are
        assert native.foundling_find_blocks(20_000, 320, 1, *pointers) == 0


@pytest.mark.parametrize(("kind", "form"), [("Q4_0", INT4), ("Q4_1", WITH_MINIMUM)])
def test_a_file_of_4_bits_is_run_as_it_was_stored(tmp_path: Path, monkeypatch, kind: str, form: int) -> None:
    """Whatever the import reorders and native code fuses; the head is Q8_0."""
    monkeypatch.setitem(convert.TYPES, "int4", kind)
    model = case("llama").tiny(d_model=96, n_heads=3, n_kv_heads=3, d_ff=192)
    model = convert.load_gguf(convert.save_gguf(model, tmp_path / "m.gguf", weights="int4"))
    program = DecoderProgram(model, "int4", 2)
    assert {packed.form for packed in program.packs.values()} == {form, INT8}
    projections: list[list[nn.Linear]] = [[model.head]]
    for layer in model.layers:
        m, f = layer.mixer, layer.ffn
        projections += [[m.q, m.k, m.v], [m.o], [f.gate, f.up], [f.down]]
    for linears in projections:
        stored = torch.cat([part.weight.detach() for part in linears])
        equal(product(linears, "int8" if linears == [model.head] else "int4").T, stored)
