# SPDX-License-Identifier: Apache-2.0
"""A head on every family that reads text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from foundling.adapt.heads import HeadOptions, absorb, add_head
from foundling.blocks.heads import scores
from foundling.contracts.data import Batch
from foundling.objectives.classify import Classify, Regress, Tag
from foundling.runtime.rng import generator
from foundling.train.state import TrainState
from foundling.weights.directory import load, save, weights_hash
from tests.contract.cases import T, case, close, tokens
from tests.contract.matrix import covers
from tests.contract.test_methods import ADAMW, Same, fit

KINDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "classify": (Classify(), ("a", "b", "c")), "tag": (Tag(), ("O", "B", "I")), "regress": (Regress(), ("value",)),
}  # fmt: skip
ROWS, SHORT = 8, 9


def batch_for(kind: str) -> Batch:
    """Rows of two lengths, with −1 on the right of the shorter ones."""
    x, documents = tokens(ROWS, T), torch.zeros(ROWS, T, dtype=torch.int64)
    documents[1::2, SHORT:] = -1
    labels = x[:, 0] % 3
    columns = {"labels": labels.float() if kind == "regress" else labels}
    if kind == "tag":
        columns = {"targets": x % 3, "loss_mask": (x % 2 == 0) & (documents >= 0)}
    return {"tokens": x, "documents": documents, "sample_ids": torch.arange(ROWS), **columns}


@covers("classify", quick=("llama", "bert", "t5", "mamba"))
def test_heads_learn_read_padded_rows_and_are_saved(name: str, tmp_path: Path) -> None:
    for kind, (objective, labels) in KINDS.items():
        model, batch = case(name).fresh(), batch_for(kind)
        add_head(model, HeadOptions(kind, labels, mean=1.0, std=0.8), generator("head"))  # pyright: ignore
        state = TrainState.build(model, ADAMW)
        losses = fit(model, objective, Same(batch), state=state, steps=8)
        assert losses[-1] < 0.97 * losses[0], (kind, losses)

        model.eval()
        found = scores(model, batch)
        assert found.dtype == torch.float32
        alone = scores(model, {"tokens": batch["tokens"][1:2, :SHORT], "documents": batch["documents"][1:2, :SHORT]})
        close(found[1:2, :SHORT] if kind == "tag" else found[1:2], alone)
        batch["tokens"] = torch.where(batch["documents"] < 0, 5, batch["tokens"])
        other = scores(model, batch)
        real = batch["documents"] >= 0 if kind == "tag" else slice(None)
        close(other[real], found[real])

        absorb(model)
        save(model, tmp_path / kind)
        again = load(tmp_path / kind)
        assert again.capabilities.task == kind and weights_hash(again) == weights_hash(model)
        assert torch.equal(scores(again, batch), other)
        options = again.score.options
        assert options.labels == labels and (kind != "regress" or (options.mean, options.std) == (1.0, 0.8))


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_change_nothing(kind: str) -> None:
    objective, labels = KINDS[kind]

    def losses(micro: int) -> list[float]:
        model = case("llama").fresh()
        add_head(model, HeadOptions(kind, labels), generator("head"))  # pyright: ignore
        return fit(model, objective, Same(batch_for(kind)), steps=3, micro=micro)

    assert losses(3) == pytest.approx(losses(8), rel=1e-5)
