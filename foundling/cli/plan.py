# SPDX-License-Identifier: Apache-2.0
"""Estimate time, memory, energy and held-out loss of a training run without running it."""

from __future__ import annotations

import argparse
from typing import Any

from foundling.cli.common import DEFAULT_DATA, add_budget, add_data, budget_of, clock, progress_for
from foundling.cli.flags import add_recipe_flags, given_keys, options
from foundling.cli.stdio import say
from foundling.config import flattened
from foundling.errors import ConfigError

EXAMPLES = [
    "foundling plan optimal --minutes 10                # the compute-optimal model for ten minutes",
    "foundling plan optimal notes/ --flops 1e14",
    "foundling plan optimal notes/ --minutes 10 --align # with its stages of alignment",
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
        metavar="WHAT",
        help="optimal: the best model for a budget; run: the cost of a given model and number of tokens; memory: "
        "whether training fits into memory, and what would make it fit",
    )
    add_data(parser)
    add_budget(parser)
    parser.add_argument(
        "--align", nargs="?", const="", metavar="CHATS",
        help="optimal: with the stages that raise --align adds, by questions from the data or by a file of chats",
    )  # fmt: skip
    parser.add_argument(
        "--ranks", type=int, default=1, metavar="N", help="memory: number of processes that share the model (FSDP)"
    )
    add_recipe_flags(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    given, what = given_keys(args), args.what
    _refuse(args, given)
    from foundling.recipes import estimate
    from foundling.recipes.models import pinned_request
    from foundling.recipes.recipe import Request

    if what == "run" and args.tokens is None:
        raise ConfigError("the number of tokens is missing: give --tokens, such as --tokens 5e6")
    data = DEFAULT_DATA if args.data is None else args.data
    request = pinned_request(Request(data, budget_of(args), given=given, align=args.align))
    if args.align is not None:
        from foundling.recipes.aligned_plan import plan_aligned

        found = plan_aligned(request, progress_for(args), clock())
    elif what == "memory":
        found = estimate.memory_estimate(request, args.ranks)
    elif what == "run":
        found = estimate.run_estimate(request, progress_for(args), clock())
    else:
        found = estimate.optimal(request, progress_for(args), clock())
    if not args.json:
        {"memory": _print_memory, "run": _print_run, "optimal": _print_optimal}[what](found)
    return found


SHAPE = ("model", "objective", "optim.optimizer", "data.vocab_size", "train.seq_len", "train.batch_size",
         "train.micro_batch_size", "train.activation_checkpointing", "runtime.precision")  # fmt: skip


def _refuse(args: argparse.Namespace, given: dict[str, Any]) -> None:
    """Refuses arguments that would not be used."""
    what = args.what
    reads = {"memory": SHAPE, "run": (*SHAPE, "data.field", "runtime.threads", "runtime.device")}.get(what)
    for key in flattened(given):
        if reads and not key.startswith(reads):
            raise ConfigError(f"plan {what} takes no {options(key, set())[-1]} (see foundling plan --help)")
    takes = {
        "memory": ("ranks",),
        "run": ("data", "tokens"),
        "optimal": ("data", "minutes", "flops", "tokens", "align"),
    }
    takes = takes[what]
    for name in ("data", "minutes", "flops", "tokens", "ranks", "align"):
        value = getattr(args, name)
        if value is not None and (name, value) != ("ranks", 1) and name not in takes:
            shown = f"'{value}'" if name == "data" else f"--{name}"
            raise ConfigError(f"plan {what} takes no {shown} (see foundling plan --help)")


def _parts(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if name != "peak" and size)


def _print_memory(found: dict[str, Any]) -> None:
    say(f"{found['family']}, {found['params']:,} parameters, {found['flops_per_token']:.3g} FLOPs per token")
    say(f"training with batches of {found['batch_size']} × {found['seq_len']} tokens in {found['precision']}:")
    say(f"  {found['training']['peak'] / GIB:.2f} GiB peak memory ({_parts(found['training'])})")
    say(f"  {'fits into' if found['fits'] else 'does not fit into'} {found['free_bytes'] / GIB:.2f} GiB of free memory")
    for way in found["ways"]:
        change = ", ".join(f"{k}={v}" for k, v in way.items() if k != "peak")
        say(f"  would fit with {change}: {way['peak'] / GIB:.2f} GiB")
    if not found["fits"] and not found["ways"]:
        say("  no known setting makes it fit")
    serving = {name: size for name, size in found["serving"].items() if name != "cache"}
    weights = ", ".join(f"{size / GIB:.2f} in {name}" for name, size in serving.items())
    say(
        f"generation: weights (GiB) {weights}; cache {found['serving']['cache'] / GIB:.2f} GiB "
        f"for {found['batch_size']} sequences"
    )


def _print_run(found: dict[str, Any]) -> None:
    say(f"{found['family']}, {found['params']:,} parameters, {found['flops']:.3g} FLOPs")
    say(
        f"{found['tokens']:,} tokens in {found['steps']:,} steps of {found['batch_size']} rows, "
        f"micro-batches of {found['micro_batch_size']}"
        + (", activation checkpointing" if found["activation_checkpointing"] else "")
    )
    say(f"time:   {duration(found['seconds'])}, {found['step_seconds']:.3g} s per step ({found['how']})")
    say(
        f"memory: peak {found['peak_bytes'] / GIB:.2f} GiB, of which training needs "
        f"{found['memory']['peak'] / GIB:.2f} GiB ({_parts(found['memory'])}); the allocator keeps the rest"
    )
    say(f"energy: {found['joules']['value'] / 1000:.3g} kJ ({found['joules']['source'].split(':')[0]})")
    if "loss" in found:
        say(
            f"loss:   {found['bits_per_byte']:.3f} bits per byte, {found['loss']:.3f} nats per token, on held-out text "
            f"(error of the loss law: {found['law_error']:.0%})"
        )
    else:
        say("loss:   no loss prediction for this objective")


def _print_optimal(found: dict[str, Any]) -> None:
    p, fields, train = found["prediction"], found["recipe"]["model"]["fields"], found["recipe"]["train"]
    say(f"{'width':>6} {'layers':>6} {'parameters':>13} {'tokens':>13} {'bits per byte':>14}")
    for size in found["sizes"]:
        chosen = (size["d_model"], size["n_layers"]) == (fields["d_model"], fields["n_layers"])
        say(
            f"{size['d_model']:>6} {size['n_layers']:>6} {size['params']:>13,} {size['tokens']:>13,} "
            f"{size['bits_per_byte']:>14.3f}{'  <- best' if chosen else ''}"
        )
    loss = "no loss prediction for this objective"
    if "loss" in p:
        loss = f"{p['bits_per_byte']:.3f} bits per byte (error of the loss law: {p['law_error']:.0%})"
    say(
        f"best: {fields['d_model']} × {fields['n_layers']}, {p['tokens']:,} tokens in {train['total_steps']:,} steps: "
        f"{duration(p['seconds'])}, {p['peak_bytes'] / GIB:.2f} GiB, {p['joules']['value'] / 1000:.3g} kJ, {loss}"
    )
    if plan := found.get("plan"):
        for name, stage in plan["stages"].items():
            say(f"{name + ':':5} {duration(stage['seconds'])}, {stage['text']}")
        say(f"whole: {duration(plan['seconds'])}, {plan['joules']['value'] / 1000:.3g} kJ")


def duration(seconds: float) -> str:
    for size, unit in ((86400 * 365.25, "years"), (86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
