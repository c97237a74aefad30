# SPDX-License-Identifier: Apache-2.0
"""A denoising U-Net (Ho et al. 2020, appendix B): a path down the resolutions and one up, with skip connections between
them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.attention import Attention
from foundling.blocks.context import GLOBAL, Context
from foundling.blocks.mask import Mask
from foundling.blocks.norm import GroupNorm
from foundling.contracts.checkpoint_map import ConfigMap, Key
from foundling.contracts.denoise import Condition
from foundling.contracts.model import Capabilities
from foundling.errors import ConfigError


@dataclass(frozen=True)
class UNetConfig:
    image_size: int
    channels: int
    n_classes: int
    widths: tuple[int, ...]
    """Channels at each resolution; each resolution is half the previous one."""
    attends: tuple[bool, ...]
    """Whether each resolution has attention; the middle always has it."""
    n_blocks: int = 2
    head_dim: int = 8
    n_groups: int = 32
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.attends) or not self.widths or len(self.widths) > 12:
            raise ConfigError(
                f"{len(self.widths)} widths and {len(self.attends)} attends; expected equal numbers, 1 to 12"
            )
        for index, width in enumerate(self.widths):
            if width < 1 or width % self.n_groups or width % self.head_dim:
                raise ConfigError(
                    f"width {width} is not a multiple of n_groups {self.n_groups}, head_dim {self.head_dim}"
                )
            if index == 0 and width % 2:
                raise ConfigError(f"the first width is {width}, odd; the time embedding needs pairs of cosine and sine")
        if self.image_size % 2 ** (len(self.widths) - 1):
            raise ConfigError(f"image_size {self.image_size} cannot be halved {len(self.widths) - 1} times")


class ResBlock(nn.Module):
    """Two convolutions with the time embedding added in between, and a residual connection."""

    def __init__(self, channels: int, width: int, c: UNetConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = (GroupNorm(c.n_groups, n, c.norm_eps) for n in (channels, width))
        self.conv1, self.conv2 = (nn.Conv2d(n, width, 3, padding=1) for n in (channels, width))
        self.time = nn.Linear(4 * c.widths[0], width)
        self.skip = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, C, H, W), condition (B, 4 widths[0]) -> (B, width, H, W)"""
        h = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(condition))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class SpatialAttention(nn.Module):
    """Every position attends to every position."""

    def __init__(self, width: int, c: UNetConfig) -> None:
        super().__init__()
        self.mixer_norm = GroupNorm(c.n_groups, width, c.norm_eps)
        heads = width // c.head_dim
        self.mixer = Attention(width, heads, heads, c.head_dim, bias=True)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        y = self.mixer(self.mixer_norm(x).flatten(2).mT, ctx)
        return x + y.mT.unflatten(2, x.shape[2:])


class Level(nn.Module):
    """One resolution, on the path down (which returns skips) or up (which consumes them); `ctx.condition`
    (B, 4 widths[0]) is the embedding of time and class."""

    def __init__(self, channels: list[int], width: int, attends: bool, c: UNetConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(n, width, c) for n in channels)
        self.attention = nn.ModuleList(SpatialAttention(width, c) for _ in channels if attends)

    def attend(self, x: Tensor, ctx: Context, index: int) -> Tensor:
        return self.attention[index](x, ctx) if len(self.attention) else x


class Down(Level):
    def __init__(self, channels: list[int], width: int, attends: bool, last: bool, c: UNetConfig) -> None:
        super().__init__(channels, width, attends, c)
        self.resample = None if last else nn.Conv2d(width, width, 3, 2, padding=1)

    def forward(self, x: Tensor, ctx: Context) -> tuple[Tensor, list[Tensor]]:
        """x (B, C, H, W) -> (B, width, H/2, W/2), except at the last level; and the skips"""
        skips = []
        for index, block in enumerate(self.blocks):
            x = self.attend(block(x, ctx.condition), ctx, index)
            skips.append(x)
        if self.resample is not None:
            x = self.resample(x)
            skips.append(x)
        return x, skips


class Up(Level):
    def __init__(self, channels: list[int], width: int, attends: bool, last: bool, c: UNetConfig) -> None:
        super().__init__(channels, width, attends, c)
        self.resample = None if last else nn.Conv2d(width, width, 3, padding=1)

    def forward(self, inputs: tuple[Tensor, list[Tensor]], ctx: Context) -> Tensor:
        """x (B, C, H, W) and as many skips as there are blocks -> (B, width, 2 H, 2 W), except at the last level"""
        x, skips = inputs
        for index, (block, skip) in enumerate(zip(self.blocks, reversed(skips), strict=True)):
            x = self.attend(block(torch.cat((x, skip), dim=1), ctx.condition), ctx, index)
        return x if self.resample is None else self.resample(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(Level):
    def __init__(self, width: int, c: UNetConfig) -> None:
        super().__init__([width, width], width, False, c)
        self.attention = nn.ModuleList([SpatialAttention(width, c)])

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        x = self.attention[0](self.blocks[0](x, ctx.condition), ctx)
        return self.blocks[1](x, ctx.condition)


class Side(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class UNet(nn.Module):
    capabilities = Capabilities(denoises=True, modalities=("image",))

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = c = config
        first = c.widths[0]
        self.time = nn.ModuleDict({"up": nn.Linear(first, 4 * first), "down": nn.Linear(4 * first, 4 * first)})
        self.classes = nn.Embedding(c.n_classes + 1, 4 * first)  # the last is the null class
        self.conv_in = nn.Conv2d(c.channels, first, 3, padding=1)
        down, held, width = [], [first], first
        for index, (out, attends) in enumerate(zip(c.widths, c.attends, strict=True)):
            last = index == len(c.widths) - 1
            down.append(Down([width] + [out] * (c.n_blocks - 1), out, attends, last, c))
            width, held = out, held + [out] * (c.n_blocks + (not last))
        self.down, self.middle = Side(down), Side([Middle(width, c)])
        up = []
        for index, (out, attends) in enumerate(zip(reversed(c.widths), reversed(c.attends), strict=True)):
            taken = [held.pop() for _ in range(c.n_blocks + 1)]
            channels = [skip + (out if i else width) for i, skip in enumerate(taken)]
            up.append(Up(channels, out, attends, index == len(c.widths) - 1, c))
            width = out
        self.up = Side(up)
        self.norm = GroupNorm(c.n_groups, first, c.norm_eps)
        self.conv_out = nn.Conv2d(first, c.channels, 3, padding=1)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample"""
        return self.config.channels, self.config.image_size, self.config.image_size

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Every residual branch and the output start at zero, so the first prediction is zero."""
        self.conv_out.weight.zero_()
        for module in self.modules():
            if isinstance(module, ResBlock):
                module.conv2.weight.zero_()

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x (B, C, H, W), t (B,) steps of the schedule -> a prediction of x's shape. Raises ConfigError for an
        unsupported condition, and for sizes that cannot be halved between all levels."""
        unit = 2 ** (len(self.config.widths) - 1)
        if x.ndim != 4 or x.shape[1] != self.config.channels or x.shape[2] % unit or x.shape[3] % unit:
            raise ConfigError(
                f"x is {list(x.shape)}; this UNet reads (batch, {self.config.channels}, height, width), "
                f"multiples of {unit}"
            )
        if unread := condition.given() - {"classes"}:
            raise ConfigError(f"UNet does not support condition '{min(unread)}'; it reads classes and keep")
        embedded = self.time["down"](F.silu(self.time["up"](sinusoids(t, self.config.widths[0]).to(x.dtype))))
        embedded = embedded + self.classes(self._class_ids(len(x), condition, x.device))
        ctx = Context({GLOBAL: Mask(causal=False)}, condition=embedded)
        x = self.conv_in(x)
        skips = [x]
        for level in self.down.layers:
            x, more = level(x, ctx)
            skips += more
        x = self.middle.layers[0](x, ctx)
        for level in self.up.layers:
            count = len(level.blocks)  # pyright: ignore[reportArgumentType]
            x, skips = level((x, skips[-count:]), ctx), skips[:-count]
        return self.conv_out(F.silu(self.norm(x)))

    def _class_ids(self, rows: int, condition: Condition, device: torch.device) -> Tensor:
        null = torch.full((rows,), self.config.n_classes, device=device)
        if condition.classes is None:
            return null
        return condition.classes if condition.keep is None else torch.where(condition.keep, condition.classes, null)


def sinusoids(t: Tensor, width: int) -> Tensor:
    """(B,) -> (B, width) float32: cosines, then sines, of wavelengths from 2π to 20000π."""
    powers = torch.arange(width // 2, device=t.device, dtype=torch.float32) / (width // 2)
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * powers)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def sized(image_size: int, channels: int, n_classes: int, width: int) -> dict[str, Any]:
    """A configuration with two resolutions, with attention at the coarser one."""
    return {
        "image_size": image_size,
        "channels": channels,
        "n_classes": n_classes,
        "widths": (width, 2 * width),
        "attends": (False, True),
        "n_blocks": 1,
        "n_groups": 8,
        "head_dim": 16,
    }


PRESETS: dict[str, dict[str, Any]] = {
    # the shape of diffusers' google/ddpm-cifar10-32, with classes
    "unet-32": dict(image_size=32, channels=3, n_classes=10, widths=(128, 256, 256, 256),
                    attends=(False, True, False, False), head_dim=256 // 8),
}  # fmt: skip


def _side(theirs: str, ours: str, resample: str) -> list[Key]:
    parts = [
        *[(f"resnets.{{j}}.{p}", f"blocks.{{j}}.{p}") for p in ("norm1", "conv1", "norm2", "conv2")],
        ("resnets.{j}.time_emb_proj", "blocks.{j}.time"),
        ("resnets.{j}.conv_shortcut", "blocks.{j}.skip"),
        ("attentions.{j}.group_norm", "attention.{j}.mixer_norm"),
        *[(f"attentions.{{j}}.to_{x}", f"attention.{{j}}.mixer.{x}") for x in "qkv"],
        ("attentions.{j}.to_out.0", "attention.{j}.mixer.o"),
        (f"{resample}.0.conv", "resample"),
    ]
    return [Key(f"{theirs}.{a}.{kind}", f"{ours}.{b}.{kind}") for a, b in parts for kind in ("weight", "bias")]


KEYS = [
    *_side("down_blocks.{i}", "down.layers.{i}", "downsamplers"),
    *_side("mid_block", "middle.layers.0", "none"),
    *_side("up_blocks.{i}", "up.layers.{i}", "upsamplers"),
    *[
        Key(f"{theirs}.{kind}", f"{ours}.{kind}")
        for theirs, ours in (
            ("conv_in", "conv_in"),
            ("time_embedding.linear_1", "time.up"),
            ("time_embedding.linear_2", "time.down"),
            ("conv_norm_out", "norm"),
            ("conv_out", "conv_out"),
        )
        for kind in ("weight", "bias")
    ],
    Key("class_embedding.weight", "classes.weight"),
]


def _attends(kinds: list[str]) -> tuple[bool, ...]:
    known = {"DownBlock2D": False, "AttnDownBlock2D": True}
    if not all(kind in known for kind in kinds):
        raise ConfigError(f"down_block_types {kinds}; only {' and '.join(known)} are supported")
    return tuple(known[kind] for kind in kinds)


CONFIG = ConfigMap(
    type_key="_class_name",
    model_type="UNet2DModel",
    architecture="",
    weights="diffusion_pytorch_model.safetensors",
    fields={
        "sample_size": "image_size",
        "in_channels": "channels",
        "num_class_embeds": "n_classes",
        "block_out_channels": "widths",
        "down_block_types": "attends",
        "layers_per_block": "n_blocks",
        "attention_head_dim": "head_dim",
        "norm_num_groups": "n_groups",
        "norm_eps": "norm_eps",
    },
    convert={
        "num_class_embeds": (lambda n: n - 1, lambda n: n + 1),
        "down_block_types": (_attends, lambda a: ["AttnDownBlock2D" if here else "DownBlock2D" for here in a]),
        "block_out_channels": (tuple, list),
    },
    implied={
        "out_channels": lambda c: c["channels"],
        "up_block_types": lambda c: ["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(c["attends"])],
    },
    only={
        "act_fn": "silu",
        "add_attention": True,
        "attn_norm_num_groups": None,
        "center_input_sample": False,
        "class_embed_type": None,
        "downsample_padding": 1,
        "downsample_type": "conv",
        "dropout": 0.0,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2D",
        "num_train_timesteps": None,
        "resnet_time_scale_shift": "default",
        "time_embedding_dim": None,
        "time_embedding_type": "positional",
        "upsample_type": "conv",
    },
)
