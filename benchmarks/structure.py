# SPDX-License-Identifier: Apache-2.0
"""The size of the code: statements by package, now and before, the longest functions, and what the recipes share.

python -m benchmarks.structure --before PATH      PATH: a checkout from before; writes docs/results/structure.json

A statement is a node of the syntax tree (ast.stmt). Indentation and empty lines do not count in what recipes share.
"""

import argparse
import ast
import datetime
import json
import subprocess
from collections import Counter
from itertools import combinations
from pathlib import Path

from foundling.runtime.files import write_json

RECIPES = ("pretrain", "masked", "seq2seq", "distill")


def measure(root: Path) -> dict[str, dict[str, int]]:
    """Statements by package or single file, and the ten longest functions in lines, docstring included."""
    statements, functions = Counter[str](), Counter[str]()
    for file in sorted((root / "foundling").rglob("*.py")):
        name = file.relative_to(root / "foundling")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            statements[name.parts[0]] += isinstance(node, ast.stmt)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions[f"{name}:{node.name}"] = (node.end_lineno or node.lineno) - node.lineno + 1
    total = {"total": statements.total()}
    return {"statements": dict(statements) | total, "longest_functions": dict(functions.most_common(10))}


def longest_shared(a: list[str], b: list[str]) -> int:
    """Length of the longest run of equal lines."""
    longest, ends = 0, [0] * len(b)  # ends[j]: equal lines that end at b[j] and at the current line of a
    for line in a:
        ends = [before + 1 if line == other else 0 for before, other in zip([0, *ends], b, strict=False)]
        longest = max(longest, *ends)
    return longest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True)
    before, root = parser.parse_args().before, Path(__file__).parents[1]
    text = {name: (root / f"foundling/recipes/{name}.py").read_text("utf-8").splitlines() for name in RECIPES}
    code = {name: [line.strip() for line in lines if line.strip()] for name, lines in text.items()}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, check=True, capture_output=True, text=True).stdout
    result = {"commit": commit.strip(), "date": f"{datetime.date.today()}", "before": measure(before)}
    result |= {"now": measure(root), "recipe_lines": {name: len(lines) for name, lines in text.items()}}
    result["shared_lines"] = {f"{a}, {b}": longest_shared(code[a], code[b]) for a, b in combinations(RECIPES, 2)}
    write_json(root / "docs/results/structure.json", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
