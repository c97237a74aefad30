# SPDX-License-Identifier: Apache-2.0
"""Lists that clients read a page at a time, as OpenAI's do: `limit` objects behind the one called `after`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from foundling.limits import shown
from foundling.serve.errors import APIError


class Page(BaseModel):
    """The query of a list. Another parameter is refused by name."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(None, max_length=128)
    limit: int = Field(20, ge=1, le=100)


def page_of(objects: Sequence[dict[str, Any]], page: Page) -> dict[str, Any]:
    """APIError 400 for an `after` that is not among the objects."""
    first = 0
    if page.after is not None:
        first = next((n + 1 for n, one in enumerate(objects) if one["id"] == page.after), 0)
        if not first:
            raise APIError(
                400, f"after is {shown(page.after)}; expected the id of an object of this list", param="after"
            )
    data = objects[first : first + page.limit]
    return {
        "object": "list", "data": list(data), "has_more": first + len(data) < len(objects),
        "first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None,
    }  # fmt: skip
