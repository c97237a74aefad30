# SPDX-License-Identifier: Apache-2.0
"""Who is asked, as a command line names it, and the options of models behind an API."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUBJECT = "directory of a model or adapter, hf://ORG/NAME, PROVIDER:MODEL or MODEL@URL, or an answers.jsonl"
LOCAL = ("base_model", "chat", "device", "dtype", "positions", "stride", "truncate", "weights", "window")
"""options of a model that is loaded here"""
UPSTREAM = ("completions", "key_env", "key_file", "omit", "start", "timeout", "workers")
"""options of a model behind an API"""


def add_upstream(parser: argparse.ArgumentParser) -> None:
    """The options of UPSTREAM."""
    group = parser.add_argument_group("a model behind an API", "MODEL@URL gets no key but one named here")
    key = group.add_mutually_exclusive_group()
    key.add_argument("--key-env", metavar="NAME",
                     help="environment variable that holds the key (default: the provider's own)")  # fmt: skip
    key.add_argument("--key-file", metavar="FILE", help="file that holds the key, and that only its owner may read")
    group.add_argument("--completions", action="store_true",
                       help="ask /completions, not a chat: gives log-probabilities of texts too")  # fmt: skip
    group.add_argument("--start", metavar="TEXT",
                       help="with --completions: begins each text, such as '<|endoftext|>'")  # fmt: skip
    group.add_argument("--omit", metavar="FIELD,FIELD",
                       help="fields of a request that the model refuses, such as temperature")  # fmt: skip
    group.add_argument("--workers", type=int, metavar="N", help="requests at a time (default 8)")
    group.add_argument("--timeout", type=float, metavar="S", help="seconds of one try (default 120)")


def upstream_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those of evaluate.upstream.Upstream that the command line gives."""
    values = {
        "key_env": args.key_env, "key_file": args.key_file and Path(args.key_file), "start": args.start,
        "omit": args.omit and [name.strip() for name in args.omit.split(",")],
        "workers": args.workers, "timeout": args.timeout,
    }  # fmt: skip
    return {"chat": not args.completions} | {name: value for name, value in values.items() if value is not None}


def add_price(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--price", metavar="IN,OUT", help="dollars for a million tokens of prompts and of answers")


def price_of(args: argparse.Namespace) -> tuple[float, float] | None:
    """Of --price, if it is given. ConfigError for what is no two numbers."""
    from foundling.errors import ConfigError

    if args.price is None:
        return None
    try:
        prompts, answers = (float(text) for text in args.price.split(","))
        if not (0 <= prompts < float("inf") and 0 <= answers < float("inf")):
            raise ValueError
    except ValueError:
        raise ConfigError(f"--price is {args.price!r}; expected two numbers of dollars, such as 0.15,0.60") from None
    return prompts, answers


def is_upstream(spec: str) -> bool:
    """Whether the words name a model behind an API, and no directory."""
    return not Path(spec).exists() and not spec.startswith("hf://") and ":" in spec


def is_local(spec: str) -> bool:
    """Whether the words name a model to load here."""
    return not spec.endswith(".jsonl") and not is_upstream(spec)


def load_subject(spec: str, args: argparse.Namespace, **options: Any) -> Any:
    """`args`: of a parser with `add_upstream`. `options`: those of evaluate.subjects.load_subject, for a directory.

    ConfigError for an option that is not for this kind of subject."""
    if spec.endswith(".jsonl"):
        from foundling.evaluate.recorded import replay

        _refuse(args, (*LOCAL, *UPSTREAM), f"{spec} holds recorded answers, which stay as they are")
        return replay(Path(spec))
    if is_upstream(spec):
        from foundling.evaluate.upstream import subject_of

        _refuse(args, LOCAL, f"{spec} is a model behind an API, and this is for a directory")
        return subject_of(spec, **upstream_options(args))
    from foundling.evaluate.subjects import load_subject

    _refuse(args, UPSTREAM, f"{spec} is a directory, and this is for a model behind an API")
    return load_subject(spec, **options)


def chats(subject: Any) -> bool:
    """Whether it is asked in a conversation: behind an API, with a chat template of its own, or as it was recorded."""
    from foundling.evaluate.recorded import Recorded, read_answers
    from foundling.evaluate.upstream import Upstream

    if isinstance(subject, Upstream):
        return subject.chat
    if isinstance(subject, Recorded):
        request = next(read_answers(subject.path), {}).get("request")
        return not (isinstance(request, list) and request and isinstance(request[0], str))
    framing = getattr(subject, "framing", None)
    return framing is None or framing.tokenizer.chat_template is not None


def _refuse(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """ConfigError where one of these options is not its default."""
    from foundling.errors import ConfigError

    for name in names:
        if getattr(args, name, None) != args.parser.get_default(name):
            raise ConfigError(f"--{name.replace('_', '-')}: {why}; leave it out")
