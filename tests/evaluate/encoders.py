# SPDX-License-Identifier: Apache-2.0
"""Small models that generate nothing, in directories as transformers writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

import foundling
from foundling.models import build, family
from foundling.text import Tokenizer
from tests.decode.test_fill import word_pieces
from tests.parity import references

LABELS = ("negative", "neutral", "positive")
TEXTS = ["in the house the cat meows.", "in the city the cow moos.", "the dog", "the bee hums in the meadow."]


def bert(directory: Path, kind: str, *, seed: int = 0, **fields: Any) -> Any:
    """A BERT of transformers, `kind` after Bert: Model, ForMaskedLM, ForSequenceClassification, with word pieces."""
    transformers = references.transformers()
    sizes = dict(vocab_size=150, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                 max_position_embeddings=24)  # fmt: skip
    torch.manual_seed(seed)
    model = getattr(transformers, f"Bert{kind}")(transformers.BertConfig(**sizes, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from what an initialisation gives, where all states are alike
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(directory)
    word_pieces(directory)
    return model


def classifier(directory: Path, **fields: Any) -> Any:
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    return bert(directory, "ForSequenceClassification", num_labels=3, **names, **fields)


def clip(directory: Path) -> Path:
    """An untrained CLIP of pictures of 8 by 8 pixels."""
    tokenizer = Tokenizer.train(TEXTS, 320)
    fields = family("clip").module.sized(tokenizer.vocab_size, 16, 8, 8, 3, 32, 1) | {"eos_id": tokenizer.eos}
    torch.manual_seed(0)
    return foundling.save(build("clip", **fields), directory, tokenizer=tokenizer)


def task_file(folder: Path, rows: list[dict[str, Any]], **spec: Any) -> Path:
    """A task with its data beside it; JSON is YAML."""
    name = str(spec.get("name", "task"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"name": name, "data": f"{name}.jsonl", **spec}))
    return path
