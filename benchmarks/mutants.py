# SPDX-License-Identifier: Apache-2.0
"""Mutants: do the tests notice a changed comparison, operator, constant or condition?

    python -m benchmarks.mutants --count 60 --seed 0 --out mutants.json
    python -m benchmarks.mutants --root ../before --files foundling/train/loop.py

Each mutant is one change of one expression of a core file, drawn by the seed, in a copy of the checkout in which the
tests nearest to the file run. A mutant that they do not notice survives: it is an equivalent, or a test is missing.
The same seed draws the same mutants wherever the file is the same, so two sets of tests can be compared.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FAMILIES = ["tests/contract/test_families.py", "-k"]
NEAREST: dict[str, list[list[str]]] = {
    "foundling/train/loop.py": [["tests/train"], [*FAMILIES, "accumulation and (llama or mixtral or clip)"]],
    "foundling/train/optim.py": [["tests/train"], ["tests/contract/test_ranks.py", "-k", "llama"]],
    "foundling/train/schedule.py": [["tests/train"]],
    "foundling/data/split.py": [["tests/data/test_split.py"]],
    "foundling/data/loader.py": [["tests/data/test_loader.py"], ["tests/train/test_loop.py"]],
    "foundling/blocks/attention.py": [["tests/blocks"], [*FAMILIES, "llama or gemma2 or bloom"]],
    "foundling/blocks/cache.py": [["tests/blocks"], [*FAMILIES, "cache or recurrent"]],
    "foundling/blocks/moe.py": [["tests/blocks"], [*FAMILIES, "mixtral or llama4"], ["tests/parity", "-k", "mixtral"]],
    "foundling/blocks/selective.py": [["tests/blocks/test_selective.py"], [*FAMILIES, "mamba"]],
    "foundling/objectives/causal.py": [["tests/objectives"]],
    "foundling/objectives/chunked.py": [["tests/objectives"]],
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


def survives(root: Path, file: str, seconds: float) -> str:
    """'survived', or which run of tests noticed."""
    env = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    for tests in NEAREST[file]:
        if not all((root / test).exists() for test in tests if test.startswith("tests/")):
            continue
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        try:
            done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"killed: over {seconds:.0f} s"
        if done.returncode not in (0, 5):
            failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
            return f"killed: {failed[0].split(' - ')[0] if failed else 'at import'}"
    return "survived"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the checkout (default: here)")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", nargs="*", default=list(NEAREST))
    parser.add_argument("--seconds", type=float, default=300, help="of one run of tests; beyond it a mutant is killed")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    drawn = []
    for number in range(args.count):  # by turns, so that each file has its share
        file = sorted(args.files)[number % len(args.files)]
        if not (args.root / file).exists():
            continue
        source = (args.root / file).read_text(encoding="utf-8")
        drawn.append((file, source, random.Random(f"{args.seed} {number}").choice(mutants(source))))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "checkout"
        shutil.copytree(args.root, root, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__"))
        for file, source, (line, old, new, mutated) in drawn:
            (root / file).write_text(mutated, encoding="utf-8")
            begin = time.monotonic()
            result = survives(root, file, args.seconds)
            (root / file).write_text(source, encoding="utf-8")
            row = {"file": file, "line": line, "old": old, "new": new, "result": result}
            results.append(row | {"seconds": round(time.monotonic() - begin, 1)})
            print(json.dumps(results[-1]), flush=True)
            if args.out:
                args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    killed = sum(row["result"] != "survived" for row in results)
    print(json.dumps({"mutants": len(results), "killed": killed, "share": round(killed / max(1, len(results)), 3)}))


if __name__ == "__main__":
    main()
