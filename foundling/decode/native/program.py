# SPDX-License-Identifier: Apache-2.0
"""Layers as a list of operations for program.cpp: projections fused and packed, in the order that they are run in."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.attention import Attend, Attention
from foundling.blocks.layer import Block, PostNormBlock
from foundling.blocks.mlp import MLP, GatedMLP, gelu_tanh
from foundling.blocks.norm import LayerNorm, RMSNorm
from foundling.blocks.position import Rotation
from foundling.contracts.cache import KV
from foundling.decode.native.build import load_library

Form = Literal["float32", "bfloat16", "int8", "int4"]
"""of the weights; int8 and int4 have a float16 scale for every 32 of them, as GGUF's Q8_0 and Q4_0, or for more"""
FORMS: tuple[str, ...] = get_args(Form)
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
    """A projection, or several side by side, as program.cpp reads it."""

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
    """`span`: how many times 32 inputs of an output share a scale, of int8."""
    assert span == 1 or form != "int4"
    weight = torch.cat([linear.weight.detach().float() for linear in linears]).contiguous()
    out, in_ = weight.shape
    panels, groups, number = -(-out // LANES), -(-in_ // GROUP), FORMS.index(form)
    scales = torch.zeros(panels * -(-groups // span) * LANES, dtype=torch.int16) if number >= 2 else None
    size = panels * LANES * {0: 4 * in_, 1: (in_ + 1) // 2 * 4, 2: groups * GROUP, 3: groups * GROUP // 2}[number]
    held = torch.zeros(size + 64, dtype=torch.uint8)
    to = held[-held.data_ptr() % 64 :][:size]
    load_library().foundling_pack(
        _int(number), _int(span), _int(out), _int(in_), _pointer(weight.data_ptr()), _pointer(to.data_ptr()),
        _pointer(None if scales is None else scales.data_ptr()),
    )  # fmt: skip
    bias = None
    if any(linear.bias is not None for linear in linears):
        bias = torch.zeros(panels * LANES)
        parts = [torch.zeros(m.out_features) if m.bias is None else m.bias.detach().float() for m in linears]
        bias[:out] = torch.cat(parts)
    return Packed(number, in_, out, to, scales, bias)


def unsupported_layers(layers: Iterable[nn.Module], kind: type[Block]) -> str | None:
    """What layers have that program.cpp has not, or None: plain attention and feed-forward, unchanged by adapters or
    quantisation, all of one shape."""
    layers = list(layers)
    if not layers:
        return "it has no layers"
    for index, layer in enumerate(layers):
        if type(layer) is not kind or type(layer.mixer) is not Attention or type(layer.mixer.attend) is not Attend:
            return f"layer {index} is not plain attention and feed-forward"
        mixer = layer.mixer
        if any(part is not None for part in (mixer.window, mixer.chunk, mixer.q_norm, mixer.attend.softcap)):
            return f"layer {index} has a window, chunks, norms or caps in its attention"
        if mixer.head_dim > WIDEST_HEAD:
            return f"its heads are wider than {WIDEST_HEAD}"
        activations = {GatedMLP: GATED, MLP: PLAIN}.get(type(layer.ffn))
        if activations is None or layer.ffn.activation not in activations:
            return f"layer {index} has another feed-forward part"
        for name, module in layer.named_modules():
            if type(module) not in (nn.Linear, nn.Dropout, RMSNorm, LayerNorm, Attend, kind, Attention, GatedMLP, MLP):
                return f"'{name}' of layer {index} is a {type(module).__name__}"
    if any(isinstance(m, RMSNorm) and m.offset for layer in layers for m in layer.modules()):
        return "its norms' gains are written less an offset"
    shapes = {tuple(m.weight.shape for m in layer.modules() if isinstance(m, nn.Linear)) for layer in layers}
    return "its layers differ in shape" if len(shapes) > 1 else None


def unsupported_modules(model: nn.Module) -> str | None:
    """The same of any model: where it is, and who watches it."""
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"'{name}' has hooks"
    elsewhere = {p.device.type for p in model.parameters()} - {"cpu"}
    return "it is not on a CPU" if elsewhere else None


class Program:
    """Layers, ready to run on up to `most_rows` tokens at once. Raises NativeUnavailable where there is no compiler."""

    def __init__(self, layers: Sequence[Any], form: Form, most_rows: int, *, causal: bool, span: int = 1) -> None:
        """`layers` are such as `unsupported_layers` finds nothing against; one that comes twice is packed once. Not
        `causal`: a token attends to all of its sequence, and keys are of one layer at a time. `span` as of `pack`."""
        native = load_library()
        native.foundling_team.restype = _pointer
        assert native.foundling_op_size() == ctypes.sizeof(Op) and native.foundling_rows_size() == ctypes.sizeof(Rows)
        self.native, self.form, self.most_rows, self.causal, self.span = native, form, most_rows, causal, span
        self.kept: list[Any] = []  # what the operations point to
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

    @torch.inference_mode(False)  # else nothing could be written to it outside of that mode
    def _buffer(self, width: int) -> Tensor:
        self.kept.append(torch.zeros(self.most_rows, width))
        return self.kept[-1]

    def _rounded(self, width: int) -> tuple[Tensor, Tensor]:
        """Where inputs of a width lie as integers, with each span's scale and sum; read before the next ones come."""
        if width not in self.rounded:
            groups, rows = -(-width // GROUP), self.most_rows
            self.rounded[width] = torch.zeros(rows, groups * GROUP, dtype=torch.int8), torch.zeros(rows, groups, 2)
        return self.rounded[width]

    def _layer(self, layer: Any, index: int) -> list[Op]:
        """From self.x to self.x; norms stand before each part, or behind it and what it is added to."""
        m, f, post = layer.mixer, layer.ffn, type(layer) is PostNormBlock
        read, gated = self.x if post else self.normed, type(f) is GatedMLP

        def normed(norm: Any, part: list[Op]) -> list[Op]:
            return [*part, self._norm(norm, self.x, read)] if post else [self._norm(norm, self.x, read), *part]

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
            *self._linear([m.q, m.k, m.v], self.form, read, self.mixed),
            attend,
            *self._linear([m.o], self.form, self.attended, self.x, residual=self.x),
        ]
        feeding = [
            *self._linear([f.gate, f.up] if gated else [f.up], self.form, read, self.wide),
            activate,
            *self._linear([f.down], self.form, self.inner, self.x, residual=self.x),
        ]
        return normed(layer.mixer_norm, mixing) + normed(layer.ffn_norm, feeding)

    def _norm(self, norm: Any, x: Tensor, y: Tensor) -> Op:
        weight = norm.weight.detach().float().clone()  # projections are copies too: what is packed stays as it is
        bias = norm.bias.detach().float().clone() if type(norm) is LayerNorm else None
        self.kept += [weight, bias]
        return Op(
            kind=NORM, form=int(bias is not None), in_=x.shape[1], out=x.shape[1], number=norm.eps, x=x.data_ptr(),
            y=y.data_ptr(), weight=weight.data_ptr(), bias=None if bias is None else bias.data_ptr(),
        )  # fmt: skip

    def _linear(
        self, linears: list[nn.Linear], form: str, x: Tensor, y: Tensor, residual: Tensor | None = None
    ) -> list[Op]:
        same = (form, *map(id, linears))
        packed = self.packs[same] if same in self.packs else pack(linears, form, self.span)
        self.packs[same] = packed
        parts = {"weight": packed.weight, "scales": packed.scales, "bias": packed.bias, "residual": residual}
        at = {name: None if t is None else t.data_ptr() for name, t in parts.items()}
        op = Op(
            kind=LINEAR, form=packed.form, in_=packed.in_features, out=packed.out_features, span=self.span,
            x=x.data_ptr(), y=y.data_ptr(), **at,
        )  # fmt: skip
        if packed.scales is None:
            return [op]
        op.xq, op.xs = (t.data_ptr() for t in self._rounded(packed.in_features))
        first = Op(
            kind=QUANTIZE, form=packed.form, in_=packed.in_features, span=self.span, x=x.data_ptr(), xq=op.xq, xs=op.xs
        )
        return [first, op]

    @property
    def weight_bytes(self) -> int:
        """Of the packed weights."""
        return sum(packed.bytes for packed in self.packs.values())

    def new_pages(self, layers: int, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys (layers, pages, K, P, 16) and values (layers, pages, K, 16, P). What no token was written to is not read
        for any, so that the system hands out what is used."""
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
        """self.x[:n] through the layers: tokens of some sequences, `counts` of each, in order; positions (n,) are their
        places, and tables (sequences, most) int32 the pages of each sequence's keys and values."""
        n = len(positions)
        assert n <= self.most_rows and tables.dtype == torch.int32 and tables.is_contiguous()
        places = positions.to(torch.int32)
        cos, sin = (None, None) if rotation is None else (t.reshape(n, -1).contiguous() for t in rotation)
        longest = (int(places.max()) // LANES + 1) * LANES
        scores = torch.empty(self.threads, NEIGHBOURS, longest)
        groups, first = list[int](), 0
        for table, count in enumerate(counts):
            for row in range(first, first + count, NEIGHBOURS):
                groups += (row, min(NEIGHBOURS, first + count - row), table, count)
            first += count
        by_sequence = torch.tensor(groups, dtype=torch.int32)
        rows = Rows(
            count=n, page_stride=tables.shape[1], tables=tables.data_ptr(), positions=places.data_ptr(),
            cosine=None if cos is None else cos.data_ptr(), sine=None if sin is None else sin.data_ptr(),
            keys=keys.data_ptr(), values=values.data_ptr(), pages=keys.shape[1],
            kv_bf16=int(keys.dtype == torch.bfloat16), scores=scores.data_ptr(), longest=longest,
            n_groups=len(groups) // 4, groups=by_sequence.data_ptr(),
        )  # fmt: skip
        self.native.foundling_run(self.team, self.body, _int(len(self.body)), ctypes.byref(rows))
