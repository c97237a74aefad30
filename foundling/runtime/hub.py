# SPDX-License-Identifier: Apache-2.0
"""Where a model directory is: a path, or `hf://ORG/NAME[@REVISION]`, a repository of the Hugging Face hub.

Of a repository only data is downloaded: configuration, tokenizer, chat template, safetensors, and for a model that was
pushed from here the files its foundling.json lists. Never code, never a pickle. The files lie in the hub's own cache
(HF_HOME), which other libraries share; HF_HUB_OFFLINE and HF_TOKEN mean what they mean there. huggingface_hub is
imported only where such a place is named.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from foundling.errors import ConfigError, FoundlingError, WeightsError, render
from foundling.limits import JSON_BYTES
from foundling.runtime.caches import NotPrivate, cache_directory, make_private
from foundling.runtime.files import read_json, write_json

logger = logging.getLogger("foundling")

SCHEME = "hf://"
NAME = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
PLACE = re.compile(rf"({NAME}/{NAME})(?:@(\w[\w./-]{{0,254}}))?", re.ASCII)
COMMIT = re.compile("[0-9a-f]{40}")
MANIFEST = "foundling.json"
ANCHORS = ("config.json", "model_index.json", "adapter_config.json", MANIFEST)
"""Every repository with a model has one of these."""
SMALL = re.compile(
    r"(unet/|scheduler/)?(config|adapter_config|generation_config|foundling|model_index|scheduler_config|tokenizer|"
    r"tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template|preprocessor_config|processor_config)\.json"
    r"|vocab\.txt|merges\.txt|(tokenizer|spiece|sentencepiece\.bpe)\.model|chat_template\.jinja"
    r"|README\.md|(LICENSE|NOTICE)(\.txt|\.md)?|USE_POLICY\.md"
)
"""Files that say how the weights are used."""
WHOLE = re.compile(r"(unet/)?(model|diffusion_pytorch_model|adapter_model)\.safetensors")
"""Weights in one file. Where there is none, an index of this name and .index.json names several."""
INDEX = ".index.json"
LISTED = (".json", ".jsonl", ".yaml", ".md", ".txt", ".html", ".png", ".jinja", ".model")
"""Suffixes of the files in foundling.json that are downloaded."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
QUERY = re.compile(r"\?\S*")
MAX_FILES = 4200
MAX_GIGABYTES = 50
"""Of one download, unless FOUNDLING_MAX_DOWNLOAD_GB says another number."""


class Snapshot(NamedTuple):
    """The files of one commit of a repository, on this machine."""

    repository: str
    revision: str
    commit: str
    directory: Path

    @property
    def place(self) -> str:
        """The place that names these very files."""
        return f"{SCHEME}{self.repository}@{self.commit}"


def is_hub(place: str | Path) -> bool:
    """Whether the place is of the hub. pathlib turns hf:// into hf:/, which is understood as well."""
    return str(place).startswith("hf:/")


def local_directory(place: str | Path) -> Path:
    """The directory with the files of a place: of a path itself, of an hf:// place the snapshot in the hub's cache,
    downloaded where it is missing. Raises the errors of `resolve`."""
    return resolve(place).directory if is_hub(place) else Path(place)


def pinned(place: str) -> str:
    """A place whose files cannot change: an hf:// place with its commit for a revision, a path as it is. Downloads
    nothing. Raises the errors of `resolve` for a repository or revision that is missing."""
    if not is_hub(place):
        return place
    repository, revision = parse(place)
    if COMMIT.fullmatch(revision):
        return f"{SCHEME}{repository}@{revision}"
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return resolve(place).place
    with hub_errors(place, revision, "; HF_HUB_OFFLINE=1 uses what is in the cache"):
        return f"{SCHEME}{repository}@{model_info(repository, revision).sha}"


def place_name(place: str | Path) -> str:
    """What records call a place: the last part of a path, an hf:// place whole."""
    return str(place) if is_hub(place) else Path(place).name


def parse(place: str | Path) -> tuple[str, str]:
    """(repository, revision) of an hf:// place. ConfigError for anything else."""
    text = str(place)
    found = PLACE.fullmatch(text.removeprefix("hf:/").removeprefix("/"))
    if not is_hub(place) or found is None or ".." in text or "--" in found[1]:
        raise ConfigError(f"{text}: not a place of the hub; write hf://ORG/NAME or hf://ORG/NAME@REVISION")
    if found[1].endswith(".git"):
        raise ConfigError(f"{text}: not a place of the hub; leave out .git")
    return found[1], found[2] or "main"


def resolve(place: str | Path) -> Snapshot:
    """The snapshot of an hf:// place, downloaded where files are missing.

    A commit that was downloaded from here is used without a network, and with HF_HUB_OFFLINE=1 so is all that is in the
    cache. Raises ConfigError for a malformed place, WeightsError in one line for a repository or revision that is
    missing or gated, a hub that cannot be reached, a repository without safetensors, and a download that is too large
    or damaged."""
    repository, revision = parse(place)
    place = f"{SCHEME}{repository}" + (f"@{revision}" if revision != "main" else "")
    from huggingface_hub import constants

    with hub_errors(place, revision):
        cached = _cached(repository, revision)
    if cached and (constants.HF_HUB_OFFLINE or (COMMIT.fullmatch(revision) and _is_complete(cached))):
        return cached
    if constants.HF_HUB_OFFLINE:
        raise WeightsError(f"{place}: not in the cache, and HF_HUB_OFFLINE forbids a download; unset it to download")
    with hub_errors(place, revision, "" if cached is None else "; HF_HUB_OFFLINE=1 uses what is in the cache"):
        snapshot = _download(place, repository, revision, model_info(repository, revision))
    if not _is_complete(snapshot):
        _mark_complete(snapshot)
    return snapshot


def _marker(snapshot: Snapshot) -> Path:
    return cache_directory("hub") / f"{snapshot.repository.replace('/', '--')}@{snapshot.commit}.json"


def _mark_complete(snapshot: Snapshot) -> None:
    """Records that all files of a snapshot are there, in a directory of our own: in the hub's cache, which is shared,
    another library may have downloaded the files that it needs and no others."""
    names = sorted(p.relative_to(snapshot.directory).as_posix() for p in snapshot.directory.rglob("*") if p.is_file())
    with suppress(NotPrivate, OSError, ValueError):  # then the hub is asked each time
        make_private(_marker(snapshot).parent)
        write_json(_marker(snapshot), {"files": names})


def _is_complete(snapshot: Snapshot) -> bool:
    with suppress(WeightsError):
        names = read_json(_marker(snapshot)).get("files")
        return isinstance(names, list) and all((snapshot.directory / str(name)).is_file() for name in names)
    return False


def model_info(repository: str, revision: str) -> Any:
    """The commit of a revision (`sha`), and name, size and hash of its files (`siblings`)."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=30)
    if not COMMIT.fullmatch(str(info.sha)) or info.siblings is None:
        raise ValueError("no commit or no files in what it says of the repository")
    return info


def _cached(repository: str, revision: str) -> Snapshot | None:
    """What is in the cache already, if it has all weights; these are downloaded last."""
    from huggingface_hub import try_to_load_from_cache

    for anchor in ANCHORS:
        path = try_to_load_from_cache(repository, anchor, revision=revision)
        if not isinstance(path, str):
            continue
        folder = Path(path).parent
        found = weights_in([p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()])
        parts = [shard for name in found if name.endswith(INDEX) for shard in shards(folder, name)]
        if found and all((folder / part).is_file() for part in parts):
            return Snapshot(repository, revision, folder.name, folder)
    return None


def weights_in(names: Collection[str]) -> list[str]:
    """The files that weights are loaded from: the whole file where there is one, else the index of its shards."""
    indices = {name for name in names if name.endswith(INDEX) and name.removesuffix(INDEX) not in names}
    return sorted(name for name in names if WHOLE.fullmatch(name.removesuffix(INDEX) if name in indices else name))


def shards(folder: Path, index: str) -> list[str]:
    """The files that an index names, all beside it. WeightsError for a damaged index, and for other names."""
    parts, prefix = read_json(folder / index).get("weight_map"), index.rpartition("/")[0]
    names = sorted(set(map(str, parts.values()))) if isinstance(parts, dict) else []
    if not names or not all(re.fullmatch(r"\w[\w.-]*\.safetensors", name, re.ASCII) for name in names):
        raise WeightsError(f"{folder / index}: damaged, its weight_map names no safetensors beside it")
    return [f"{prefix}/{name}".lstrip("/") for name in names]


def _download(place: str, repository: str, revision: str, info: Any, attempt: int = 0) -> Snapshot:
    """The snapshot of `info`. What describes the model comes first and the weights last: a snapshot that we began and
    that has weights is whole. One that another library began need not be, so what is missing is downloaded."""
    files, commit = {file.rfilename: file for file in info.siblings}, info.sha
    anchor, found = next((name for name in ANCHORS if name in files), None), weights_in(files)
    if anchor is None or not found:
        raise WeightsError(_no_model(place, list(files), anchor))
    indices = [name for name in found if name.endswith(INDEX)]
    for name in (anchor, *indices, *({MANIFEST} & files.keys())):
        if (files[name].size or 0) > JSON_BYTES.high:
            raise WeightsError(f"{place}: {name} has {_size(files[name].size)}, the limit is {_size(JSON_BYTES.high)}")
    # by its revision, so that the cache knows which commit that is when there is no network
    folder = _fetch(place, repository, revision, files[anchor], commit).parent
    if folder.name != commit:  # the branch has moved since
        if attempt or COMMIT.fullmatch(revision):
            raise WeightsError(f"{place}: the repository is changing; try again, or name a commit")
        return _download(place, repository, revision, model_info(repository, revision), attempt + 1)
    small = [name for name in sorted(files) if SMALL.fullmatch(name)]
    if MANIFEST in files:
        _fetch(place, repository, commit, files[MANIFEST])
        listed = read_json(folder / MANIFEST).get("files")
        listed = [name for name in listed if name in files and ".." not in name] if isinstance(listed, dict) else []
        small += [name for name in sorted(listed) if name.endswith(LISTED) and name[0] != "/"]
    weights = [name for name in found if name not in indices]
    for name in indices:
        _fetch(place, repository, commit, files[name])
        weights += shards(folder, name)
    wanted = [name for name in dict.fromkeys([*small, *weights]) if not (folder / name).is_file()]
    if lost := next((name for name in wanted if name not in files), None):
        raise WeightsError(f"{place}: the index names {lost}, which is not in the repository")
    if wanted:
        _announce(f"{SCHEME}{repository} at {commit[:12]}", [files[name] for name in wanted], folder)
    for name in wanted:
        start = time.monotonic()
        size = _fetch(place, repository, commit, files[name]).stat().st_size
        if not sys.stderr.isatty() and name in weights:
            logger.warning(f"  {name}: {_size(size)}, {_size(size / max(1e-9, time.monotonic() - start))}/s")
    return Snapshot(repository, revision, commit, folder)


def content_hash(path: Path, lfs: bool) -> str:
    """The hash by which the hub lists a file: SHA-256 of a large one (LFS), git's of a small one."""
    git = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    digest = hashlib.sha256() if lfs else git
    with open(path, "rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _fetch(place: str, repository: str, revision: str, file: Any, commit: str | None = None) -> Path:
    """Downloads a file, if it is not in the cache, and compares it with the hash that the hub lists; with `commit`,
    only where it is of that one. Removes it and raises WeightsError where it differs."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    name, lfs = file.rfilename, getattr(file, "lfs", None)
    known = isinstance(try_to_load_from_cache(repository, name, revision=revision), str)
    path = Path(hf_hub_download(repository, name, revision=revision))
    expected = lfs.sha256 if lfs else getattr(file, "blob_id", None)
    moved = commit is not None and path.parent.name != commit
    if expected is None or moved or (known and COMMIT.fullmatch(revision)):
        return path
    if (found := content_hash(path, bool(lfs))) != expected:
        Path(os.path.realpath(path)).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise WeightsError(
            f"{place}: {name} was damaged on its way (hash {found[:12]}…, expected {expected[:12]}…) and is removed; "
            "try again"
        )
    return path


def _no_model(place: str, names: Sequence[str], anchor: str | None) -> str:
    pickled = [name for name in sorted(names) if name.endswith(PICKLES)]
    if pickled:
        return (
            f"{place}: no safetensors, only {pickled[0]}, a pickle, which can execute code and is never opened; use a "
            "revision with safetensors, or convert it with save_pretrained of transformers where you trust it"
        )
    if gguf := [name for name in sorted(names) if name.endswith(".gguf")]:
        return f"{place}: only GGUF files; download one ({gguf[0]}) and `foundling import FILE.gguf DIR`"
    lacks = "model.safetensors" if anchor else "config.json"
    return f"{place}: no {lacks}, so this is not a model; hf:// takes models of transformers, diffusers and foundling"


def _announce(what: str, missing: Sequence[Any], folder: Path) -> None:
    """Says what will be downloaded. WeightsError where it is more than the limit or the disk holds."""
    total = sum(file.size or 0 for file in missing)
    text = os.environ.get("FOUNDLING_MAX_DOWNLOAD_GB", "")
    try:
        limit = float(text) if text else float(MAX_GIGABYTES)
    except ValueError:
        raise ConfigError(f"FOUNDLING_MAX_DOWNLOAD_GB is {text!r}, expected a number of gigabytes") from None
    if not total <= limit * 1e9 or len(missing) > MAX_FILES:
        raise WeightsError(
            f"{what}: {len(missing)} files, {_size(total)}; the limit is {limit:g} GB and {MAX_FILES} files, set "
            "FOUNDLING_MAX_DOWNLOAD_GB for more"
        )
    free = shutil.disk_usage(folder).free
    if total > free:
        raise WeightsError(f"{what}: {_size(total)}, the disk of {folder} has {_size(free)}; set HF_HOME to another")
    logger.warning(f"downloading {what}: {len(missing)} file{'s' * (len(missing) > 1)}, {_size(total)}")


@contextmanager
def hub_errors(place: str, revision: str, offline_hint: str = "") -> Iterator[None]:
    """Turns what huggingface_hub raises into one line, without what a URL may carry; shows its bars on a terminal
    only."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logging.getLogger("huggingface_hub.file_download").addFilter(_without_signature)
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_to_our_log)
    silence = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if silence:
        disable_progress_bars()
    try:
        yield
    except (FoundlingError, MemoryError, TypeError, AttributeError, NameError, AssertionError):
        raise
    except Exception as error:
        raise WeightsError(f"{place}: {_reason(error, revision, offline_hint)}") from error
    finally:
        if silence:
            enable_progress_bars()


def _without_signature(record: logging.LogRecord) -> bool:
    """Who has the query of a download's URL may download too."""
    if isinstance(record.args, tuple):
        record.args = tuple(QUERY.sub("", arg) if isinstance(arg, str) else arg for arg in record.args)
    return True


def _to_our_log(record: logging.LogRecord) -> bool:
    """What huggingface_hub would print on stderr itself."""
    logger.log(record.levelno, QUERY.sub("", record.getMessage()))
    return False


def _reason(error: Exception, revision: str, offline_hint: str) -> str:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return "a gated repository; ask for access on its page, and set HF_TOKEN to your token"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository, or a private one; check the name, or set HF_TOKEN to a token that may read it"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no revision '{revision}'; give a branch, a tag or a commit"
    if status in (401, 403):
        return f"the hub refuses access ({status}); set HF_TOKEN to a token with the right to do this"
    if status == 412:
        return "the branch has moved meanwhile; push again"
    if status is not None:
        return f"the hub answers {status}; try again later{offline_hint}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
        return f"cannot be written to the cache ({error.strerror}); set HF_HOME to another directory"
    first = QUERY.sub("", (str(error).splitlines() or [""])[0])
    shown = render.terminal(f"{type(error).__name__}: {first}", limit=200)
    if isinstance(error, OSError) and "Consistency check" in first:
        return f"a file was damaged on its way, and is not kept; try again ({shown})"
    if isinstance(error, ValueError | LookupError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return f"what the hub answers cannot be read; is HF_ENDPOINT one? ({shown})"
    return f"no connection to the hub, or it broke; is there a network? Whole files are kept{offline_hint} ({shown})"


def _size(n_bytes: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes:.0f} bytes"
