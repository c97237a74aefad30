# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face hub on loopback that holds its repositories in memory: the requests that huggingface_hub makes to read
a model and to push one, and the ways in which a real hub or network fails."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_" + "T" * 34
"""who sends it may read and write everything"""
LARGE = (".safetensors", ".model")
"""suffixes of files that are kept as LFS objects"""


def git_hash(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@dataclass
class Repository:
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        content = json.dumps([len(self.commits), sorted((name, git_hash(data)) for name, data in files.items())])
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        self.messages.append(message)
        return sha

    def find(self, revision: str) -> str | None:
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None


class Hub:
    """`damage`, `drop`, `cut`: how many of the next large downloads arrive with another byte, end in the middle, or are
    shorter than the hub says."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.answers: dict[str, bytes] = {}
        """path -> an answer that is none of a hub"""
        self.replaced: dict[str, bytes] = {}
        """name -> what is stored in the place of a file that is pushed"""
        self.damage = self.drop = self.cut = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn = f"http://localhost:{self.server.server_port}/cdn"  # another host, which no token is sent to
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def add(self, name: str, files: dict[str, bytes], branch: str = "main", **fields: Any) -> str:
        """Commits the files of a repository, which is made where it is new; returns the commit."""
        for key, value in fields.items():
            setattr(self.repositories.setdefault(name, Repository()), key, value)
        return self.repositories.setdefault(name, Repository()).commit(files, branch)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[name]
        return repository.commits[repository.find(revision) or ""]

    def downloads(self) -> list[str]:
        return [path for method, path, _ in self.requests if method == "GET" and "/api/" not in path]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size + 2)[:-2]
            self.rfile.readline()
        self.hub.requests.append((self.command, path, dict(self.headers)))
        if path in self.hub.answers:
            return self.send(200, data=self.hub.answers[path])
        for method, pattern, answer in ROUTES:
            if self.command in method and (found := re.fullmatch(pattern, path)):
                return answer(self, *found.groups())
        self.send(404, {"error": f"no route for {self.command} {path}"})

    do_HEAD = do_POST = do_PUT = do_GET

    def send(self, status: int, value: Any = None, data: bytes | None = None, **headers: str) -> None:
        data = json.dumps(value).encode() if data is None else data
        self.close_connection = True  # so that a hub that is closed is gone
        self.send_response(status)
        for name, text in ({"Content-Length": str(len(data)), "Connection": "close"} | headers).items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.send(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name: str, revision: str = "main") -> tuple[Repository, str] | None:
        """After an answer that refuses, None."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self.known):
            self.refuse(404 if self.known else 401, "RepoNotFound")
        elif (sha := found.find(revision)) is None:
            self.refuse(404, "RevisionNotFound")
        else:
            return found, sha
        return None

    def info(self, name: str, revision: str | None = None) -> None:
        if found := self.repository(name, revision or "main"):
            files = found[0].commits[found[1]]
            siblings: list[dict[str, Any]] = []
            for path, data in files.items():
                siblings.append({"rfilename": path, "size": len(data), "blobId": git_hash(data)})
                if path.endswith(LARGE):
                    digest = hashlib.sha256(data).hexdigest()
                    siblings[-1]["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            self.send(200, {"id": name, "modelId": name, "sha": found[1], "siblings": siblings, "tags": []})

    def resolve(self, name: str, revision: str, path: str) -> None:
        if not (found := self.repository(name, revision)):
            return
        repository, sha = found
        if repository.gated and not self.known:
            return self.refuse(401, "GatedRepo")
        if path not in repository.commits[sha]:
            return self.send(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        data = repository.commits[sha][path]
        if not path.endswith(LARGE):
            return self.send(200, data=data, ETag=f'"{git_hash(data)}"', X_Repo_Commit=sha)
        digest = hashlib.sha256(data).hexdigest()
        self.hub.objects[digest] = data
        self.send(
            302, data=b"", Location=f"{self.hub.cdn}/{digest}?signature=secret", X_Linked_Etag=f'"{digest}"',
            X_Linked_Size=str(len(data)), ETag='"of-the-redirect"', X_Repo_Commit=sha,
        )  # fmt: skip

    def cdn(self, digest: str) -> None:
        data, hub = self.hub.objects[digest], self.hub
        whole, start = len(data), 0
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(wanted[1])
        if self.command == "GET" and hub.damage:
            hub.damage -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        data = data[start:]
        ranged = {"Content-Range": f"bytes {start}-{whole - 1}/{whole}"} if start else {}
        if self.command == "GET" and hub.drop:
            hub.drop -= 1
            ranged |= {"Content-Length": str(len(data))}
            self.send(206 if start else 200, data=data[: len(data) // 2], **ranged)
            return
        if self.command == "GET" and hub.cut:
            hub.cut -= 1
            data = data[:-7]
        self.send(206 if start else 200, data=data, ETag=f'"{digest}"', **ranged)

    # --- pushing -----------------------------------------------------------------------------------------------------

    def create(self) -> None:
        if not self.known:
            return self.refuse(401, "Unauthorized")
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            return self.send(409, {"error": "exists", "url": f"{self.hub.url}/{name}"})
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=bool(private))
        self.send(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def branch(self, name: str, branch: str) -> None:
        repository = self.hub.repositories[name]
        if branch in repository.branches:
            return self.refuse(409, "Exists")
        repository.branches[branch] = repository.branches["main"]
        self.send(201, {})

    def preupload(self, name: str, revision: str) -> None:
        if found := self.repository(name, revision):
            there, modes = found[0].commits[found[1]], []
            for file in json.loads(self.body)["files"]:
                path, mode = file["path"], "lfs" if file["path"].endswith(LARGE) else "regular"
                data = there.get(path)
                oid = None if data is None else hashlib.sha256(data).hexdigest() if mode == "lfs" else git_hash(data)
                modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self.send(200, {"files": modes})

    def batch(self, name: str) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            actions = {"upload": {"href": f"{self.hub.url}/upload/{wanted['oid']}"}}
            objects.append(wanted if wanted["oid"] in self.hub.objects else wanted | {"actions": actions})
        self.send(200, {"transfer": "basic", "objects": objects})

    def upload(self, digest: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == digest
        self.hub.objects[digest] = self.body
        self.send(200, {})

    def commit(self, name: str, branch: str) -> None:
        if not (found := self.repository(name, branch)):
            return
        repository, sha = found
        files, message = dict(repository.commits[sha]), ""
        for line in self.body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit", sha) != sha:
                    return self.refuse(412, "PreconditionFailed")
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                assert item["key"] == "deletedFile", item
                del files[value["path"]]
        files |= {name: data for name, data in self.hub.replaced.items() if name in files}
        sha = repository.commit(files, branch, message)
        self.send(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})


NAME, READ = r"([^/]+/[^/]+?)", ("GET", "HEAD")
ROUTES: list[tuple[tuple[str, ...], str, Any]] = [
    (READ, f"/api/models/{NAME}(?:/revision/(.+))?", Handler.info),
    (READ, rf"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
    (READ, "/cdn/(.+)", Handler.cdn),
    (("POST",), "/api/repos/create", Handler.create),
    (("POST",), "/api/validate-yaml", lambda handler: handler.send(200, {"errors": [], "warnings": []})),
    (("POST",), f"/api/models/{NAME}/branch/(.+)", Handler.branch),
    (("POST",), f"/api/models/{NAME}/preupload/(.+)", Handler.preupload),
    (("POST",), rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (("PUT",), "/upload/(.+)", Handler.upload),
    (("POST",), f"/api/models/{NAME}/commit/(.+)", Handler.commit),
]


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: Any) -> Iterator[Hub]:
    """A hub for this process and those that it starts, with an empty cache. huggingface_hub reads its variables once,
    so that a process which has imported it needs its constants changed as well."""
    from huggingface_hub import constants

    hub = Hub()
    for name, value in (("HF_ENDPOINT", hub.url), ("HF_HOME", str(cache)), ("HF_HUB_DISABLE_XET", "1")):
        monkeypatch.setenv(name, value)
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    values = {
        "ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": f"{cache}/hub", "HF_HUB_DISABLE_XET": True,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_TOKEN_PATH": f"{cache}/token",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
    try:
        yield hub
    finally:
        hub.close()
