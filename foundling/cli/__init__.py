# SPDX-License-Identifier: Apache-2.0
"""The command line. One thin file a command; torch and the like are imported when a command runs."""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import os
import sys
from typing import Any, NoReturn

from foundling.errors import FoundlingError

GROUPS = {
    "make models": {
        "raise": ("foundling.cli.raise_", "raise a model from data, within minutes, FLOPs or tokens"),
        "plan": ("foundling.cli.plan", "say what a run would cost, without running it"),
        "reproduce": ("foundling.cli.reproduce", "raise a model again and compare the weights bit for bit"),
    },
    "use models": {
        "chat": ("foundling.cli.chat", "talk to a model"),
        "generate": ("foundling.cli.generate", "continue a prompt, or answer a source"),
        "fill": ("foundling.cli.fill", "fill the gaps of a text with an encoder"),
    },
    "move and inspect models": {
        "import": ("foundling.cli.import_", "read a directory of transformers or diffusers, or a GGUF file"),
        "export": ("foundling.cli.export", "write a directory for transformers or diffusers, or a GGUF file"),
        "inspect": ("foundling.cli.inspect", "show modules, shapes and parameters from the headers alone"),
        "check": ("foundling.cli.check", "check every file of a model directory against its hash"),
    },
    "more": {
        "families": ("foundling.cli.families", "list model families, published sizes and what is tested"),
        "completion": ("foundling.cli.completion", "print a tab-completion script for bash or zsh"),
    },
}
COMMANDS = {name: path for group in GROUPS.values() for name, (path, _) in group.items()}


class _Parser(argparse.ArgumentParser):
    """argparse, with one line for what the user did wrong (and one JSON object where --json was given)."""

    argv: list[str] = []

    def error(self, message: str) -> NoReturn:
        if "--json" in self.argv:
            print(json.dumps({"error": message, "exit_code": 2}, ensure_ascii=False))
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def overview() -> str:
    """The commands by group, and three to begin with."""
    lines = ["commands:"]
    for title, commands in GROUPS.items():
        lines += [f"  {title}", *(f"    {name:12}{about}" for name, (_, about) in commands.items())]
    examples = ["raise --minutes 3", "raise notes/ --minutes 10 --out runs/notes", "chat runs/notes"]
    lines += ["", "examples:", *(f"  foundling {line}" for line in examples)]
    return "\n".join([*lines, "", "'foundling COMMAND --help' shows more."])


def make_parser(command: str | None = None) -> argparse.ArgumentParser:
    """With the arguments of one command, or of none: each is imported only when it is asked for."""
    parser = _Parser(
        prog="foundling",
        usage="foundling [-h] [--version] COMMAND ...",
        description="Raise your own foundation model: plan, train, adapt, decode and export, from one command line.",
        epilog=overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    from foundling.cli.version import release

    parser.add_argument("--version", action="version", version=f"foundling {release()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, help=argparse.SUPPRESS)
    for name, path in COMMANDS.items():
        if name != command:
            commands.add_parser(name)
            continue
        module = importlib.import_module(path)
        about = (module.__doc__ or "").strip().splitlines()[0]
        sub = commands.add_parser(
            name,
            description=about,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in module.EXAMPLES),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
        sub.set_defaults(run=module.run, parser=sub)
        words = [f"[{a.dest.upper()}]" if a.nargs == "?" else a.dest.upper() for a in sub._get_positional_actions()]
        sub.usage = f"foundling {name} {' '.join([*words, '[options]'])}"
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """Exits with code 2 and one line for arguments that do not fit."""
    from foundling.cli.flags import split_model_flags

    _Parser.argv = argv
    command = next((word for word in argv if word in COMMANDS), None)
    parser, fields = make_parser(command), list[tuple[str, str]]()
    if command in ("raise", "plan"):
        actions: Any = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        argv, fields = split_model_flags(argv, set(actions.choices[command]._option_string_actions))
    args, extra = parser.parse_known_args(argv)
    if extra:
        close = difflib.get_close_matches(extra[0], args.parser._option_string_actions, n=1)
        args.parser.error(f"unknown argument '{extra[0]}'" + (f"; did you mean '{close[0]}'?" if close else ""))
    args.model_fields = fields
    return args


def main(argv: list[str] | None = None) -> None:
    """Runs a command and exits: 0 done, 1 our fault, 2 the user's, 75 resume me, 130 interrupted."""
    # OpenMP threads wait for each other actively; with anything else on the machine a step then takes five times as
    # long (docs/benchmarks.md). Waiting less costs 5 % on a quiet one. It must be set before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    args = parse(sys.argv[1:] if argv is None else argv)
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
    except BrokenPipeError:  # the reader has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except MemoryError:
        code = _fail(args, "out of memory; choose a smaller model or batch", 1)
    except Exception as error:
        code = _fail(args, f"{type(error).__name__}: {_first_line(error)} (internal error; rerun with --debug)", 1)
    sys.exit(code)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _fail(args: argparse.Namespace, message: str, code: int) -> int:
    from foundling.errors import render

    if args.debug:
        import traceback

        traceback.print_exc()
    print(render.terminal(f"foundling {args.command}: {message}"), file=sys.stderr)
    if args.json:
        print(json.dumps({"error": message, "exit_code": code}, ensure_ascii=False))
    return code
