# SPDX-License-Identifier: Apache-2.0
"""Show modules, shapes, parameters and bytes of a model directory. Only headers are read, not the weights."""

from __future__ import annotations

import argparse
from typing import Any

from foundling.cli.stdio import say
from foundling.errors import ConfigError

EXAMPLES = [
    "foundling inspect runs/notes",
    "foundling inspect runs/notes --depth 2",
    "foundling inspect runs/notes --json",
]

SIZES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dir",
        help="model directory of Foundling, transformers or diffusers, or hf://ORG/NAME[@REVISION], downloaded whole",
    )
    parser.add_argument("--depth", type=int, metavar="N", help="depth of the tree to show (default: all)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.depth is not None and args.depth < 0:
        raise ConfigError(f"--depth {args.depth}: expected at least 0")
    from foundling.weights.inspect import inspect

    found = inspect(args.dir, depth=args.depth)
    if not args.json:
        _print_adapter(found) if found["kind"] == "adapter" else _print(found)
    return found


def _print_adapter(found: dict[str, Any]) -> None:
    base, targets = found["base"], found["target_modules"]
    stored = ", ".join(sorted(found["dtypes"]))
    say(f"adapter ({found['peft_type']}) of base {base['place']}, hash {(base['weights_hash'] or 'not said')[:12]}")
    if found["peft_type"] == "LORA":
        say(f"rank {found['rank']}, alpha {found['alpha']}")
        say(f"modules: {', '.join(targets) if isinstance(targets, list) else targets}")
    say(f"{found['parameters']:,} parameters in {found['tensors']:,} tensors of {stored}: {_size(found['bytes'])}")


def _print(found: dict[str, Any]) -> None:
    counts, sizes = found["parameters"], found["bytes"]
    say(f"{found['family']} ({found['kind']}): {found['about']}")
    say(", ".join(f"{key} {value}" for key, value in found["config"].items() if value is not None))
    active = f" ({counts['active']:,} active)" if counts["active"] < counts["total"] else ""
    stored = ", ".join(sorted(found["dtypes"]))
    say(
        f"{counts['total']:,} parameters{active} in {found['tensors']:,} tensors of {stored} in {found['files']} "
        f"file{'s' * (found['files'] > 1)}: {_size(sizes['stored'])} ({_size(sizes['float32'])} in float32, "
        f"{_size(sizes['bfloat16'])} in bfloat16)"
    )
    say()
    rows = list(_rows(found["tree"]))
    widths = max(len(name) for name, *_ in rows), max(len(kind) for _, kind, *_ in rows)
    for name, kind, shape, part in rows:
        size = f"{part['parameters']:>17,}  {_size(part['bytes']):>10}"
        say(f"{name:{widths[0]}}  {kind:{widths[1]}}  {size}  {shape}".rstrip())


def _rows(part: dict[str, Any], level: int = 0) -> Any:
    """(name, kind, shapes, part) of every line, from the root down."""
    shapes = [
        f"{leaf} {' × '.join(map(str, tensor['shape']))}" + (f" = {tensor['tied']}" if "tied" in tensor else "")
        for leaf, tensor in part["tensors"].items()
    ]
    times = f"{part['times']} × " if part["times"] > 1 else ""
    yield "  " * level + (part["name"] or "model"), times + part["kind"], ", ".join(shapes), part
    for inner in part["parts"]:
        yield from _rows(inner, level + 1)


def _size(n_bytes: int) -> str:
    size, unit = next((size, unit) for size, unit in SIZES if n_bytes >= size or size == 1)
    return f"{n_bytes} {unit}" if size == 1 else f"{n_bytes / size:.2f} {unit}"
