# SPDX-License-Identifier: Apache-2.0
"""CLIP (Radford et al. 2021): an image and a text encoder with one embedding space, where matching pairs are close."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.attention import Attention
from foundling.blocks.context import GLOBAL, Context
from foundling.blocks.layer import Block, forward_layers
from foundling.blocks.mask import Mask, MaskRule, build_mask
from foundling.blocks.mlp import MLP
from foundling.blocks.norm import LayerNorm
from foundling.blocks.position import PositionTable, check_positions, positions_of
from foundling.contracts.checkpoint_map import ConfigMap, Key
from foundling.contracts.data import Batch
from foundling.contracts.model import Capabilities, EncoderOutput
from foundling.errors import ConfigError


@dataclass(frozen=True)
class CLIPConfig:
    vocab_size: int
    max_seq_len: int
    text_d_model: int
    text_n_layers: int
    text_n_heads: int
    text_d_ff: int
    eos_id: int
    image_size: int
    patch_size: int
    channels: int
    image_d_model: int
    image_n_layers: int
    image_n_heads: int
    image_d_ff: int
    d_embed: int
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ConfigError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        for side in ("text", "image"):
            width, heads = getattr(self, f"{side}_d_model"), getattr(self, f"{side}_n_heads")
            if width % heads:
                raise ConfigError(f"{side}_d_model {width} is not a multiple of {side}_n_heads {heads}")


def quick_gelu(x: Tensor) -> Tensor:
    """The authors' approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def tower(d_model: int, n_layers: int, n_heads: int, d_ff: int, eps: float) -> nn.ModuleList:
    return nn.ModuleList(
        Block(
            LayerNorm(d_model, eps),
            Attention(d_model, n_heads, n_heads, d_model // n_heads, bias=True),
            LayerNorm(d_model, eps),
            MLP(d_model, d_ff, quick_gelu, bias=True),
        )
        for _ in range(n_layers)
    )


class ImageEncoder(nn.Module):
    """A vision Transformer (Dosovitskiy et al. 2021) with a norm before its layers; the class token represents the
    image."""

    causal = False

    def __init__(self, c: CLIPConfig) -> None:
        super().__init__()
        self.patches = nn.Conv2d(c.channels, c.image_d_model, c.patch_size, c.patch_size, bias=False)
        self.class_token = nn.Parameter(torch.zeros(c.image_d_model))
        self.position_embedding = nn.Embedding((c.image_size // c.patch_size) ** 2 + 1, c.image_d_model)
        self.norm_before = LayerNorm(c.image_d_model, c.norm_eps)
        self.layers = tower(c.image_d_model, c.image_n_layers, c.image_n_heads, c.image_d_ff, c.norm_eps)
        self.norm = LayerNorm(c.image_d_model, c.norm_eps)
        self.proj = nn.Linear(c.image_d_model, c.d_embed, bias=False)
        self.shape = (c.channels, c.image_size, c.image_size)

    def encode(self, pixels: Tensor) -> EncoderOutput:
        """pixels (B, C, H, W) -> states (B, 1 + patches, D), the class token's as pooled. ConfigError for images of
        another size, which its table of positions does not fit."""
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != self.shape:
            channels, height, width = self.shape
            raise ConfigError(
                f"pixels are {list(pixels.shape)}; this CLIP reads (batch, {channels}, {height}, {width}): resize them"
            )
        x = self.patches(pixels).flatten(2).mT
        x = torch.cat((self.class_token.to(x.dtype).expand(len(x), 1, -1), x), dim=1)
        x = self.norm_before(x + self.position_embedding.weight.to(x.dtype))
        x, _ = forward_layers(self.layers, x, Context({GLOBAL: Mask(self.causal)}))
        x = self.norm(x)
        return EncoderOutput(x, pooled=x[:, 0])


class TextEncoder(nn.Module):
    """A causal Transformer; the state at the end of the text represents it."""

    causal = True

    def __init__(self, c: CLIPConfig) -> None:
        super().__init__()
        self.eos_id = c.eos_id
        self.embedding = nn.Embedding(c.vocab_size, c.text_d_model)
        self.position_embedding = PositionTable(c.max_seq_len, c.text_d_model)
        self.layers = tower(c.text_d_model, c.text_n_layers, c.text_n_heads, c.text_d_ff, c.norm_eps)
        self.norm = LayerNorm(c.text_d_model, c.norm_eps)
        self.proj = nn.Linear(c.text_d_model, c.d_embed, bias=False)

    def encode(self, tokens: Tensor, *, documents: Tensor | None = None) -> EncoderOutput:
        """tokens (B, T), one text a row, −1 in `documents` on its right -> states (B, T, D), the one at the first
        eos_id as pooled; at the largest id if eos_id is 2, as early configurations wrongly state. GenerationError for a
        text longer than max_seq_len."""
        positions = positions_of(tokens, documents)
        check_positions(self.position_embedding.max_positions, positions, tokens.shape[1])
        x = self.embedding(tokens) + self.position_embedding(positions)
        mask = build_mask(MaskRule(self.causal, documents), x.shape[1], x.shape[1], x)
        x, _ = forward_layers(self.layers, x, Context({GLOBAL: mask}, documents=documents))
        x = self.norm(x)
        read = tokens.masked_fill(tokens >= len(self.embedding.weight), -1)  # a soft prompt's ids are beyond all
        read = read if documents is None else torch.where(documents >= 0, read, -1)
        end = (read if self.eos_id == 2 else (read == self.eos_id).int()).argmax(dim=1)
        return EncoderOutput(x, documents, x[torch.arange(len(x), device=x.device), end])


class CLIP(nn.Module):
    capabilities = Capabilities(embeds=True, modalities=("text", "image"))

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.image, self.text = ImageEncoder(config), TextEncoder(config)
        self.scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))  # FSDP2 cannot shard scalars

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """A temperature of 0.07 (section 2.5)."""
        self.scale.fill_(math.log(1 / 0.07))

    def embed(self, name: str, batch: Batch) -> Tensor:
        """Embeds `pixels` of the batch by the tower "image", `tokens` and `documents` by "text" -> (B, d_embed) of
        length 1. Raises ConfigError for another name."""
        if name == "image":
            return self.embed_image(batch["pixels"])
        if name == "text":
            return self.embed_text(batch["tokens"], documents=batch.get("documents"))
        raise ConfigError(f"CLIP has no tower '{name}'; it has {' and '.join(self.capabilities.modalities)}")

    def embed_image(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, d_embed) of length 1"""
        return F.normalize(self.image.proj(self.image.encode(pixels).pooled).float(), dim=-1)

    def embed_text(self, tokens: Tensor, *, documents: Tensor | None = None) -> Tensor:
        """(B, T) -> (B, d_embed) of length 1"""
        return F.normalize(self.text.proj(self.text.encode(tokens, documents=documents).pooled).float(), dim=-1)


def sized(
    vocab_size: int, max_seq_len: int, image_size: int, patch_size: int, channels: int, d_model: int, n_layers: int
) -> dict[str, Any]:
    """Two towers of equal size, heads of 64 (32 in narrow models), an embedding of the same width; the last id ends a
    text."""
    heads = d_model // (64 if d_model >= 256 else 32)
    alike = {
        f"{side}_{name}": value
        for side in ("text", "image")
        for name, value in (("d_model", d_model), ("n_layers", n_layers), ("n_heads", heads), ("d_ff", 4 * d_model))
    }
    return alike | {
        "vocab_size": vocab_size,
        "max_seq_len": max_seq_len,
        "eos_id": vocab_size - 1,
        "image_size": image_size,
        "patch_size": patch_size,
        "channels": channels,
        "d_embed": d_model,
    }


def _preset(patch_size: int, width: int, depth: int, text_width: int, d_embed: int) -> dict[str, Any]:
    return dict(
        vocab_size=49408, max_seq_len=77, eos_id=49407, text_d_model=text_width, text_n_layers=12,
        text_n_heads=text_width // 64, text_d_ff=4 * text_width, image_size=224, patch_size=patch_size, channels=3,
        image_d_model=width, image_n_layers=depth, image_n_heads=width // 64, image_d_ff=4 * width, d_embed=d_embed,
    )  # fmt: skip


PRESETS: dict[str, dict[str, Any]] = {
    "clip-vit-base-patch32": _preset(32, 768, 12, 512, 512),
    "clip-vit-base-patch16": _preset(16, 768, 12, 512, 512),
    "clip-vit-large-patch14": _preset(14, 1024, 24, 768, 768),
}

KEYS = [
    Key("logit_scale", "scale", ("scalar",)),
    Key("vision_model.embeddings.class_embedding", "image.class_token"),
    Key("vision_model.embeddings.patch_embedding.weight", "image.patches.weight"),
    Key("vision_model.embeddings.position_embedding.weight", "image.position_embedding.weight"),
    Key("text_model.embeddings.token_embedding.weight", "text.embedding.weight"),
    Key("text_model.embeddings.position_embedding.weight", "text.position_embedding.weight"),
    Key("visual_projection.weight", "image.proj.weight"),
    Key("text_projection.weight", "text.proj.weight"),
    *[
        Key(f"{theirs}.{kind}", f"{ours}.{kind}")
        for kind in ("weight", "bias")
        for theirs, ours in [
            ("vision_model.pre_layrnorm", "image.norm_before"),
            ("vision_model.post_layernorm", "image.norm"),
            ("text_model.final_layer_norm", "text.norm"),
            *[
                (f"{tower}.encoder.layers.{{i}}.{part}", f"{side}.layers.{{i}}.{name}")
                for tower, side in (("vision_model", "image"), ("text_model", "text"))
                for part, name in (
                    ("layer_norm1", "mixer_norm"),
                    ("layer_norm2", "ffn_norm"),
                    ("mlp.fc1", "ffn.up"),
                    ("mlp.fc2", "ffn.down"),
                    *[(f"self_attn.{'out' if x == 'o' else x}_proj", f"mixer.{x}") for x in "qkvo"],
                )
            ],
        ]
    ],
]

_TOWER = {"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
CONFIG = ConfigMap(
    model_type="clip",
    architecture="CLIPModel",
    fields={
        "text_config.vocab_size": "vocab_size",
        "text_config.max_position_embeddings": "max_seq_len",
        "text_config.eos_token_id": "eos_id",
        **{f"text_config.{theirs}": f"text_{ours}" for theirs, ours in _TOWER.items()},
        "text_config.intermediate_size": "text_d_ff",
        "vision_config.image_size": "image_size",
        "vision_config.patch_size": "patch_size",
        "vision_config.num_channels": "channels",
        **{f"vision_config.{theirs}": f"image_{ours}" for theirs, ours in _TOWER.items()},
        "vision_config.intermediate_size": "image_d_ff",
        "text_config.layer_norm_eps": "norm_eps",
        "projection_dim": "d_embed",
    },
    derived={
        "text_config.layer_norm_eps": lambda c: 1e-5,
        "text_config.eos_token_id": lambda c: 49407,
        "vision_config.num_channels": lambda c: 3,
        "projection_dim": lambda c: 512,
    },
    only={
        "text_config.hidden_act": "quick_gelu",
        "vision_config.hidden_act": "quick_gelu",
        "vision_config.layer_norm_eps": 1e-5,
        "text_config.model_type": "clip_text_model",
        "vision_config.model_type": "clip_vision_model",
    },
    ignored=(".position_ids",),
)
