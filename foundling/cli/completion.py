# SPDX-License-Identifier: Apache-2.0
"""Print a tab-completion script for bash or zsh. It completes commands, options and file names."""

from __future__ import annotations

import argparse
from typing import Any

from foundling.cli.stdio import say_text

EXAMPLES = [
    "foundling completion bash > ~/.local/share/bash-completion/completions/foundling",
    "foundling completion zsh > ~/.zfunc/_foundling               # with fpath+=~/.zfunc in .zshrc",
]
BASH = """_foundling() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} words
    if [ "$COMP_CWORD" -eq 1 ]; then words="{commands} --help --version"; else
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
    fi
    case $word in
        -*) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
        *) if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "$words" -- "$word"))
           else COMPREPLY=($(compgen -f -- "$word")); fi ;;
    esac
}}
complete -o filenames -F _foundling foundling
"""
ZSH = "#compdef foundling\nautoload -U +X bashcompinit && bashcompinit\n"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh"], metavar="SHELL", help="bash or zsh")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.cli import COMMANDS, make_parser

    cases = []
    for name in COMMANDS:
        actions: Any = next(a for a in make_parser(name)._actions if isinstance(a, argparse._SubParsersAction))
        options = " ".join(sorted(actions.choices[name]._option_string_actions))
        cases.append(f'            {name}) words="{options}" ;;')
    script = BASH.format(commands=" ".join(COMMANDS), cases="\n".join(cases))
    script = script if args.shell == "bash" else ZSH + script
    if not args.json:
        say_text(script, end="")
    return {"shell": args.shell, "script": script}
