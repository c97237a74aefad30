# SPDX-License-Identifier: Apache-2.0
"""Recipes of older formats as today's."""

from __future__ import annotations

from typing import Any

from foundling.config import merged

UPGRADED = {
    "data": "data.source", "field": "data.field", "vocab_size": "data.vocab_size", "data_share": "data.share",
    "fim_rate": "data.fim_rate", "family": "model.family", "d_model": "model.fields.d_model",
    "n_layers": "model.fields.n_layers", "optimizer": "optim.optimizer", "learning_rate": "optim.learning_rate",
    "matrix_learning_rate": "optim.matrix_learning_rate", "weight_decay": "optim.weight_decay",
    "schedule": "schedule.kind", "warmup_steps": "schedule.warmup_steps", "decay_share": "schedule.decay_share",
    "total_steps": "train.total_steps", "seq_len": "train.seq_len", "batch_size": "train.batch_size",
    "micro_batch_size": "train.micro_batch_size", "clip": "train.clip", "checkpoint_every": "train.checkpoint_every",
    "checkpoint_activations": "train.activation_checkpointing", "device": "runtime.device",
    "precision": "runtime.precision", "threads": "runtime.threads", "compile": "runtime.compile", "seed": "seed",
}  # fmt: skip
"""Keys of the flat recipes of format 1 -> dotted keys of today's."""


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe file or record of format 1, which was flat, as nested dictionaries; a nested one as it is."""
    flat = {key: value for key, value in values.items() if key in UPGRADED and not isinstance(value, dict)}
    out = {key: value for key, value in values.items() if key not in flat}
    for key, value in flat.items():
        inner: Any = value
        for part in reversed(UPGRADED[key].split(".")):
            inner = {part: inner}
        out = merged(out, inner)
    return out
