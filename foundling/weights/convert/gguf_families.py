# SPDX-License-Identifier: Apache-2.0
"""What llama.cpp calls the parts of each family, as data: one Architecture a family. A key of the metadata is mapped
(`fields`), demanded (`only`), inert, or refused, since it may change what the model computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from foundling.contracts.checkpoint_map import Key


@dataclass(frozen=True)
class Architecture:
    name: str
    """The value of `general.architecture`, which is also what its keys begin with."""
    family: str
    keys: list[Key]
    """Names of tensors in the file -> ours, as in a family's KEYS."""
    fields: dict[str, str]
    """Key, without the architecture's name -> our field."""
    optional: dict[str, Any] = field(default_factory=dict)
    """Keys of `fields` that a file may leave out -> what llama.cpp takes then; None: what our configuration takes."""
    none: dict[str, Any] = field(default_factory=dict)
    """Key -> the value that says None of our field."""
    only: dict[str, Any] = field(default_factory=dict)
    """Key -> the only value that computes what is computed here, or our field that it must equal."""
    implied: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    """Our field -> what llama.cpp computes for it, from the other fields; a model with another value is not written."""
    head: Literal["optional", "never", "always"] = "optional"
    """Whether a file has `output.weight`; without it the embedding is the head too."""
    unapplied: tuple[str, ...] = ()
    """Our fields of a length within which llama.cpp computes the same, and beyond which it leaves them out."""
    scalings: tuple[str, ...] = ()
    """Kinds of RopeScaling that it computes."""


INERT = {"vocab_size", "rope.scaling.finetuned", "rope.scaling.original_context_length", "tensor_data_layout"}
"""Keys that the tensors say as well, or that only scaling reads which is refused."""
SCALING = {"rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"}
"""Keys of the field rope_scaling."""
NEUTRAL = {"rope.scaling.attn_factor": 1.0, "attention.causal": True}


def _key(theirs: str, ours: str, *transforms: str, heads: str = "n_heads") -> Key:
    return Key(f"blk.{{i}}.{theirs}", f"layers.{{i}}.{ours}", transforms, heads=heads)


OUTSIDE = [
    Key("token_embd.weight", "embedding.weight"),
    Key("output_norm.weight", "norm.weight"),
    Key("output.weight", "head.weight"),
]
ATTENTION = [_key(f"attn_{theirs}.weight", f"mixer.{theirs[0]}.weight") for theirs in ("q", "k", "v", "output")]
FFN = [_key(f"ffn_{name}.weight", f"ffn.{name}.weight") for name in ("gate", "up", "down")]
NORMS = [_key("attn_norm.weight", "mixer_norm.weight"), _key("ffn_norm.weight", "ffn_norm.weight")]
POST_NORMS = [
    _key("post_attention_norm.weight", "mixer_post_norm.weight"), _key("post_ffw_norm.weight", "ffn_post_norm.weight"),
]  # fmt: skip
EXPERTS = [
    _key("ffn_gate_inp.weight", "ffn.router.weight"),
    *[_key(f"ffn_{name}_exps.weight", f"ffn.{name}.weight") for name in ("gate", "up", "down")],
]
HEAD_NORMS = [_key(f"attn_{part}_norm.weight", f"mixer.{part}_norm.weight") for part in "qk"]
PAIRED = [
    _key("attn_q.weight", "mixer.q.weight", "rope_pairs"),
    _key("attn_k.weight", "mixer.k.weight", "rope_pairs", heads="n_kv_heads"),
    *ATTENTION[2:],
]
"""ATTENTION where llama.cpp rotates neighbouring rows of a head."""

SIZES = {
    "embedding_length": "d_model",
    "block_count": "n_layers",
    "attention.head_count": "n_heads",
    "attention.head_count_kv": "n_kv_heads",
    "attention.key_length": "head_dim",
    "feed_forward_length": "d_ff",
    "context_length": "max_seq_len",
    "rope.freq_base": "rope_theta",
    "attention.layer_norm_rms_epsilon": "norm_eps",
}
OPTIONAL = {"attention.head_count_kv": None, "attention.key_length": None, "rope.freq_base": 10_000.0}
ONLY = {**NEUTRAL, "rope.dimension_count": "head_dim", "attention.value_length": "head_dim"}
NO_EXPERTS = {"expert_count": 0, "expert_used_count": 0}

LLAMA = Architecture(
    "llama", "llama", [*OUTSIDE, *NORMS, *PAIRED, *FFN], SIZES, OPTIONAL,
    only={**ONLY, **NO_EXPERTS, "attention.sliding_window": 0}, scalings=("linear", "llama3"),
)  # fmt: skip
MIXTRAL = replace(
    LLAMA,
    family="mixtral",
    keys=[*OUTSIDE, *NORMS, *PAIRED, *EXPERTS],
    fields={key: "d_expert" if ours == "d_ff" else ours for key, ours in SIZES.items()}
    | {"expert_count": "n_experts", "expert_used_count": "n_active"},
    only=ONLY | {"expert_weights_scale": 0.0},
    scalings=(),
)  # fmt: skip
MISTRAL = replace(LLAMA, family="mistral", unapplied=("window",), scalings=())
"""llama.cpp has no window in this architecture, nor a key of one. A file is read as a Llama, which is the same within
the window."""
QWEN2 = Architecture(
    "qwen2", "qwen2",
    [*OUTSIDE, *NORMS, *ATTENTION, *FFN, *[_key(f"attn_{part}.bias", f"mixer.{part}.bias") for part in "qkv"]],
    SIZES, OPTIONAL, ONLY, implied={"windowed": lambda c: False}, scalings=("linear",),
)  # fmt: skip
QWEN3 = Architecture(
    "qwen3", "qwen3", [*OUTSIDE, *NORMS, *ATTENTION, *HEAD_NORMS, *FFN], SIZES, OPTIONAL, ONLY
)  # fmt: skip
QWEN3_MOE = replace(
    QWEN3,
    name="qwen3moe",
    family="qwen3_moe",
    keys=[*OUTSIDE, *NORMS, *ATTENTION, *HEAD_NORMS, *EXPERTS],
    fields=SIZES
    | {"expert_count": "n_experts", "expert_used_count": "n_active", "expert_feed_forward_length": "d_expert"},
    only=ONLY | {"expert_weights_scale": 0.0},
    implied={"normalised": lambda c: True, "moe_period": lambda c: 1, "dense_at": lambda c: ()},
)
OLMO2 = Architecture(
    "olmo2", "olmo2",
    [
        *OUTSIDE, *ATTENTION, *HEAD_NORMS, *FFN,
        _key("post_attention_norm.weight", "mixer_norm.weight"), _key("post_ffw_norm.weight", "ffn_norm.weight"),
    ],
    {key: ours for key, ours in SIZES.items() if ours != "head_dim"}, OPTIONAL,
    only=ONLY | {"attention.key_length": "head_dim", "attention.sliding_window": 0},
    head="always",
)  # fmt: skip


PHI3 = Architecture(
    "phi3", "phi3",
    [
        *OUTSIDE, *NORMS, ATTENTION[3], FFN[2],
        Key(
            "blk.{i}.attn_qkv.weight", tuple(f"layers.{{i}}.mixer.{part}.weight" for part in "qkv"), ("split_heads",),
            heads="qkv_heads",
        ),
        Key("blk.{i}.ffn_up.weight", ("layers.{i}.ffn.gate.weight", "layers.{i}.ffn.up.weight"), ("split",)),
    ],
    {key: ours for key, ours in SIZES.items() if ours != "head_dim"} | {"attention.sliding_window": "window"},
    OPTIONAL | {"attention.sliding_window": 0},
    none={"attention.sliding_window": 0},
    only=ONLY | {"attention.key_length": "head_dim"},
    implied={"rope_fraction": lambda c: 1.0},
    unapplied=("window",),
)  # fmt: skip
"""Its rotations with factors of their own (LongRoPE) are two tensors, which are refused. llama.cpp reads its window and
says that it does not apply it."""


def _gemma(keys: list[Key]) -> list[Key]:
    """llama.cpp's norms of Gemma hold the whole gain, ours what is added to 1."""
    return [replace(key, transforms=("plus_one",)) if key.theirs.endswith("norm.weight") else key for key in keys]


def _query_scale(layers_of_27b: int) -> Callable[[Any], Any]:
    """llama.cpp knows Gemma's 27B by its number of layers, and scales its queries otherwise."""
    return lambda c: c.d_model // c.n_heads if c.n_layers == layers_of_27b else c.head_dim


GEMMA = Architecture(
    "gemma", "gemma", _gemma([*OUTSIDE, *NORMS, *ATTENTION, *FFN]), SIZES, OPTIONAL, ONLY, head="never"
)
GEMMA2 = Architecture(
    "gemma2", "gemma2", _gemma([*OUTSIDE, *NORMS, *POST_NORMS, *ATTENTION, *FFN]),
    SIZES
    | {
        "attention.sliding_window": "window",
        "attn_logit_softcapping": "score_cap",
        "final_logit_softcapping": "logit_cap",
    },
    OPTIONAL | {"attention.sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    only=ONLY | {"attention.sliding_window_pattern": 2},
    implied={"query_scale": _query_scale(46)},
    head="never",
)  # fmt: skip
GEMMA3 = Architecture(
    "gemma3", "gemma3", _gemma([*OUTSIDE, *NORMS, *POST_NORMS, *ATTENTION, *HEAD_NORMS, *FFN]),
    SIZES
    | {
        "attention.sliding_window": "window",
        "attention.sliding_window_pattern": "period",
        "rope.freq_base_swa": "rope_local_theta",
    },
    OPTIONAL | {"attention.sliding_window_pattern": 6, "rope.freq_base_swa": 10_000.0},
    only=ONLY | {"final_logit_softcapping": 0.0},
    implied={"query_scale": _query_scale(62)},
    scalings=("linear",),
)  # fmt: skip

ARCHITECTURES = (LLAMA, MIXTRAL, MISTRAL, QWEN2, QWEN3, QWEN3_MOE, OLMO2, PHI3, GEMMA, GEMMA2, GEMMA3)
"""Of two with one name, the first reads a file; MIXTRAL reads one with experts."""
