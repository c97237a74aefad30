# SPDX-License-Identifier: Apache-2.0
"""What a server says is wrong, read from any of the layouts in use."""

from __future__ import annotations

import contextlib
import time
from email.utils import parsedate_to_datetime
from typing import Any

from foundling.errors import GenerationError


class EndpointError(GenerationError):
    """`status`: what the server answered with; None where it gave no answer. `reason`: its own words, without the key.
    `retry_after`: the seconds that it asks to wait."""

    def __init__(
        self, message: str, *, status: int | None = None, reason: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.retry_after = status, reason, retry_after


def error_text(value: Any, body: str = "") -> str:
    """What a server says is wrong, in any of the layouts in use: {"error": {"message"}}, {"error": "…"}, {"message"},
    {"detail"} (FastAPI), each of them in a list (Google). As long as it is, and with the key where the server repeats
    it: see Secret.cut."""
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, dict):
        inner = value.get("error")
        for holder in (inner if isinstance(inner, dict) else {}, value):
            for name in ("message", "detail", "msg"):
                if holder.get(name):
                    return str(holder[name])
        if inner:
            return str(inner)
    return body.strip() or "no reason"


def code_inside(value: Any) -> int | None:
    """The status of an error that came with status 200, as routers pass on what the model's server said."""
    holder = value[0] if isinstance(value, list) and value else value
    error = holder.get("error") if isinstance(holder, dict) else None
    if not error:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 400


def is_permanent(value: Any) -> bool:
    """A limit that waiting does not lift: no credit is left (OpenAI answers this with 429)."""
    error = value.get("error") if isinstance(value, dict) else None
    return isinstance(error, dict) and "insufficient_quota" in (error.get("code"), error.get("type"))


def way_out(code: int, has_key: bool) -> str:
    key = "check the key" if has_key else "no key was sent: name its variable (--key-env) or its file (--key-file)"
    ways = {401: key, 403: "check what the key may do", 404: "check URL and model", 402: "check the credit"}
    return f"; {ways[code]}" if code in ways else ""


def retry_after(headers: dict[str, str]) -> float | None:
    """Seconds: RFC 9110, section 10.2.3, as a number or a date; or `retry-after-ms`, which OpenAI sends."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            return max(0.0, float(headers[name]) * scale)
    with contextlib.suppress(KeyError, ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    return None
