# SPDX-License-Identifier: Apache-2.0
"""What requests that run may still take of a key's quota, so that they cannot go beyond it together."""

from __future__ import annotations

from collections.abc import Sequence

from foundling.serve.errors import APIError
from foundling.serve.key_file import Caller


class Reservations:
    """What requests under way may take of the quotas of their keys. The thread of the server's ledger alone uses it."""

    def __init__(self) -> None:
        self._tokens: dict[str, tuple[str, int]] = {}
        """id of a request -> (owner, tokens that it may take)"""

    def reserve(self, caller: Caller, request_id: str, n_prompt: int, limits: Sequence[int]) -> list[int]:
        """The new tokens that each completion of a request may have: those it asks for (`limits`), or fewer where the
        quota has not as many left. APIError 429 where it has not one left for each."""
        if caller.tokens is None:
            return list(limits)
        if caller.used >= caller.tokens:
            message = f"the key has used {caller.used:,} of its {caller.tokens:,} tokens; ask for a larger quota"
            raise APIError(429, message, code="insufficient_quota")
        self.release(request_id)
        reserved = sum(n for owner, n in self._tokens.values() if owner == caller.owner)
        left = caller.tokens - caller.used - reserved - n_prompt
        if left < len(limits):
            message = (
                f"the key has {caller.tokens - caller.used:,} of its {caller.tokens:,} tokens left, its running "
                f"requests may take {reserved:,}, and this one has a prompt of {n_prompt:,}; ask for a larger quota"
            )
            raise APIError(429, message, code="insufficient_quota")
        share = left // max(1, len(limits))
        allowed = [min(limit, share) for limit in limits]
        self._tokens[request_id] = caller.owner, n_prompt + sum(allowed)
        return allowed

    def release(self, request_id: str) -> None:
        """Once what the request has taken is charged."""
        self._tokens.pop(request_id, None)
