# SPDX-License-Identifier: Apache-2.0
"""Predict the next token: −Σ log p(target | what is before it in its document)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foundling.contracts.data import Batch
from foundling.contracts.model import ModelOutput
from foundling.contracts.objective import Loss, Term
from foundling.objectives.chunked import chunked_cross_entropy


def read(model: Any, batch: Batch, prefix: str = "") -> ModelOutput:
    """What the model makes of the batch's `tokens`. Where there is a `source` (B, S) with `source_documents`, of this
    prefix or shared by all, the model encodes it first and the tokens read it."""
    tokens, documents = batch[f"{prefix}tokens"], batch[f"{prefix}documents"]
    source = f"{prefix}source" if f"{prefix}source" in batch else "source"
    if source not in batch:
        return model(tokens, documents=_kept_apart(documents))
    memory = model.encode(batch[source], documents=batch[f"{source}_documents"])
    return model(tokens, documents=documents, memory=memory)


def _kept_apart(documents: Tensor) -> Tensor | None:
    """None where every row is one document, so that attention may be plainly causal. Asked of a CPU alone: elsewhere
    the answer would have to be waited for."""
    alone = (
        documents.device.type == "cpu" and bool((documents == documents[:, :1]).all()) and bool((documents >= 0).all())
    )
    return None if alone else documents


class Causal:
    """loss: natural-log nats per counted token. With a `source`, the tokens that answer it."""

    def normalizers(self, batch: Batch) -> dict[str, int]:
        return {"loss": int(batch["loss_mask"].sum())}

    def __call__(self, model: Any, batch: Batch) -> Loss:
        out = read(model, batch)
        nats = chunked_cross_entropy(model, out.hidden, batch["targets"], batch["loss_mask"])
        return {"loss": Term(nats, batch["loss_mask"].sum()), **out.aux}
