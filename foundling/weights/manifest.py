# SPDX-License-Identifier: Apache-2.0
"""foundling.json: where a model directory comes from, and the SHA-256 of every file in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundling.errors import WeightsError, render
from foundling.runtime.files import read_json, sha256, write_json
from foundling.runtime.hub import local_directory

FORMAT_VERSION = 1
MANIFEST = "foundling.json"
SPARSE_BYTES, SPARSE_RATIO = 1 << 30, 100
"""A larger file of which less than one part in so many is on the disk holds no weights, and takes hours to hash."""
TEXTS = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.txt")
"""Files for a reader, beside the model and no part of it: whoever publishes a model edits them."""
EDITS = ("missing", "damaged")
"""what `_damage` says of an edited or removed text; one that links outside or cannot be read stays a problem"""
NAME_LIMIT = 200
"""characters of a file's name in a message"""


def write_manifest(directory: Path, about: dict[str, Any]) -> None:
    """Writes foundling.json: the format version, `about`, and the SHA-256 of every other file."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)
    hashes = {str(p.relative_to(directory)): sha256(p) for p in files}
    write_json(directory / MANIFEST, {"format_version": FORMAT_VERSION, **about, "files": hashes})


def read_manifest(directory: Path) -> dict[str, Any]:
    """Reads foundling.json. Raises WeightsError if it is damaged or of a newer format."""
    manifest = read_json(directory / MANIFEST)
    version = manifest.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise WeightsError(f"{directory / MANIFEST}: damaged, no format_version")
    if version > FORMAT_VERSION:
        raise WeightsError(f"{directory}: format_version {version} is newer than {FORMAT_VERSION}; upgrade foundling")
    return manifest


def check(directory: str | Path) -> dict[str, Any]:
    """Compares the hash of every file with foundling.json. Returns {'ok', 'checked', 'problems', 'edited'}. Problems
    name files; 'edited' are those of TEXTS that have been changed or removed, which is no problem."""
    directory = local_directory(directory)
    if not (directory / MANIFEST).exists():
        raise WeightsError(f"{directory}: no {MANIFEST} to check against (is this a model directory?)")
    files = read_manifest(directory).get("files")
    if not isinstance(files, dict) or not files:
        raise WeightsError(f"{directory / MANIFEST}: damaged, no list of files")
    found = {name: _damage(directory, name, expected) for name, expected in files.items()}
    edited = [name for name, damage in found.items() if damage and damage.startswith(EDITS) and name in TEXTS]
    problems = []
    for name, damage in found.items():
        if damage and name not in edited:
            problems.append(f"{render.message(name, limit=NAME_LIMIT)}: {damage}")
    return {"ok": not problems, "checked": len(files), "problems": problems, "edited": edited}


def _damage(directory: Path, name: str, expected: Any) -> str | None:
    """What is wrong with a file that foundling.json lists, or None."""
    path = directory / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        return "points outside the directory"
    try:
        if not path.is_file():
            return "missing"
        size = path.stat()
        if size.st_size > SPARSE_BYTES and 512 * size.st_blocks < size.st_size // SPARSE_RATIO:
            return f"sparse, {512 * size.st_blocks:,} of {size.st_size:,} bytes exist; not hashed"
        actual = sha256(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if actual == expected else f"damaged (sha256 {actual[:12]}…, expected {str(expected)[:12]}…)"
