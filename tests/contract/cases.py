# SPDX-License-Identifier: Apache-2.0
"""What the contract tests need to know of a family, by its kind: a tiny model, a batch, an objective, an output. A
family of a known kind joins by its line in FAMILIES."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foundling.blocks.init import initialise, roles
from foundling.contracts.data import Batch
from foundling.contracts.denoise import Condition
from foundling.diffusion.schedule import NoiseSchedule
from foundling.models import FAMILIES, build, family
from foundling.objectives.bilm import BiLM
from foundling.objectives.causal import Causal
from foundling.objectives.contrastive import Contrastive
from foundling.objectives.denoise import Denoise
from foundling.runtime.rng import generator
from foundling.train.options import OptimOptions
from foundling.train.state import TrainState
from tests.rounding import close as close  # used by the tests of each family

VOCAB, T, ROWS = 64, 24, 8


def tokens(rows: int = 2, length: int = T, seed: int = 1) -> Tensor:
    return torch.randint(3, VOCAB, (rows, length), generator=generator("tokens", seed))


def device_of(model: Any) -> torch.device:
    return next(model.parameters()).device


def text_batch(rows: int, n: int) -> Batch:
    """Two documents a row, some places not counted."""
    x = tokens(rows, T + 1, n)
    return {
        "tokens": x[:, :-1].contiguous(),
        "targets": x[:, 1:].contiguous(),
        "documents": (torch.arange(T) > 9).long().repeat(rows, 1),
        "loss_mask": torch.rand(rows, T, generator=generator("mask", n)) > 0.3,
        "sample_ids": torch.arange(rows) + n * rows,
    }


UNTIED = {name: {"tie_embeddings": False} for name in ("gpt", "gemma", "gemma2", "gemma3", "bloom", "bart", "lstm")}
"""Their inputs, or what norms add, are large, so that a random tied head would say one token and nothing else."""


class Case:
    """A decoder; the other kinds say what is different."""

    def __init__(self, name: str) -> None:
        self.name, self.family = name, family(name)

    def fields(self) -> dict[str, Any]:
        return self.family.module.sized(VOCAB, 64, 64, 2) | UNTIED.get(self.name, {})

    def tiny(self, seed: int = 0, **fields: Any) -> Any:
        """Every weight is random and none is small, so that each one shows in the output."""
        model = build(self.name, **(self.fields() | fields))
        draw, params = generator("tiny", seed), dict(model.named_parameters())
        with torch.no_grad():
            for name, role in sorted(roles(model).items()):
                p, module = params[name], model.get_submodule(name.rpartition(".")[0])
                std = {"vector": 0.3, "embedding": 0.5}.get(role.kind, role.fan_in**-0.5)
                drawn = torch.randn(p.shape, generator=draw) * std * getattr(module, "start_gain", 1.0)
                centre = -1 if name.endswith("dt_bias") else role.kind == "vector"  # a Δ of a third: states that last
                p.copy_(drawn + centre)
        return model.eval()

    def fresh(self, seed: int = 0) -> Any:
        """As training starts."""
        model = build(self.name, **self.fields())
        initialise(model, generator("init", seed))
        return model

    def state(self, optimizer: Any = "muon") -> TrainState:
        model = self.fresh()
        return TrainState.build(model, OptimOptions(optimizer=optimizer, learning_rate=0.01))

    def objective(self) -> Any:
        return Causal()

    def batch(self, n: int, rows: int = ROWS) -> Batch:
        return text_batch(rows, n)

    @torch.no_grad()
    def outputs(self, model: Any) -> Tensor:
        """(rows, …) of a fixed input"""
        return model.logits(self.hidden(model, tokens().to(device_of(model))))

    def hidden(self, model: Any, x: Tensor, **more: Any) -> Tensor:
        return model(x, **more).hidden


class Encoder(Case):
    """Learns to fill gaps: every third token is hidden, and asked for where it stands. An ELMo learns each token from
    both sides."""

    def objective(self) -> Any:
        return BiLM() if self.name == "elmo" else super().objective()

    def batch(self, n: int, rows: int = ROWS) -> Batch:
        batch = text_batch(rows, n)
        batch["targets"] = batch["tokens"]
        batch["tokens"] = torch.where(batch["loss_mask"], 1, batch["targets"])
        return batch


class Seq2Seq(Case):
    """Reads a source besides; `hidden` gives every row the same one."""

    def source(self, rows: int) -> Tensor:
        return tokens(rows, 17, seed=9)

    def batch(self, n: int, rows: int = ROWS) -> Batch:
        source = {"source": self.source(rows), "source_documents": (torch.arange(17) > 5).long().repeat(rows, 1)}
        return text_batch(rows, n) | source

    def hidden(self, model: Any, x: Tensor, **more: Any) -> Tensor:
        if "cache" not in more:
            memory = model.encode(self.source(1).to(x.device).expand(len(x), -1))
            documents = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
            more = {"memory": memory, "memory_documents": documents} | more
        return model(x, **more).hidden


class DualEncoder(Case):
    def fields(self) -> dict[str, Any]:
        return self.family.module.sized(VOCAB, 16, 8, 4, 1, 64, 2)

    def objective(self) -> Any:
        return Contrastive()

    def pixels(self, rows: int, n: int = 0) -> Tensor:
        return torch.rand(rows, 1, 8, 8, generator=generator("pixels", n)) * 2 - 1

    def batch(self, n: int, rows: int = ROWS) -> Batch:
        text = tokens(rows, 10, n)
        text[:, -1] = VOCAB - 1
        return {
            "pixels": self.pixels(rows, n),
            "tokens": text,
            "documents": torch.zeros_like(text),
            "sample_ids": torch.arange(rows) + n * rows,
        }

    @torch.no_grad()
    def outputs(self, model: Any) -> Tensor:
        batch = {name: value.to(device_of(model)) for name, value in self.batch(0, 2).items()}
        pixels = batch["pixels"].to(next(model.parameters()).dtype)
        return torch.cat([model.embed("image", {"pixels": pixels}), model.embed("text", batch)], dim=1)


class Denoiser(Case):
    def fields(self) -> dict[str, Any]:
        return self.family.module.sized(8, 1, 10, 32)

    def objective(self) -> Any:
        return Denoise(NoiseSchedule(), seed=0)

    def batch(self, n: int, rows: int = ROWS) -> Batch:
        return {
            "pixels": torch.rand(rows, 1, 8, 8, generator=generator("pixels", n)) * 2 - 1,
            "classes": torch.arange(rows) % 10,
            "sample_ids": torch.arange(rows) + n * rows,
        }

    @torch.no_grad()
    def outputs(self, model: Any) -> Tensor:
        pixels = self.batch(0, 2)["pixels"].to(next(model.parameters()))
        t, classes, keep = (torch.tensor(v, device=pixels.device) for v in ([7, 300], [3, 4], [True, False]))
        return model(pixels, t, Condition(classes, keep=keep))


class Counted:
    """The objective without what arises inside the model (router balance), which is per micro-batch by exception."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.normalizers = objective.normalizers
        if hasattr(objective, "represent"):
            self.represent, self.loss = objective.represent, objective.loss

    def __call__(self, model: Any, batch: Batch) -> Any:
        return {n: term for n, term in self.objective(model, batch).items() if n in self.normalizers(batch)}


KINDS: dict[str, type[Case]] = {
    "decoder": Case,
    "encoder": Encoder,
    "seq2seq": Seq2Seq,
    "dual_encoder": DualEncoder,
    "denoiser": Denoiser,
}


def case(name: str) -> Any:
    return KINDS[FAMILIES[name].kind](name)


def preferences(of: Case) -> Batch:
    """Two completions of each prompt, the worse ones shorter."""
    better, worse = of.batch(0), of.batch(1)
    worse = worse | {"documents": worse["documents"].clone(), "loss_mask": worse["loss_mask"].clone()}
    worse["documents"][:, 19:], worse["loss_mask"][:, 19:] = -1, False
    shared = {name: column for name, column in better.items() if name.startswith("source") or name == "sample_ids"}
    columns = ("tokens", "targets", "documents", "loss_mask")
    sides = {name: torch.stack([better[name], worse[name]], 1) for name in columns}
    return shared | sides | {"n_completions": torch.full((len(better["tokens"]),), 2)}


class Data:
    """batches[n] is this rank's part of global batch n."""

    def __init__(self, of: Case, rank: int = 0, world_size: int = 1, rows: int = ROWS) -> None:
        self.of, self.rank, self.share, self.rows = of, rank, rows // world_size, rows

    def __getitem__(self, n: int) -> Batch:
        first = self.rank * self.share
        return {k: v[first : first + self.share] for k, v in self.of.batch(n % 5, self.rows).items()}
