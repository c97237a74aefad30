# SPDX-License-Identifier: Apache-2.0
"""Mutants: do the tests notice a changed comparison, operator, constant or condition?

    python -m benchmarks.mutants --count 60 --seed 0 --out mutants.json
    python -m benchmarks.mutants --minutes 10 --files foundling/train/loop.py foundling/train/optim.py

Each mutant is one change of one expression of a core file, drawn by the seed, in a copy of the checkout in which the
tests nearest to the file run; they must pass without a mutant. A mutant that they do not notice survives: it is an
equivalent, or a test is missing. What is no failed test (pytest ends otherwise) is reported apart.
The same seed draws the same mutants wherever the file is the same, so two sets of tests can be compared.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import math
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FAMILIES = ["tests/contract/test_families.py", "-k"]
TRAIN = ["tests/train", "-k", "not killed"]
NEAREST: dict[str, list[list[str]]] = {
    "foundling/train/loop.py": [TRAIN, [*FAMILIES, "accumulation and (llama or mixtral or clip)"]],
    "foundling/train/update.py": [TRAIN, [*FAMILIES, "accumulation and (llama or mixtral or clip)"]],
    "foundling/train/step.py": [TRAIN, ["tests/objectives"]],
    "foundling/train/buffers.py": [["tests/train/test_buffers.py", "tests/train/test_ema.py"]],
    "foundling/train/checkpoint.py": [TRAIN],
    "foundling/train/ema.py": [["tests/train/test_ema.py", "tests/train/test_buffers.py"]],
    "foundling/train/randomness.py": [["tests/train/test_randomness.py"]],
    "foundling/train/state.py": [TRAIN],
    "foundling/train/optim.py": [TRAIN, ["tests/contract/test_ranks.py", "-k", "llama"]],
    "foundling/train/schedule.py": [TRAIN],
    "foundling/data/split.py": [["tests/data/test_split.py", "tests/data/test_held_out_share.py"]],
    "foundling/data/loader.py": [["tests/data/test_loader.py"], ["tests/train/test_loop.py"]],
    "foundling/blocks/attention.py": [["tests/blocks"], [*FAMILIES, "llama or gemma2 or bloom"]],
    "foundling/blocks/cache.py": [["tests/blocks"], [*FAMILIES, "cache or recurrent"]],
    "foundling/blocks/moe.py": [
        ["tests/blocks"], [*FAMILIES, "mixtral or llama4"], ["tests/parity", "-k", "mixtral or llama4"],
    ],
    "foundling/blocks/selective.py": [["tests/blocks/test_selective.py"], [*FAMILIES, "mamba"]],
    "foundling/objectives/causal.py": [["tests/objectives"]],
    "foundling/objectives/chunked.py": [["tests/objectives"]],
    "foundling/objectives/contrastive.py": [["tests/objectives/test_contrastive.py"]],
    "foundling/objectives/denoise.py": [["tests/objectives/test_denoise.py"]],
    "foundling/objectives/distill.py": [["tests/objectives/test_distill.py"]],
    "foundling/objectives/preference.py": [["tests/objectives/test_preference.py"]],
    "foundling/plan/budget.py": [["tests/plan/test_make_plan.py", "tests/plan/test_plan.py"]],
    "foundling/plan/choose.py": [["tests/plan/test_make_plan.py", "tests/plan/test_plan.py"]],
    "foundling/plan/flops.py": [["tests/plan/test_make_plan.py", "tests/plan/test_plan.py"]],
    "foundling/plan/law.py": [["tests/plan/test_make_plan.py", "tests/plan/test_plan.py"]],
    "foundling/plan/memory.py": [["tests/plan/test_memory.py", "tests/plan/test_make_plan.py"]],
    "foundling/plan/plan.py": [["tests/plan/test_make_plan.py", "tests/plan/test_plan.py"]],
    "foundling/data/transforms/span.py": [["tests/data/test_span.py"]],
    "foundling/decode/sampling.py": [["tests/decode/test_sampling.py", "tests/decode/test_processors.py"]],
    "foundling/decode/speculative.py": [["tests/decode/test_generate.py", "-k", "speculat and (llama or mamba2)"]],
    "foundling/diffusion/samplers.py": [["tests/diffusion", "tests/decode/test_denoise.py"]],
    "foundling/diffusion/schedule.py": [["tests/diffusion", "tests/weights/test_diffusers.py"]],
    "foundling/runtime/files.py": [["tests/weights/test_directory.py", "tests/weights/test_hostile.py"]],
    "foundling/weights/keys.py": [["tests/weights/test_directory.py", "tests/weights/test_hostile.py", "tests/parity"]],
    "foundling/text/tokenizer.py": [["tests/text"]],
    "foundling/config.py": [["tests/test_config.py"]],
}  # fmt: skip
"""core file -> the tests nearest to it, each a run of pytest"""

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


def _code(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run: no annotations, strings, imports or raised errors."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns") or isinstance(tree, ast.Raise):
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST) and not isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
                yield node
                yield from _code(node)


def _changed(node: ast.AST) -> ast.AST | None:
    """The node with its one change, or None where there is nothing to change."""
    new: Any = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        new.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        new.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        new.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        new.value = node.value + 1
    elif isinstance(node, ast.If | ast.IfExp):
        return ast.UnaryOp(ast.Not(), node.test)
    else:
        return None
    return new


def mutants(source: str) -> list[tuple[int, str, str, str]]:
    """(line, what stood there, what stands there now, the whole file) of every mutant of a file."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    raw, found = source.encode(), []
    for node in _code(ast.parse(source)):
        new = _changed(node)
        if new is None:
            continue
        at: Any = node.test if isinstance(node, ast.If | ast.IfExp) else node
        first, last = starts[at.lineno - 1] + at.col_offset, starts[at.end_lineno - 1] + at.end_col_offset
        text = f"({ast.unparse(ast.fix_missing_locations(new))})"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and node.col_offset == 0:
            continue  # a type at the top of a module
        mutated = (raw[:first] + text.encode() + raw[last:]).decode()
        found.append((at.lineno, raw[first:last].decode(), text, mutated))
    return found


def run(root: Path, tests: list[str], cpu_seconds: int) -> subprocess.CompletedProcess[str]:
    """One run of pytest; each of its processes is killed beyond `cpu_seconds`, whatever else the machine does."""
    env = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    limit = (cpu_seconds, cpu_seconds + 5) if cpu_seconds else resource.getrlimit(resource.RLIMIT_CPU)
    return subprocess.run(
        command, cwd=root, env=env, capture_output=True, text=True,
        timeout=20 * cpu_seconds or None,  # a process that waits for ever takes no CPU
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, limit),
    )  # fmt: skip


def nearest(root: Path, file: str) -> list[list[str]]:
    """The runs of NEAREST, less the files of tests that this tree does not have."""
    runs = []
    for tests in NEAREST[file]:
        at = tests.index("-k") if "-k" in tests else len(tests)
        paths = [path for path in tests[:at] if (root / path).exists()]
        runs += [[*paths, *tests[at:]]] if paths else []
    return runs


def limits(root: Path, file: str) -> list[int]:
    """CPU seconds a mutant of `file` may take in each of the nearest runs: ten times what they take as they are.

    Raises SystemExit where a run does not pass as it is.
    """
    found = []
    for tests in nearest(root, file):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run(root, tests, 0)
        if done.returncode:
            raise SystemExit(f"{file}: {' '.join(tests)} fails without a mutant:\n{done.stdout[-2000:]}{done.stderr}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(60 + 10 * math.ceil(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return found


def outcome(root: Path, file: str, cpu_seconds: list[int]) -> str:
    """'survived', 'killed: ' and by what, or 'no verdict: ' where pytest itself did not finish."""
    for tests, seconds in zip(nearest(root, file), cpu_seconds, strict=True):
        try:
            code, out = (done := run(root, tests, seconds)).returncode, done.stdout
        except subprocess.TimeoutExpired:
            return f"killed: waits, over {20 * seconds} s"
        if code in (-signal.SIGXCPU, -signal.SIGKILL):
            return f"killed: over {seconds} s of CPU"
        failed = [line for line in out.splitlines() if line.startswith(("FAILED", "ERROR"))]
        if code == pytest.ExitCode.TESTS_FAILED or (code == pytest.ExitCode.INTERRUPTED and failed):  # at import
            return f"killed: {failed[0].split(' - ')[0] if failed else 'at import'}"
        if code:
            return f"no verdict: pytest ended with {code}"
    return "survived"


def report(args: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "commit": args.commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d"),
        "seed": args.seed,
        "mutants": len(rows),
        "killed": sum(row["result"].startswith("killed") for row in rows),
        "survived": [row for row in rows if row["result"] == "survived"],
        "no_verdict": [row for row in rows if row["result"].startswith("no verdict")],
        "files": {file: sum(row["file"] == file for row in rows) for file in sorted({row["file"] for row in rows})},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the checkout (default: here)")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further mutant after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", nargs="*", default=list(NEAREST))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    git = ["git", "-C", str(args.root), "rev-parse", "HEAD"]
    args.commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()  # of what is copied below
    end = time.monotonic() + 60 * args.minutes
    rows: list[dict[str, Any]] = []
    files = sorted(args.files)
    allowed: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "checkout"
        shutil.copytree(args.root, root, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__"))
        for number in range(args.count):  # by turns, so that each file has its share
            if time.monotonic() > end:
                break
            file = files[number % len(files)]
            if file not in allowed:
                allowed[file] = limits(root, file)
            source = (root / file).read_text(encoding="utf-8")
            line, old, new, mutated = random.Random(f"{args.seed} {number}").choice(mutants(source))
            (root / file).write_text(mutated, encoding="utf-8")
            result = outcome(root, file, allowed[file])
            (root / file).write_text(source, encoding="utf-8")
            rows.append({"file": file, "line": line, "old": old, "new": new, "result": result})
            print(json.dumps(rows[-1]), flush=True)
            if args.out:
                args.out.write_text(json.dumps(report(args, rows), indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in report(args, rows).items() if key in ("mutants", "killed")}))


if __name__ == "__main__":
    main()
