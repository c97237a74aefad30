# SPDX-License-Identifier: Apache-2.0
"""What a server is started with. Every limit of a request is here."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal

from foundling.errors import ConfigError
from foundling.limits import (
    BODY_BYTES,
    CACHE_BYTES,
    CONNECTIONS,
    PORT,
    QUEUE,
    SEQUENCES,
    SERVED_COMPLETIONS,
    SERVED_LOGPROBS,
    SERVED_TOKENS,
    UPLOAD_BYTES,
    check_number,
    shown,
)


@dataclass(frozen=True)
class ServeOptions:
    """Limits hold for each request unless they say otherwise. The docstrings are the help of `foundling serve`."""

    host: str = "127.0.0.1"
    """address to listen at"""
    port: int = 8000
    """port; 0 takes a free one"""
    max_queue: int = 256
    """completions of one model that run or wait; a request beyond them is answered with 429"""
    queue_timeout: float = 60.0
    """seconds that a completion may wait for its first token; then its request is answered with 503"""
    request_timeout: float = 600.0
    """seconds that a request may take"""
    max_body: int = 4 << 20
    """bytes of a request, uploads aside"""
    max_upload: int = 256 << 20
    """bytes of an uploaded file"""
    max_n: int = 16
    """completions of one prompt, `best_of` included"""
    max_prompts: int = 256
    """prompts of a request to /v1/completions, texts of one to /v1/embeddings"""
    max_tokens: int = 1 << 16
    """new tokens of one completion"""
    max_logprobs: int | None = None
    """most likely tokens beside each token; 0: no log-probabilities, which reveal parts of the model"""
    max_connections: int = 1024
    """requests that are answered at once; one beyond them is answered with 503"""
    shutdown_seconds: float = 60.0
    """seconds that running requests have to finish in once the server is told to stop"""
    max_num_seqs: int = 32
    """sequences that a model computes at once"""
    cache_memory: int = 1 << 30
    """bytes of a model's keys and values"""
    weights: Literal["float32", "bfloat16", "int8", "int4"] | None = None
    """use native code with weights of this type: faster on a CPU, compiled once; on a GPU float32 or bfloat16"""
    device: str = "cpu"
    """cpu or cuda"""
    harmless: tuple[str, ...] = ()
    """label of a classifier that a moderation does not flag (default: ok, safe, harmless, none or ham); can be
    repeated"""
    flag_threshold: float = 0.5
    """probability of all other labels together from which a moderation flags a text"""
    deterministic: bool = False
    """the same request with the same seed gets the same bytes, whatever else is computed"""

    def __post_init__(self) -> None:
        for name, limit in (
            ("port", PORT), ("max_queue", QUEUE), ("max_body", BODY_BYTES), ("max_upload", UPLOAD_BYTES),
            ("max_n", SERVED_COMPLETIONS), ("max_prompts", SERVED_COMPLETIONS), ("max_tokens", SERVED_TOKENS),
            ("max_connections", CONNECTIONS), ("max_num_seqs", SEQUENCES), ("cache_memory", CACHE_BYTES),
        ):  # fmt: skip
            limit.check(getattr(self, name), name)
        if self.max_logprobs is not None:
            SERVED_LOGPROBS.check(self.max_logprobs, "max_logprobs")
        for name in ("queue_timeout", "request_timeout", "shutdown_seconds"):
            check_number(getattr(self, name), name, 0.001, 86400)
        check_number(self.flag_threshold, "flag_threshold", 0, 1)
        if self.device != "cpu" and self.weights not in (None, "float32", "bfloat16"):
            raise ConfigError(f"weights {self.weights} need native code, which computes on a CPU; on {self.device} use "
                              "float32 or bfloat16, or give --device cpu")  # fmt: skip
        if not self.host or not self.host.isprintable():
            raise ConfigError(f"host is {shown(self.host)}; expected an address such as 127.0.0.1")

    @property
    def logprobs_cap(self) -> int | None:
        """Of a position; None where a request gets as many as there may be at all."""
        return None if self.max_logprobs == SERVED_LOGPROBS.high else self.max_logprobs

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
