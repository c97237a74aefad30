# SPDX-License-Identifier: Apache-2.0
"""Draw the ecosystem graph: data sets, models, adapters, judges, evaluations and applications, by their hashes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from foundling.cli.stdio import note, say
from foundling.errors import ConfigError

EXAMPLES = [
    "foundling lineage runs",
    "foundling lineage runs evals --out lineage.html",
    "foundling lineage runs --application helpdesk=runs/chat --out lineage.dot",
]
NAME = 40
"""characters of a cell of the table"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dirs", nargs="+", help="model, adapter or evaluation directories, or folders of many")
    parser.add_argument("--out", metavar="FILE", help="write the graph: .html, .svg, .dot (Graphviz) or .json")
    parser.add_argument(
        "--application", action="append", default=[], metavar="NAME=DIR",
        help="an application that uses the model in DIR; or a .json file with several (may be repeated)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.evaluate.lineage import lineage
    from foundling.report.lineage import as_json, rows

    suffix = Path(args.out).suffix if args.out else ""
    if args.out and suffix not in (".html", ".svg", ".dot", ".json"):
        raise ConfigError(f"--out {args.out}: expected a name that ends with .html, .svg, .dot or .json")
    graph = lineage(args.dirs, args.application)
    for text in graph.notes:
        note(f"note: {text}")
    if args.out:
        _write(graph, args.out, suffix)
    if args.json:
        return {**as_json(graph), "out": args.out}
    table = [("kind", "name", "hash", "licence", "access", "size", "comes from"), *rows(graph)]
    cells = [
        [cell if len(cell) <= NAME or i == 6 else cell[: NAME - 1] + "…" for i, cell in enumerate(r)] for r in table
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(6)]
    for row in cells:
        say("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[6]]))
    if args.out:
        say(f"graph: {args.out}")
    return {}


def _write(graph: Any, path: str, suffix: str) -> None:
    from foundling.errors import render
    from foundling.report import lineage as report
    from foundling.runtime.files import write_bytes

    text = {
        ".html": report.lineage_html, ".svg": report.lineage_svg, ".dot": report.dot,
        ".json": lambda g: render.json(report.as_json(g)) + "\n",
    }[suffix](graph)  # fmt: skip
    write_bytes(Path(path), text.encode("utf-8", "backslashreplace"))
