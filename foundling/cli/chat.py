# SPDX-License-Identifier: Apache-2.0
"""Talk to a model, line by line. An instruct model answers, by its chat template; a base model continues your text."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from foundling.cli.generate import sampling, writer_for

EXAMPLES = [
    "foundling chat runs/notes",
    'foundling chat runs/smollm2 --system "You answer in one sentence."',
    'echo "import os" | foundling chat runs/notes --json',
]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="model directory")
    parser.add_argument(
        "--max-tokens", type=int, default=None, help="maximum number of new tokens a line (default 100)"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message, for a model with a chat template")
    parser.add_argument("--base", action="store_true", help="continue text also where there is a chat template")
    sampling(parser)


def talk(writer: Any, messages: list[dict[str, str]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """The answer. The oldest turns are left out once the conversation is longer than the model reads."""
    first, space = 1 if messages[0]["role"] == "system" else 0, options["max_tokens"] or 1
    longest = writer.model.config.max_seq_len - space
    while len(messages) > first + 2 and len(writer.framing.chat(messages)) > longest:
        del messages[first : first + 2]
        print("note: the oldest turn is left out: the conversation is too long", file=sys.stderr)
    return writer.chat(messages, **options)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.decode.request import sample_seed
    from foundling.errors import ConfigError

    writer, console = writer_for(args), sys.stderr
    chats = writer.chats and not args.base
    if args.system is not None and not chats:
        raise ConfigError("--system needs a model with a chat template; this one continues text")
    kind = "instruct model" if chats else "base model"
    about = "it answers" if chats else "it continues your text and does not answer questions"
    print(f"This is {'an' if chats else 'a'} {kind}: {about}. Press Ctrl-D to exit.", file=console)
    messages = [] if args.system is None else [{"role": "system", "content": args.system}]
    turns: list[dict[str, Any]] = []
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=console, flush=True)
        line = sys.stdin.readline()
        if not line:
            break
        prompt = line.rstrip("\n")
        stream = None if args.json else lambda text: print(text, end="", flush=True)
        options: dict[str, Any] = dict(
            max_tokens=args.max_tokens, seed=sample_seed(args.seed, len(turns)), stop_strings=args.stop, on_text=stream
        )
        if chats:
            messages.append({"role": "user", "content": prompt})
            (answer,) = talk(writer, messages, options)
            messages.append({"role": "assistant", "content": answer["text"]})
        else:
            if stream:
                stream(prompt)
            (answer,) = writer.generate(prompt, **options)
        if stream:
            print(flush=True)
        turns.append({"prompt": prompt, **answer})
    return {"model_dir": args.dir, "kind": kind, "turns": turns}
