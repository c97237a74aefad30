# SPDX-License-Identifier: Apache-2.0
"""Pictures of a task: files beside it, or built-in ones, each known by the hash of its bytes."""

from __future__ import annotations

import hashlib
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from foundling.data.datasets import BUILTIN
from foundling.data.datasets.digits import load as load_digits
from foundling.data.datasets.glyphs import draw, glyphs, is_held_out
from foundling.errors import DataError, render
from foundling.evaluate.subject import Picture
from foundling.limits import PICTURE_BYTES, shown
from foundling.media.pictures import PictureSpec, read_picture
from foundling.runtime.files import sha256

DIGEST = "picture_sha256"
"""field of a row that has a picture"""
CAPTIONS = 10
"""texts that a glyph is matched with, its own among them"""
BUILTINS = ("builtin:digits", "builtin:glyphs")

Row = dict[str, Any]


def builtin_rows(name: str) -> list[Row]:
    """The held-out pictures of "builtin:digits" {'id', 'image', 'label': 0 to 9} or "builtin:glyphs" {'id', 'image',
    'label', 'options': CAPTIONS names}. DataError for another name."""
    if name == BUILTINS[0]:
        pixels, classes = load_digits("test")
        return [
            {"id": str(i), "image": f"{name}/{i}", "label": label, DIGEST: _digest(pixels[i].numpy())}
            for i, label in enumerate(classes.tolist())
        ]
    if name != BUILTINS[1]:
        raise DataError(f"data {shown(name)} is unknown; expected a file, {' or '.join(BUILTINS)}")
    held_out = [glyph for glyph in glyphs() if is_held_out(glyph)]
    captions = [glyph.caption for glyph in held_out]
    rows = list[Row]()
    for i, glyph in enumerate(held_out):
        draw_others = random.Random(glyph.caption)
        others = draw_others.sample([caption for caption in captions if caption != glyph.caption], CAPTIONS - 1)
        options = [glyph.caption, *others]
        draw_others.shuffle(options)
        digest = _digest(draw(glyph.character, glyph.faces[0], 32).numpy())
        rows.append({"id": str(i), "image": f"{name}/{ord(glyph.character)}", "label": glyph.caption,
                     "options": options, DIGEST: digest})  # fmt: skip
    return rows


def with_digest(row: Row, name: str, folder: Path) -> Row:
    """The row with the hash of its picture, a file inside `folder`. DataError for one that is elsewhere, missing or too
    large."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"the picture {render.message(name)!r} is outside {folder}; keep pictures beside the task")
    try:
        PICTURE_BYTES.check(path.stat().st_size, f"the size of {path}", DataError)
        return row | {DIGEST: sha256(path)}
    except OSError as error:
        raise DataError(f"the picture {render.message(name)!r} cannot be read ({error.strerror})") from None


def picture_of(row: Row, name: str, folder: Path) -> Picture:
    return Picture(name, row[DIGEST], name if name.startswith(BUILTIN) else str(folder / name))


def pixels_of(picture: Picture, spec: PictureSpec) -> Any:
    """(C, H, W) float32, as a model reads it. DataError for a file that changed since the task was read, or is no
    picture."""
    if not picture.place.startswith(BUILTIN):
        path = Path(picture.place)
        try:
            same = picture.endswith(f"sha256:{sha256(path)}")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        if not same:
            raise DataError(f"{path}: changed while the evaluation ran; run it again")
        return read_picture(path, spec)
    name, _, number = picture.place.rpartition("/")
    values = _digit(int(number), spec) if name == BUILTINS[0] else _glyph(chr(int(number)), spec)
    unit = np.repeat((values + 1) / 2, spec.channels, axis=0)  # 0 to 1
    mean, std = (np.array(part, np.float32)[:, None, None] for part in (spec.mean, spec.std))
    return np.ascontiguousarray((unit - mean) / std, dtype=np.float32)


def _digit(number: int, spec: PictureSpec) -> Any:
    """(1, size, size) in [−1, 1]; each pixel of the 8 by 8 is a square of pixels, as even as the size lets it be."""
    values = load_digits("test")[0][number].numpy()
    at = np.arange(spec.size) * values.shape[1] // spec.size
    return values[:, at][:, :, at]


def _glyph(character: str, spec: PictureSpec) -> Any:
    return draw(character, _faces()[character], spec.size).numpy()


@lru_cache(maxsize=1)
def _faces() -> dict[str, str]:
    return {glyph.character: glyph.faces[0] for glyph in glyphs()}


def _digest(values: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest()
