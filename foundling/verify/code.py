# SPDX-License-Identifier: Apache-2.0
"""Is code right? By the tests of its task, in the sandbox: the formats of HumanEval (Chen et al. 2021) and MBPP (Austin
et al. 2021), and pass@k."""

from __future__ import annotations

import ast
import builtins
import functools
import json
import re
import secrets
import symtable
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foundling.errors import ConfigError, DataError, render
from foundling.limits import shown
from foundling.text.fences import fences
from foundling.verify import sandbox
from foundling.verify.samples import key_of, text_field

JUDGE = Path(__file__).with_name("judge.py")
CROSSING = Path(__file__).with_name("crossing.py")
TIMEOUT, MEMORY = 5.0, 512 << 20
_PYTHON = ("", "python", "py", "python3")


@dataclass(frozen=True)
class CodeTask:
    """`prompt`: the beginning of the program, which a completion continues; "" where a completion is all of it.
    `tests`: a program that defines check(candidate). `entry_point`: the function that it gets, "" for none. `names`:
    what the tests use of a completion beside it."""

    task_id: str
    prompt: str
    tests: str
    entry_point: str = ""
    names: tuple[str, ...] = ()
    solution: str = ""


@dataclass(frozen=True)
class CodeResult:
    """`reason`: "passed"; "wrong" (an assertion of the tests), "exception" (raised by the sample or by a test on what
    it returned), "unsupported value" (the tests fail on a value that does not cross from the sample to them, so that
    the sample may be right), "syntax", "crash" (its process ended), or the limit of the sandbox that it met. `detail`:
    one line of it, which the sample may have written."""

    task_id: str
    passed: bool
    reason: str
    detail: str
    seconds: float


def parse_task(record: dict[str, Any], task_id: str, where: str) -> CodeTask:
    """A line of a task file. HumanEval: prompt, test, entry_point. MBPP: text or prompt, test_list, and test_setup_code
    or test_imports. DataError where the tests are neither or do not parse."""
    if "test_list" in record:
        return _mbpp(record, task_id, where)
    prompt, test = text_field(record, ["prompt"], where), text_field(record, ["test"], where)
    entry = text_field(record, ["entry_point"], where)
    if not entry.isidentifier():
        raise DataError(f"{where}: entry_point is {shown(entry)}; expected the name of a function")
    stub = prompt if _tree(prompt) else f"{prompt.rstrip()}\n    pass\n"
    tests = f"{stub}\n\n{test}\n"
    if (tree := _tree(tests)) is None:
        raise DataError(f"{where}: 'prompt' and 'test' are no Python together")
    if not any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body):
        raise DataError(f"{where}: 'test' defines no function check(candidate)")
    return CodeTask(task_id, prompt, tests, entry, solution=str(record.get("canonical_solution") or ""))


def _mbpp(record: dict[str, Any], task_id: str, where: str) -> CodeTask:
    tests, imports = record["test_list"], record.get("test_imports") or []
    if not isinstance(tests, list) or not tests or not all(isinstance(line, str) for line in [*tests, *imports]):
        raise DataError(f"{where}: test_list is {shown(tests)}; expected a list of assertions as text")
    setup, solution = "\n".join([*imports, str(record.get("test_setup_code") or "")]), str(record.get("code") or "")
    body, before, reference = _tree("\n".join(tests)), _tree(setup), _tree(solution)
    if body is None or before is None or not body.body:
        raise DataError(f"{where}: {'test_list' if before else 'test_setup_code'} is no Python")
    # what the setup does may need the sample, so it is part of the check; `import *` works in a module alone
    outside = [node for node in before.body if isinstance(node, ast.Import | ast.ImportFrom)]
    check = ast.parse("def check(candidate):\n    pass")
    inside = [node for node in before.body if node not in outside] + body.body
    check.body[0].body = inside  # pyright: ignore[reportAttributeAccessIssue]
    names, more = _free_names(ast.unparse([*outside, *check.body]), reference.body if reference else [])  # pyright: ignore
    lines = [ast.unparse(node) for node in [*outside, *more, *check.body]]
    return CodeTask(task_id, "", "\n".join(lines) + "\n", names=names, solution=solution)


def _free_names(text: str, reference: list[ast.stmt]) -> tuple[tuple[str, ...], list[ast.stmt]]:
    """What the tests use and do not define: (names that a sample must define, imports that the tests lack). A sample
    defines what the reference does, or everything where there is none; what the reference or Python's library has is
    not the sample's to say."""
    table = symtable.symtable(text, "tests", "exec")
    own, used, todo = set(table.get_identifiers()), set[str](), [table]
    while todo:
        part = todo.pop()
        used |= {symbol.get_name() for symbol in part.get_symbols() if symbol.is_global() and symbol.is_referenced()}
        todo += part.get_children()
    defined, imports = set[str](), list[ast.stmt]()
    for node in reference:
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound = {alias.asname or alias.name.split(".")[0] for alias in node.names}
            if bound & (used - own) or "*" in bound:
                imports.append(node)
                own |= bound
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        else:
            defined |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    free = used - own - (set(dir(builtins)) - defined)
    library = sorted((free - defined) & sys.stdlib_module_names)
    imports += ast.parse("\n".join(f"import {name}" for name in library)).body
    rest = free - set(library)
    return tuple(sorted(rest & defined if rest & defined else rest)), imports


def _tree(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def program(task: CodeTask, completion: str) -> str:
    """The sample's program. A completion continues the prompt, as the published harness has it. Where a completion has
    code in fences, its first block of Python (or without a language) that defines what is tested is taken, else the
    first of all, and stands for itself where it defines that."""
    blocks = [fence.body for fence in fences(completion) if fence.language in _PYTHON]
    if not blocks:
        return task.prompt + completion
    block = next((text for text in blocks if _defines(text, task)), blocks[0])
    if not task.entry_point or not _defines(block, task):
        return task.prompt + block
    return (task.prompt if _tree(task.prompt) else f"{task.prompt.rstrip()}\n    pass\n") + "\n\n" + block


def _defines(text: str, task: CodeTask) -> bool:
    """Whether it defines the entry point, or a name that the tests use where there is none."""
    names = "|".join(map(re.escape, [task.entry_point] if task.entry_point else task.names))
    return bool(names) and bool(re.search(rf"^\s*(?:(?:async\s+)?def|class)\s+(?:{names})\b", text, re.MULTILINE))


def check(
    task: CodeTask, completion: str, *, timeout: float = TIMEOUT, memory: int = MEMORY,
    backend: sandbox.Backend | None = None,
) -> CodeResult:  # fmt: skip
    """Runs the tests of a task on a completion (judge.py says how). `timeout` in seconds of wall-clock time, the start
    of the sandbox included; `memory` in bytes, of both processes together. Raises DataError where the tests of the
    task cannot be loaded, which is no fault of the sample, and what sandbox.run does."""
    token = secrets.token_hex(16)
    order = json.dumps({"entry": task.entry_point, "names": task.names})
    files = {"crossing.py": _text(CROSSING), "task.py": task.tests, "sample.py": program(task, completion)}
    outcome = sandbox.run(
        _text(JUDGE), stdin=token + order, files=files, timeout=timeout, memory=memory,
        backend=backend,
    )  # fmt: skip
    reason, detail = _verdict(outcome, token)
    if reason == "tests":
        raise DataError(
            f"task {shown(task.task_id)}: its tests cannot be loaded in the sandbox, which has Python's standard "
            f"library and nothing else ({render.message(detail)}); mend or remove the task"
        )
    return CodeResult(task.task_id, reason == "passed", reason, detail, round(outcome.seconds, 3))


_JUDGED = ("passed", "wrong", "exception", "unsupported value", "tests", "syntax", "crash", "memory")


def _verdict(outcome: sandbox.Outcome, token: str) -> tuple[str, str]:
    if outcome.reason not in ("exited", "signal"):
        return outcome.reason, ""
    try:
        sent, reason, detail = json.loads(outcome.stdout)
    except (ValueError, TypeError):
        sent, reason, detail = "", "", ""
    if sent == token and reason in _JUDGED and isinstance(detail, str) and outcome.ok:
        return reason, detail
    last = outcome.stderr.strip().splitlines()[-1:] or [""]
    return ("memory" if last[0].startswith("MemoryError") else "crash"), last[0][:300]


def sample_key(task: CodeTask, completion: str, timeout: float, memory: int) -> str:
    """Of everything that a verdict depends on, the judge among it."""
    return key_of("code", _text(JUDGE), _text(CROSSING), asdict(task), completion, timeout, memory)


@functools.cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


# --- pass@k ----------------------------------------------------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that one of k samples passes, drawn without replacement from n of which c pass: the unbiased
    estimator 1 − C(n − c, k) / C(n, k) of Chen et al. 2021, equation 1, as the product of their figure 3. ConfigError
    unless 0 ≤ c ≤ n and 1 ≤ k ≤ n."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ConfigError(f"pass@k of n={shown(n)}, c={shown(c)}, k={shown(k)}; expected 0 ≤ c ≤ n and 1 ≤ k ≤ n")
    if n - c < k:
        return 1.0
    miss = 1.0
    for i in range(n - c + 1, n + 1):
        miss *= 1 - k / i
    return 1 - miss


def pass_at_k_of_tasks(counts: Sequence[tuple[int, int]], k: int) -> list[float]:
    """The estimate for each task of which (samples, passed) is known and which has at least k samples. Their mean is
    pass@k; an interval over tasks is for the caller (foundling.evaluate.intervals)."""
    return [pass_at_k(n, c, k) for n, c in counts if n >= k]
