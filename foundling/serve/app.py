# SPDX-License-Identifier: Apache-2.0
"""The routes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi import Request as HTTPRequest
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp

from foundling.errors import FoundlingError
from foundling.runtime.release import release
from foundling.serve import errors
from foundling.serve.cached import cached
from foundling.serve.chat import create_chat
from foundling.serve.completions import create_completion
from foundling.serve.embeddings import embeddings_router
from foundling.serve.errors import APIError
from foundling.serve.generation import until_gone
from foundling.serve.guard import Guard
from foundling.serve.login import login_router
from foundling.serve.metrics import label_of
from foundling.serve.models import GenerativeModel, ServedModel
from foundling.serve.moderations import moderations_router
from foundling.serve.protocol import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from foundling.serve.server import Server, record_of
from foundling.serve.sessions import Sessions
from foundling.serve.tokens import detokenize, tokenize

logger = logging.getLogger("foundling.serve")
ERRORS: dict[int | str, Any] = {
    status: {"description": about, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    for status, about in {
        400: "the request is wrong, and how", 401: "no valid key", 403: "refused", 404: "no such model or thing",
        408: "the body came too slowly", 413: "too large", 429: "too much at once, or a quota is used up",
        431: "headers too large", 501: "not with these options of the server", 503: "overloaded, loading or stopping",
    }.items()
}  # fmt: skip
ERROR_SCHEMA = {
    "type": "object", "required": ["error"],
    "properties": {"error": {
        "type": "object", "required": ["message", "type", "param", "code"],
        "properties": {"message": {"type": "string"}, "type": {"type": "string"},
                       "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]}},
    }},
}  # fmt: skip


def build_app(server: Server, routers: Sequence[APIRouter] = (), log: Callable[[str], None] | None = None) -> ASGIApp:
    """The application of a server, whose models may be loaded. `log` takes a line of JSON for each request."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await server.close()

    app = FastAPI(title="Foundling", version=release(), lifespan=lifespan, docs_url=None, redoc_url=None,
                  responses=ERRORS, redirect_slashes=False)  # fmt: skip
    errors.install(app)
    sessions = Sessions()
    own = [_generation(server), _models(server), _service(server), login_router(server, sessions)]
    for router in (*own, embeddings_router(server), moderations_router(server), *routers):
        app.include_router(router)
    _describe_errors(app)
    return Guard(app, server, sessions, log)


def _generation(server: Server) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat_completions(body: ChatBody, http: HTTPRequest) -> Response:
        return await until_gone(http, cached(server, body, http, create_chat), server.options.request_timeout)

    @router.post("/v1/completions")
    async def completions(body: CompletionBody, http: HTTPRequest) -> Response:
        return await until_gone(http, cached(server, body, http, create_completion), server.options.request_timeout)

    @router.post("/tokenize")
    async def tokenize_text(body: TokenizeBody, http: HTTPRequest) -> JSONResponse:
        return await asyncio.to_thread(tokenize, server.model(body.model, http), body)

    @router.post("/detokenize")
    async def detokenize_ids(body: DetokenizeBody, http: HTTPRequest) -> JSONResponse:
        return await asyncio.to_thread(detokenize, server.model(body.model, http), body)

    return router


def about_model(server: Server, served: ServedModel) -> dict[str, Any]:
    about = served.about() | {"max_logprobs": server.options.logprobs_cap}
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "foundling",
            "foundling": about}  # fmt: skip


def _models(server: Server) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models(http: HTTPRequest) -> JSONResponse:
        loaded = server.pool.loaded_for(record_of(http).caller.owner)
        return JSONResponse({"object": "list", "data": [about_model(server, one) for one in loaded]})

    @router.get("/v1/models/{name}")
    async def retrieve_model(name: str, http: HTTPRequest) -> JSONResponse:
        return JSONResponse(about_model(server, server.model(name, http)))

    @router.post("/v1/models/{name}/load")
    async def load_model(name: str, http: HTTPRequest) -> JSONResponse:
        owner = _manager(server, name, http)
        try:
            entry = await server.pool.load(name, owner)
        except FoundlingError as error:  # it names directories, which are none of a client's business
            logger.error("the model %s was not loaded: %s", name, error)
            message = f"the model {name} could not be loaded; the server's log says why"
            raise APIError(503, message, param="model", code="model_not_loaded") from None
        return JSONResponse({"id": name, "object": "model.state", "state": entry.state})

    @router.post("/v1/models/{name}/unload")
    async def unload_model(name: str, http: HTTPRequest) -> JSONResponse:
        entry = await server.pool.unload(name, _manager(server, name, http))
        return JSONResponse({"id": name, "object": "model.state", "state": entry.state})

    return router


def _manager(server: Server, name: str, http: HTTPRequest) -> str:
    """The owner of the key of a request that loads or unloads a model. APIError 403 for a key of the key file, unless
    the model is its own: others share what is not."""
    caller = record_of(http).caller
    entry = server.pool.visible_entry(name, caller.owner)
    if caller.stored and entry.owner is None:
        raise APIError(403, "only the server's own keys (--api-key) load and unload models that all keys share")
    return caller.owner


def _service(server: Server) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> JSONResponse:
        """Whether the server answers; nothing of what it serves."""
        return JSONResponse({"status": "stopping" if server.stopping else "ok"})

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(server.metrics.text(server.pool), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _describe_errors(app: FastAPI) -> None:
    """Our error body in the OpenAPI schema, in place of FastAPI's own 422."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        schema = make()
        schema.setdefault("components", {}).setdefault("schemas", {})["Error"] = ERROR_SCHEMA
        for methods in schema["paths"].values():
            for operation in methods.values():
                operation.get("responses", {}).pop("422", None)
        return schema

    app.openapi = openapi


def watch_metrics(server: Server) -> None:
    """Times of every model that is loaded from now on."""

    def watch(served: ServedModel) -> None:
        if isinstance(served, GenerativeModel):
            server.metrics.watch(served, label_of(served.name, server.pool))

    server.pool.on_load = watch
