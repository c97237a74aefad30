# SPDX-License-Identifier: Apache-2.0
"""A file of a picture as the pixels that a model reads. Imports no torch."""

from __future__ import annotations

import os
import stat
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foundling.errors import DataError, WeightsError
from foundling.limits import PICTURE_BYTES, PICTURE_PIXELS, SIZE, check_number, shown
from foundling.runtime.files import read_json

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
PREPROCESSOR = "preprocessor_config.json"
_BICUBIC = 3


@dataclass(frozen=True)
class PictureSpec:
    """What a model reads: squares of `size` pixels with `channels` (1 or 3), (x − mean) / std for x from 0 to 1."""

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shortest: int
    """pixels of the shortest side before the middle is cut out"""
    resample: int = _BICUBIC
    """as Pillow numbers them: 0 nearest, 2 bilinear, 3 bicubic"""


def picture_spec(directory: Path | None, size: int, channels: int) -> PictureSpec:
    """As preprocessor_config.json of a transformers directory says; without one, pixels from −1 to 1. WeightsError for
    one that does not fit the model, or asks for what is not supported."""
    if channels not in (1, 3):
        raise WeightsError(f"the model reads pictures of {channels} channels; 1 and 3 are supported")
    half = (0.5,) * channels
    file = directory / PREPROCESSOR if directory else None
    if file is None or not file.is_file():
        return PictureSpec(size, channels, half, half, size)
    values = read_json(file)
    mean, std = (_numbers(values.get(key, [*half]), channels, f"{file}: {key}") for key in ("image_mean", "image_std"))
    if not values.get("do_normalize", True):
        mean, std = (0.0,) * channels, (1.0,) * channels
    if min(std) <= 0:
        raise WeightsError(f"{file}: image_std is {shown(std)}; expected numbers above 0")
    shortest = _side(values.get("size", size), f"{file}: size")
    cropped = values.get("do_center_crop", True)
    crop = _side(values.get("crop_size", size), f"{file}: crop_size") if cropped else shortest
    if crop != size:
        raise WeightsError(f"{file}: pictures of {crop} pixels, the model reads {size}")
    resample = values.get("resample", _BICUBIC)
    if resample not in (0, 1, 2, 3, 4, 5) or isinstance(resample, bool):
        raise WeightsError(f"{file}: resample is {shown(resample)}; expected a number from 0 to 5")
    return PictureSpec(size, channels, mean, std, shortest, resample)


def _numbers(value: Any, channels: int, name: str) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != channels:
        raise WeightsError(f"{name} is {shown(value)}; expected {channels} numbers")
    return tuple(float(check_number(one, name, error=WeightsError)) for one in value)


def _side(value: Any, name: str) -> int:
    """Of 224, {"shortest_edge": 224} or {"height": 224, "width": 224}."""
    if isinstance(value, dict):
        sides = {value.get(key) for key in ("shortest_edge", "height", "width") if value.get(key) is not None}
        if len(sides) != 1:
            raise WeightsError(f"{name} is {shown(value)}; squares alone are supported")
        value = sides.pop()
    return SIZE.check(value, name, WeightsError)


def read_picture(path: Path, spec: PictureSpec) -> Any:
    """(C, H, W) float32. DataError for a file that is no picture of FORMATS, is damaged, or is beyond the limits."""
    image_module = _pillow()
    try:
        # a file alone: a pipe would be waited for
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file, warnings.catch_warnings():
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise DataError(f"{path}: not a file")
            PICTURE_BYTES.check(about.st_size, f"the size of {path}", DataError)
            warnings.simplefilter("ignore")  # Pillow's own limit is above ours
            with image_module.open(file, formats=FORMATS) as image:
                PICTURE_PIXELS.check(image.width * image.height, f"the pixels of {path}", DataError)
                return pixels(image, spec, str(path))
    except DataError:  # a ValueError as well
        raise
    except image_module.UnidentifiedImageError:
        raise DataError(f"{path}: no picture that can be read; expected {', '.join(FORMATS)}") from None
    except image_module.DecompressionBombError:
        raise DataError(f"{path}: more pixels than {PICTURE_PIXELS.high:,}; make it smaller") from None
    except (OSError, ValueError, SyntaxError, TypeError, IndexError, EOFError, struct.error, zlib.error) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: no picture that can be read ({why}); expected {', '.join(FORMATS)}") from None


def pixels(image: Any, spec: PictureSpec, name: str) -> Any:
    """A picture of Pillow as (C, H, W) float32: the shortest side resized, the middle cut out, as CLIP's authors do.
    What is transparent is white, as in transformers 5."""
    image = _opaque(image).convert("L" if spec.channels == 1 else "RGB")
    width, height = image.size
    scale = spec.shortest / min(width, height)
    if width < height:
        wide, high = spec.shortest, int(spec.shortest * height / width)
    else:
        wide, high = int(spec.shortest * width / height), spec.shortest
    PICTURE_PIXELS.check(wide * high, f"the pixels of {name} at {scale:g} of its size", DataError)
    if (wide, high) != (width, height):
        image = image.resize((wide, high), spec.resample)
    values = _middle(np.asarray(image, np.float32).reshape(high, wide, spec.channels), spec.size) / 255
    normal = (values - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def _opaque(image: Any) -> Any:
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    colours = image.convert("RGBA")
    return _pillow().alpha_composite(_pillow().new("RGBA", colours.size, (255, 255, 255, 255)), colours)


def _middle(values: Any, size: int) -> Any:
    """(H, W, C) -> (size, size, C); what lacks is 0."""
    short = [max(0, size - side) for side in values.shape[:2]]
    if any(short):
        values = np.pad(values, [*(((n + 1) // 2, n // 2) for n in short), (0, 0)])
    top, left = (values.shape[0] - size) // 2, (values.shape[1] - size) // 2
    return values[top : top + size, left : left + size]


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise DataError("pictures need pillow; install it: pip install 'foundling[media]'") from None
    return Image
