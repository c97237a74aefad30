# SPDX-License-Identifier: Apache-2.0
"""Next-token prediction: −Σ log p(target | the tokens before it in its document)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foundling.contracts.data import Batch
from foundling.contracts.model import ModelOutput
from foundling.contracts.objective import Loss, Term
from foundling.objectives.chunked import chunked_cross_entropy


def read(model: Any, batch: Batch) -> ModelOutput:
    """The model's output for the batch's `tokens`. Where the batch has a `source` (B, S) with `source_documents`, the
    model encodes it first and the tokens attend to it."""
    tokens, documents = batch["tokens"], batch["documents"]
    if "source" not in batch:
        return model(tokens, documents=_documents_to_separate(documents))
    memory = model.encode(batch["source"], documents=batch["source_documents"])
    return model(tokens, documents=documents, memory=memory)


def _documents_to_separate(documents: Tensor) -> Tensor | None:
    """None where every row is one document, so that attention needs no mask but the causal one. Tested on a CPU alone,
    since reading the answer would wait for another device."""
    single = (
        documents.device.type == "cpu" and bool((documents == documents[:, :1]).all()) and bool((documents >= 0).all())
    )
    return None if single else documents


class Causal:
    """loss: cross-entropy in nats per token of `loss_mask`. With a `source`, of the tokens that follow from it."""

    def normalizers(self, batch: Batch) -> dict[str, int]:
        return {"loss": int(batch["loss_mask"].sum())}

    def __call__(self, model: Any, batch: Batch) -> Loss:
        out = read(model, batch)
        nats = chunked_cross_entropy(model, out.hidden, batch["targets"], batch["loss_mask"])
        return {"loss": Term(nats, batch["loss_mask"].sum()), **out.aux}
