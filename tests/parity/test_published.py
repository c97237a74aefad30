# SPDX-License-Identifier: Apache-2.0
"""Keys of config.json as released, by version 4 of transformers: each preset is what its release says, and what
transformers makes of the same file computes with the same numbers."""

from typing import Any

import pytest

from foundling.config import to_dict
from foundling.models import configuration, family
from foundling.weights.configs import read_config

transformers = pytest.importorskip("transformers")

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
RELEASED: dict[str, dict[str, Any]] = {
    "qwen3-30b-a3b": QWEN3_30B, "gpt-oss-20b": GPT_OSS_20B, "modernbert-base": MODERNBERT_BASE,
}  # fmt: skip
NOT_OF_A_PRESET = {"modernbert-base": {"mean_pooled": True}}
"""Only a classifier, which the release has not, would read it."""


@pytest.mark.parametrize("preset", RELEASED)
def test_a_preset_is_what_its_release_says(preset: str) -> None:
    found, config, inert = read_config(RELEASED[preset], "config.json")
    fields = found.module.PRESETS[preset] | NOT_OF_A_PRESET.get(preset, {})
    assert config == configuration(found, fields, where=preset)
    assert "quantization_config" not in inert and inert["initializer_range"] == 0.02


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "modernbert"])
def test_what_a_file_leaves_out_is_what_transformers_takes(name: str) -> None:
    """The sizes alone, against the configuration that transformers completes and writes."""
    table = family(name).module.CONFIG
    there = {"qwen3_moe": "Qwen3MoeConfig", "gpt_oss": "GptOssConfig", "modernbert": "ModernBertConfig"}[name]
    whole = getattr(transformers, there)().to_dict()
    sizes = {key: whole[key] for key in table.fields if key in whole and key not in table.derived}
    completed = read_config({"model_type": table.model_type, **sizes}, "config.json")[1]
    written = {key: value for key, value in whole.items() if key != "quantization_config"}
    if name == "qwen3_moe":  # its head_dim is no field there, and follows from the others in either case
        assert "head_dim" not in whole
    assert to_dict(completed) == to_dict(read_config(written, "config.json")[1])
