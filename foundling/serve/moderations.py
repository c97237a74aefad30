# SPDX-License-Identifier: Apache-2.0
"""POST /v1/moderations: a classifier of texts says which of its labels a text has and flags all but the harmless."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse

from foundling.serve.errors import APIError
from foundling.serve.generation import until_gone
from foundling.serve.models import ClassifierModel
from foundling.serve.options import ServeOptions
from foundling.serve.protocol import Body, Name, TextPart, Texts
from foundling.serve.reply import Usage
from foundling.serve.server import Server
from foundling.text.cutting import encode_within

BATCH = 256
"""texts of several requests that are classified in one turn"""


class ModerationBody(Body):
    """Pictures are refused: the classifiers here read texts."""

    model: Name | None = None
    input: str | Texts | Annotated[list[TextPart], Field(min_length=1, max_length=4096, fail_fast=True)]

    @property
    def texts(self) -> list[str]:
        parts = [self.input] if isinstance(self.input, str) else self.input
        return [part if isinstance(part, str) else part.text for part in parts]


def moderations_router(server: Server) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/moderations")
    async def moderations(body: ModerationBody, http: HTTPRequest) -> JSONResponse:
        served: ClassifierModel = server.model(body.model, http, ClassifierModel)
        batcher = server.batcher(served, served.classifier.classify, BATCH)
        batcher.check_queue()  # what is refused costs little
        n_tokens = await asyncio.to_thread(_count_tokens, served, body.texts, server.options)
        usage = Usage(prompt_tokens=n_tokens, price=served.price)
        await server.check_quota(http, usage)
        computing = batcher(body.texts, lambda: server.account(http, usage))  # also for a client that leaves
        answers = await until_gone(http, computing, server.options.request_timeout)
        results = [_result(served, answer["scores"], server.options.flag_threshold) for answer in answers]
        return JSONResponse({"id": f"modr-{secrets.token_hex(12)}", "model": served.name, "results": results})

    return router


def _count_tokens(served: ClassifierModel, texts: Sequence[str], options: ServeOptions) -> int:
    """APIError for what cannot be judged as a whole: what is cut off would pass unseen."""
    classifier = served.classifier
    if served.harmless is None:
        message = f"{served.name} is no classifier of texts into labels; a moderation needs one"
        raise APIError(400, message, param="model", code="model_not_supported")
    if len(texts) > options.max_prompts:
        raise APIError(400, f"input has {len(texts)} texts; this server allows {options.max_prompts}", param="input")
    encoded = encode_within(served.tokenizer, texts, classifier.longest)
    for place, one in enumerate(encoded):
        if one.cut:
            raise APIError(
                400, f"input[{place}] has more than {classifier.longest:,} tokens, which is what {served.name} reads; "
                "send it in parts", param="input", code="context_length_exceeded",
            )  # fmt: skip
    return sum(len(one.ids) for one in encoded)


def _result(served: ClassifierModel, scores: dict[str, float], threshold: float) -> dict[str, Any]:
    """Flagged by the probability of all harmful labels together, since it may be shared out among them. A flagged text
    has at least one category: the likeliest harmful label, and each that reaches the threshold alone."""
    harmful = {label: scores[label] for label in served.classifier.labels if label != served.harmless}
    flagged = bool(harmful) and 1 - scores[served.harmless or ""] >= threshold
    worst = max(harmful, key=lambda label: harmful[label], default=None)
    return {
        "flagged": flagged,
        "categories": {label: flagged and (p >= threshold or label == worst) for label, p in harmful.items()},
        "category_scores": harmful,
        "category_applied_input_types": {label: ["text"] for label in harmful},
    }
