# SPDX-License-Identifier: Apache-2.0
"""The command line: one thin file for each command. Torch and other large packages are imported when a command runs."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import os
import sys
from typing import Any, NoReturn

from foundling.cli import exits, stdio
from foundling.config import nearest
from foundling.errors import FoundlingError
from foundling.runtime import signals

GROUPS = {
    "make models": {
        "raise": ("foundling.cli.raise_", "train a model on your data within a budget of minutes, FLOPs or tokens"),
        "finetune": ("foundling.cli.finetune", "adapt a model to your examples: chats, labels, tags, numbers, text"),
        "align": ("foundling.cli.align", "align a model: demonstrations, comparisons, a reward model"),
        "preferences": (
            "foundling.cli.preferences",
            "sample answers and rank them by rewards or an AI judge: data for align",
        ),
        "plan": ("foundling.cli.plan", "estimate time, memory, energy and loss of a run without running it"),
        "reproduce": (
            "foundling.cli.reproduce",
            "train a model again from its recipe and compare the weights bit for bit",
        ),
    },
    "label data": {
        "label": ("foundling.cli.label", "rank answers or write demonstrations on a page; export, agreement, a budget"),
    },
    "change models": {
        "prune": ("foundling.cli.prune", "set the smallest weights to zero, a share or two of each four"),
        "merge": ("foundling.cli.merge", "merge models of one architecture, or an adapter into its base"),
    },
    "use models": {
        "chat": ("foundling.cli.chat", "continue text interactively"),
        "generate": ("foundling.cli.generate", "generate text from a prompt"),
        "fill": ("foundling.cli.fill", "fill the gaps in a text with an encoder (fill-mask)"),
        "classify": ("foundling.cli.classify", "label texts, tag their words or predict a value"),
        "serve": ("foundling.cli.serve", "serve models as OpenAI's clients ask, with a page to talk and look"),
        "key": ("foundling.cli.key", "make, list, change and revoke the keys of clients of `foundling serve`"),
    },
    "measure models": {
        "evaluate": ("foundling.cli.evaluate", "run tasks: choices, generated answers, bits per byte, with intervals"),
        "verify": ("foundling.cli.verify", "judge what models wrote: code, maths, SQL, instructions"),
        "compare": ("foundling.cli.compare", "compare two evaluations item by item: better, worse or the same"),
        "judge": ("foundling.cli.judge", "let a model choose between the answers of two evaluations"),
        "consistency": ("foundling.cli.consistency", "what hardware, number format and wording do to answers"),
        "canary": ("foundling.cli.canary", "notice that a model has changed under its name"),
        "lineage": ("foundling.cli.lineage", "draw what models descend from: data, parents, adapters, evaluations"),
    },
    "move and inspect models": {
        "import": ("foundling.cli.import_", "import a directory of transformers or diffusers, or a GGUF file"),
        "export": ("foundling.cli.export", "export a directory for transformers or diffusers, or a GGUF file"),
        "look": ("foundling.cli.look", "look inside a model as it reads a text: attention, logit lens, contributions"),
        "inspect": ("foundling.cli.inspect", "show modules, shapes, parameters and bytes without reading the weights"),
        "push": ("foundling.cli.push", "upload a model directory to the Hugging Face hub"),
        "check": ("foundling.cli.check", "compare every file of a model directory with its hash"),
    },
    "more": {
        "families": ("foundling.cli.families", "list model families, published sizes (presets) and what is tested"),
        "completion": ("foundling.cli.completion", "print a tab-completion script for bash or zsh"),
    },
}
SYNONYMS = {
    "--lr": "--learning-rate", "--temp": "--temperature", "--steps": "--total-steps",
    "--batch": "--batch-size", "--layers": "--n-layers", "--max-new-tokens": "--max-tokens", "--model": "--family",
}  # fmt: skip
"""what other tools call an option -> its name here"""
COMMANDS = {name: path for group in GROUPS.values() for name, (path, _) in group.items()}


class UsageError(FoundlingError):
    """Arguments that the parser refuses."""

    def __init__(self, message: str, program: str) -> None:
        super().__init__(message)
        self.program = program


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.prog)


def overview() -> str:
    """The commands by group, and three examples."""
    lines = ["commands:"]
    for title, commands in GROUPS.items():
        lines += [f"  {title}", *(f"    {name:12}{about}" for name, (_, about) in commands.items())]
    examples = ["raise --minutes 3", "raise notes/ --minutes 10 --out runs/notes", "chat runs/notes"]
    lines += ["", "examples:", *(f"  foundling {line}" for line in examples)]
    return "\n".join([*lines, "", "'foundling COMMAND --help' shows the options of a command."])


def make_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser with the options of one command, or of none. Only that command is imported."""
    parser = _Parser(
        prog="foundling",
        usage="foundling [-h] [--version] COMMAND ...",
        description="Raise your own foundation model: plan, train, generate, import and export.",
        epilog=overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    from foundling.runtime.release import release

    parser.add_argument("--version", action="version", version=f"foundling {release()}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, prog="foundling", help=argparse.SUPPRESS
    )
    for name, path in COMMANDS.items():
        if name != command:
            commands.add_parser(name)
            continue
        module = importlib.import_module(path)
        about = next(group[name][1] for group in GROUPS.values() if name in group)
        sub = commands.add_parser(
            name,
            description=f"{about[:1].upper()}{about[1:]}.",
            epilog="examples:\n" + "\n".join(f"  {line}" for line in module.EXAMPLES),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout, errors included")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=module.run, parser=sub)
        words = [f"[{a.dest.upper()}]" if a.nargs == "?" else a.dest.upper() for a in sub._get_positional_actions()]
        sub.usage = f"foundling {name} {' '.join([*words, '[options]'])}"
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """Raises UsageError for arguments that are none."""
    from foundling.cli.flags import split_model_flags

    command = next((word for word in argv if word in COMMANDS), None)
    parser, fields = make_parser(command), list[tuple[str, str]]()
    word = next((word for word in argv if not word.startswith("-")), None)
    if command is None and word:
        parser.error(f"unknown command '{word}'; {nearest(word, list(COMMANDS))}")
    if command in ("raise", "plan"):
        actions: Any = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        argv, fields = split_model_flags(argv, set(actions.choices[command]._option_string_actions))
    args, extra = parser.parse_known_args(argv)
    if isinstance(getattr(args, "text", None), list) and not any(word.startswith("-") for word in extra):
        args.text, extra = [*args.text, *extra], []  # argparse takes those that follow an option for unknown
    if extra:
        options, name = args.parser._option_string_actions, extra[0].partition("=")[0]
        close = difflib.get_close_matches(name, options, n=1, cutoff=0.7)
        known = SYNONYMS[name] if SYNONYMS.get(name) in options else close[0] if close else ""
        if command == "generate" and not extra[0].startswith("-"):
            known = "--prompt"
        args.parser.error(f"unknown argument '{extra[0]}'" + (f"; did you mean '{known}'?" if known else ""))
    args.model_fields = fields
    return args


def main(argv: list[str] | None = None) -> None:
    """Runs a command and exits: 0 done, 1 internal error, 2 user error, 3 worse and 4 undecided (compare), 75 stopped,
    resume it, 128 + the number of the signal that stopped it where there is nothing to resume (130 interrupted)."""
    # OpenMP threads wait in a busy loop. When other programs run, a step then takes five times as long
    # (docs/benchmarks.md). A shorter wait costs 5 % on an idle machine. It must be set before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    words = sys.argv[1:] if argv is None else argv
    with signals.raising(), stdio.standard_streams("--debug" in words):
        try:
            code = _run(words)
        except KeyboardInterrupt as stop:  # while an error was being said
            code = _fail(stop, words)
    sys.exit(code)


def _run(words: list[str]) -> int:
    """Runs a command and prints its result, or the error: on stderr one line, with --json on stdout one object."""
    code: Any = 0
    try:
        try:
            args = parse(words)
        except SystemExit:  # after --help or --version
            stdio.flush()
            return 0
        value = args.run(args)
        signals.finish()
        code = value.get("exit_code") if isinstance(value, dict) else 0
        if args.json:
            stdio.say_json(value)
        stdio.flush()
    except BaseException as error:
        if not (isinstance(error, stdio.StdoutError) and error.reader_gone):  # as in `foundling families | head`
            return _fail(error, words)
    return code if isinstance(code, int) else 0


def _fail(error: BaseException, words: list[str]) -> int:
    signals.finish()
    code, message = exits.exit_for(error)
    usage = isinstance(error, UsageError)
    if "--debug" in words and not usage:
        stdio.note(exits.trace(error), lines=True)
    program = error.program if isinstance(error, UsageError) else _program(words)
    stdio.note(f"{program}: {message}" + (f" (see {program} --help)" if usage else ""))
    if "--json" in words:
        with contextlib.suppress(stdio.StdoutError):
            stdio.say_json({"error": message, "exit_code": code})
            stdio.flush()
    return code


def _program(words: list[str]) -> str:
    return " ".join(["foundling", *(word for word in words if word in COMMANDS)][:2])
