# SPDX-License-Identifier: Apache-2.0
"""POST /v1/embeddings: texts or lists of token ids, as floats or base64. Requests that wait are computed together."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter
from prometheus_client import Counter
from pydantic import Field
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from torch import Tensor

from foundling.decode.embed import TextEmbedder
from foundling.serve.errors import APIError
from foundling.serve.generation import until_gone
from foundling.serve.models import EmbeddingModel
from foundling.serve.options import ServeOptions
from foundling.serve.protocol import Body, Inputs, Name, listed
from foundling.serve.reply import LargeJSON, Usage
from foundling.serve.server import Server

BATCH = 1024
"""texts of several requests that are computed in one turn"""


class EmbeddingBody(Body):
    model: Name | None = None
    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    truncate: bool = Field(False, description="not of OpenAI: cut texts that are too long, rather than refuse them")
    user: str | None = Field(None, max_length=4096, description="accepted and not used")

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        return listed(self.input)


class _Vectors(LargeJSON):
    depth = 3
    """a vector is written as a whole"""


class EmbeddingUsage(Usage):
    def as_json(self) -> dict[str, Any]:
        usage = super().as_json()
        return {name: usage[name] for name in ("prompt_tokens", "total_tokens", "cost") if name in usage}


def embeddings_router(server: Server) -> APIRouter:
    router = APIRouter()
    batches = Counter(
        "foundling_embedding_batches", "texts of several requests that were computed together", ("model",),
        registry=server.metrics.registry,
    )  # fmt: skip

    @router.post("/v1/embeddings")
    async def embeddings(body: EmbeddingBody, http: HTTPRequest) -> Response:
        served: EmbeddingModel = server.model(body.model, http, EmbeddingModel)
        count = batches.labels(served.name)
        batcher = server.batcher(served, partial(_compute, served.embedder), BATCH, lambda n: count.inc())
        batcher.check_queue()  # what is refused costs little
        rows = await asyncio.to_thread(_rows, served, body, server.options)
        usage = EmbeddingUsage(prompt_tokens=sum(len(row) for row in rows), price=served.price)
        await server.check_quota(http, usage)
        if body.dimensions not in (None, served.width):
            message = f"dimensions is {body.dimensions}; {served.name} has {served.width} values: leave it out"
            raise APIError(400, message, param="dimensions")
        computing = batcher(rows, lambda: server.account(http, usage))  # also for a client that leaves
        vectors = await until_gone(http, computing, server.options.request_timeout)
        return await asyncio.to_thread(_answer, served, body, vectors, usage)

    return router


def _compute(embedder: TextEmbedder, rows: list[list[int]]) -> list[Tensor]:
    vectors = {i: vector for i, vector, _ in embedder.embed_ids(rows)}
    return [vectors[i] for i in range(len(rows))]


def _rows(served: EmbeddingModel, body: EmbeddingBody, options: ServeOptions) -> list[list[int]]:
    """The ids of each text, special tokens included. APIError for what the model does not read."""
    inputs, embedder, config = body.inputs, served.embedder, served.model.config
    if len(inputs) > options.max_prompts:
        raise APIError(400, f"input has {len(inputs)} texts; this server allows {options.max_prompts}", param="input")
    texts = [text for text in inputs if isinstance(text, str)]
    if texts:
        if "" in texts:
            raise APIError(400, f"input[{texts.index('')}] is an empty text; leave it out", param="input")
        encoded = embedder.encode(texts)
        cut = next((place for place, one in enumerate(encoded) if one.cut), None)
        if cut is not None and not body.truncate:
            raise _too_long(f"input[{cut}] has more than {embedder.longest:,} tokens, which is what {served.name} reads"
                            "; shorten it, or send truncate: true")  # fmt: skip
        return [one.ids for one in encoded]
    rows: list[list[int]] = [row for row in inputs if isinstance(row, list)]
    for place, row in enumerate(rows):
        if len(row) > embedder.longest:
            raise _too_long(f"input[{place}] has {len(row):,} tokens; {served.name} reads {embedder.longest:,}: cut it")
        if max(row) >= config.vocab_size:
            message = f"input[{place}] has the token {max(row)}; the model has {config.vocab_size:,}"
            raise APIError(400, message, param="input")
    return rows


def _too_long(message: str) -> APIError:
    return APIError(400, message, param="input", code="context_length_exceeded")


def _answer(served: EmbeddingModel, body: EmbeddingBody, vectors: Sequence[Tensor], usage: Usage) -> Response:
    def written(vector: Tensor) -> Any:
        if body.encoding_format == "base64":
            return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
        return vector.tolist()

    data = [{"object": "embedding", "index": i, "embedding": written(vector)} for i, vector in enumerate(vectors)]
    return _Vectors({"object": "list", "data": data, "model": served.name, "usage": usage.as_json()})
