# SPDX-License-Identifier: Apache-2.0
"""Judge what models wrote: one kind of answer for each word, a file of tasks and a file of samples."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

KINDS = {
    "code": ("foundling.cli.verify_code", "run the tests of HumanEval, MBPP or your own in a sandbox; pass@k"),
    "maths": ("foundling.cli.verify_maths", "compare the final answers of solutions with what is right"),
    "instructions": ("foundling.cli.verify_instructions", "check instructions that can be verified: IFEval, IFBench"),
    "sql": ("foundling.cli.verify_sql", "execute queries on a read-only SQLite database and compare the rows"),
}
"""word → (module with EXAMPLES, add and run, as those of the commands; what it does)"""
EXAMPLES = [line for path, _ in KINDS.values() for line in importlib.import_module(path).EXAMPLES]


def add(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for name, (path, about) in KINDS.items():
        module = importlib.import_module(path)
        kind = kinds.add_parser(
            name, help=about, description=f"{about[:1].upper()}{about[1:]}.", allow_abbrev=False,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in module.EXAMPLES),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        module.add(kind)
        for option, text in (("--json", "print one JSON object on stdout, errors included"),
                             ("--debug", "show the traceback of an error")):  # fmt: skip
            # SUPPRESS: what was given before KIND stays
            kind.add_argument(option, action="store_true", default=argparse.SUPPRESS, help=text)
        kind.set_defaults(run_kind=module.run, parser=kind)


def run(args: argparse.Namespace) -> dict[str, Any]:
    return args.run_kind(args)
