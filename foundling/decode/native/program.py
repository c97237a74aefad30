# SPDX-License-Identifier: Apache-2.0
"""Compiles layers to a list of operations for program.cpp: projections fused and packed, in execution order."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.adapt.added import added
from foundling.blocks.attention import Attend, Attention
from foundling.blocks.layer import Block, PostNormBlock
from foundling.blocks.mlp import MLP, GatedMLP, gelu_tanh
from foundling.blocks.norm import LayerNorm, RMSNorm
from foundling.blocks.position import Rotation
from foundling.contracts.cache import KV
from foundling.decode.native.build import load_library

Form = Literal["float32", "bfloat16", "int8", "int4"]
"""Type of the weights. int8 and int4 have one float16 scale per group of 32 weights (GGUF's Q8_0 and Q4_0) or more."""
FORMS: tuple[str, ...] = get_args(Form)
WITH_MINIMUM = len(FORMS)
"""int4 with a minimum in each group as well (GGUF's Q4_1)"""
LANES, GROUP, WIDEST_HEAD, NEIGHBOURS = 16, 32, 512, 4
NORM, LINEAR, ATTEND, ACTIVATE, QUANTIZE = range(5)
GATED = {F.silu: 0, gelu_tanh: 2, F.gelu: 5}
PLAIN = {gelu_tanh: 1, F.relu: 3, F.gelu: 4}

_int, _float, _pointer = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


class Op(ctypes.Structure):
    """As in program.cpp."""

    _fields_ = [(name, _int) for name in ("kind", "form", "in_", "out", "heads", "kv_heads", "head_dim", "layer")]
    _fields_ += [("number", _float), ("span", _int)]
    _fields_ += [(name, _pointer) for name in ("x", "y", "residual", "weight", "scales", "bias", "xq", "xs")]


class Rows(ctypes.Structure):
    """As in program.cpp."""

    _fields_ = [("count", _int), ("page_stride", _int)]
    _fields_ += [(name, _pointer) for name in ("tables", "positions", "cosine", "sine", "keys", "values")]
    _fields_ += [("pages", _int), ("kv_bf16", _int), ("scores", _pointer)]
    _fields_ += [("longest", _int), ("n_groups", _int), ("groups", _pointer)]


class Packed(NamedTuple):
    """One projection, or several concatenated, in the layout of program.cpp."""

    form: int
    in_features: int
    out_features: int
    weight: Tensor
    scales: Tensor | None
    bias: Tensor | None

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.weight, self.scales, self.bias) if t is not None)


def pack(linears: Sequence[nn.Linear], form: str, span: int = 1) -> Packed:
    """Packs the concatenated weights. `span`: how many groups of 32 inputs share one scale (int8 only).

    int4 weights that lie on a grid of at most 16 numbers in each group, as those read from a GGUF file of 4-bit blocks
    do, are packed as they are, with a minimum in each group where the blocks need one (Q4_1)."""
    assert span == 1 or form != "int4"
    weight = torch.cat([linear.weight.detach().float() for linear in linears]).contiguous()
    out, in_ = weight.shape
    panels, groups, number = -(-out // LANES), -(-in_ // GROUP), FORMS.index(form)
    scales = torch.zeros(panels * -(-groups // span) * LANES, dtype=torch.int16) if number >= 2 else None
    if form == "int4" and (blocks := find_blocks(linears)) is not None:
        number, padded = WITH_MINIMUM, F.pad(blocks, (0, 0, 0, 0, 0, panels * LANES - out))
        scales = padded.view(panels, LANES, groups, 2).permute(0, 2, 3, 1).contiguous()
    n_bytes = {0: 4 * in_, 1: (in_ + 1) // 2 * 4, 2: groups * GROUP, 3: groups * GROUP // 2, 4: groups * GROUP // 2}
    size = panels * LANES * n_bytes[number]
    storage = torch.zeros(size + 64, dtype=torch.uint8)
    packed = storage[-storage.data_ptr() % 64 :][:size]
    load_library().foundling_pack(
        _int(number), _int(span), _int(out), _int(in_), _pointer(weight.data_ptr()), _pointer(packed.data_ptr()),
        _pointer(None if scales is None else scales.data_ptr()),
    )  # fmt: skip
    bias = None
    if any(linear.bias is not None for linear in linears):
        bias = torch.zeros(panels * LANES)
        parts = [torch.zeros(m.out_features) if m.bias is None else m.bias.detach().float() for m in linears]
        bias[:out] = torch.cat(parts)
    return Packed(number, in_, out, packed, scales, bias)


def find_blocks(linears: Sequence[nn.Linear]) -> Tensor | None:
    """The scale and minimum (out, groups, 2) of every group, float16 in an int16, of concatenated weights of which some
    lie on a grid that needs minima; None where -8 · scale serves as the minimum of all that do. A projection that is on
    no grid, beside one that is, gets those of its ranges."""
    native = load_library()
    native.foundling_find_blocks.restype = ctypes.c_int64
    if any(linear.in_features % GROUP for linear in linears):
        return None  # no file of blocks has this width

    def found(linear: nn.Linear, force: bool) -> tuple[int, Tensor]:
        weight = linear.weight.detach().float().contiguous()
        blocks = torch.zeros(linear.out_features, linear.in_features // GROUP, 2, dtype=torch.int16)
        number = native.foundling_find_blocks(
            _int(linear.out_features), _int(linear.in_features), _int(force), _pointer(weight.data_ptr()),
            _pointer(blocks.data_ptr()),
        )  # fmt: skip
        return number, blocks

    parts = [found(linear, force=False) for linear in linears]
    if all(number <= 0 for number, _ in parts):
        return None
    return torch.cat([
        blocks if number >= 0 else found(linear, force=True)[1]
        for linear, (number, blocks) in zip(linears, parts, strict=True)
    ])  # fmt: skip


def unsupported_layers(layers: Iterable[nn.Module], kind: type[Block]) -> str | None:
    """Why program.cpp cannot run these layers, or None if it can. It needs plain attention and feed-forward layers of
    one shape, without adapters or quantisation."""
    layers = list(layers)
    if not layers:
        return "it has no layers"
    for index, layer in enumerate(layers):
        if adapters := added(layer):
            name, adapter = next(iter(adapters.items()))
            return f"'{name}' of layer {index} is an adapter ({type(adapter).__name__}); use torch, or merge it first"
        if type(layer) is not kind or type(layer.mixer) is not Attention or type(layer.mixer.attend) is not Attend:
            kinds = [type(part).__name__ for name, part in layer.named_children() if name in ("mixer", "ffn")]
            return f"layer {index} ({' and '.join(kinds)}) is not plain attention and feed-forward"
        mixer = layer.mixer
        if any(part is not None for part in (mixer.window, mixer.chunk, mixer.q_norm, mixer.attend.softcap)):
            return f"layer {index} uses a window, chunks, norms or a soft-cap in its attention"
        if mixer.head_dim > WIDEST_HEAD:
            return f"its heads are wider than {WIDEST_HEAD}"
        activations = {GatedMLP: GATED, MLP: PLAIN}.get(type(layer.ffn))
        if activations is None or layer.ffn.activation not in activations:
            return f"layer {index} has an unsupported feed-forward layer"
        for name, module in layer.named_modules():
            if type(module) not in (nn.Linear, nn.Dropout, RMSNorm, LayerNorm, Attend, kind, Attention, GatedMLP, MLP):
                return f"'{name}' of layer {index} is a {type(module).__name__}"
    if any(isinstance(m, RMSNorm) and m.offset for layer in layers for m in layer.modules()):
        return "its norms add an offset to their weights"
    shapes = {tuple(m.weight.shape for m in layer.modules() if isinstance(m, nn.Linear)) for layer in layers}
    return "its layers differ in shape" if len(shapes) > 1 else None


def unsupported_modules(model: nn.Module) -> str | None:
    """Why native code cannot run any part of this model, or None: it needs a CPU and no hooks."""
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"'{name}' has hooks"
    other_devices = {p.device.type for p in model.parameters()} - {"cpu"}
    return "it is not on a CPU" if other_devices else None


class Program:
    """Packed layers that run on up to `max_tokens` tokens per call. Raises NativeUnavailable without a compiler."""

    def __init__(self, layers: Sequence[Any], form: Form, max_tokens: int, *, causal: bool, span: int = 1) -> None:
        """`layers` must pass `unsupported_layers`; a repeated layer is packed once. If not `causal`, a token attends to
        its whole sequence, and the pages hold one layer at a time. `span`: see `pack`."""
        native = load_library()
        native.foundling_team.restype = _pointer
        assert native.foundling_op_size() == ctypes.sizeof(Op) and native.foundling_rows_size() == ctypes.sizeof(Rows)
        self.native, self.form, self.max_tokens, self.causal, self.span = native, form, max_tokens, causal, span
        self.buffers: list[Any] = []  # keeps alive what the operations point to
        self.rounded: dict[int, tuple[Tensor, Tensor]] = {}
        self.packs: dict[tuple[str | int, ...], Packed] = {}
        m, f = layers[0].mixer, layers[0].ffn
        self.slot = KV(m.n_kv_heads, m.head_dim)
        self.x, self.normed = self._buffer(m.q.in_features), self._buffer(m.q.in_features)
        self.mixed = self._buffer(sum(part.out_features for part in (m.q, m.k, m.v)))
        self.attended, self.inner = self._buffer(m.o.in_features), self._buffer(f.down.in_features)
        self.wide = self._buffer(f.up.out_features * (2 if type(f) is GatedMLP else 1))
        ops = [op for index, layer in enumerate(layers) for op in self._layer(layer, index if causal else 0)]
        self.body = (Op * len(ops))(*ops)
        self.threads = torch.get_num_threads()
        self.team = _pointer(native.foundling_team(_int(self.threads)))
        weakref.finalize(self, native.foundling_disband, self.team)

    @torch.inference_mode(False)  # an inference tensor could not be written outside inference mode
    def _buffer(self, width: int) -> Tensor:
        self.buffers.append(torch.zeros(self.max_tokens, width))
        return self.buffers[-1]

    def _rounded(self, width: int) -> tuple[Tensor, Tensor]:
        """Scratch space for int8 inputs of this width and the scale and sum of each span, overwritten by each use."""
        if width not in self.rounded:
            groups, rows = -(-width // GROUP), self.max_tokens
            self.rounded[width] = torch.zeros(rows, groups * GROUP, dtype=torch.int8), torch.zeros(rows, groups, 2)
        return self.rounded[width]

    def _layer(self, layer: Any, index: int) -> list[Op]:
        """The operations of one layer, from self.x to self.x, with pre-norm or post-norm."""
        m, f, post = layer.mixer, layer.ffn, type(layer) is PostNormBlock
        source, gated = self.x if post else self.normed, type(f) is GatedMLP

        def normed(norm: Any, part: list[Op]) -> list[Op]:
            return [*part, self._norm(norm, self.x, source)] if post else [self._norm(norm, self.x, source), *part]

        scale = m.head_dim**-0.5 if m.attend.scale is None else m.attend.scale
        attend = Op(
            kind=ATTEND, form=int(not self.causal), in_=self.mixed.shape[1], out=self.attended.shape[1],
            heads=m.n_heads, kv_heads=m.n_kv_heads, head_dim=m.head_dim, layer=index, number=scale,
            x=self.mixed.data_ptr(), y=self.attended.data_ptr(),
        )  # fmt: skip
        activate = Op(
            kind=ACTIVATE, form=(GATED if gated else PLAIN)[f.activation], in_=self.wide.shape[1],
            out=self.inner.shape[1], x=self.wide.data_ptr(), y=self.inner.data_ptr(),
        )  # fmt: skip
        mixing = [
            *self._linear([m.q, m.k, m.v], self.form, source, self.mixed),
            attend,
            *self._linear([m.o], self.form, self.attended, self.x, residual=self.x),
        ]
        feeding = [
            *self._linear([f.gate, f.up] if gated else [f.up], self.form, source, self.wide),
            activate,
            *self._linear([f.down], self.form, self.inner, self.x, residual=self.x),
        ]
        return normed(layer.mixer_norm, mixing) + normed(layer.ffn_norm, feeding)

    def _norm(self, norm: Any, x: Tensor, y: Tensor) -> Op:
        weight = norm.weight.detach().float().clone()  # a copy, as packed projections are: later changes have no effect
        bias = norm.bias.detach().float().clone() if type(norm) is LayerNorm else None
        self.buffers += [weight, bias]
        return Op(
            kind=NORM, form=int(bias is not None), in_=x.shape[1], out=x.shape[1], number=norm.eps, x=x.data_ptr(),
            y=y.data_ptr(), weight=weight.data_ptr(), bias=None if bias is None else bias.data_ptr(),
        )  # fmt: skip

    def _linear(
        self, linears: list[nn.Linear], form: str, x: Tensor, y: Tensor, residual: Tensor | None = None
    ) -> list[Op]:
        key = (form, *map(id, linears))
        packed = self.packs[key] if key in self.packs else pack(linears, form, self.span)
        self.packs[key] = packed
        parts = {"weight": packed.weight, "scales": packed.scales, "bias": packed.bias, "residual": residual}
        pointers = {name: None if t is None else t.data_ptr() for name, t in parts.items()}
        op = Op(
            kind=LINEAR, form=packed.form, in_=packed.in_features, out=packed.out_features, span=self.span,
            x=x.data_ptr(), y=y.data_ptr(), **pointers,
        )  # fmt: skip
        if packed.scales is None:
            return [op]
        op.xq, op.xs = (t.data_ptr() for t in self._rounded(packed.in_features))
        quantize = Op(
            kind=QUANTIZE, form=packed.form, in_=packed.in_features, span=self.span, x=x.data_ptr(), xq=op.xq, xs=op.xs
        )
        return [quantize, op]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return sum(packed.bytes for packed in self.packs.values())

    def new_pages(self, layers: int, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys (layers, pages, K, P, 16) and values (layers, pages, K, 16, P). Uninitialised: slots without a token are
        never read, so the system allocates only the pages in use."""
        kv, p = self.slot
        number = layers * count * kv * p * LANES
        keys, values = torch.empty(number, dtype=dtype), torch.empty(number + LANES, dtype=dtype)
        shape = (layers, count, kv)
        return keys.view(*shape, p, LANES), values[:number].view(*shape, LANES, p)

    def run(
        self,
        positions: Tensor,
        counts: Sequence[int],
        tables: Tensor,
        keys: Tensor,
        values: Tensor,
        rotation: Rotation | None = None,
    ) -> None:
        """Runs self.x[:n] through the layers, in place.

        The rows are the tokens of several sequences, `counts` of each, in order. positions (n,): their positions in the
        sequences; tables (sequences, max pages) int32: the pages of each sequence's keys and values."""
        n = len(positions)
        assert n <= self.max_tokens and tables.dtype == torch.int32 and tables.is_contiguous()
        positions_int32 = positions.to(torch.int32)
        cos, sin = (None, None) if rotation is None else (t.reshape(n, -1).contiguous() for t in rotation)
        longest = (int(positions_int32.max()) // LANES + 1) * LANES
        scores = torch.empty(self.threads, NEIGHBOURS, longest)
        groups, first = list[int](), 0
        for table, count in enumerate(counts):
            for row in range(first, first + count, NEIGHBOURS):
                groups += (row, min(NEIGHBOURS, first + count - row), table, count)
            first += count
        by_sequence = torch.tensor(groups, dtype=torch.int32)
        rows = Rows(
            count=n, page_stride=tables.shape[1], tables=tables.data_ptr(), positions=positions_int32.data_ptr(),
            cosine=None if cos is None else cos.data_ptr(), sine=None if sin is None else sin.data_ptr(),
            keys=keys.data_ptr(), values=values.data_ptr(), pages=keys.shape[1],
            kv_bf16=int(keys.dtype == torch.bfloat16), scores=scores.data_ptr(), longest=longest,
            n_groups=len(groups) // 4, groups=by_sequence.data_ptr(),
        )  # fmt: skip
        self.native.foundling_run(self.team, self.body, _int(len(self.body)), ctypes.byref(rows))
