# SPDX-License-Identifier: Apache-2.0
"""Uploads a model directory to a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from foundling.errors import ConfigError, OutputError, WeightsError
from foundling.runtime.hub import SCHEME, SMALL, Snapshot, content_hash, hub_errors, is_hub, model_info, parse
from foundling.weights.manifest import MANIFEST, check, read_manifest

WEIGHTS = re.compile(r"(unet/)?(model|diffusion_pytorch_model|adapter_model|adapter)\b.*\.safetensors(\.index\.json)?")


def push(
    directory: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> dict[str, Any]:
    """Uploads foundling.json and the files that it lists, and nothing else, as one commit; makes the repository
    (ORG/NAME) and the branch `revision` where they are missing. Files of another model that would be loaded with these
    are removed in the same commit, which is refused where the branch moves meanwhile. Compares afterwards what the hub
    holds with the files here.

    Returns {'repository', 'revision', 'commit', 'place', 'files', 'removed', 'bytes'}. Raises WeightsError for a
    directory that `check` does not pass, OutputError where the hub refuses or cannot be reached."""
    place = repository if is_hub(repository) else SCHEME + repository
    repository, branch = parse(place)
    if branch != "main":
        raise ConfigError(f"{place}: leave @{branch} out and give --revision {branch}")
    branch = parse(f"{place}@{revision}")[1] if revision else "main"
    directory, edited = _checked(directory)
    hashes = read_manifest(directory)["files"]
    files = {
        name: directory / name for name in [*hashes, MANIFEST] if name not in edited or (directory / name).exists()
    }
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise OutputError(f"{place}: HF_HUB_OFFLINE forbids an upload; unset it")
    api = HfApi()
    try:
        with hub_errors(place, branch):
            api.create_repo(repository, private=private or None, exist_ok=True)
            if branch != "main":
                api.create_branch(repository, branch=branch, exist_ok=True)
            before = model_info(repository, branch)
            there = {file.rfilename for file in before.siblings}
            removed = sorted(name for name in there - files.keys() if _is_loaded(name))
            changes = [CommitOperationAdd(name, path) for name, path in files.items()]
            changes += [CommitOperationDelete(name) for name in removed]
            titled = {"commit_message": message or "Upload a model of Foundling", "parent_commit": before.sha}
            done = api.create_commit(repository, changes, revision=branch, **titled)
            arrived = {file.rfilename: file for file in model_info(repository, done.oid).siblings}
    except WeightsError as error:
        raise OutputError(str(error)) from error
    for name, path in files.items():
        expected = None if name in edited else hashes.get(name)
        if name not in arrived or not _is_same(arrived[name], path, expected):
            raise OutputError(f"{place}: {name} is not there as it is here, in commit {done.oid[:12]}; push again")
    return {
        "repository": repository,
        "revision": branch,
        "commit": done.oid,
        "place": Snapshot(repository, branch, done.oid, directory).place,
        "files": sorted(files),
        "removed": removed,
        "bytes": sum(path.stat().st_size for path in files.values()),
    }


def _checked(directory: str | Path) -> tuple[Path, list[str]]:
    """The directory, and those of its texts that have been edited or removed."""
    if is_hub(directory):
        raise ConfigError(f"{directory}: is on the hub; give a directory of this machine")
    found = check(directory)
    if found["problems"]:
        raise WeightsError(f"{directory}: {'; '.join(found['problems'])}")
    for name in found["edited"]:
        if (Path(directory) / name).is_symlink():  # no hash says what it should hold
            raise WeightsError(f"{Path(directory) / name}: is a link, so it is not uploaded; replace it by the file")
    return Path(directory), found["edited"]


def _is_same(listed: Any, path: Path, sha256: str | None) -> bool:
    """Whether a file that the hub lists is the one here."""
    if listed.lfs:
        return listed.lfs.sha256 == (sha256 or content_hash(path, lfs=True))
    return listed.blob_id == content_hash(path, lfs=False)


def _is_loaded(name: str) -> bool:
    """Whether a file that is in the repository already would be read as a part of the model."""
    described = SMALL.fullmatch(name) and not name.endswith(".md") and not name.startswith(("LICENSE", "NOTICE"))
    return bool(described or WEIGHTS.fullmatch(name))
