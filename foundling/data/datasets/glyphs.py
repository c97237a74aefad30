# SPDX-License-Identifier: Apache-2.0
"""`glyphs`: pictures of letters and signs with their Unicode names, drawn from the DejaVu fonts of matplotlib.

Some 5,000 characters in up to seven faces.
"""

from __future__ import annotations

import hashlib
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from foundling.contracts.data import Batch
from foundling.errors import DataError
from foundling.runtime.rng import generator
from foundling.text import Tokenizer

FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif",
         "DejaVuSerif-Bold")  # fmt: skip
HELD_OUT = 0.1
"""Share of the characters, chosen by their own hash."""


class Glyph(NamedTuple):
    character: str
    caption: str
    faces: tuple[str, ...]
    """The faces that contain it."""


def _fonts() -> Path:
    try:
        import matplotlib
        import PIL  # noqa: F401
    except ImportError as error:
        raise DataError(f"glyphs need {error.name}; install it: pip install 'foundling[corpora]'") from None
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(maxsize=1)
def glyphs() -> list[Glyph]:
    """Every letter, number and sign that the fonts contain and Unicode names, by code point."""
    from matplotlib.ft2font import FT2Font

    directory, faces = _fonts(), {}
    for face in FACES:
        for code in FT2Font(str(directory / f"{face}.ttf")).get_charmap():
            faces.setdefault(code, []).append(face)
    named = []
    for code in sorted(faces):
        name = unicodedata.name(chr(code), "")
        if name and unicodedata.category(chr(code))[0] in "LNPS" and code != 0xFFFD:
            named.append(Glyph(chr(code), name.lower(), tuple(faces[code])))
    return named


def is_held_out(glyph: Glyph) -> bool:
    return hashlib.sha256(glyph.character.encode()).digest()[0] < 256 * HELD_OUT


def load(split: str) -> list[Glyph]:
    """The characters of "train", or of "test", which are held out."""
    return [glyph for glyph in glyphs() if is_held_out(glyph) == (split == "test")]


@lru_cache(maxsize=1 << 16)
def draw(character: str, face: str, size: int) -> torch.Tensor:
    """(1, size, size) float32 in [−1, 1], white on black, the whole character centred."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(_fonts() / f"{face}.ttf"), 4 * size)
    left, top, right, bottom = font.getbbox(character)
    side = int(max(right - left, bottom - top, 3 * size)) + size // 2
    image = Image.new("L", (side, side))
    place: Any = ((side - (right - left)) / 2 - left, (side - (bottom - top)) / 2 - top)
    ImageDraw.Draw(image).text(place, character, font=font, fill=255)
    small = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    return torch.from_numpy(small / 127.5 - 1)[None]


class GlyphBatches:
    """Batches of `pixels` (B, 1, size, size), `tokens` and `documents` (B, T) of the captions, `sample_ids` (B,).

    No character comes twice in a global batch. The face and the order depend on (seed, sample) alone.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        seed: int,
        size: int = 16,
        max_seq_len: int = 32,
        held_out: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Captions of more than max_seq_len tokens, eos included, are left out. DataError if too few are left."""
        if batch_size % world_size:
            raise DataError(f"batch_size {batch_size} is not a multiple of {world_size} processes")
        self.batch_size, self.seed, self.size, self.max_seq_len = batch_size, seed, size, max_seq_len
        self.rank, self.world_size = rank, world_size
        self.eos = tokenizer.eos
        encoded = [(g, [*tokenizer.encode(g.caption), self.eos]) for g in load("test" if held_out else "train")]
        self.items = [(glyph, ids) for glyph, ids in encoded if len(ids) <= max_seq_len]
        if len(self.items) < batch_size:
            raise DataError(
                f"{len(self.items)} characters with captions of {max_seq_len} tokens, a batch takes {batch_size}"
            )

    def __getitem__(self, n: int) -> Batch:
        per_epoch, share = len(self.items) // self.batch_size, self.batch_size // self.world_size
        epoch, place = divmod(n, per_epoch)
        order = torch.randperm(len(self.items), generator=generator("glyphs", self.seed, epoch))
        first = place * self.batch_size + self.rank * share
        chosen = [self.items[int(i)] for i in order[first : first + share]]
        ids = torch.arange(share) + n * self.batch_size + self.rank * share
        return self.batch(chosen, ids)

    def batch(self, chosen: list[tuple[Glyph, list[int]]], ids: torch.Tensor) -> Batch:
        tokens = torch.full((len(chosen), self.max_seq_len), self.eos)
        documents = torch.full_like(tokens, -1)
        pictures = []
        for row, ((glyph, caption), k) in enumerate(zip(chosen, ids.tolist(), strict=True)):
            tokens[row, : len(caption)] = torch.tensor(caption)
            documents[row, : len(caption)] = 0
            face = int(torch.randint(len(glyph.faces), (), generator=generator("face", self.seed, k)))
            pictures.append(draw(glyph.character, glyph.faces[face], self.size))
        return {"pixels": torch.stack(pictures), "tokens": tokens, "documents": documents, "sample_ids": ids}
