# SPDX-License-Identifier: Apache-2.0
"""Read the ecosystem graph of models from what their directories say: foundling.json of models and adapters,
evaluation.json of evaluations, and what a user says of applications. Nodes are known by hash; nothing is guessed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from foundling.contracts.records import EvaluationRecord
from foundling.errors import ConfigError, DataError, FoundlingError
from foundling.evaluate.store import RECORD, read_evaluation
from foundling.limits import LINEAGE_FOLDERS, shown
from foundling.report.lineage import NOT_STATED, Edge, Graph, Node, access_of, joined
from foundling.runtime.files import read_json, sha256
from foundling.weights.manifest import MANIFEST, read_manifest

MAX_DEPTH, MAX_TASKS = 8, 8
"""folders inside each other that are searched; tasks of an evaluation that are drawn one by one"""
CARD_BYTES = 1 << 20
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_INNER = {"run", "checkpoints", "staging"}
"""of a run that is under way: no models of their own"""
_HASH = re.compile(r"[0-9a-f]{16,128}")
_ACCESS = ("open", "restricted", "closed")
_FIELDS = ("name", "uses", "kind", "licence", "access", "created", "size", "about")


def lineage(directories: Sequence[str | Path], applications: Sequence[str] = ()) -> Graph:
    """The graph of what is in `directories`: each a model, an adapter, an evaluation, or a folder with many of them.

    `applications`: NAME=DIR says that an application uses the model in DIR; a .json file lists several (see
    `_applications`). DataError for a directory with nothing to draw, or a damaged one that was named; damaged ones
    inside a folder are left out and noted. ConfigError for an application that is not said right."""
    nodes, edges, notes = list[Node](), list[Edge](), list[str]()
    for directory in map(Path, directories):
        places = list(_places(directory))
        if not places:
            what = (
                "no such directory"
                if not directory.is_dir()
                else f"no {MANIFEST} or {RECORD} in it, nor in its folders"
            )
            raise DataError(f"{directory}: {what}; name a model, an evaluation, or a folder of them")
        for place in places:
            try:
                parts = _of_evaluation(place) if (place / RECORD).is_file() else _of_model(place)
            except FoundlingError as error:
                if place == directory:
                    raise DataError(str(error)) from None
                notes.append(f"left out: {error}")
                continue
            nodes += parts[0]
            edges += parts[1]
    by_place = {Path(place).resolve(): node.id for node in nodes for place in node.places}
    for text in applications:
        for node, used in _applications(text, by_place, {node.id for node in nodes}):
            nodes.append(node)
            edges += [Edge(source, node.id, "used by") for source in used]
    for edge in edges:  # what is named, and of which nothing else is known
        if all(edge.source != node.id for node in nodes):
            nodes.append(Node(edge.source, "model", edge.source[:12], present=False))
    return joined(nodes, edges, notes)


def _places(directory: Path) -> Iterator[Path]:
    """Directories with a model or an evaluation, from the top down; not those inside one."""
    waiting, seen = [(directory, 0)], 0
    while waiting:
        folder, depth = waiting.pop(0)
        if (folder / RECORD).is_file() or (folder / MANIFEST).is_file():
            yield folder
            continue
        seen += 1
        LINEAGE_FOLDERS.check(seen, f"the number of folders in {directory}", DataError)
        try:
            inner = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
        except OSError:
            continue
        if depth < MAX_DEPTH:
            waiting += [(Path(p), depth + 1) for p in inner if Path(p).name not in _INNER and Path(p).name[0] != "."]


def _of_model(directory: Path) -> tuple[list[Node], list[Edge]]:
    manifest = read_manifest(directory)
    recipe, result = _dict(manifest.get("recipe")), _dict(manifest.get("result"))
    is_adapter = manifest.get("adapter") is True or (directory / "adapter_config.json").is_file()
    licence = _card_licence(directory / "README.md")
    own = _id(manifest.get("weights_hash")) or _hash_of(directory, manifest)
    params, n_bytes = result.get("params"), sum(p.stat().st_size for g in WEIGHTS for p in directory.glob(g))
    size = {"parameters": params} if isinstance(params, int) and not is_adapter else {}
    node = Node(
        own, "adapter" if is_adapter else "model", directory.resolve().name, licence, access_of(licence),
        {**size, **({"bytes": n_bytes} if n_bytes else {})}, places=(str(directory),),
        facts={"kind": str(manifest["kind"])} if manifest.get("kind") else {},
    )  # fmt: skip
    nodes, edges = [node], list[Edge]()
    base = _id(manifest.get("base"))
    for parent in map(_dict, _list(manifest.get("parents"))):
        digest, adapter = _id(parent.get("weights_hash")), _id(parent.get("adapter"))
        if digest:
            name, kind = _base_name(parent.get("name")) or (adapter or digest)[:12], "adapter" if adapter else "model"
            nodes.append(Node(adapter or digest, kind, name, present=False))
            edges.append(Edge(adapter or digest, own, _relation(digest, manifest, recipe, is_adapter)))
    if base and all(edge.source != base for edge in edges):
        nodes.append(Node(base, "model", _base_name(manifest.get("base_path")) or base[:12], present=False))
        edges.append(Edge(base, own, "adapter of"))
    data = _id(manifest.get("data_hash"))
    if data:
        terms = _text(manifest.get("licence"))
        source, n = _dict(recipe.get("data")).get("source"), result.get("source_bytes")
        read: dict[str, float] = {"bytes": n} if isinstance(n, int) and n else {}
        nodes.append(Node(data, "data", _base_name(source) or data[:12], terms, access_of(terms), read))
        edges.append(Edge(data, own, "trained on"))
    return nodes, edges


def _hash_of(directory: Path, manifest: dict[str, Any]) -> str:
    """Of an adapter that does not record its own hash: that of its tensors, as a merged model names it."""
    from foundling.weights.adapter_layout import FILE

    if not (directory / FILE).is_file():
        return _digest(manifest.get("files"))
    from foundling.weights.directory import hash_of
    from foundling.weights.tensors import tensors_of

    with tensors_of(directory, FILE) as tensors:
        return hash_of((name, tensors.read(name)) for name in sorted(tensors))


def _relation(parent: str, manifest: dict[str, Any], recipe: dict[str, Any], is_adapter: bool) -> str:
    """How a model comes from a parent, by what its manifest records."""
    if parent == _dict(recipe.get("objective")).get("teacher_hash"):
        return "distilled from"
    if parent in _dict(_dict(recipe.get("rollout")).get("reward_hashes")).values():
        return "rewarded by"
    if is_adapter:
        return "adapter of"
    if parent == _dict(recipe.get("model")).get("weights_hash") and "data_hash" in manifest:
        return "finetuned from"
    if "merge" in manifest or len(_list(manifest.get("parents"))) > 1:
        return "merged from"
    return "pruned from" if "pruned" in manifest else "made from"


def _of_evaluation(directory: Path) -> tuple[list[Node], list[Edge]]:
    record = read_evaluation(directory)
    own = sha256(directory / RECORD)
    counts: dict[str, float] = {"tasks": len(record.results), "items": sum(result.n for result in record.results)}
    node = Node(own, "evaluation", directory.resolve().name, size=counts, created=record.created or None,
                places=(str(directory),))  # fmt: skip
    nodes, edges = [node], list[Edge]()
    for digest, name, kind, relation in _measured(record):
        nodes.append(Node(digest, kind, name, present=False))
        edges.append(Edge(digest, own, relation))
    tasks = {_id(r.hashes.get("task")): (r.task, r.n) for r in record.results if _id(r.hashes.get("task"))}
    if len(tasks) > MAX_TASKS:
        tasks = {_digest(sorted(tasks)): (f"{len(tasks)} tasks", sum(n for _, n in tasks.values()))}
    for digest, (name, n) in tasks.items():
        nodes.append(Node(digest, "data", name, size={"items": n}))
        edges.append(Edge(digest, own, "evaluated on"))
    return nodes, edges


def _measured(record: EvaluationRecord) -> Iterator[tuple[str, str, Any, str]]:
    """(id, name, kind, relation) of the models that were asked, and of judges: by hash, else by name."""
    models = {_id(result.hashes.get("model")) for result in record.results} - {""} or {
        _digest(["model", record.subject])
    }
    for digest in sorted(models):
        yield digest, _base_name(record.subject) or digest[:12], "model", "evaluated in"
    judges = {_id(result.hashes.get("judge")) for result in record.results} - {""}
    name = record.settings.get("judge")
    if isinstance(name, str) and name and not judges:
        judges = {_digest(["model", name])}
    for digest in sorted(judges):
        yield digest, _base_name(name) or digest[:12], "judge", "judged by"


def _applications(text: str, by_place: dict[Path, str], ids: set[str]) -> Iterator[tuple[Node, list[str]]]:
    """NAME=DIR, or a .json file with a list of objects: "name", "uses" (directories or hashes), and what is known of
    "kind" (application or judge), "licence", "access" (open, restricted, closed), "created", "size", "about"."""
    if text.endswith(".json") and "=" not in text:
        path = Path(text)
        value = read_json(path)
        entries = value.get("applications")
        if not isinstance(entries, list):
            raise ConfigError(f'{path}: expected {{"applications": [{{"name": …, "uses": [DIR, …]}}, …]}}')
    else:
        name, sign, place = text.partition("=")
        if not sign or not name or not place:
            raise ConfigError(f"--application {shown(text)}: expected NAME=DIR, or a .json file")
        entries = [{"name": name, "uses": [place]}]
    for entry in entries:
        values = _dict(entry)
        if unknown := [key for key in values if key not in _FIELDS]:
            raise ConfigError(f"{shown(text)}: unknown field {shown(unknown[0])}; expected {', '.join(_FIELDS)}")
        name, uses, access = values.get("name"), values.get("uses"), values.get("access", NOT_STATED)
        if not isinstance(name, str) or not name or not isinstance(uses, list) or not uses:
            raise ConfigError(f'{shown(text)}: an application needs a "name" and a list "uses"')
        if access not in (*_ACCESS, NOT_STATED):
            raise ConfigError(f"{shown(text)}: access {shown(access)}; expected {', '.join(_ACCESS)}")
        size = values.get("size")
        yield Node(
            _digest(["application", name]), "application", name, _text(values.get("licence")), access,
            {k: v for k, v in _dict(size).items() if isinstance(v, int | float) and not isinstance(v, bool)},
            _text(values.get("created")), facts={"about": about} if (about := _text(values.get("about"))) else {},
        ), [_used(use, by_place, ids, name) for use in uses]  # fmt: skip


def _used(use: Any, by_place: dict[Path, str], ids: set[str], name: str) -> str:
    if not isinstance(use, str) or not use:
        raise ConfigError(f"application {shown(name)} uses {shown(use)}; expected a directory or a hash")
    if (digest := by_place.get(Path(use).resolve())) is not None:
        return digest
    matches = [digest for digest in ids if len(use) >= 8 and digest.startswith(use)]
    if len(matches) == 1:
        return matches[0]
    if (Path(use) / MANIFEST).is_file():
        raise ConfigError(f"application {shown(name)} uses {use}, which is not drawn; name its directory too")
    if not _HASH.fullmatch(use):
        raise ConfigError(f"application {shown(name)} uses {shown(use)}, which is no directory or hash that is drawn")
    return use


def _id(value: Any) -> str:
    """A hash as it stands; another text by its own hash, so that a file cannot name a node as it likes."""
    if not isinstance(value, str) or not value:
        return ""
    return value if _HASH.fullmatch(value) else _digest(value)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _card_licence(path: Path) -> str | None:
    """`license` of the front matter of a model card; None where there is none."""
    try:
        if not path.is_file() or path.stat().st_size > CARD_BYTES:
            return None
        parts = path.read_text("utf-8", errors="replace").split("---\n", 2)
        facts = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] and "&" not in parts[1] else None
    except (OSError, yaml.YAMLError, RecursionError, ValueError):
        return None
    name = _dict(facts).get("license")
    return _text(_dict(facts).get("license_name") if name == "other" else name)


def _base_name(value: Any) -> str:
    """The last part of a path, as a page is there to be shown to others; builtin:NAME and hf://ORG/NAME stay."""
    text = value if isinstance(value, str) else ""
    return text if re.match(r"\w+:", text) else Path(text).name


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
