# SPDX-License-Identifier: Apache-2.0
"""/v1/files: what clients upload for fine-tuning. A file that was acknowledged is on disk, with its record.

STATE/files has ID.jsonl, the bytes as they came, and ID.json, the record, which is written last and removed first. IDs
are made here; a client's file name is a value in the record and never a path.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi import Request as HTTPRequest
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import Field
from starlette.requests import ClientDisconnect

from foundling.config import from_dict
from foundling.data.kinds import Kind
from foundling.errors import ConfigError, DataError, WeightsError
from foundling.limits import MODEL_NAME_CHARS, shown
from foundling.runtime.files import fsync_path, read_json, remove_abandoned, write_json
from foundling.serve.errors import APIError
from foundling.serve.generation import ClientGone
from foundling.serve.job_options import JobOptions
from foundling.serve.pages import Page, page_of
from foundling.serve.server import Server, record_of
from foundling.serve.uploads import ExampleLines, Form

logger = logging.getLogger("foundling.serve")
PURPOSE = "fine-tune"
IDLE_SECONDS = 30.0
"""that a client may wait between two parts of a file"""


@dataclass(frozen=True)
class StoredFile:
    """A record. `owner` is never shown."""

    id: str
    owner: str
    filename: str
    bytes: int
    created: float
    kind: Kind
    n_examples: int

    def as_json(self) -> dict[str, Any]:
        """OpenAI's File object; `foundling` is of this server alone."""
        return {
            "id": self.id, "object": "file", "bytes": self.bytes, "created_at": int(self.created),
            "filename": self.filename, "purpose": PURPOSE, "status": "processed", "status_details": None,
            "expires_at": None, "foundling": {"examples": self.n_examples, "kind": self.kind},
        }  # fmt: skip


class FileStore:
    """The event loop alone uses it. Writing is done in threads."""

    def __init__(self, directory: Path, options: JobOptions) -> None:
        self.directory, self.options = directory, options
        self.files: dict[str, StoredFile] = {}
        self._bytes = Counter[str]()
        """of the files of each owner"""
        self._receiving: dict[str, tuple[str, int]] = {}
        """id -> (owner, bytes so far) of a file that is not acknowledged yet"""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_abandoned(directory)
        for path in sorted(directory.glob("*.json")):
            try:
                stored = from_dict(StoredFile, read_json(path), where=path.name)
                if stored.id != path.stem or self.path(stored).stat().st_size != stored.bytes:
                    raise DataError(f"{path.name} is not the record of its file")
                self.add(stored)
            except (WeightsError, ConfigError, DataError, OSError) as error:
                logger.error("a stored file is left out: %s", error)
        for path in [*directory.glob("*.part"), *directory.glob("*.jsonl")]:
            if not path.with_suffix(".json").exists():  # of an upload or a removal that was cut off
                path.unlink()

    def add(self, stored: StoredFile) -> None:
        self.files[stored.id] = stored
        self._bytes[stored.owner] += stored.bytes

    def path(self, stored: StoredFile) -> Path:
        return self.directory / f"{stored.id}.jsonl"

    def of(self, owner: str) -> list[StoredFile]:
        """The newest first."""
        files = [stored for stored in self.files.values() if stored.owner == owner]
        return sorted(files, key=lambda stored: (stored.created, stored.id), reverse=True)

    def get(self, file_id: str, owner: str) -> StoredFile:
        """APIError 404 for one that is unknown, or another key's."""
        stored = self.files.get(file_id)
        if stored is None or stored.owner != owner:
            raise APIError(404, f"there is no file {shown(file_id)}", code="file_not_found")
        return stored

    @asynccontextmanager
    async def receive(self, owner: str) -> AsyncGenerator[Receiver]:
        """Place for one more file; what was received and not stored is removed. APIError where the key has too many."""
        own = [stored.id for stored in self.of(owner)] + [i for i, (o, _) in self._receiving.items() if o == owner]
        if len(own) >= self.options.max_files:
            message = f"the key has {len(own)} files, which is the limit; delete one"
            raise APIError(403, message, code="file_limit_exceeded")
        receiver = Receiver(self, f"file-{secrets.token_hex(12)}", owner)
        self._receiving[receiver.id] = (owner, 0)
        try:
            yield receiver
        finally:
            del self._receiving[receiver.id]
            await asyncio.to_thread(receiver.close)

    def count(self, receiver: Receiver) -> None:
        """Notes how much has come. APIError beyond a limit."""
        self._receiving[receiver.id] = (receiver.owner, receiver.bytes)
        sizes = self._bytes + Counter[str]()
        for owner, size in self._receiving.values():
            sizes[owner] += size
        own = sizes[receiver.owner]
        if own > self.options.max_key_bytes:
            message = f"the files of the key would have over {self.options.max_key_bytes:,} bytes; delete one"
            raise APIError(403, message, code="file_limit_exceeded")
        if sizes.total() > self.options.max_bytes:
            raise APIError(503, "the server has no place for more files; ask its operator", code="unavailable")

    async def delete(self, stored: StoredFile) -> None:
        """Jobs that were made of the file keep their own link to it."""
        if self.files.pop(stored.id, None):
            self._bytes[stored.owner] -= stored.bytes
        await asyncio.to_thread(self.remove, stored)

    def remove(self, stored: StoredFile) -> None:
        """From the disk. Any thread may call it."""
        path = self.path(stored)
        path.with_suffix(".json").unlink(missing_ok=True)
        fsync_path(self.directory)
        path.unlink(missing_ok=True)


class Receiver:
    """One upload."""

    def __init__(self, store: FileStore, file_id: str, owner: str) -> None:
        self.store, self.id, self.owner = store, file_id, owner
        self.bytes, self.lines = 0, ExampleLines()
        self._part = store.directory / f"{file_id}.part"
        self._out: Any = None

    def write(self, data: bytes) -> None:
        self.bytes += len(data)
        self.lines.write(data)
        if self.lines.fault is None:  # else the rest is read and dropped, so that the client gets its answer
            with disk_errors():
                if self._out is None:
                    self._out = open(os.open(self._part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")  # noqa: SIM115
                self._out.write(data)

    def store_as(self, filename: str) -> StoredFile:
        """On disk when it returns."""
        kind = self.lines.finish()
        stored = StoredFile(self.id, self.owner, filename, self.bytes, time.time(), kind, self.lines.n_examples)
        with disk_errors():
            self._out.flush()
            os.fsync(self._out.fileno())
            os.replace(self._part, self.store.path(stored))
            try:
                write_json(self.store.directory / f"{self.id}.json", asdict(stored))
            except OSError:
                self.store.remove(stored)
                raise
        return stored

    def close(self) -> None:
        if self._out is not None:
            self._out.close()
            self._part.unlink(missing_ok=True)


@contextmanager
def disk_errors() -> Iterator[None]:
    """What the disk refuses, without its path."""
    try:
        yield
    except OSError as error:
        logger.error("a file could not be stored: %s", error)
        raise APIError(503, "the server could not store it; ask its operator", code="unavailable") from None


async def receive_file(store: FileStore, http: HTTPRequest, owner: str) -> StoredFile:
    """APIError for a form that is wrong, with the number of the first line that is, and beyond the limits."""
    async with store.receive(owner) as receiver:
        try:
            form = Form(http.headers.get("content-type", ""), ("purpose",), receiver.write)
            parts = aiter(http.stream())
            while True:
                async with asyncio.timeout(IDLE_SECONDS):
                    part = await anext(parts, None)
                if part is None:
                    break
                await asyncio.to_thread(form.write, part)
                store.count(receiver)
            fields = form.finish()
            if fields.get("purpose") != PURPOSE:
                got = shown(fields["purpose"]) if "purpose" in fields else "missing"
                raise APIError(400, f"purpose is {got}; this server takes '{PURPOSE}'", param="purpose")
            stored = await asyncio.to_thread(receiver.store_as, str(form.filename))
        except DataError as error:
            raise APIError(400, str(error), param="file", code="invalid_file") from None
        except TimeoutError:
            raise APIError(408, f"nothing came for {IDLE_SECONDS:g} s") from None
        except ClientDisconnect:
            raise ClientGone from None
        store.add(stored)
        return stored


class FileListQuery(Page):
    limit: int = Field(10_000, ge=1, le=10_000)
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = Field(None, max_length=MODEL_NAME_CHARS.high)


UPLOAD_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": {
            "type": "object", "required": ["purpose", "file"], "additionalProperties": False,
            "properties": {"purpose": {"type": "string", "enum": [PURPOSE]},
                           "file": {"type": "string", "format": "binary"}},
        }}},
    }
}  # fmt: skip


def files_router(server: Server, files: Callable[[], FileStore]) -> APIRouter:
    """`files` raises APIError where the server keeps none."""
    router = APIRouter()

    @router.post("/v1/files", openapi_extra=UPLOAD_SCHEMA)
    async def create_file(http: HTTPRequest) -> JSONResponse:
        stored = await receive_file(files(), http, owner_of(http))
        return JSONResponse(stored.as_json())

    @router.get("/v1/files")
    async def list_files(query: Annotated[FileListQuery, Query()], http: HTTPRequest) -> JSONResponse:
        stored = files().of(owner_of(http)) if query.purpose in (None, PURPOSE) else []
        return JSONResponse(page_of([one.as_json() for one in stored[:: 1 if query.order == "desc" else -1]], query))

    @router.get("/v1/files/{file_id}")
    async def retrieve_file(file_id: str, http: HTTPRequest) -> JSONResponse:
        return JSONResponse(files().get(file_id, owner_of(http)).as_json())

    @router.get("/v1/files/{file_id}/content", response_class=Response)
    async def file_content(file_id: str, http: HTTPRequest) -> FileResponse:
        store = files()
        path = store.path(store.get(file_id, owner_of(http)))
        return FileResponse(path, media_type="application/octet-stream")

    @router.delete("/v1/files/{file_id}")
    async def delete_file(file_id: str, http: HTTPRequest) -> JSONResponse:
        store = files()
        await store.delete(store.get(file_id, owner_of(http)))
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    return router


def owner_of(http: HTTPRequest) -> str:
    return record_of(http).caller.owner
