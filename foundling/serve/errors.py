# SPDX-License-Identifier: Apache-2.0
"""What a request is refused with: a status, and the body that OpenAI's clients read."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from foundling.errors import FoundlingError, render
from foundling.limits import shown

logger = logging.getLogger("foundling.serve")


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class APIError(Exception):
    """A refusal. `param`: the field of the request; `code`: a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.status, self.message, self.param, self.code)

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
INTERNAL = "the server met an error of its own; its log has more under this request's id"


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def busy(message: str, retry_after: float, code: str = "rate_limit_exceeded", status: int = 429) -> APIError:
    """`retry_after`: seconds."""
    return APIError(status, message, code=code, headers={"Retry-After": str(max(1, round(retry_after)))})


def as_api_error(error: BaseException, request_id: str = "") -> APIError:
    """What a client gets for whatever a handler raised. An error of our own is logged under the request's id, and
    nothing of it is shown to the client."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, FoundlingError):
        return APIError(400, str(error))
    if isinstance(error, HTTPException):
        return APIError(error.status_code, render.message(str(error.detail)), headers=dict(error.headers or {}))
    if isinstance(error, RequestValidationError):
        return _of_validation(error)
    log_internal(error, request_id)
    return APIError(500, INTERNAL)


def log_internal(error: BaseException, request_id: str) -> None:
    """In one line: what it is and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    logger.error("%s: internal error: %s: %s%s", request_id, type(error).__name__, error, place)
    logger.debug("%s", request_id, exc_info=error)


def _of_validation(error: RequestValidationError) -> APIError:
    """The first thing that is wrong, with the name of its field."""
    first = _nearest(error.errors())
    name = ".".join(_path(first, error.body)) or None
    kind, message = first["type"], str(first["msg"])
    if kind == "json_invalid":
        return APIError(400, f"the body is not JSON: {render.message(str(first.get('ctx', {}).get('error', message)))}")
    if kind == "extra_forbidden":
        return APIError(400, f"{render.message(name or '')}: this field is not supported; leave it out", param=name)
    if kind == "missing":
        return APIError(400, f"{name or 'the body'} is missing", param=name)
    value = f" (got {shown(first['input'])})" if not isinstance(first.get("input"), dict | list) else ""
    return APIError(400, render.message(f"{name or 'the body'}: {message}{value}"), param=name)


def _nearest(errors: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The error of the first field that is wrong. A field that may be one of several types has an error for each: the
    one that lies deepest, or furthest in a list, is of the type that was meant."""
    first = [one for one in errors if one["loc"][:2] == errors[0]["loc"][:2]]

    def depth(one: dict[str, Any]) -> tuple[bool, int, int]:
        place = one["loc"]
        wrong_type = one["type"].endswith("_type")
        return not wrong_type, len(place), place[-1] if isinstance(place[-1], int) else -1

    best = max(first, key=depth)
    same = [one["msg"] for one in first if depth(one) == depth(best)]
    return best | {"msg": ", or ".join(dict.fromkeys(same))}


def _path(error: dict[str, Any], body: Any) -> list[str]:
    """Where it is, in the request's own names: of a field of several types, `loc` names the type too."""
    place, path, value = list(error["loc"]), list[str](), body
    if place[:1] == ["body"]:
        place = place[1:]
    else:
        return [str(part) for part in place]
    for number, part in enumerate(place):
        if (isinstance(value, dict) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and part < len(value)
        ):
            value = value[part]
        elif not (error["type"] == "missing" and number == len(place) - 1):
            continue
        path.append(str(part))
    return path


def install(app: FastAPI) -> None:
    """Handlers for what routes raise. starlette raises once more what the one for Exception has answered (guard.py)."""

    async def handle(request: Request, error: Exception) -> Response:
        return as_api_error(error, request.scope["foundling.record"].id).response()

    async def forget(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # as nginx notes it; nobody reads it

    for kind in (APIError, FoundlingError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, handle)
    app.add_exception_handler(ClientGone, forget)
