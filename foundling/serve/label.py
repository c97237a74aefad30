# SPDX-License-Identifier: Apache-2.0
"""The page on which a person labels: its files, the items one at a time, and what is said of them.

Every address begins with a random token, so that neither a page of another site nor another user of the machine can
ask; guard.py checks host, origin and sizes as for every server. A judgement is on the disk before it is answered.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI
from fastapi import Request as HTTPRequest
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import Field, StringConstraints
from starlette.types import ASGIApp

from foundling.data.label_book import LabelBook, Stale
from foundling.data.labels import Item, Judgement
from foundling.limits import DEMONSTRATION_CHARS, LABEL_ITEMS, LABEL_SECONDS, RANKED_ANSWERS
from foundling.serve import errors
from foundling.serve.errors import APIError
from foundling.serve.guard import Guard
from foundling.serve.keys import KeyStore
from foundling.serve.options import ServeOptions
from foundling.serve.playground import TYPES, StaticFile, answer_file, static_file_of, static_files
from foundling.serve.pool import ModelPool
from foundling.serve.protocol import Body
from foundling.serve.run import serve
from foundling.serve.server import Server
from foundling.serve.sessions import Sessions

SHARED = ("dom.js", "style.css", "icon.svg")
"""files of the playground that this page uses too"""
PAGE = "label.html"
Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-zA-Z-]{8,64}$")]
Place = Annotated[int, Field(ge=0, lt=RANKED_ANSWERS.high)]


class JudgeBody(Body):
    item: Id
    id: Id = Field(description="drawn by the client for each decision; sent again, it changes nothing")
    seen: Id | None = Field(description="the judgement that the client has seen of the item")
    state: Literal["judged", "skipped", "flagged"]
    ranking: list[Annotated[list[Place], Field(max_length=RANKED_ANSWERS.high)]] | None = Field(
        None, max_length=RANKED_ANSWERS.high, description="groups of places on the screen, the best first"
    )
    text: str | None = Field(None, max_length=DEMONSTRATION_CHARS.high)
    seconds: float = Field(ge=0, le=LABEL_SECONDS.high)


class UndoBody(Body):
    id: Id


def label_router(book: LabelBook, token: str, agreement: Callable[[], dict[str, Any]] | None = None) -> APIRouter:
    """`agreement`: of all labellers, shown to one who has nothing left to label."""

    def check(token_of_path: str) -> None:
        if not secrets.compare_digest(token_of_path.encode(), token.encode()):
            raise APIError(404, "nothing is here; open the whole address that foundling label has printed")

    router = APIRouter(prefix="/{token_of_path}", dependencies=[Depends(check)])
    _add_files(router, token)
    by_id = {item.id: place for place, item in enumerate(book.items)}

    @router.get("/item")
    async def item(at: int | None = None, after: int = 0) -> JSONResponse:
        """The item at a place; without one the first from `after` on that nothing was said of."""
        for place in (at or 0, after):
            if not 0 <= place <= LABEL_ITEMS.high:
                raise APIError(400, "there is no such item")
        return JSONResponse(await asyncio.to_thread(item_view, book, at, after))

    @router.post("/judge")
    async def judge(body: JudgeBody) -> JSONResponse:
        if body.item not in by_id:
            raise APIError(404, "the data have no such item any more; reload the page", param="item")
        place = by_id[body.item]
        try:
            one = await asyncio.to_thread(
                book.judge, book.items[place], body.id, body.seen, body.state,
                ranking=body.ranking, text=body.text, seconds=body.seconds,
            )  # fmt: skip
        except Stale:
            raise APIError(409, "this item was judged in another window since it was shown", code="stale") from None
        following = await asyncio.to_thread(item_view, book, None, place + 1)
        return JSONResponse({"saved": one.id, "next": following})

    @router.post("/undo")
    async def undo(body: UndoBody) -> JSONResponse:
        one = await asyncio.to_thread(book.undo, body.id)
        place = None if one is None else book.place_of(one)
        view = None if place is None else await asyncio.to_thread(item_view, book, place, 0)
        return JSONResponse({"undone": one is not None, "item": view})

    @router.get("/agreement")
    async def agree() -> JSONResponse:
        """Nothing that others said is shown to whoever still judges."""
        if book.n_left:
            raise APIError(403, "agreement is shown once nothing is left to label")
        return JSONResponse(await asyncio.to_thread(agreement) if agreement else None)

    return router


def _add_files(router: APIRouter, token: str) -> None:
    @router.get("", response_class=Response)
    async def folder() -> Response:
        return RedirectResponse(f"/{token}/", 307)

    @router.get("/", response_class=Response)
    async def page(http: HTTPRequest) -> Response:
        return answer_file(http, label_files()[PAGE])

    @router.get("/static/{name}", response_class=Response)
    async def static_file(name: str, http: HTTPRequest) -> Response:
        file = label_files().get(name)
        if file is None:
            raise APIError(404, "there is no such file")
        return answer_file(http, file)


def item_view(book: LabelBook, at: int | None, after: int) -> dict[str, Any]:
    """What the page shows: an item with its answers in the labeller's order, never where they come from; None for
    `item` where all is done, or there is no such place."""
    if at is None:
        at = book.next_open(after)
    base = {"task": book.task, "labeller": book.labeller, "progress": book.progress()}
    if at is None or not at < len(book.items):
        return base | {"at": None, "item": None}
    item = book.items[at]
    order = book.order(item)
    return base | {
        "at": at, "item": item.id, "messages": list(item.messages),
        "answers": [item.completions[i] for i in order], "judgement": _judgement_view(book.current(item), item, order),
    }  # fmt: skip


def _judgement_view(one: Judgement | None, item: Item, order: tuple[int, ...]) -> dict[str, Any] | None:
    if one is None:
        return None
    places = {answer: place for place, answer in enumerate(order)}
    ranking = None if one.ranking is None else [[places[answer] for answer in group] for group in one.ranking]
    return {"id": one.id, "state": one.state, "ranking": ranking, "text": one.text}


@cache
def label_files() -> dict[str, StaticFile]:
    """Every file of the page by name: a request can name nothing else."""
    by_name = {name: static_files()[name] for name in SHARED}
    for file in files("foundling.serve").joinpath("static", "label").iterdir():
        by_name[file.name] = static_file_of(file.read_bytes(), TYPES[file.name.rpartition(".")[2]])
    return by_name


def label_app(
    book: LabelBook, server: Server, token: str, agreement: Callable[[], dict[str, Any]] | None = None
) -> ASGIApp:

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await server.close()

    app = FastAPI(title="Foundling labels", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None,
                  redirect_slashes=False)  # fmt: skip
    errors.install(app)
    app.include_router(label_router(book, token, agreement))
    return Guard(app, server, Sessions())


def serve_labels(
    book: LabelBook, options: ServeOptions, listener: socket.socket, *, on_ready: Callable[[str], None],
    agreement: Callable[[], dict[str, Any]] | None = None, on_server: Callable[[Server], object] = lambda server: None,
) -> None:  # fmt: skip
    """Answers until a signal stops it. `on_ready` gets the address of the page, token included."""
    token = secrets.token_urlsafe(16)
    server = Server(options, ModelPool(options, {}), KeyStore())
    on_server(server)
    app = label_app(book, server, token, agreement)
    serve(server, app, listener, lambda url: on_ready(f"{url}/{token}/"))
