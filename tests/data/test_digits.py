# SPDX-License-Identifier: Apache-2.0
"""The digits as scikit-learn has them, and what a run sees of them; ranks are in tests/decode/test_denoise."""

import pytest
import torch

from foundling.data.datasets.digits import HELD_OUT, DigitBatches, digits
from foundling.errors import DataError

sklearn = pytest.importorskip("sklearn.datasets")


def test_pixels_and_classes_are_theirs() -> None:
    theirs, (pixels, classes) = sklearn.load_digits(), digits()
    assert pixels.shape == (1797, 1, 8, 8) and pixels.dtype == torch.float32 and classes.dtype == torch.int64
    assert float(pixels.min()) == -1 and float(pixels.max()) == 1
    assert ((pixels[:, 0].numpy() + 1) * 8 == theirs.images).all() and (classes.numpy() == theirs.target).all()


def test_a_picture_keeps_its_class_and_what_is_held_out_is_never_seen() -> None:
    pixels, classes = digits()
    place = {row.numpy().tobytes(): i for i, row in enumerate(pixels)}
    assert len(place) == len(pixels), "no two pictures are the same, so a picture is known by its pixels"
    batches = DigitBatches(batch_size=100, seed=1)
    seen = [batches[n] for n in range(15)]
    places = [place[row.numpy().tobytes()] for batch in seen for row in batch["pixels"]]
    assert sorted(places) == list(range(1797 - HELD_OUT)), "one epoch is every picture once"
    assert torch.equal(classes[places], torch.cat([batch["classes"] for batch in seen]))
    later = [place[row.numpy().tobytes()] for n in range(15, 30) for row in batches[n]["pixels"]]
    assert sorted(later) == sorted(places) and later != places
    other = DigitBatches(batch_size=100, seed=2)[0]["pixels"]
    assert not torch.equal(other, seen[0]["pixels"])


def test_uneven_ranks_are_refused() -> None:
    with pytest.raises(DataError, match="multiple of 3"):
        DigitBatches(batch_size=8, seed=0, world_size=3)
