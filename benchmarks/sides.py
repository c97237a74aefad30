# SPDX-License-Identifier: Apache-2.0
"""The sides of a comparison, each in a process of its own that works on request, so that they can take turns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

MARK = "RESULT "


class Side:
    """`python -m MODULE --serve ARGS`, which answers each call with what its function returns (answer_calls)."""

    def __init__(self, module: str, *args: str, quiet: bool = True) -> None:
        command = [sys.executable, "-m", module, "--serve", *args]
        errors = subprocess.DEVNULL if quiet else None
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )

    def __call__(self, **arguments: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def answer_calls(work: Callable[..., Any]) -> None:
    """Calls `work` with the arguments in each line of the input and prints its result."""
    for line in sys.stdin:
        print(MARK + json.dumps(work(**json.loads(line))), flush=True)
