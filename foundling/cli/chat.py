# SPDX-License-Identifier: Apache-2.0
"""Talk to a model, line by line. An instruct model answers, by its chat template; a base model continues your text."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from foundling.cli.generate import check_answer, constraints, read_constraint, sampling, writer_for
from foundling.cli.stdio import note, read_line, say_text

EXAMPLES = [
    "foundling chat runs/notes",
    "foundling chat hf://HuggingFaceTB/SmolLM2-135M-Instruct       # downloaded once, into the hub's cache",
    'foundling chat runs/smollm2 --system "You answer in one sentence."',
    'echo "import os" | foundling chat runs/notes --json',
]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="model directory, or hf://ORG/NAME[@REVISION]")
    parser.add_argument(
        "--max-tokens", type=int, default=None, help="maximum number of new tokens a line (default 100)"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message, for a model with a chat template")
    parser.add_argument("--base", action="store_true", help="continue text also where there is a chat template")
    constraints(parser)
    sampling(parser)


def talk(writer: Any, messages: list[dict[str, str]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """The answer. The oldest turns are left out once the conversation is longer than the model reads."""
    first, limit = 1 if messages[0]["role"] == "system" else 0, writer.model.config.max_seq_len
    longest = limit - (options["max_tokens"] or min(writer.max_tokens, limit // 2))
    while len(messages) > first + 2 and len(writer.framing.chat(messages)) > longest:
        del messages[first : first + 2]
        note("note: the oldest turn is left out: the conversation is too long")
    return writer.chat(messages, **options)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.decode.request import sample_seed
    from foundling.errors import ConfigError

    constraint = read_constraint(args)
    writer = writer_for(args)
    chats = writer.chats and not args.base
    if args.system is not None and not chats:
        raise ConfigError("--system needs a model with a chat template; this one continues text")
    kind = "instruct model" if chats else "base model"
    about = "it answers" if chats else "it continues your text and does not answer questions"
    note(f"This is {'an' if chats else 'a'} {kind}: {about}. Press Ctrl-D to exit.")
    messages = [] if args.system is None else [{"role": "system", "content": args.system}]
    turns: list[dict[str, Any]] = []
    while True:
        if sys.stdin.isatty():
            note("> ", end="")
        line = read_line()
        if not line:
            break
        prompt = line.rstrip("\n")
        stream = None if args.json else lambda text: say_text(text, end="")
        options: dict[str, Any] = dict(
            max_tokens=args.max_tokens, seed=sample_seed(args.seed, len(turns)), stop_strings=args.stop, on_text=stream,
            constraint=constraint,
        )  # fmt: skip
        if chats:
            messages.append({"role": "user", "content": prompt})
            (answer,) = talk(writer, messages, options)
            messages.append({"role": "assistant", "content": answer["text"]})
        else:
            if stream:
                stream(prompt)
            (answer,) = writer.generate(prompt, **options)
        if stream:
            say_text("")
        if constraint:
            check_answer(answer, constraint)
        turns.append({"prompt": prompt, **answer})
    return {"model_dir": args.dir, "kind": kind, "turns": turns}
