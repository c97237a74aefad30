# SPDX-License-Identifier: Apache-2.0
"""What a server serves under one name: a model that generates, embeds or classifies, or one behind another API."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from foundling.blocks.position import position_limit
from foundling.decode.classify import Classifier
from foundling.decode.embed import TextEmbedder, pooling_of
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.native.encoder import fastest_encoder
from foundling.decode.request import max_completion
from foundling.decode.sampling import Sampling
from foundling.decode.text import TextGenerator
from foundling.errors import ConfigError, WeightsError
from foundling.limits import SOURCE_TOKENS, shown
from foundling.models import family_of
from foundling.runtime.hub import local_directory
from foundling.serve.options import ServeOptions
from foundling.serve.worker import EngineWorker
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from foundling.weights.adapters import load_adapters
from foundling.weights.generation import SAMPLED, read_generation_config
from foundling.weights.loading import files_of, load

Kind = Literal["generate", "embed", "classify", "upstream"]
HARMLESS = ("ok", "safe", "harmless", "none", "ham")
"""labels that mean it without being named (--harmless)"""


class Price(NamedTuple):
    """Dollars for a million tokens."""

    prompt: float
    completion: float

    def cost(self, n_prompt: int, n_completion: int) -> float:
        """In dollars."""
        return (n_prompt * self.prompt + n_completion * self.completion) / 1e6


@dataclass(kw_only=True)
class ServedModel:
    """`name` is what requests call it; `directory` is never shown to a client."""

    name: str
    directory: str
    model: Any
    created: int
    """seconds since 1970 of its weights"""
    price: Price | None = None

    kind: Kind = field(init=False)
    load_id: str = field(default_factory=lambda: secrets.token_hex(8), init=False)
    """another one each time that a model is loaded: answers of one are not those of the next"""

    @property
    def family(self) -> str:
        return family_of(self.model).name

    @property
    def tokenizer(self) -> Tokenizer:
        raise NotImplementedError

    @cached_property
    def spellings(self) -> list[bytes]:
        """The bytes of each token."""
        return self.tokenizer.spellings()

    def check(self, options: ServeOptions) -> None:
        """ConfigError for what has to be decided before it is served."""

    async def close(self) -> None:
        """Frees what it holds."""

    def about(self) -> dict[str, Any]:
        config = self.model.config
        return {
            "kind": self.kind, "family": self.family, "max_seq_len": getattr(config, "max_seq_len", None),
            "vocab_size": getattr(config, "vocab_size", None),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "price": self.price and {"prompt": self.price.prompt, "completion": self.price.completion},
        }  # fmt: skip


@dataclass(kw_only=True)
class GenerativeModel(ServedModel):
    """A model and the worker whose engine computes it. `adapter`: the one of the model's bank that this name means."""

    generator: TextGenerator
    worker: EngineWorker
    sampling_defaults: Mapping[str, Any]
    greedy: bool
    """where a request names no option of SAMPLED"""
    adapter: str | None = None
    adapter_of: str | None = None

    def __post_init__(self) -> None:
        self.kind = "generate"
        self.no_rows = dict.fromkeys(self.framing.unnamed_rows(), float("-inf"))

    @property
    def framing(self) -> Framing:
        return self.generator.framing

    @property
    def tokenizer(self) -> Tokenizer:
        return self.framing.tokenizer

    def sampling(self, fields: Mapping[str, Any]) -> Sampling:
        """The model's own defaults under the fields that a request names. GenerationError for wrong values."""
        values = {**self.sampling_defaults, **fields}
        if self.greedy and not fields.keys() & set(SAMPLED):
            values["temperature"] = 0.0
        values["logit_bias"] = {**self.no_rows, **values.get("logit_bias", {})}
        return Sampling(**values)

    @property
    def capacity(self) -> int:
        """How many tokens of one sequence the engine has memory for; the source of an encoder-decoder is none of
        them."""
        blocks = self.worker.engine.blocks
        return blocks.n_blocks * blocks.block_size

    @property
    def longest(self) -> int:
        """How many tokens a prompt and its completion may have; of an encoder-decoder, a source or its completion."""
        if not self.framing.spec.reads_source:
            return min(self.model.config.max_seq_len, self.capacity)
        limit = position_limit(self.model)
        return max(SOURCE_TOKENS.high, self.model.config.max_seq_len) if limit is None else limit

    def available(self, ids: list[int]) -> int:
        """How many tokens can follow these, negative where they are too many already."""
        if self.framing.spec.reads_source:
            return min(self.longest, self.capacity - 1) if len(ids) <= self.longest else -1
        return min(max_completion(self.model, ids) or 0, self.capacity - len(ids))

    async def close(self) -> None:
        if self.adapter is None:
            self.worker.close()
            await self.worker.join()

    def about(self) -> dict[str, Any]:
        fills = self.tokenizer.fim is not None and self.framing.spec.fills_middle is not False
        return super().about() | {
            "chats": self.generator.chats, "fills_middle": fills,
            "native": self.worker.engine.native, "adapter_of": self.adapter_of,
        }  # fmt: skip


@dataclass(kw_only=True)
class EmbeddingModel(ServedModel):
    embedder: TextEmbedder
    width: int
    """values of a vector"""
    batcher: Any = field(default=None, init=False)
    """what computes the texts of several requests together, once one has come"""

    def __post_init__(self) -> None:
        self.kind = "embed"

    @property
    def tokenizer(self) -> Tokenizer:
        return self.embedder.tokenizer


@dataclass(kw_only=True)
class ClassifierModel(ServedModel):
    classifier: Classifier
    harmless: str | None = field(default=None, init=False)
    """the label of texts that a moderation does not flag; None for a head without labels of texts"""
    batcher: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.kind = "classify"

    def check(self, options: ServeOptions) -> None:
        if self.classifier.task != "classify":
            return
        labels = self.classifier.labels
        if options.harmless:
            harmless = [label for label in labels if label in options.harmless]
        else:
            harmless = [label for label in labels if label.lower() in HARMLESS]
        if len(harmless) != 1:
            names = ", ".join(options.harmless) or f"any of {', '.join(HARMLESS)}"
            raise ConfigError(
                f"{self.name}: moderations need to know which label means harmless; of {shown(list(labels))} "
                f"{len(harmless) or 'none'} is called {names}: give --harmless LABEL"
            )
        self.harmless = harmless[0]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.classifier.tokenizer

    def about(self) -> dict[str, Any]:
        return super().about() | {"labels": list(self.classifier.labels)}


def load_served(
    name: str, directory: str, options: ServeOptions, *, adapters: Mapping[str, str] | None = None,
    price: Price | None = None,
) -> ServedModel:  # fmt: skip
    """By what its family declares that it can do. `adapters`: name -> directory of LoRA adapters that requests may
    choose, which torch computes: native code has no bank of adapters.

    WeightsError for what is no model directory or can do none of this."""
    place = local_directory(directory)
    # on a CPU native code packs its weights from float32
    halved = options.device != "cpu" and options.weights == "bfloat16"
    model = load(place, dtype=torch.bfloat16 if halved else torch.float32, device=options.device, merged=True)
    files = files_of(place)
    can, created = model.capabilities, int((Path(files) / "tokenizer.json").stat().st_mtime)
    common: dict[str, Any] = {
        "name": name, "directory": str(directory), "model": model, "created": created, "price": price
    }  # fmt: skip
    if can.task:
        return ClassifierModel(**common, classifier=Classifier(model, Tokenizer.load(files)))
    if can.generates:
        return _generative(common, files, options, adapters or {})
    if can.embeds and "text" in can.modalities:
        pooling, max_len = pooling_of(Path(files))
        fast = fastest_encoder(model, options.weights)
        embedder = TextEmbedder(fast, Tokenizer.load(files), pooling, max_len)
        ((_, vector, _),) = embedder.embed_ids([[0]])
        return EmbeddingModel(**common, embedder=embedder, width=len(vector))
    raise WeightsError(f"{directory}: this {family_of(model).name} neither generates, embeds nor classifies texts")


def _generative(
    common: dict[str, Any], files: Path, options: ServeOptions, adapters: Mapping[str, str]
) -> GenerativeModel:
    model = common["model"]
    if adapters:
        load_adapters(model, adapters)
    engine = Engine(model, EngineOptions(
        weights=options.weights, native=False if adapters else None, deterministic=options.deterministic,
        max_num_seqs=options.max_num_seqs, memory=options.cache_memory,
        max_step_tokens=max(256, options.max_num_seqs),
    ))  # fmt: skip
    generator = TextGenerator.of(model, Path(files), engine)
    stored = read_generation_config(Path(files))
    worker = EngineWorker(
        engine, common["name"], max_queue=options.max_queue, queue_timeout=options.queue_timeout
    )  # fmt: skip
    return GenerativeModel(
        **common, generator=generator, worker=worker, sampling_defaults=stored.sampling, greedy=stored.greedy
    )


def with_adapter(base: GenerativeModel, name: str, adapter: str, price: Price | None) -> GenerativeModel:
    """The same model and worker under the name of an adapter of its bank."""
    return replace(base, name=name, price=price, adapter=adapter, adapter_of=base.name)
