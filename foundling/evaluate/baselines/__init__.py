# SPDX-License-Identifier: Apache-2.0
"""Baselines for a language model's bits per byte: general-purpose compressors and an n-gram model."""

from __future__ import annotations

from collections.abc import Iterable

from foundling.evaluate.baselines import compression
from foundling.evaluate.baselines.ngram import ByteNGram


def measure_baselines(
    training: Iterable[str], held_out: Iterable[str], *, max_ngram_bytes: int, order: int = 6
) -> tuple[dict[str, float], ByteNGram]:
    """Bits per byte on the held-out texts: `gzip`, `xz`, `xz_stream`, and `ngram`, a byte n-gram model of this
    order, fitted to the first `max_ngram_bytes` of the training texts. Also returns that model."""
    n_left, counted = max_ngram_bytes, []
    for text in training:
        counted.append(text.encode()[:n_left])
        n_left -= len(counted[-1])
        if n_left <= 0:
            break
    ngram = ByteNGram.fit(counted, order)
    documents = [text.encode() for text in held_out]
    figures = {**compression.bits_per_byte(documents), "ngram": ngram.bits_per_byte(documents)}
    return {name: round(value, 5) for name, value in figures.items()}, ngram
