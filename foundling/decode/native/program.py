# SPDX-License-Identifier: Apache-2.0
"""A model as a list of operations for program.cpp: its projections fused and packed, its layers laid in order."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.attention import Attend, Attention
from foundling.blocks.mlp import MLP, GatedMLP, gelu_tanh
from foundling.blocks.norm import LayerNorm, RMSNorm
from foundling.blocks.stack import Block, Decoder
from foundling.contracts import KV
from foundling.decode.native.build import Unavailable, library

Form = Literal["float32", "bfloat16", "int8", "int4"]
"""of the weights; int8 and int4 have a float16 scale for every 32 of them, as GGUF's Q8_0 and Q4_0"""
FORMS: tuple[str, ...] = get_args(Form)
LANES, GROUP, WIDEST_HEAD, NEIGHBOURS = 16, 32, 512, 4
NORM, LINEAR, ATTEND, ACTIVATE, QUANTIZE = range(5)
GATED = {F.silu: 0, gelu_tanh: 2, F.gelu: 5}
PLAIN = {gelu_tanh: 1, F.relu: 3, F.gelu: 4}

_int, _float, _pointer = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


class Op(ctypes.Structure):
    """As in program.cpp."""

    _fields_ = [(name, _int) for name in ("kind", "form", "in_", "out", "heads", "kv_heads", "head_dim", "layer")]
    _fields_ += [("number", _float), ("unused", _float)]
    _fields_ += [(name, _pointer) for name in ("x", "y", "residual", "weight", "scales", "bias", "xq", "xs")]


class Rows(ctypes.Structure):
    """As in program.cpp."""

    _fields_ = [("count", _int), ("page_stride", _int)]
    _fields_ += [(name, _pointer) for name in ("tables", "positions", "cosine", "sine", "keys", "values")]
    _fields_ += [("pages", _int), ("kv_bf16", _int), ("scores", _pointer)]
    _fields_ += [("longest", _int), ("n_groups", _int), ("groups", _pointer)]


def why_not(model: Any) -> str | None:
    """What a model has that program.cpp has not, or None: a decoder of pre-norm attention and feed-forward layers on a
    CPU, unchanged by hooks, adapters or quantisation."""
    if not isinstance(model, Decoder) or any(
        getattr(type(model), name) is not getattr(Decoder, name)
        for name in ("forward", "read", "turns", "logits", "embed")
    ):
        return f"{type(model).__name__} does not read as a stack of pre-norm layers"
    if model.embedding.weight.device.type != "cpu":
        return "it is not on a CPU"
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"'{name}' has hooks"
    for index, layer in enumerate(model.layers):
        if type(layer) is not Block or type(layer.mixer) is not Attention or type(layer.mixer.attend) is not Attend:
            return f"layer {index} is not plain attention and feed-forward"
        mixer = layer.mixer
        if any(part is not None for part in (mixer.window, mixer.chunk, mixer.q_norm, mixer.attend.softcap)):
            return f"layer {index} has a window, chunks, norms or caps in its attention"
        if mixer.head_dim > WIDEST_HEAD:
            return f"its heads are wider than {WIDEST_HEAD}"
        activations = {GatedMLP: GATED, MLP: PLAIN}.get(type(layer.ffn))
        if activations is None or layer.ffn.activation not in activations:
            return f"layer {index} has another feed-forward part"
    known = (nn.Linear, RMSNorm, LayerNorm, Attend, Block, Attention, GatedMLP, MLP)
    for name, module in [*model.layers.named_modules(), ("norm", model.norm), ("head", model.head)]:
        if name and type(module) not in known:
            return f"'{name}' is a {type(module).__name__}"
    if any(isinstance(m, RMSNorm) and m.offset for m in model.modules()):
        return "its norms' gains are written less an offset"
    shapes = {tuple(m.weight.shape for m in layer.modules() if isinstance(m, nn.Linear)) for layer in model.layers}
    if len(shapes) > 1:
        return "its layers differ in shape"
    return None


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


def pack(linears: Sequence[nn.Linear], form: str) -> Packed:
    weight = torch.cat([linear.weight.detach().float() for linear in linears]).contiguous()
    out, in_ = weight.shape
    panels, groups, number = -(-out // LANES), -(-in_ // GROUP), FORMS.index(form)
    scales = torch.zeros(panels * groups * LANES, dtype=torch.int16) if number >= 2 else None
    size = panels * LANES * {0: 4 * in_, 1: (in_ + 1) // 2 * 4, 2: groups * GROUP, 3: groups * GROUP // 2}[number]
    held = torch.zeros(size + 64, dtype=torch.uint8)
    to = held[-held.data_ptr() % 64 :][:size]
    library().foundling_pack(
        _int(number), _int(out), _int(in_), _pointer(weight.data_ptr()), _pointer(to.data_ptr()),
        _pointer(None if scales is None else scales.data_ptr()),
    )  # fmt: skip
    bias = None
    if any(linear.bias is not None for linear in linears):
        bias = torch.zeros(panels * LANES)
        parts = [torch.zeros(m.out_features) if m.bias is None else m.bias.detach().float() for m in linears]
        bias[:out] = torch.cat(parts)
    return Packed(number, in_, out, to, scales, bias)


class Program:
    """A model's layers and head, ready to run on up to `most_rows` tokens at once.

    Raises Unavailable where there is no compiler, or for a model that `why_not` names.
    """

    def __init__(self, model: Any, form: Form, most_rows: int) -> None:
        reason = why_not(model)
        if reason:
            raise Unavailable(reason)
        native = library()
        native.foundling_team.restype = _pointer
        assert native.foundling_op_size() == ctypes.sizeof(Op) and native.foundling_rows_size() == ctypes.sizeof(Rows)
        self.model, self.form, self.most_rows = model, form, most_rows
        self.kept: list[Any] = []  # what the operations point to
        self.rounded: dict[int, tuple[Tensor, Tensor]] = {}
        c, first = model.config, model.layers[0].mixer
        self.slot = KV(first.n_kv_heads, first.head_dim)
        self.n_layers = len(model.layers)
        x, normed = self._buffer(c.d_model), self._buffer(c.d_model)
        mixed = self._buffer(sum(m.out_features for m in (first.q, first.k, first.v)))
        attended, ffn = self._buffer(first.o.in_features), model.layers[0].ffn
        wide = self._buffer(ffn.up.out_features * (2 if type(ffn) is GatedMLP else 1))
        inner = self._buffer(ffn.down.in_features)
        self.x, ops = x, list[Op]()
        for index, layer in enumerate(model.layers):
            m, f = layer.mixer, layer.ffn
            gated = type(f) is GatedMLP
            qkv = pack([m.q, m.k, m.v], form)
            up = pack([f.gate, f.up] if gated else [f.up], form)
            ops += [self._norm(layer.mixer_norm, x, normed), *self._linear(qkv, normed, mixed)]
            ops.append(self._attend(m, index, mixed, attended))
            ops += self._linear(pack([m.o], form), attended, x, residual=x)
            ops += [self._norm(layer.ffn_norm, x, normed), *self._linear(up, normed, wide)]
            ops.append(
                Op(kind=ACTIVATE, form=(GATED if gated else PLAIN)[f.activation], in_=up.out_features,
                   out=f.down.in_features, x=wide.data_ptr(), y=inner.data_ptr())
            )  # fmt: skip
            ops += self._linear(pack([f.down], form), inner, x, residual=x)
        # the head's input is rounded least: the last layer decides what is said
        self.head_form = "int8" if form == "int4" else form
        self.last, self.said = self._buffer(c.d_model), self._buffer(c.vocab_size)
        head = [
            self._norm(model.norm, self.last, normed),
            *self._linear(pack([model.head], self.head_form), normed, self.said),
        ]
        self.body, self.head = (Op * len(ops))(*ops), (Op * len(head))(*head)
        self.threads = torch.get_num_threads()
        self.team = _pointer(native.foundling_team(_int(self.threads)))
        weakref.finalize(self, native.foundling_disband, self.team)
        self.native = native

    def _buffer(self, width: int) -> Tensor:
        self.kept.append(torch.zeros(self.most_rows, width))
        return self.kept[-1]

    def _rounded(self, width: int) -> tuple[Tensor, Tensor]:
        """Where inputs of a width lie as integers, with each group's scale and sum; read before the next ones come."""
        if width not in self.rounded:
            groups, rows = -(-width // GROUP), self.most_rows
            self.rounded[width] = torch.zeros(rows, groups * GROUP, dtype=torch.int8), torch.zeros(rows, groups, 2)
        return self.rounded[width]

    def _norm(self, norm: Any, x: Tensor, y: Tensor) -> Op:
        weight = norm.weight.detach().float().contiguous()
        bias = norm.bias.detach().float().contiguous() if type(norm) is LayerNorm else None
        self.kept += [weight, bias]
        return Op(
            kind=NORM, form=int(bias is not None), in_=x.shape[1], out=x.shape[1], number=norm.eps, x=x.data_ptr(),
            y=y.data_ptr(), weight=weight.data_ptr(), bias=None if bias is None else bias.data_ptr(),
        )  # fmt: skip

    def _linear(self, packed: Packed, x: Tensor, y: Tensor, residual: Tensor | None = None) -> list[Op]:
        self.kept.append(packed)
        parts = {"weight": packed.weight, "scales": packed.scales, "bias": packed.bias, "residual": residual}
        at = {name: None if t is None else t.data_ptr() for name, t in parts.items()}
        op = Op(
            kind=LINEAR, form=packed.form, in_=packed.in_features, out=packed.out_features, x=x.data_ptr(),
            y=y.data_ptr(), **at,
        )  # fmt: skip
        if packed.scales is None:
            return [op]
        op.xq, op.xs = (t.data_ptr() for t in self._rounded(packed.in_features))
        first = Op(kind=QUANTIZE, form=packed.form, in_=packed.in_features, x=x.data_ptr(), xq=op.xq, xs=op.xs)
        return [first, op]

    def _attend(self, m: Attention, index: int, x: Tensor, y: Tensor) -> Op:
        scale = m.head_dim**-0.5 if m.attend.scale is None else m.attend.scale
        return Op(
            kind=ATTEND, in_=x.shape[1], out=y.shape[1], heads=m.n_heads, kv_heads=m.n_kv_heads, head_dim=m.head_dim,
            layer=index, number=scale, x=x.data_ptr(), y=y.data_ptr(),
        )  # fmt: skip

    @property
    def weight_bytes(self) -> int:
        """What one step reads of the weights."""
        return sum(kept.bytes for kept in self.kept if isinstance(kept, Packed))

    def new_pages(self, count: int) -> tuple[Tensor, Tensor]:
        """Keys (layers, pages, K, P, 16) and values (layers, pages, K, 16, P); bfloat16 unless weights are float32.
        What no token was written to is not read for any, so that the system hands out what is used."""
        dtype = torch.float32 if self.form == "float32" else torch.bfloat16
        kv, p = self.slot
        number = self.n_layers * count * kv * p * LANES
        keys, values = torch.empty(number, dtype=dtype), torch.empty(number + LANES, dtype=dtype)
        shape = (self.n_layers, count, kv)
        return keys.view(*shape, p, LANES), values[:number].view(*shape, LANES, p)

    def read(
        self,
        tokens: Tensor,
        positions: Tensor,
        counts: Sequence[int],
        tables: Tensor,
        keys: Tensor,
        values: Tensor,
        wanted: Tensor,
    ) -> Tensor:
        """Reads n tokens (n,) at their places in their sequences, each `counts` of them, whose pages are tables
        (sequences, most) int32; gives the logits (w, V) float32 after those of index `wanted` (w,). Tokens of one
        sequence stand in order, and everything before them is in its pages."""
        model, n = self.model, len(tokens)
        assert n <= self.most_rows and tables.dtype == torch.int32 and tables.is_contiguous()
        x, rotation = model.place(model.embed(tokens[None]), positions[None])
        self.x[:n] = x[0]
        places = positions.to(torch.int32)
        cos, sin = (None, None) if rotation is None else (t.reshape(n, -1).contiguous() for t in rotation)
        longest = (int(places.max()) // LANES + 1) * LANES
        scores = torch.empty(self.threads, NEIGHBOURS, longest)
        groups, first = list[int](), 0
        for table, count in enumerate(counts):
            for row in range(first, first + count, NEIGHBOURS):
                groups += (row, min(NEIGHBOURS, first + count - row), table)
            first += count
        by_sequence = torch.tensor(groups, dtype=torch.int32)
        rows = Rows(
            count=n, page_stride=tables.shape[1], tables=tables.data_ptr(), positions=places.data_ptr(),
            cosine=None if cos is None else cos.data_ptr(), sine=None if sin is None else sin.data_ptr(),
            keys=keys.data_ptr(), values=values.data_ptr(), pages=keys.shape[1],
            kv_bf16=int(keys.dtype == torch.bfloat16), scores=scores.data_ptr(), longest=longest,
            n_groups=len(groups) // 3, groups=by_sequence.data_ptr(),
        )  # fmt: skip
        self.native.foundling_run(self.team, self.body, _int(len(self.body)), ctypes.byref(rows))
        if not len(wanted):
            return self.said[:0]
        rows.count = len(wanted)
        torch.index_select(self.x[:n], 0, wanted, out=self.last[: len(wanted)])
        self.native.foundling_run(self.team, self.head, _int(len(self.head)), ctypes.byref(rows))
        return self.said[: len(wanted)]
