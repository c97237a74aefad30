# SPDX-License-Identifier: Apache-2.0
"""POST /login and /logout: a page trades a key for a cookie, so that no script of a page ever holds a key."""

from __future__ import annotations

import json
import time
from collections import OrderedDict, deque
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter
from fastapi import Request as HTTPRequest
from fastapi.responses import JSONResponse, RedirectResponse, Response

from foundling.serve.errors import APIError, busy
from foundling.serve.keys import MAX_KEY_CHARS
from foundling.serve.server import Server, record_of
from foundling.serve.sessions import COOKIE, SESSION_SECONDS, Sessions

TRIES_PER_MINUTE = 10
"""of one address"""
MAX_ADDRESSES = 4096
FORM = "application/x-www-form-urlencoded"
_KEY: dict[str, Any] = {
    "type": "object", "required": ["key"], "additionalProperties": False,
    "properties": {"key": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARS}},
}  # fmt: skip
_BODY = {"requestBody": {
    "required": True, "content": {"application/json": {"schema": _KEY}, FORM: {"schema": _KEY}},
}}  # fmt: skip


class Tries:
    """When each address last tried, of the addresses that tried last."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def count(self, address: str) -> None:
        """APIError 429 for one try too many within a minute."""
        now = time.monotonic()
        times = self._times.setdefault(address, deque())
        self._times.move_to_end(address)
        while len(self._times) > MAX_ADDRESSES:
            self._times.popitem(last=False)
        while times and now - times[0] >= 60:
            times.popleft()
        if len(times) >= TRIES_PER_MINUTE:
            raise busy("too many tries to log in; wait a minute", 60 - (now - times[0]))
        times.append(now)


def login_router(server: Server, sessions: Sessions) -> APIRouter:
    router, tries = APIRouter(), Tries()

    @router.post("/login", openapi_extra=_BODY, responses={303: {"description": "of a form: on to the page"}})
    async def login(http: HTTPRequest) -> Response:
        """A cookie for a key: JSON gets JSON, a form is sent on to the page."""
        tries.count(http.client.host if http.client else "")
        form = http.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM
        key = _key_of(await http.body(), form)
        caller = server.keys.identify(key)
        if caller is None:
            raise APIError(401, "this key is not valid", param="key", code="invalid_api_key")
        record_of(http).caller = caller
        answer = RedirectResponse("/", 303) if form else JSONResponse({"status": "ok"})
        _set_cookie(answer, http, sessions.begin(key), SESSION_SECONDS)
        return answer

    @router.post("/logout")
    async def logout(http: HTTPRequest) -> Response:
        """Ends the session of the cookie, if there is one."""
        if (token := session_token(http.headers.get("cookie", ""))) is not None:
            sessions.end(token)
        answer = JSONResponse({"status": "ok"})
        _set_cookie(answer, http, "", 0)
        return answer

    return router


def session_token(header: str) -> str | None:
    """That of a Cookie header, if there is one."""
    try:
        cookie = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return None
    return cookie.value if cookie else None


def _key_of(body: bytes, form: bool) -> str:
    """APIError for a body that has no key."""
    try:
        fields = dict(parse_qsl(body.decode(), max_num_fields=4)) if form else json.loads(body)
        key = fields.get("key") if isinstance(fields, dict) else None
    except (ValueError, RecursionError):
        key = None
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY_CHARS:
        raise APIError(400, 'send {"key": "…"}', param="key")
    return key if key.isascii() else ""


def _set_cookie(answer: Response, http: HTTPRequest, token: str, seconds: int) -> None:
    """Scripts cannot read it, other sites' pages cannot send it, and over TLS it never leaves TLS."""
    answer.set_cookie(
        COOKIE,
        token,
        max_age=seconds,
        path="/",
        httponly=True,
        samesite="strict",
        secure=http.scope["scheme"] == "https",
    )
    answer.headers["Cache-Control"] = "no-store"
