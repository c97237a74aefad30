# SPDX-License-Identifier: Apache-2.0
"""Model families, one file each. FAMILIES is the registry, a table of lazy imports."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch

from foundling.blocks.moe import MoE
from foundling.config import from_dict, nearest
from foundling.errors import ConfigError

Kind = Literal["decoder", "encoder", "seq2seq", "dual_encoder", "denoiser"]
"""decoder: reads left to right; encoder: both ways; seq2seq: left to right, with a memory; pair: two encoders into one
space; denoiser: noise out"""


class Entry(NamedTuple):
    module: str
    model: str
    config: str
    kind: Kind


FAMILIES: dict[str, Entry] = {
    "gpt": Entry("foundling.models.decoder.gpt", "GPT", "GPTConfig", "decoder"),
    "gpt2": Entry("foundling.models.decoder.gpt2", "GPT2", "GPT2Config", "decoder"),
    "llama": Entry("foundling.models.decoder.llama", "Llama", "LlamaConfig", "decoder"),
    "llama4": Entry("foundling.models.decoder.llama4", "Llama4", "Llama4Config", "decoder"),
    "mistral": Entry("foundling.models.decoder.mistral", "Mistral", "MistralConfig", "decoder"),
    "qwen3": Entry("foundling.models.decoder.qwen3", "Qwen3", "Qwen3Config", "decoder"),
    "olmo2": Entry("foundling.models.decoder.olmo2", "OLMo2", "OLMo2Config", "decoder"),
    "gpt_neox": Entry("foundling.models.decoder.gpt_neox", "GPTNeoX", "GPTNeoXConfig", "decoder"),
    "gemma2": Entry("foundling.models.decoder.gemma2", "Gemma2", "Gemma2Config", "decoder"),
    "gemma3": Entry("foundling.models.decoder.gemma3", "Gemma3", "Gemma3Config", "decoder"),
    "opt": Entry("foundling.models.decoder.opt", "OPT", "OPTConfig", "decoder"),
    "bloom": Entry("foundling.models.decoder.bloom", "Bloom", "BloomConfig", "decoder"),
    "mixtral": Entry("foundling.models.decoder.mixtral", "Mixtral", "MixtralConfig", "decoder"),
    "mamba": Entry("foundling.models.recurrent.mamba", "Mamba", "MambaConfig", "decoder"),
    "jamba": Entry("foundling.models.recurrent.jamba", "Jamba", "JambaConfig", "decoder"),
    "mamba2": Entry("foundling.models.recurrent.mamba2", "Mamba2", "Mamba2Config", "decoder"),
    "bert": Entry("foundling.models.encoder.bert", "BERT", "BERTConfig", "encoder"),
    "roberta": Entry("foundling.models.encoder.roberta", "RoBERTa", "RoBERTaConfig", "encoder"),
    "distilbert": Entry("foundling.models.encoder.distilbert", "DistilBERT", "DistilBERTConfig", "encoder"),
    "albert": Entry("foundling.models.encoder.albert", "ALBERT", "ALBERTConfig", "encoder"),
    "rwkv": Entry("foundling.models.recurrent.rwkv", "RWKV", "RWKVConfig", "decoder"),
    "s4": Entry("foundling.models.recurrent.s4", "S4", "S4Config", "decoder"),
    "h3": Entry("foundling.models.recurrent.h3", "H3", "H3Config", "decoder"),
    "t5": Entry("foundling.models.seq2seq.t5", "T5", "T5Config", "seq2seq"),
    "transformer": Entry("foundling.models.seq2seq.transformer", "Transformer", "TransformerConfig", "seq2seq"),
    "bart": Entry("foundling.models.seq2seq.bart", "BART", "BARTConfig", "seq2seq"),
    "clip": Entry("foundling.models.multimodal.clip", "CLIP", "CLIPConfig", "dual_encoder"),
    "unet": Entry("foundling.models.denoiser.unet", "UNet", "UNetConfig", "denoiser"),
}


class Family(NamedTuple):
    name: str
    kind: Kind
    model: type[Any]
    config: type[Any]
    module: ModuleType
    """holds KEYS, CONFIG, PRESETS and `sized`, as data beside the code"""


def family(name: str) -> Family:
    """Imports one family; raises ConfigError naming the known ones."""
    if name not in FAMILIES:
        raise ConfigError(f"unknown family '{name}'; {nearest(name, list(FAMILIES))} (known: {', '.join(FAMILIES)})")
    entry = FAMILIES[name]
    module = importlib.import_module(entry.module)
    return Family(name, entry.kind, getattr(module, entry.model), getattr(module, entry.config), module)


def family_of(model: Any) -> Family:
    """The family that a model belongs to."""
    for name, entry in FAMILIES.items():
        if (type(model).__module__, type(model).__name__) == (entry.module, entry.model):
            return family(name)
    raise ConfigError(f"{type(model).__name__} is not a family of foundling; known: {', '.join(FAMILIES)}")


def build(name: str, *, device: str = "cpu", **fields: Any) -> Any:
    """A model of the family with the given configuration fields, parameters as torch made them (see blocks/init)."""
    found = family(name)
    config = from_dict(found.config, fields, where=f"{name} configuration")
    with torch.device(device):
        return found.model(config)


def matrix() -> dict[str, dict[str, str]]:
    """family -> method -> 'test' or 'slow', the run that it passes in; '' for nothing; '– why' where it has no
    meaning. Written by `make matrix`."""
    return json.loads((Path(__file__).parent / "matrix.json").read_text(encoding="utf-8"))


def count_parameters(model: Any) -> dict[str, int]:
    """{'total', 'active', 'non_embedding'}: a tied weight is counted once; active leaves out the experts that a token
    does not visit; non-embedding leaves out token and position tables, and keeps an untied head (it multiplies)."""
    total = sum(p.numel() for p in model.parameters())
    tables = {p for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    experts = [(m, e) for m in model.modules() if isinstance(m, MoE) for e in (m.gate, m.up, m.down)]
    idle = sum(e.weight.numel() * (m.n_experts - m.n_active) // m.n_experts for m, e in experts)
    embedding = sum(p.numel() for p in tables)
    return {"total": total, "active": total - idle, "non_embedding": total - embedding}
