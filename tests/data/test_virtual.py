# SPDX-License-Identifier: Apache-2.0
"""Virtual tokens before each document of a batch."""

import torch

from foundling.data.transforms.virtual import VirtualBatches

IDS = [90, 91]


def widened(batch: dict[str, torch.Tensor]) -> dict[str, list]:
    return {name: column.tolist() for name, column in VirtualBatches([batch], IDS)[0].items()}  # pyright: ignore


def test_each_document_begins_with_them() -> None:
    batch = {
        "tokens": torch.tensor([[1, 2, 3, 4, 5, 0], [6, 7, 8, 0, 0, 0]]),
        "targets": torch.tensor([[2, 0, 4, 5, 0, 0], [7, 8, 0, 0, 0, 0]]),
        "documents": torch.tensor([[0, 0, 1, 1, 1, -1], [0, 0, 0, -1, -1, -1]]),
        "loss_mask": torch.tensor([[True, False, True, True, False, False], [True, True, False, False, False, False]]),
        "sample_ids": torch.tensor([4, 5]),
    }
    wide = widened(batch)
    assert wide["tokens"] == [[90, 91, 1, 2, 90, 91, 3, 4, 5], [90, 91, 6, 7, 8, 0, 0, 0, 0]]
    assert wide["targets"] == [[0, 0, 2, 0, 0, 0, 4, 5, 0], [0, 0, 7, 8, 0, 0, 0, 0, 0]]
    assert wide["documents"] == [[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, -1, -1, -1, -1]]
    t, f = True, False
    assert wide["loss_mask"] == [[f, f, t, f, f, f, t, t, f], [f, f, t, t, f, f, f, f, f]]
    assert wide["sample_ids"] == [4, 5] and batch["tokens"].shape == (2, 6), "the batch itself stays as it is"


def test_a_source_begins_with_them_and_its_answer_does_not() -> None:
    batch = {
        "source": torch.tensor([[1, 2, 3]]),
        "source_documents": torch.tensor([[0, 1, -1]]),
        "tokens": torch.tensor([[4, 5, 6]]),
        "documents": torch.tensor([[0, 0, 1]]),
    }
    wide = widened(batch)
    assert wide["source"] == [[90, 91, 1, 90, 91, 2]] and wide["source_documents"] == [[0, 0, 0, 1, 1, 1]]
    assert wide["tokens"] == [[4, 5, 6]] and wide["documents"] == [[0, 0, 1]]


def test_rows_of_one_text_each() -> None:
    batch = {"tokens": torch.tensor([[1, 2]]), "token_types": torch.tensor([[0, 1]]), "labels": torch.tensor([1])}
    assert widened(batch) == {
        "tokens": [[90, 91, 1, 2]], "token_types": [[0, 0, 0, 1]], "labels": [1], "documents": [[0, 0, 0, 0]],
    }  # fmt: skip
    assert VirtualBatches([batch], [])[0] is batch  # pyright: ignore[reportArgumentType]
