# SPDX-License-Identifier: Apache-2.0
"""What a server keeps for its clients: files and fine-tuning jobs, where, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from foundling.errors import ConfigError
from foundling.limits import FILES, JOBS, LOADED_MODELS, STORED_BYTES, check_number, shown

JobMethod = Literal["lora", "full"]


@dataclass(frozen=True)
class JobOptions:
    state: Path
    """directory of files and jobs; one server at a time uses it"""
    method: JobMethod = "lora"
    """lora: a job writes an adapter; full: all weights are trained, and a whole model is written"""
    max_loss_ratio: float | None = None
    """a fine-tuned model is served only where its held-out loss is at most so many times that of its base; None: it is
    served whatever its loss"""
    max_loaded: int = 4
    """fine-tuned models in memory; one that is asked for beyond them takes the place of the least recently used"""
    max_files: int = 100
    """that a key keeps"""
    max_key_bytes: int = 1 << 30
    """of the files that a key keeps"""
    max_bytes: int = 16 << 30
    """of the files of all keys"""
    max_open_jobs: int = 4
    """of a key that wait or run; all jobs run one after another"""
    max_queue: int = 64
    """jobs of all keys that wait or run"""
    max_jobs: int = 500
    """of a key, ended ones included; the oldest that served nothing make place for new ones"""
    max_job_bytes: int = 1 << 30
    """that a job reads in all its epochs together"""

    def __post_init__(self) -> None:
        for name, limit in (
            ("max_files", FILES), ("max_key_bytes", STORED_BYTES), ("max_bytes", STORED_BYTES),
            ("max_open_jobs", JOBS), ("max_queue", JOBS), ("max_jobs", JOBS), ("max_loaded", LOADED_MODELS),
            ("max_job_bytes", STORED_BYTES),
        ):  # fmt: skip
            limit.check(getattr(self, name), name)
        if self.method not in get_args(JobMethod):
            raise ConfigError(f"method is {shown(self.method)}; expected {' or '.join(get_args(JobMethod))}")
        if self.max_loss_ratio is not None:
            check_number(self.max_loss_ratio, "max_loss_ratio", 0, 1000)
