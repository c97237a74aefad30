# SPDX-License-Identifier: Apache-2.0
"""The page at /: its files, and what it asks beyond the public routes: the logits after some tokens, what the model did
inside while it read them, and whether an answer follows a schema."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import APIRouter
from fastapi import Request as HTTPRequest
from fastapi.responses import Response
from pydantic import Field
from torch import Tensor

from foundling.blocks.attention import Attention
from foundling.contracts.model import named_layers
from foundling.decode.constrain.constraint import json_schema
from foundling.decode.request import Request
from foundling.decode.sampling import Sampling
from foundling.errors import GenerationError
from foundling.interpret.look import look_at
from foundling.limits import ANSWER_CHARS, LOOK_TOKENS, NEXT_TOKENS, TOP_LOGPROBS
from foundling.serve.errors import APIError
from foundling.serve.generation import NO_LOGPROBS, Meter, complete, until_gone
from foundling.serve.models import GenerativeModel
from foundling.serve.protocol import Body, Name, Tokens
from foundling.serve.reply import TokenTexts, Usage
from foundling.serve.server import Server

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
SLIDERS = {"temperature", "top_k", "top_p", "min_p"}
"""what the page sets itself"""
NOT_SHOWN = (
    "this server caps log-probabilities, so it does not show the inside of its models either; start it with "
    f"--max-logprobs {TOP_LOGPROBS.high} to show both"
)


class NextBody(Body):
    model: Name | None = None
    tokens: Annotated[Tokens, Field(max_length=NEXT_TOKENS.high)]
    n: int = Field(40, ge=1, le=TOP_LOGPROBS.high)


class LookBody(Body):
    model: Name | None = None
    tokens: Annotated[Tokens, Field(max_length=LOOK_TOKENS.high)]
    layer: int | None = Field(None, ge=0, le=1 << 12, description="the one whose heads are shown; None: a middle one")


class CheckBody(Body):
    schema_: dict[str, Any] | bool = Field(alias="schema")
    text: str = Field(max_length=ANSWER_CHARS.high)


class StaticFile(NamedTuple):
    content: bytes
    media_type: str
    etag: str


def playground_router(server: Server) -> APIRouter:
    """The routes of the page. All but the login form of GET / stand behind the key (guard.py)."""
    router = APIRouter()

    @router.get("/", response_class=Response)
    async def page(http: HTTPRequest) -> Response:
        if http.scope.get("foundling.login"):
            content, policy = login_page()
            headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
            # under no-referrer the form of a browser names no origin, and guard.py refuses it
            headers["Referrer-Policy"] = "same-origin"
            return Response(content, 401, headers, "text/html")
        return answer_file(http, index_page(server.keys.required))

    @router.get("/static/{name}", response_class=Response)
    async def static_file(name: str, http: HTTPRequest) -> Response:
        file = static_files().get(name)
        if file is None:
            raise APIError(404, "there is no such file")
        return answer_file(http, file)

    @router.post("/playground/next")
    async def next_token(body: NextBody, http: HTTPRequest) -> Response:
        if server.options.max_logprobs == 0:
            raise APIError(400, NO_LOGPROBS)
        return await until_gone(http, _next(server, http, body), server.options.request_timeout)

    @router.post("/playground/look")
    async def look_inside(body: LookBody, http: HTTPRequest) -> Response:
        if server.options.logprobs_cap is not None:
            raise APIError(400, NOT_SHOWN)
        served = _served(server, body.model, body.tokens, http)
        return await until_gone(http, _look(server, http, served, body), server.options.request_timeout)

    @router.post("/playground/check")
    async def check_schema(body: CheckBody, http: HTTPRequest) -> Response:
        return await until_gone(http, _check(server, body), server.options.request_timeout)

    return router


# --- files -----------------------------------------------------------------------------------------------------------


@cache
def static_files() -> dict[str, StaticFile]:
    """Every file of the page by name: a request can name nothing else."""
    by_name = dict[str, StaticFile]()
    for file in files("foundling.serve").joinpath("static").iterdir():
        suffix = file.name.rpartition(".")[2]
        if suffix in TYPES:
            by_name[file.name] = static_file_of(file.read_bytes(), TYPES[suffix])
    return by_name


@cache
def index_page(keys: bool) -> StaticFile:
    """The page; with `keys` it can sign out."""
    file = static_files()["index.html"]
    return static_file_of(file.content.replace(b"<html ", b"<html data-keys ", 1), file.media_type) if keys else file


def static_file_of(content: bytes, media_type: str) -> StaticFile:
    return StaticFile(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def answer_file(http: HTTPRequest, file: StaticFile) -> Response:
    """Browsers keep a file and ask whether it has changed, so that a page never mixes two versions."""
    headers = {"Cache-Control": "no-cache", "ETag": file.etag}
    if file.etag in http.headers.get("if-none-match", ""):
        return Response(None, 304, headers)
    return Response(file.content, 200, headers, file.media_type)


@cache
def login_page() -> tuple[bytes, str]:
    """The form that asks for a key, and the policy that names its one style and one script by their hashes: no other
    file is open without a key."""
    content = static_files()["login.html"].content
    style, script = (_digest(content, tag) for tag in (b"style", b"script"))
    return content, (
        f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )


def _digest(content: bytes, tag: bytes) -> str:
    match = re.search(rb"<%b>(.*?)</%b>" % (tag, tag), content, re.S)
    assert match
    return f"'sha256-{base64.b64encode(hashlib.sha256(match[1]).digest()).decode()}'"


# --- computing -------------------------------------------------------------------------------------------------------


def _served(server: Server, name: str | None, tokens: Sequence[int], http: HTTPRequest) -> GenerativeModel:
    """APIError for a model that writes no text of its own after a text, and tokens that it cannot read."""
    served = server.generative(name, http)
    model = served.model
    if model.capabilities.reads_source:
        raise APIError(400, f"{served.name} reads a source and answers it, so no token follows another in one text")
    rows, longest = model.embedding.num_embeddings, getattr(model.config, "max_seq_len", NEXT_TOKENS.high)
    if max(tokens) >= rows:
        raise APIError(400, f"tokens has {max(tokens)}; the model has {rows:,}", param="tokens")
    if len(tokens) > longest:
        raise APIError(400, f"{len(tokens):,} tokens; {served.name} reads at most {longest:,}", param="tokens")
    return served


def _json(value: dict[str, Any]) -> Response:
    return Response(json.dumps(value), media_type="application/json")


class _Capture:
    """A processor of logits, and its own state, that keeps what it sees."""

    logits: Tensor

    def start(self, prompt: Sequence[int]) -> _Capture:
        return self

    def apply(self, logits: Tensor) -> Tensor:
        self.logits = logits.cpu()
        return logits

    def accept(self, token: int) -> None: ...
    def copy(self) -> _Capture:
        return self


async def _next(server: Server, http: HTTPRequest, body: NextBody) -> Response:
    """The engine computes it as it computes answers, and it is charged as a prompt."""
    served = _served(server, body.model, body.tokens, http)
    capture, sampling = _Capture(), Sampling(temperature=0, logit_bias=served.no_rows)
    request = Request(body.tokens, 1, sampling, processors=[capture], adapter=served.adapter)
    meter = Meter([request], Usage(prompt_tokens=len(body.tokens), price=served.price), counts_tokens=False)
    await server.check_quota(http, meter.usage)
    await complete(server, http, served, meter)
    return await asyncio.to_thread(_shown, served, body, capture.logits, server.options.logprobs_cap)


def _shown(served: GenerativeModel, body: NextBody, logits: Tensor, cap: int | None) -> Response:
    normalizer = float(logits.logsumexp(-1))
    n = min(body.n, len(logits) - len(served.no_rows), len(logits) if cap is None else cap)
    values, ids = logits.topk(n)
    texts = TokenTexts(served, served.framing.answer(body.tokens))
    top = [
        {"id": token, "text": texts.text(token), "logit": value, "logprob": value - normalizer}
        for token, value in zip(ids.tolist(), values.tolist(), strict=True)
    ]
    return _json({
        "position": len(body.tokens), "top": top, "log_normalizer": normalizer, "ends": list(served.framing.ends),
        "logits": None if cap is not None else _packed(logits.numpy()), "also": _also(served.sampling_defaults),
    })  # fmt: skip


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _also(defaults: Mapping[str, Any]) -> list[str]:
    """What else the model's own settings do to what is sampled, beyond the page's sliders, in words."""
    names = {"logit_bias": "suppress_tokens"}
    off = Sampling()
    changed = {k: v for k, v in defaults.items() if k not in SLIDERS and v != getattr(off, k)}
    return [f"{k} {v:g}" if isinstance(v, int | float) else names.get(k, k) for k, v in changed.items()]


async def _look(server: Server, http: HTTPRequest, served: GenerativeModel, body: LookBody) -> Response:
    """In the thread of the model's engine, between two of its steps, charged as a prompt once it begins. It waits in
    the engine's queue, and leaves it when the client does."""
    usage, loop = Usage(prompt_tokens=len(body.tokens), price=served.price), asyncio.get_running_loop()
    await server.check_quota(http, usage)

    def look() -> Response:
        loop.call_soon_threadsafe(server.account, http, usage)
        return _json(_inside(served, body))  # large records are written there as well

    return await served.worker.call(look)


def _inside(served: GenerativeModel, body: LookBody) -> dict[str, Any]:
    """The record of `foundling look`, and the layers that attend, of which one is shown. The weights of a head are
    packed: as lists of numbers, millions of them would hold up every other request while they are written."""
    layers, bank = list(named_layers(served.model).values()), getattr(served.model, "adapter_bank", None)
    attending = [i for i, layer in enumerate(layers) if any(isinstance(m, Attention) for m in layer.modules())]
    layer = attending[len(attending) // 2] if body.layer is None and attending else body.layer
    if bank is not None:
        bank.bind([served.adapter])
    try:
        record = look_at(served.model, served.tokenizer, body.tokens, layer=layer, name=served.name)
    finally:
        if bank is not None:
            bank.bind(())
    heads = [
        {"layer": head.layer, "head": head.head, "kinds": head.kinds,
         "weights": _packed(np.concatenate([np.asarray(row) for row in head.rows]))}
        for head in record.heads
    ]  # fmt: skip
    return replace(record, heads=()).as_json() | {"heads": heads, "attending": attending}


async def _check(server: Server, body: CheckBody) -> Response:
    """As the server checks the answers that it has constrained."""
    try:
        constraint = await asyncio.to_thread(json_schema, body.schema_)
        verdict = await server.compiler.matches(body.text, constraint)
    except GenerationError as error:
        raise APIError(400, str(error), param="schema") from None
    return _json({"valid": bool(verdict), "reason": verdict.reason})
