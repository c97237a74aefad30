# SPDX-License-Identifier: Apache-2.0
"""The process for programs that are not trusted, where a system bounds processes already."""

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

from foundling.runtime.limited import LimitedProcess
from foundling.text.chat import CHAT_TEMPLATE

ROOT = Path(__file__).resolve().parents[2]
PR_CAPBSET_DROP, CAP_SYS_RESOURCE = 24, 24

PROGRAM = """
import sys
from foundling.runtime.limited import LimitedProcess

process = LimitedProcess("foundling.text.chat:render_here", memory=1 << 44, seconds=int(sys.argv[1]), answer=9999)
started = set()
for word in ("one", "two", "three"):
    text = process.call([sys.argv[2], {"messages": [{"role": "user", "content": word}]}])
    assert text == f"<|im_start|>user\\n{word}<|im_end|>\\n", text
    started.add(process.process)
print(len(started), None in started)
"""


def bounded() -> None:
    """`ulimit -t 100 -v 16G`, of a user who may not raise a hard limit; root loses that right with the next exec."""
    resource.setrlimit(resource.RLIMIT_CPU, (100, 100))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_RESOURCE, 0, 0, 0)


def answers(seconds: int) -> str:
    command = [sys.executable, "-c", PROGRAM, str(seconds), CHAT_TEMPLATE]
    done = subprocess.run(command, preexec_fn=bounded, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hard_limits_that_are_inherited_stay() -> None:
    assert answers(10) == "1 False\n", "one process answers all calls"
    assert answers(1000) == "1 True\n", "each call has a process of its own where the next might be ended in its middle"


def test_what_a_function_needs_is_imported_before_the_first_call() -> None:
    process = LimitedProcess(
        "tests.runtime.test_limited:imported", memory=1 << 30, seconds=5, answer=999, modules=("jinja2.sandbox",)
    )
    try:
        assert process.call("jinja2.sandbox") is True and process.call("wave") is False
    finally:
        process._stop()


def imported(name: str) -> bool:
    return name in sys.modules
