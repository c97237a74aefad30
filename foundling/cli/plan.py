# SPDX-License-Identifier: Apache-2.0
"""Say what a run would take, without running it: time, memory by part, energy and held-out loss."""

from __future__ import annotations

import argparse
from typing import Any

from foundling.cli.raise_ import add_keys, keys
from foundling.errors import ConfigError

EXAMPLES = [
    "foundling plan optimal --minutes 10                # the size and the tokens that ten minutes are best spent on",
    "foundling plan optimal notes/ --flops 1e14",
    "foundling plan run --d-model 256 --n-layers 6 --tokens 5e6",
    "foundling plan run notes/ --preset gpt2 --tokens 1e8",
    "foundling plan memory --preset llama-2-7b --seq-len 2048 --batch-size 4",
    "foundling plan memory --preset llama-3-8b --ranks 8 --json",
]
GIB = 2**30


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=["run", "optimal", "memory"],
        help="run: a stated size and its tokens; optimal: the best size for a budget; memory: will it fit, and what "
        "would make it fit",
    )
    parser.add_argument("data", nargs="?", help="as of 'foundling raise' (default: the built-in 'stdlib')")
    dial = parser.add_mutually_exclusive_group()
    dial.add_argument("--minutes", type=float, help="optimal: a budget of time, as of 'foundling raise'")
    dial.add_argument("--flops", type=float, help="optimal: a budget of floating-point operations")
    dial.add_argument("--tokens", type=float, help="run: tokens to train on; optimal: a budget of tokens")
    parser.add_argument("--preset", metavar="NAME", help="run, memory: a published size (foundling families)")
    parser.add_argument(
        "--ranks", type=int, default=1, metavar="N", help="memory: processes that a model is split over"
    )
    add_keys(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    given, what = keys(args), args.what
    _refuse(args, given)
    from foundling.cli import show_for

    show = show_for(args)
    from foundling.plan.budget import Budget
    from foundling.recipes import foresight
    from foundling.recipes.recipe import Request

    data = args.data or "builtin:stdlib"
    if what == "memory":
        found = foresight.memory_of(foresight.shape_of(given, args.preset, args.ranks))
    elif what == "run":
        if args.tokens is None:
            raise ConfigError("how many tokens? give --tokens, such as --tokens 5e6")
        Budget("tokens", args.tokens)
        found = foresight.run_of(foresight.shape_of(given, args.preset), args.tokens, data, show, given)
    else:
        unit, value = "seconds", (3.0 if args.minutes is None else args.minutes) * 60
        for name in ("flops", "tokens"):
            if getattr(args, name) is not None:
                unit, value = name, getattr(args, name)
        Budget(unit, value)
        found = foresight.optimal(Request(data, unit, value, given=given), show)
    if not args.json:
        {"memory": _print_memory, "run": _print_run, "optimal": _print_optimal}[what](found)
    return found


SHAPE_KEYS = (
    "family", "d_model", "n_layers", "vocab_size", "seq_len", "batch_size", "micro_batch_size", "precision",
    "optimizer", "checkpoint_activations",
)  # fmt: skip


def _refuse(args: argparse.Namespace, given: dict[str, Any]) -> None:
    """What would be left unread is said, not ignored."""
    what = args.what
    reads = {"memory": SHAPE_KEYS, "run": (*SHAPE_KEYS, "field", "threads", "device"), "optimal": tuple(given)}[what]
    for key in given:
        if key not in reads:
            raise ConfigError(f"plan {what} takes no --{key.replace('_', '-')} (see foundling plan --help)")
    takes = {"memory": ("preset", "ranks"), "run": ("data", "tokens", "preset"),
             "optimal": ("data", "minutes", "flops", "tokens")}  # fmt: skip
    for name in ("data", "minutes", "flops", "tokens", "preset", "ranks"):
        value = getattr(args, name)
        if value is not None and (name, value) != ("ranks", 1) and name not in takes[what]:
            shown = f"'{value}'" if name == "data" else f"--{name}"
            raise ConfigError(f"plan {what} takes no {shown} (see foundling plan --help)")


def _parts(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if name != "peak" and size)


def _print_memory(found: dict[str, Any]) -> None:
    print(f"{found['family']} of {found['params']:,} parameters, {found['flops_per_token']:.3g} FLOPs a token")
    print(f"training on {found['batch_size']} × {found['seq_len']} tokens in {found['precision']}:")
    print(f"  {found['training']['peak'] / GIB:.2f} GiB at the most ({_parts(found['training'])})")
    print(
        f"  {'fits into' if found['fits'] else 'more than'} the {found['free_bytes'] / GIB:.2f} GiB that are free here"
    )
    for way in found["ways"]:
        change = ", ".join(f"{k}={v}" for k, v in way.items() if k != "peak")
        print(f"  would fit with {change}: {way['peak'] / GIB:.2f} GiB")
    if not found["fits"] and not found["ways"]:
        print("  nothing known here would make it fit")
    serving = {name: size for name, size in found["serving"].items() if name != "cache"}
    weights = ", ".join(f"{size / GIB:.2f} in {name}" for name, size in serving.items())
    print(
        f"answering: weights {weights}; cache {found['serving']['cache'] / GIB:.2f} GiB "
        f"for {found['batch_size']} answers"
    )


def _print_run(found: dict[str, Any]) -> None:
    print(f"{found['family']} of {found['params']:,} parameters, {found['flops']:.3g} FLOPs")
    print(
        f"{found['tokens']:,} tokens in {found['steps']:,} steps of {found['batch_size']} rows, "
        f"{found['micro_batch_size']} at once{', layers computed twice' if found['checkpoint_activations'] else ''}"
    )
    print(f"time:   {duration(found['seconds'])}, {found['step_seconds']:.3g} s a step ({found['how']})")
    print(
        f"memory: {found['peak_bytes'] / GIB:.2f} GiB at the most; {found['memory']['peak'] / GIB:.2f} GiB are needed "
        f"({_parts(found['memory'])}), the rest is what the allocator keeps"
    )
    print(f"energy: {found['joules']['value'] / 1000:.3g} kJ ({found['joules']['source'].split(':')[0]})")
    print(
        f"loss:   {found['bits_per_byte']:.3f} bits per byte held out = {found['loss']:.3f} nats a token "
        f"(the law's own error is {found['law_error']:.0%})"
    )


def _print_optimal(found: dict[str, Any]) -> None:
    p, recipe = found["prediction"], found["recipe"]
    print(f"{'width':>6} {'layers':>6} {'parameters':>13} {'tokens':>13} {'bits per byte':>14}")
    for size in found["sizes"]:
        chosen = (size["d_model"], size["n_layers"]) == (recipe["d_model"], recipe["n_layers"])
        print(
            f"{size['d_model']:>6} {size['n_layers']:>6} {size['params']:>13,} {size['tokens']:>13,} "
            f"{size['bits_per_byte']:>14.3f}{'  <- best' if chosen else ''}"
        )
    print(
        f"best: {recipe['d_model']} × {recipe['n_layers']}, {p['tokens']:,} tokens in {recipe['total_steps']:,} steps: "
        f"{duration(p['seconds'])}, {p['peak_bytes'] / GIB:.2f} GiB, {p['joules']['value'] / 1000:.3g} kJ, "
        f"{p['bits_per_byte']:.3f} bits per byte (the law's own error is {p['law_error']:.0%})"
    )


def duration(seconds: float) -> str:
    for size, unit in ((86400 * 365.25, "years"), (86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
