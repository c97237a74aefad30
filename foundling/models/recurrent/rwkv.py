# SPDX-License-Identifier: Apache-2.0
"""RWKV-4 (Peng et al. 2023): alternates time mixing and channel mixing; a recurrent network that trains in parallel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from foundling.blocks.context import Context
from foundling.blocks.norm import LayerNorm
from foundling.blocks.rwkv import ChannelMix, TimeMix
from foundling.blocks.stack import Decoder
from foundling.contracts.cache import Slot
from foundling.contracts.checkpoint_map import ConfigMap, Key


@dataclass(frozen=True)
class RWKVConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    d_ff: int
    max_seq_len: int = 1024
    norm_eps: float = 1e-5
    tie_embeddings: bool = False


class RWKVBlock(nn.Module):
    """x + mixer(norm(x)), then x + ffn(norm(x)), where both read the previous token and so have cache slots."""

    def __init__(self, c: RWKVConfig, layer: int) -> None:
        super().__init__()
        self.mixer_norm = LayerNorm(c.d_model, c.norm_eps)
        self.mixer = TimeMix(c.d_model, (layer, c.n_layers))
        self.ffn_norm = LayerNorm(c.d_model, c.norm_eps)
        self.ffn = ChannelMix(c.d_model, c.d_ff, (layer, c.n_layers))

    def slots(self) -> list[tuple[Slot, ...]]:
        return [self.mixer.slots(), self.ffn.slots()]

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x), ctx)
        return x + self.ffn(self.ffn_norm(x), ctx.at(ctx.index + 1))


class RWKV(Decoder):
    def __init__(self, config: RWKVConfig) -> None:
        c = config
        # as in the reference, the last norm does not use the configured epsilon
        super().__init__(c, [RWKVBlock(c, layer) for layer in range(c.n_layers)], LayerNorm(c.d_model, 1e-5))
        self.embedding_norm = LayerNorm(c.d_model, c.norm_eps)

    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.embedding_norm(x)


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """The published proportions: d_ff = 4 d_model."""
    return {
        "vocab_size": vocab_size,
        "max_seq_len": max_seq_len,
        "d_model": d_model,
        "n_layers": n_layers,
        "d_ff": 4 * d_model,
    }


PRESETS: dict[str, dict[str, Any]] = {
    f"rwkv-4-{name}": sized(50277, 1024, d_model, n_layers)
    for name, d_model, n_layers in (
        ("169m", 768, 12), ("430m", 1024, 24), ("1b5", 2048, 24), ("3b", 2560, 32), ("7b", 4096, 32),
        ("14b", 5120, 40),
    )
}  # fmt: skip

KEYS = [
    Key("rwkv.embeddings.weight", "embedding.weight"),
    *[Key(f"rwkv.blocks.0.pre_ln.{kind}", f"embedding_norm.{kind}") for kind in ("weight", "bias")],
    *[
        Key(f"rwkv.blocks.{{i}}.{theirs}.{kind}", f"layers.{{i}}.{ours}.{kind}")
        for theirs, ours in (("ln1", "mixer_norm"), ("ln2", "ffn_norm"))
        for kind in ("weight", "bias")
    ],
    *[
        Key(f"rwkv.blocks.{{i}}.{theirs}", f"layers.{{i}}.{ours}", transforms)
        for theirs, ours, transforms in (
            ("attention.time_decay", "mixer.log_rate", ()),
            ("attention.time_first", "mixer.bonus", ()),
            ("attention.time_mix_key", "mixer.mix_k", ("vector",)),
            ("attention.time_mix_value", "mixer.mix_v", ("vector",)),
            ("attention.time_mix_receptance", "mixer.mix_r", ("vector",)),
            ("attention.key.weight", "mixer.k.weight", ()),
            ("attention.value.weight", "mixer.v.weight", ()),
            ("attention.receptance.weight", "mixer.r.weight", ()),
            ("attention.output.weight", "mixer.o.weight", ()),
            ("feed_forward.time_mix_key", "ffn.mix_k", ("vector",)),
            ("feed_forward.time_mix_receptance", "ffn.mix_r", ("vector",)),
            ("feed_forward.key.weight", "ffn.up.weight", ()),
            ("feed_forward.receptance.weight", "ffn.r.weight", ()),
            ("feed_forward.value.weight", "ffn.down.weight", ()),
        )
    ],
    *[Key(f"rwkv.ln_out.{kind}", f"norm.{kind}") for kind in ("weight", "bias")],
    Key("head.weight", "head.weight"),
]

# `rescale_every` halves residuals and weights at inference to avoid float16 overflow: it is preserved as inert.
CONFIG = ConfigMap(
    model_type="rwkv",
    architecture="RwkvForCausalLM",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "intermediate_size": "d_ff",
        "context_length": "max_seq_len",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    },
    derived={
        "attention_hidden_size": lambda c: c["hidden_size"],
        "intermediate_size": lambda c: 4 * c["hidden_size"],
        "context_length": lambda c: 1024,
        "layer_norm_epsilon": lambda c: 1e-5,
        "tie_word_embeddings": lambda c: False,
    },
    implied={"attention_hidden_size": lambda c: c["d_model"]},
    base_prefix="rwkv.",
    ignored=("head.weight",),
)
