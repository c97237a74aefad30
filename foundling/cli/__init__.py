# SPDX-License-Identifier: Apache-2.0
"""The command line. One thin file a command; what is heavy is imported when the command runs."""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import os
import sys
from typing import Any, NoReturn

from foundling.errors import FoundlingError

COMMANDS = {
    "raise": "foundling.cli.raise_",
    "plan": "foundling.cli.plan",
    "chat": "foundling.cli.chat",
    "generate": "foundling.cli.generate",
    "fill": "foundling.cli.fill",
    "check": "foundling.cli.check",
    "import": "foundling.cli.import_",
    "export": "foundling.cli.export",
    "inspect": "foundling.cli.inspect",
    "reproduce": "foundling.cli.reproduce",
    "families": "foundling.cli.families",
}


class _Parser(argparse.ArgumentParser):
    """argparse, with one line for what the user did wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="foundling",
        description="Raise your own foundation model.",
        epilog="examples:\n  foundling raise --minutes 3\n  foundling raise notes/ --minutes 10 --out runs/notes\n"
        "  foundling chat runs/notes\n\n'foundling COMMAND --help' shows more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    from foundling.cli.version import release

    parser.add_argument("--version", action="version", version=f"foundling {release()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, path in COMMANDS.items():
        module = importlib.import_module(path)
        about = (module.__doc__ or "").strip().splitlines()[0]
        sub = commands.add_parser(
            name,
            help=about,
            description=about,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in module.EXAMPLES),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
        sub.set_defaults(run=module.run, parser=sub)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs a command and exits: 0 done, 1 our fault, 2 the user's, 75 resume me, 130 interrupted."""
    # OpenMP threads wait for each other actively; with anything else on the machine a step then takes five times as
    # long (docs/benchmarks.md). Waiting less costs 5 % on a quiet one. It must be said before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    parser = make_parser()
    args, extra = parser.parse_known_args(argv)
    if extra:
        close = difflib.get_close_matches(extra[0], args.parser._option_string_actions, n=1)
        args.parser.error(f"unknown argument '{extra[0]}'" + (f"; did you mean '{close[0]}'?" if close else ""))
    code = 0
    try:
        value = args.run(args)
        if args.json:
            print(json.dumps(value, ensure_ascii=False, allow_nan=False))
        code = int(value.pop("exit_code", 0)) if isinstance(value, dict) else 0
        sys.stdout.flush()
    except FoundlingError as error:
        code = _fail(args, str(error), error.exit_code)
    except KeyboardInterrupt:
        code = _fail(args, "interrupted", 130)
    except BrokenPipeError:  # whoever read us has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except MemoryError:
        code = _fail(args, "out of memory; choose a smaller model or batch", 1)
    except Exception as error:
        code = _fail(
            args, f"{type(error).__name__}: {_first_line(error)} (this is a fault of foundling; --debug shows where)", 1
        )
    sys.exit(code)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _fail(args: argparse.Namespace, message: str, code: int) -> int:
    if args.debug:
        import traceback

        traceback.print_exc()
    print(f"foundling {args.command}: {message}", file=sys.stderr)
    if args.json:
        print(json.dumps({"error": message, "exit_code": code}, ensure_ascii=False))
    return code


def show_for(args: argparse.Namespace) -> Any:
    """Progress on stderr, timed from the start of the process."""
    from foundling.recipes.progress import Show
    from foundling.runtime.clock import process_age

    return Show(on=not args.json or sys.stderr.isatty(), age=process_age())
