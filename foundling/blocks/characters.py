# SPDX-License-Identifier: Apache-2.0
"""Words from their characters: convolutions, the largest value of each, highways, a projection (Kim et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.init import EMBEDDING_GAIN

PAD, BEGIN, END = 256, 257, 258
"""beside the 256 bytes: after the end of a word, before its first byte and after its last"""
N_CHARS = 259


def spelled(texts: Sequence[bytes], length: int) -> Tensor:
    """(V, length) int32: BEGIN, the bytes of each text, END, PAD; of a longer text what fits."""
    table = np.full((len(texts), length), PAD, dtype=np.int32)
    for row, text in zip(table, texts, strict=True):
        characters = [BEGIN, *text[: length - 2], END]
        row[: len(characters)] = characters
    return torch.from_numpy(table)


class Highway(nn.Module):
    """g ⊙ x + (1 − g) ⊙ relu(W x), g = σ(W' x), which begins near x (Srivastava et al. 2015, section 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.up = width, nn.Linear(width, 2 * width)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        assert self.up.bias is not None
        self.up.bias[self.width :] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """(…, F) -> (…, F)"""
        y, gate = self.up(x).chunk(2, -1)
        gate = torch.sigmoid(gate)
        return gate * x + (1 - gate) * F.relu(y)


class CharacterCNN(nn.Module):
    """ids of words -> their vectors, made of how they are spelled (Peters et al. 2018, section 3.4).

    `spelling` (V, W) is part of the model: the bytes of each token. Until `spell` sets them, those of its number."""

    spelling: Tensor

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, d_char: int, filters: Sequence[tuple[int, int]],
        n_highway: int, max_word_len: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.max_word_len = num_embeddings, embedding_dim, max_word_len
        self.chars = nn.Embedding(N_CHARS, d_char)
        self.chars.start_gain = EMBEDDING_GAIN  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        self.filters = nn.ModuleList([nn.Linear(width * d_char, n) for width, n in filters])
        self.widths, total = [width for width, _ in filters], sum(n for _, n in filters)
        self.highways = nn.ModuleList([Highway(total) for _ in range(n_highway)])
        self.proj = nn.Linear(total, embedding_dim)
        device = self.proj.weight.device
        if device.type == "meta":
            rows = torch.empty(num_embeddings, max_word_len, dtype=torch.int32, device=device)
        else:
            rows = spelled([str(i).encode() for i in range(num_embeddings)], max_word_len).to(device)
        self.register_buffer("spelling", rows)

    @property
    def weight(self) -> Tensor:
        """Where its vectors are, and of which type"""
        return self.proj.weight

    def spell(self, texts: Sequence[bytes]) -> None:
        """Sets the bytes of the first tokens: one text a token, b"" for none."""
        self.spelling[: len(texts)] = spelled(texts, self.max_word_len).to(self.spelling.device)

    def has_characters(self) -> bool:
        """Whether the spellings, which a file may have brought, are characters."""
        return self.spelling.numel() == 0 or (int(self.spelling.min()) >= 0 and int(self.spelling.max()) < N_CHARS)

    def sequence_flops(self, seq_len: int, *, causal: bool = True) -> int:
        """Forward, per token, besides its projections: each convolution runs at every place of a word. Fewer where a
        batch has more tokens than the vocabulary, whose words are then made once."""
        places = (self.max_word_len - width for width in self.widths)  # one is counted as a projection
        return sum(2 * n * f.in_features * f.out_features for n, f in zip(places, self.filters, strict=True))  # pyright: ignore

    def words(self, spelling: Tensor) -> Tensor:
        """(N, W) characters -> (N, D)"""
        chars = self.chars(spelling.long())  # (N, W, d_char)
        features = []
        for width, convolution in zip(self.widths, self.filters, strict=True):
            windows = chars.unfold(1, width, 1).transpose(2, 3).flatten(2)  # (N, W − width + 1, width · d_char)
            features.append(F.relu(convolution(windows).amax(1)))
        x = torch.cat(features, -1)
        for highway in self.highways:
            x = highway(x)
        return self.proj(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, D). Where there are more tokens than words in the vocabulary, each word is made once."""
        if tokens.numel() >= self.num_embeddings:
            return F.embedding(tokens, self.words(self.spelling))
        return self.words(self.spelling[tokens.flatten()]).unflatten(0, tokens.shape)
