# SPDX-License-Identifier: Apache-2.0
"""The training log: JSON lines, readable after a crash, that continue after a resume without repeating a step."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from foundling.errors import MismatchError
from foundling.runtime.files import output_errors, write_bytes


class Log:
    """Appends {step, tokens, seconds, loss, bits_per_byte, lr, grad_norm, skipped} lines to a file.

    `missing`: the file was not there to be continued."""

    def __init__(self, path: Path, saved: dict[str, Any] | None = None) -> None:
        """Continues after `saved`, which `state()` gave when training was saved; starts anew without it.

        What a process wrote later, and lost, is dropped. MismatchError where the rest is not what was written."""
        n_bytes = 0 if saved is None else int(saved["bytes"])
        self.missing = n_bytes > 0 and not path.exists()
        data = b""
        if saved and n_bytes and not self.missing:
            with suppress(OSError):
                data = path.read_bytes()[:n_bytes]
            if hashlib.sha256(data).hexdigest() != saved["sha256"]:
                raise MismatchError(
                    f"{path}: damaged or edited since training was saved; put the original back, or remove it to "
                    "continue with the same weights but without the history of the steps so far"
                )
        self.digest = hashlib.sha256(data)
        self.path, self.n_bytes = path, len(data)
        self.entries: list[dict[str, Any]] = [json.loads(line) for line in data.splitlines()]
        write_bytes(path, data)
        with output_errors(path):
            self.file = open(path, "ab")  # noqa: SIM115

    def write(self, **entry: Any) -> None:
        line = (json.dumps(entry) + "\n").encode()
        self.entries.append(entry)
        self.digest.update(line)
        self.n_bytes += len(line)
        with output_errors(self.path):
            self.file.write(line)
            self.file.flush()

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores, so that the log of a resumed run can be checked; it is on disk then."""
        with output_errors(self.path):
            os.fsync(self.file.fileno())
        return {"bytes": self.n_bytes, "sha256": self.digest.hexdigest()}

    def close(self) -> None:
        with output_errors(self.path):
            self.file.close()
