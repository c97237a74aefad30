# SPDX-License-Identifier: Apache-2.0
"""Keys of config.json as released, by version 4 of transformers: each preset is what its release says, and what
transformers makes of the same file computes with the same numbers."""

from typing import Any

import pytest

from foundling.config import to_dict
from foundling.errors import WeightsError
from foundling.models import FAMILIES, configuration, family
from foundling.weights.configs import read_config

pytest.importorskip("transformers")
CONFIG_MAPPING = pytest.importorskip("transformers.models.auto.configuration_auto").CONFIG_MAPPING

QWEN3_30B = {
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144, "max_position_embeddings": 40960,
    "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
    "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
GPT_OSS_20B = {
    "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "eos_token_id": 200002,
    "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880, "initial_context_length": 4096,
    "initializer_range": 0.02, "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12, "max_position_embeddings": 131072,
    "model_type": "gpt_oss", "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24,
    "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": False, "pad_token_id": 199999,
    "quantization_config": {
        "modules_to_not_convert": [
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"
        ],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
        "rope_type": "yarn", "truncate": False,
    },
    "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
    "tie_word_embeddings": False, "transformers_version": "4.55.0.dev0", "use_cache": True, "vocab_size": 201088,
}  # fmt: skip
MODERNBERT_BASE = {
    "architectures": ["ModernBertForMaskedLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 50281, "classifier_activation": "gelu", "classifier_bias": False, "classifier_dropout": 0.0,
    "classifier_pooling": "mean", "cls_token_id": 50281, "decoder_bias": True, "deterministic_flash_attn": False,
    "embedding_dropout": 0.0, "eos_token_id": 50282, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0,
    "gradient_checkpointing": False, "hidden_activation": "gelu", "hidden_size": 768,
    "initializer_cutoff_factor": 2.0, "initializer_range": 0.02, "intermediate_size": 1152, "layer_norm_eps": 1e-05,
    "local_attention": 128, "local_rope_theta": 10000.0, "max_position_embeddings": 8192, "mlp_bias": False,
    "mlp_dropout": 0.0, "model_type": "modernbert", "norm_bias": False, "norm_eps": 1e-05,
    "num_attention_heads": 12, "num_hidden_layers": 22, "pad_token_id": 50283,
    "position_embedding_type": "absolute", "sep_token_id": 50282, "tie_word_embeddings": True,
    "torch_dtype": "float32", "transformers_version": "4.47.0.dev0", "vocab_size": 50368,
}  # fmt: skip
QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
    "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944,
    "max_position_embeddings": 131072, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1", "use_cache": True, "use_mrope": False, "use_sliding_window": False,
    "vocab_size": 152064,
}  # fmt: skip
QWEN_14B = QWEN_7B | {
    "hidden_size": 5120, "intermediate_size": 13824, "max_window_layers": 48, "num_attention_heads": 40,
    "num_hidden_layers": 48, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
}  # fmt: skip
RELEASED: dict[str, dict[str, Any]] = {
    "qwen3-30b-a3b": QWEN3_30B, "gpt-oss-20b": GPT_OSS_20B, "modernbert-base": MODERNBERT_BASE,
    "qwen2.5-7b": QWEN_7B, "qwen2.5-14b": QWEN_14B,
}  # fmt: skip
NOT_OF_A_PRESET = {
    "modernbert-base": {"mean_pooled": True},
    "qwen2.5-7b": {"window": 131072},
    "qwen2.5-14b": {"window": 131072, "window_starts_at": 48},
}
"""Only a classifier, or layers with windows, which the release has not, would read it."""


@pytest.mark.parametrize("preset", RELEASED)
def test_a_preset_is_what_its_release_says(preset: str) -> None:
    found, config, inert = read_config(RELEASED[preset], "config.json")
    fields = found.module.PRESETS[preset] | NOT_OF_A_PRESET.get(preset, {})
    assert config == configuration(found, fields, where=preset)
    assert "quantization_config" not in inert and inert["initializer_range"] == 0.02


OF_TRANSFORMERS = [name for name, entry in FAMILIES.items() if entry.model_type in CONFIG_MAPPING]
OTHERWISE = {"qwen2": ("window",)}
"""Fields that may differ: layers without windows do not read one."""
DROPOUT = ("dropout", "attention_dropout", "ffn_dropout")
"""A file that names none gets none, in place of the rates of training from scratch."""


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_what_a_file_leaves_out_is_what_transformers_takes(name: str) -> None:
    """The sizes alone, of a model of twice the usual heads, against the configuration that transformers completes."""
    table = family(name).module.CONFIG
    there = CONFIG_MAPPING[table.model_type]
    usual, sizes = there().to_dict(), dict[str, Any]()
    for key in table.fields.keys() - table.derived.keys():
        outer, dot, inner = key.partition(".")
        if dot and inner in usual[outer]:
            sizes.setdefault(outer, {})[inner] = usual[outer][inner]
        elif key in usual:
            sizes[key] = usual[key]
    if name == "bloom":  # its sizes have two names each, and so count as computed
        sizes |= {"hidden_size": 64, "n_layer": 2, "n_head": 8}
    if {"hidden_size", "num_attention_heads"} <= sizes.keys():
        sizes |= {key: 2 * sizes[key] for key in ("hidden_size", "num_attention_heads")}
    whole = {key: value for key, value in there(**sizes).to_dict().items() if key != "quantization_config"}
    completed = to_dict(read_config({"model_type": table.model_type, **sizes}, "config.json")[1])
    expected = to_dict(read_config(whole, "config.json")[1])
    differing = {field for field, value in completed.items() if value != expected[field]}
    assert differing <= {*DROPOUT, *OTHERWISE.get(name, ())}


def test_a_null_says_that_key_value_heads_are_as_many_as_heads() -> None:
    values = DECODER | {"model_type": "mistral", "num_key_value_heads": None, "sliding_window": None}
    config = read_config(values, "config.json")[1]
    assert config.n_kv_heads == 4 and config.window is None


DECODER = {
    "vocab_size": 8, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 8, "head_dim": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family_name", "key", "value", "neutral"),
    [
        ("qwen2", "logits_scaling", 8.0, 1.0), ("llama", "embedding_multiplier", 12.0, 1),
        ("qwen2", "residual_multiplier", 0.22, 1.0), ("mistral", "attention_multiplier", 0.01, None),
        ("qwen2", "final_logit_softcapping", 30.0, None), ("llama", "attn_logit_softcapping", 50.0, None),
        ("qwen2", "use_mrope", True, False), ("qwen2", "dual_chunk_attention_config", {"chunk_size": 64}, None),
        ("llama", "layer_types", ["sliding_attention", "full_attention"], ["full_attention"] * 2),
        ("qwen3", "layer_types", ["full_attention", "linear_attention"], []),
        ("llama", "no_rope_layers", [1, 0], [1, 1]), ("gemma2", "rope_scaling", {"type": "linear", "factor": 2.0}, {}),
    ],
)  # fmt: skip
def test_what_would_compute_something_else_is_refused(family_name: str, key: str, value: Any, neutral: Any) -> None:
    values = {"model_type": family(family_name).module.CONFIG.model_type, **DECODER}
    plain = read_config(values, "config.json")[1]
    assert read_config(values | {key: neutral}, "config.json")[1] == plain
    with pytest.raises(WeightsError, match=rf"config\.json: {key} = .* is not supported by {family_name}; only "):
        read_config(values | {key: value}, "config.json")


def test_what_a_family_maps_is_not_refused() -> None:
    values = {"model_type": "gemma2", **DECODER, "final_logit_softcapping": 20.0, "attn_logit_softcapping": None}
    config = read_config(values, "config.json")[1]
    assert config.logit_cap == 20 and config.score_cap is None


@pytest.mark.parametrize("family_name", ["gemma3", "modernbert", "llama"])
@pytest.mark.parametrize("wrong", [{"0": "full_attention"}, 3, "full_attention"])
def test_kinds_of_layers_that_are_no_list_are_refused(family_name: str, wrong: Any) -> None:
    values = {"model_type": family(family_name).module.CONFIG.model_type, **DECODER, "layer_types": wrong}
    with pytest.raises(WeightsError, match=r"config\.json: layer_types is .*, expected a list with an item for each"):
        read_config(values, "config.json")
