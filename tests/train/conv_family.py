# SPDX-License-Identifier: Apache-2.0
"""A small family with all that the published ones lack: BatchNorm statistics, an integer buffer, a codebook that a
forward pass reads and changes, a buffer that is computed, dropout."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.contracts.checkpoint_map import ConfigMap, Key
from foundling.contracts.model import Capabilities
from foundling.contracts.objective import Term
from foundling.models import FAMILIES, Entry
from foundling.runtime.rng import generator


@dataclass(frozen=True)
class ConvConfig:
    channels: int = 4
    n_layers: int = 2
    n_classes: int = 3


class Block(nn.Module):
    """Convolution, BatchNorm, the nearest entry of a codebook (van den Oord et al. 2017) that follows what it sees as a
    moving average, dropout."""

    codebook: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(0.2)
        self.register_buffer("codebook", torch.linspace(-1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(F.silu(self.norm(self.conv(x))))
        nearest = (y.detach()[..., None] - self.codebook).abs().argmin(-1)
        if self.training:
            counts = (nearest.flatten()[:, None] == torch.arange(5)).float()
            means = (counts.T @ y.detach().flatten()) / counts.sum(0).clamp_min(1)
            read = self.codebook[nearest]
            self.codebook.lerp_(means, 0.1)
            return x + y * (1 + read)
        return x + y * (1 + self.codebook[nearest])


class Conv(nn.Module):
    capabilities = Capabilities(modalities=("image",))
    ramp: Tensor

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(config.channels) for _ in range(config.n_layers))
        self.head = nn.Linear(config.channels, config.n_classes)
        for name, buffer in self.derived_buffers().items():
            self.register_buffer(name, buffer, persistent=False)

    def derived_buffers(self) -> dict[str, Tensor]:
        return {"ramp": torch.linspace(0, 1, self.config.channels)}

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, n_classes)"""
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((2, 3)) + self.ramp)


KEYS = [
    *[Key(f"blocks.{{i}}.{p}.{k}", f"layers.{{i}}.{p}.{k}") for p in ("conv", "norm") for k in ("weight", "bias")],
    *[Key(f"blocks.{{i}}.norm.{k}", f"layers.{{i}}.norm.{k}") for k in ("running_mean", "running_var")],
    Key("blocks.{i}.norm.num_batches_tracked", "layers.{i}.norm.num_batches_tracked"),
    Key("blocks.{i}.codes", "layers.{i}.codebook"),
    *[Key(f"classifier.{k}", f"head.{k}") for k in ("weight", "bias")],
]
CONFIG = ConfigMap(
    model_type="conv_test",
    architecture="",
    fields={"num_channels": "channels", "num_layers": "n_layers", "num_labels": "n_classes"},
)


def register(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(FAMILIES, "conv_test", Entry(__name__, "Conv", "ConvConfig", "denoiser", "conv_test"))


class Classify:
    def normalizers(self, batch) -> dict[str, int]:
        return {"loss": len(batch["pixels"])}

    def __call__(self, model, batch) -> dict[str, Term]:
        nats = F.cross_entropy(model(batch["pixels"]), batch["classes"], reduction="sum")
        return {"loss": Term(nats, len(batch["pixels"]))}


class Pictures:
    """Eight rows a batch, by number."""

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        draw = generator("pictures", n)
        return {
            "pixels": torch.randn(8, 4, 6, 6, generator=draw) + 0.5,
            "classes": torch.randint(3, (8,), generator=draw),
        }


def fresh(seed: int = 0) -> Conv:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Conv(ConvConfig())
