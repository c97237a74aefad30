# SPDX-License-Identifier: Apache-2.0
"""Model families, one file each. FAMILIES is the registry: a literal table of modules and of each family's name in
config.json, so recognising a directory imports only one family."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

import torch

from foundling.blocks.moe import MoE
from foundling.config import from_dict, hints, nearest, partial_dict
from foundling.errors import ConfigError
from foundling.limits import limit_of_size, shown

Kind = Literal["decoder", "encoder", "seq2seq", "dual_encoder", "denoiser"]
"""decoder: causal; encoder: bidirectional; seq2seq: a causal decoder with an encoder's memory; dual_encoder: two
encoders with one embedding space; denoiser: predicts noise."""


class Entry(NamedTuple):
    module: str
    model: str
    config: str
    kind: Kind
    model_type: str
    """The value of `type_key` in this family's config.json."""
    type_key: str = "model_type"


FAMILIES: dict[str, Entry] = {
    "gpt": Entry("foundling.models.decoder.gpt", "GPT", "GPTConfig", "decoder", "openai-gpt"),
    "gpt2": Entry("foundling.models.decoder.gpt2", "GPT2", "GPT2Config", "decoder", "gpt2"),
    "llama": Entry("foundling.models.decoder.llama", "Llama", "LlamaConfig", "decoder", "llama"),
    "llama4": Entry("foundling.models.decoder.llama4", "Llama4", "Llama4Config", "decoder", "llama4_text"),
    "mistral": Entry("foundling.models.decoder.mistral", "Mistral", "MistralConfig", "decoder", "mistral"),
    "qwen2": Entry("foundling.models.decoder.qwen2", "Qwen2", "Qwen2Config", "decoder", "qwen2"),
    "qwen3": Entry("foundling.models.decoder.qwen3", "Qwen3", "Qwen3Config", "decoder", "qwen3"),
    "qwen3_moe": Entry("foundling.models.decoder.qwen3_moe", "Qwen3MoE", "Qwen3MoEConfig", "decoder", "qwen3_moe"),
    "olmo2": Entry("foundling.models.decoder.olmo2", "OLMo2", "OLMo2Config", "decoder", "olmo2"),
    "gpt_neox": Entry("foundling.models.decoder.gpt_neox", "GPTNeoX", "GPTNeoXConfig", "decoder", "gpt_neox"),
    "gpt_oss": Entry("foundling.models.decoder.gpt_oss", "GPTOSS", "GPTOSSConfig", "decoder", "gpt_oss"),
    "gemma": Entry("foundling.models.decoder.gemma", "Gemma", "GemmaConfig", "decoder", "gemma"),
    "gemma2": Entry("foundling.models.decoder.gemma2", "Gemma2", "Gemma2Config", "decoder", "gemma2"),
    "gemma3": Entry("foundling.models.decoder.gemma3", "Gemma3", "Gemma3Config", "decoder", "gemma3_text"),
    "phi3": Entry("foundling.models.decoder.phi3", "Phi3", "Phi3Config", "decoder", "phi3"),
    "opt": Entry("foundling.models.decoder.opt", "OPT", "OPTConfig", "decoder", "opt"),
    "bloom": Entry("foundling.models.decoder.bloom", "Bloom", "BloomConfig", "decoder", "bloom"),
    "mixtral": Entry("foundling.models.decoder.mixtral", "Mixtral", "MixtralConfig", "decoder", "mixtral"),
    "mamba": Entry("foundling.models.recurrent.mamba", "Mamba", "MambaConfig", "decoder", "mamba"),
    "jamba": Entry("foundling.models.recurrent.jamba", "Jamba", "JambaConfig", "decoder", "jamba"),
    "mamba2": Entry("foundling.models.recurrent.mamba2", "Mamba2", "Mamba2Config", "decoder", "mamba2"),
    "bert": Entry("foundling.models.encoder.bert", "BERT", "BERTConfig", "encoder", "bert"),
    "roberta": Entry("foundling.models.encoder.roberta", "RoBERTa", "RoBERTaConfig", "encoder", "roberta"),
    "distilbert": Entry(
        "foundling.models.encoder.distilbert", "DistilBERT", "DistilBERTConfig", "encoder", "distilbert"
    ),
    "albert": Entry("foundling.models.encoder.albert", "ALBERT", "ALBERTConfig", "encoder", "albert"),
    "modernbert": Entry(
        "foundling.models.encoder.modernbert", "ModernBERT", "ModernBERTConfig", "encoder", "modernbert"
    ),
    "elmo": Entry("foundling.models.encoder.elmo", "ELMo", "ELMoConfig", "encoder", "elmo"),
    "rwkv": Entry("foundling.models.recurrent.rwkv", "RWKV", "RWKVConfig", "decoder", "rwkv"),
    "lstm": Entry("foundling.models.recurrent.lstm", "LSTMModel", "LSTMConfig", "decoder", "lstm"),
    "ffn_lm": Entry("foundling.models.decoder.ffn_lm", "FFNLM", "FFNLMConfig", "decoder", "ffn_lm"),
    "s4": Entry("foundling.models.recurrent.s4", "S4", "S4Config", "decoder", "s4"),
    "h3": Entry("foundling.models.recurrent.h3", "H3", "H3Config", "decoder", "h3"),
    "t5": Entry("foundling.models.seq2seq.t5", "T5", "T5Config", "seq2seq", "t5"),
    "transformer": Entry(
        "foundling.models.seq2seq.transformer", "Transformer", "TransformerConfig", "seq2seq", "transformer"
    ),
    "lstm_seq2seq": Entry(
        "foundling.models.seq2seq.lstm_seq2seq", "LSTMSeq2Seq", "LSTMSeq2SeqConfig", "seq2seq", "lstm_seq2seq"
    ),
    "bart": Entry("foundling.models.seq2seq.bart", "BART", "BARTConfig", "seq2seq", "bart"),
    "clip": Entry("foundling.models.multimodal.clip", "CLIP", "CLIPConfig", "dual_encoder", "clip"),
    "unet": Entry("foundling.models.denoiser.unet", "UNet", "UNetConfig", "denoiser", "UNet2DModel", "_class_name"),
}


MAY_BE_ZERO = {
    "start_id", "eos_id", "n_classes", "window_starts_at", "attention_offset", "expert_offset", "dense_at", "attend_at",
}  # fmt: skip
"""Fields of configurations, among whole numbers: ids, offsets, indices of layers, and how many classes."""


class Family(NamedTuple):
    name: str
    kind: Kind
    model: type[Any]
    config: type[Any]
    module: ModuleType
    """Has KEYS, CONFIG, PRESETS and `sized`."""

    @property
    def about(self) -> str:
        """The first line of the module's docstring, from its source: `python -OO` has no docstrings."""
        text = self.module.__doc__ or ast.get_docstring(ast.parse(inspect.getsource(self.module)))
        return (text or self.name).strip().splitlines()[0]


def family(name: str) -> Family:
    """Imports one family. Raises ConfigError, with the known names, for an unknown one."""
    if name not in FAMILIES:
        raise ConfigError(f"unknown family '{name}'; {nearest(name, list(FAMILIES))} (known: {', '.join(FAMILIES)})")
    entry = FAMILIES[name]
    module = importlib.import_module(entry.module)
    return Family(name, entry.kind, getattr(module, entry.model), getattr(module, entry.config), module)


def recognise(values: dict[str, Any]) -> Family | None:
    """The family of a config.json, or None if it is unknown."""
    for name, entry in FAMILIES.items():
        if values.get(entry.type_key) == entry.model_type:
            return family(name)
    return None


def family_of(model: Any) -> Family:
    """The family of a model: of its class, or of the nearest class that it extends."""
    names = {(entry.module, entry.model): name for name, entry in FAMILIES.items()}
    for cls in type(model).__mro__:
        if name := names.get((cls.__module__, cls.__name__)):
            return family(name)
    raise ConfigError(f"{type(model).__name__} is not a family of foundling; known: {', '.join(FAMILIES)}")


def configuration(found: Family, fields: dict[str, Any], *, where: str) -> Any:
    """The family's frozen configuration; ConfigError, naming the field, for what does not fit (see check_sizes)."""
    return from_dict(found.config, check_sizes(found, fields, where=where), where=where)


def check_sizes(found: Family, fields: dict[str, Any], *, where: str) -> dict[str, Any]:
    """Some fields of a family's configuration, of their types. ConfigError for a name or value that does not fit, and
    for sizes that are 0, negative or too large for any machine; of whole numbers only MAY_BE_ZERO may be 0."""
    types = hints(found.config)
    for name, value in fields.items():  # pydantic would read "4096" and 4096.0 as 4096
        expected = (types.get(name), *get_args(types.get(name)))
        wrong = (str, float) if int in expected and float not in expected else (str,) if float in expected else ()
        if isinstance(value, wrong) and str not in expected:
            what = "number" if float in expected else "whole number"
            raise ConfigError(f"{where}: '{name}' is {shown(value)}, expected a {what}")
    clean = partial_dict(found.config, fields, where=where)
    for name, value in clean.items():
        low = 0 if name in MAY_BE_ZERO else 1
        high = limit_of_size(name).high
        for number in value if isinstance(value, list | tuple) else [value]:
            whole = isinstance(number, int) and not isinstance(number, bool)
            if (whole and not low <= number <= high) or (isinstance(number, float) and not 0 <= number < 1e30):
                expected = f"{low} to {high}" if whole else "0 or more"
                raise ConfigError(f"{where}: '{name}' is {shown(value)}, out of range (expected {expected})")
    return clean


def build(name: str, *, device: str = "cpu", **fields: Any) -> Any:
    """A model of the family with the given configuration fields, with torch's default initial values (see
    blocks/init)."""
    found = family(name)
    config = configuration(found, fields, where=f"{name} configuration")
    with torch.device(device):
        return found.model(config)


def matrix() -> dict[str, dict[str, str]]:
    """family -> method -> 'test' or 'slow', the test run that covers it; '' if untested; '– why' if not applicable.
    Written by `make matrix`."""
    return json.loads((Path(__file__).parent / "matrix.json").read_text(encoding="utf-8"))


def count_parameters(model: Any) -> dict[str, int]:
    """{'total', 'active', 'non_embedding'}: a tied weight is counted once; `active` excludes the experts that a token
    does not use; `non_embedding` excludes token and position embeddings, but includes an untied head."""
    total = sum(p.numel() for p in model.parameters())
    tables = {p for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    experts = [(m, p) for m in model.modules() if isinstance(m, MoE) for p in m.expert_parameters()]
    idle = sum(p.numel() * (m.n_experts - m.n_active) // m.n_experts for m, p in experts)
    embedding = sum(p.numel() for p in tables)
    return {"total": total, "active": total - idle, "non_embedding": total - embedding}
