# SPDX-License-Identifier: Apache-2.0
"""Files of pictures as pixels: equal to what CLIP's own processor makes, and refused where they are no pictures."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foundling.errors import DataError, WeightsError
from foundling.media.pictures import PREPROCESSOR, PictureSpec, picture_spec, read_picture
from tests.parity import references

PLAIN = PictureSpec(8, 3, (0.5,) * 3, (0.5,) * 3, 8)


def picture(path: Path, width: int, height: int, mode: str = "RGB") -> Path:
    generator = np.random.default_rng(0)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    coarse = generator.integers(256, size=(4, 4, *channels), dtype=np.uint8)
    Image.fromarray(coarse, mode).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.mark.parametrize(("width", "height"), [(64, 48), (37, 90), (16, 16), (20, 333)])
@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "png"), ("L", "png"), ("RGBA", "png"), ("RGB", "jpg")])
def test_pixels_are_those_of_clips_processor(tmp_path: Path, width: int, height: int, mode: str, suffix: str) -> None:
    processor = references.transformers().CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=16)
    processor.save_pretrained(tmp_path)
    path = picture(tmp_path / f"a.{suffix}", width, height, mode)
    expected = processor(Image.open(path), return_tensors="np")["pixel_values"][0]
    ours = read_picture(path, picture_spec(tmp_path, 16, 3))
    assert ours.shape == expected.shape == (3, 16, 16) and np.abs(ours - expected).max() < 1e-5


def test_without_a_processor_pixels_are_from_minus_1_to_1(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255], [51, 204]], np.uint8), "L").save(tmp_path / "a.png")
    spec = picture_spec(tmp_path, 2, 1)
    assert read_picture(tmp_path / "a.png", spec)[0] == pytest.approx(np.array([[-1, 1], [-0.6, 0.6]]), abs=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_mean": [0.5]}, "image_mean is .0.5.; expected 3 numbers"),
        ({"image_std": [0, 1, 1]}, "expected numbers above 0"),
        ({"image_mean": ["a", 0, 0]}, "expected a finite number"),
        ({"size": {"height": 8, "width": 9}}, "squares alone"),
        ({"size": 0}, "size is 0"),
        ({"size": 16, "do_center_crop": False}, "pictures of 16 pixels, the model reads 8"),
        ({"resample": 9}, "resample is 9"),
    ],
)
def test_a_processor_that_does_not_fit_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    (tmp_path / PREPROCESSOR).write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=message):
        picture_spec(tmp_path, 8, 3)


def declared(width: int, height: int) -> bytes:
    """A PNG that says its size and holds nothing."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    empty = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + empty


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    cases: dict[str, tuple[bytes, str]] = {
        "text.png": (b"not a picture", "no picture that can be read"),
        "empty.png": (b"", r"empty.png is 0; expected"),
        "large.png": (declared(9000, 9000), r"^the pixels of \S+large.png is 81000000"),
        "larger.png": (declared(20000, 20000), "more pixels than 67,108,864"),
        "cut.png": (picture(tmp_path / "whole.png", 64, 64).read_bytes()[:200], "no picture that can be read"),
        "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture that can be read"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=message):
            read_picture(tmp_path / name, PLAIN)
    Image.new("L", (1, 60000)).save(tmp_path / "thin.png")
    with pytest.raises(DataError, match=r"^the pixels of \S+thin.png at 2000 of its size is 240000000000"):
        read_picture(tmp_path / "thin.png", PictureSpec(2000, 3, PLAIN.mean, PLAIN.std, 2000))
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", "missing.png", "."):
        with pytest.raises(DataError, match=r"not a file|no picture that can be read"):
            read_picture(tmp_path / name, PLAIN)
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(DataError, match=r"^the size of \S+huge.png is 67108865"):
        read_picture(tmp_path / "huge.png", PLAIN)
