# SPDX-License-Identifier: Apache-2.0
"""Make, list, change and revoke the keys of a server's clients. A server that runs takes changes up within a second."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from foundling.cli.stdio import note, say
from foundling.errors import ConfigError
from foundling.serve.key_file import DEFAULT_FILE, LIMITS, KeyFile, KeyRecord

EXAMPLES = [
    "foundling key create anna --tokens 1000000 --requests-per-minute 60   # shows the key, once",
    "foundling serve runs/notes --keys foundling-keys.sqlite               # a server that takes it",
    "foundling key list",
    "foundling key change anna --tokens 5000000                            # while the server runs",
    "foundling key change anna --requests-per-minute none                  # no such limit any more",
    "foundling key revoke anna",
]
NONE = "none"
ACTIONS = ("create", "list", "change", "revoke")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=ACTIONS, help="what to do")
    parser.add_argument("name", nargs="?", help="name of the key, for create, change and revoke")
    parser.add_argument("--keys", default=DEFAULT_FILE, metavar="FILE", help=f"file of keys (default {DEFAULT_FILE})")
    limits = parser.add_argument_group("limits", "a number or none; a key is created with none")
    limits.add_argument(
        "--tokens", type=number_or_none, metavar="N", help="tokens of prompts and answers, in all its life"
    )
    limits.add_argument("--requests-per-minute", type=number_or_none, metavar="N", help="requests a minute")
    limits.add_argument("--concurrent", type=number_or_none, metavar="N", help="requests at the same time")


def run(args: argparse.Namespace) -> dict[str, Any]:
    limits = {name: value for name in LIMITS if (value := getattr(args, name)) is not None}
    if args.action in ("list", "revoke") and limits:
        raise ConfigError(f"--{next(iter(limits)).replace('_', '-')} is for create and change; leave it out")
    if args.action == "list":
        if args.name is not None:
            raise ConfigError(f"list shows all keys; leave {args.name!r} out")
        return _list(KeyFile(Path(args.keys)), args.json)
    if args.name is None:
        raise ConfigError(f"name the key: foundling key {args.action} NAME")
    file = KeyFile(Path(args.keys), create=args.action == "create")
    done: dict[str, Any] = {"name": args.name}
    numbers = {name: value for name, value in limits.items() if value != NONE}
    if args.action == "create":
        done["key"] = file.create(args.name, **numbers)
        if not args.json:
            say(done["key"])
            note(f"note: this is the only time that the key is shown; {args.keys} stores its hash alone")
    elif args.action == "change":
        if not limits:
            raise ConfigError("nothing to change; give --tokens, --requests-per-minute or --concurrent")
        file.change(args.name, **numbers, lift=limits.keys() - numbers.keys())
    else:
        file.revoke(args.name)
        done["revoked"] = True
    return done | limits | dict.fromkeys(limits.keys() - numbers.keys())


def number_or_none(text: str) -> int | str:
    try:
        return text if text == NONE else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError("expected a whole number or none") from None


def _list(file: KeyFile, as_json: bool) -> dict[str, Any]:
    records = file.records()
    if not as_json:
        rows = [("name", "created", "tokens used", "quota", "a minute", "at once", "requests", "dollars", "")]
        rows += [_row(record) for record in records]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return {"keys": [record._asdict() for record in records]}


def _row(record: KeyRecord) -> tuple[str, ...]:
    limits = [record.tokens, record.requests_per_minute, record.concurrent]
    quota, minute, at_once = ("-" if limit is None else f"{limit:,}" for limit in limits)
    created = time.strftime("%Y-%m-%d", time.localtime(record.created))
    used = f"{record.prompt_tokens + record.completion_tokens:,}"
    state = "revoked" if record.revoked else ""
    return (
        record.name, created, used, quota, minute, at_once, f"{record.requests:,}", f"{record.dollars:.4f}", state
    )  # fmt: skip
