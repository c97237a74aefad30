# SPDX-License-Identifier: Apache-2.0
"""The training log: JSON lines, readable after a crash, that continue after a resume without repeating a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foundling.runtime.files import output_errors, write_bytes


def read_log(path: Path) -> list[dict[str, Any]]:
    """All complete lines; one that a crash cut off is dropped."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


class Log:
    """Appends {step, tokens, seconds, loss, bits_per_byte, lr, grad_norm, skipped} lines to a file."""

    def __init__(self, path: Path, after_step: int = 0) -> None:
        """Drops the entries after `after_step`, where training resumes."""
        entries = [entry for entry in read_log(path) if entry["step"] <= after_step]
        write_bytes(path, "".join(json.dumps(e) + "\n" for e in entries).encode())
        self.path = path
        self.entries = entries
        with output_errors(path):
            self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, **entry: Any) -> None:
        self.entries.append(entry)
        with output_errors(self.path):
            self.file.write(json.dumps(entry) + "\n")
            self.file.flush()

    def close(self) -> None:
        with output_errors(self.path):
            self.file.close()
