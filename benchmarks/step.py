# SPDX-License-Identifier: Apache-2.0
"""The training step against transformers' best setting and against the limit of the machine.

python -m benchmarks.step [small] [gpt2] [--rounds 7]

All sides train GPT-2 of one shape on the same random tokens with fused AdamW and clipping, each in a process of its
own, and take steps in turn. The best setting of each side in a short trial is compared; that of transformers as it is,
and again with the memory setting of `Runtime.setup`, which is ours. The limit is the time that the products of the step
would take at the best rate that a product of their shape reaches here in any layout.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.sides import Side, answer_calls
from foundling.blocks.init import initialise
from foundling.models import build
from foundling.models.decoder.gpt2 import PRESETS
from foundling.objectives.causal import Causal
from foundling.plan.flops import training_flops_per_token
from foundling.plan.probe import RandomBatches, choose_precision
from foundling.runtime.device import Precision, Runtime, available_threads
from foundling.runtime.rng import generator
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState

SIZES = {
    "small": (8, 256, dict(vocab_size=50304, d_model=384, n_layers=6, n_heads=6, d_ff=1536, max_seq_len=256)),
    "gpt2": (2, 1024, PRESETS["gpt2"] | dict(vocab_size=50304, max_seq_len=1024)),
}
Stepper = Callable[[], float]


def ours(fields: dict[str, Any], rows: int, seq_len: int, precision: Precision, compiled: bool) -> Stepper:
    """One step a call. It returns the loss, so the step has ended by then."""
    model = build("gpt2", **fields)
    initialise(model, generator("bench"))
    runtime = Runtime(precision=precision, threads=available_threads(), compile=compiled)
    state = TrainState.build(model, OptimOptions(optimizer="adamw", learning_rate=1e-3))
    batches = RandomBatches(rows, seq_len, fields["vocab_size"])
    steps = train(state, Causal(), batches, Schedule(1_000_000), TrainOptions(rows), runtime)
    return lambda: next(steps).loss


def theirs(fields: dict[str, Any], rows: int, seq_len: int, precision: Precision, compiled: bool) -> Stepper:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=fields["vocab_size"], n_positions=fields["max_seq_len"], n_embd=fields["d_model"],
        n_layer=fields["n_layers"], n_head=fields["n_heads"], n_inner=fields["d_ff"],
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa", use_cache=False,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    call = torch.compile(model) if compiled else model
    tokens = torch.randint(0, fields["vocab_size"], (rows, seq_len))
    targets = torch.randint(0, fields["vocab_size"], (rows, seq_len))  # as many positions count as in ours

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = call(input_ids=tokens, labels=tokens, shift_labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def products(fields: dict[str, Any], tokens: int) -> dict[str, list[tuple[int, int, int]]]:
    """The three products (m, k, n) of each kind of Linear: one forward, two backward."""
    d, f, v = fields["d_model"], fields["d_ff"], fields["vocab_size"]
    shapes = {"d x d": (d, d), "up": (d, f), "down": (f, d), "head": (d, v)}
    return {name: [(tokens, i, o), (tokens, o, i), (o, tokens, i)] for name, (i, o) in shapes.items()}


def product_seconds(m: int, k: int, n: int, precision: torch.dtype) -> float:
    """The shortest time of (m, k) x (k, n), either matrix in row or column order, into allocated memory."""
    a, b, out = torch.randn(m, k).to(precision), torch.randn(k, n).to(precision), torch.empty(m, n, dtype=precision)
    best = float("inf")
    for left in (a, a.t().contiguous().t()):
        for right in (b, b.t().contiguous().t()):
            start = time.perf_counter()
            torch.mm(left, right, out=out)
            best = min(best, time.perf_counter() - start)
    return best


def limit_seconds(fields: dict[str, Any], tokens: int, seq_len: int, precision: torch.dtype) -> float:
    """Σ flops_i / best rate at that shape over the products of every Linear; attention, which has no one product, at
    their mean rate."""
    counts = {"d x d": 4 * fields["n_layers"], "up": fields["n_layers"], "down": fields["n_layers"], "head": 1}
    seconds = flops = 0.0
    for name, shapes in products(fields, tokens).items():
        seconds += counts[name] * sum(product_seconds(*shape, precision) for shape in shapes)
        flops += counts[name] * sum(2.0 * m * k * n for m, k, n in shapes)
    return seconds * step_flops(fields, tokens, seq_len) / flops


def step_flops(fields: dict[str, Any], tokens: int, seq_len: int) -> float:
    """6 N + 6 L D T a token, a tied head once."""
    return float(training_flops_per_token(build("gpt2", device="meta", **fields), seq_len)) * tokens


PEERS = {
    "transformers float32": ("float32", False),
    "transformers float32 compiled": ("float32", True),
    "transformers bfloat16 compiled": ("bfloat16", True),
}
MEMORY = ", our memory setting"
LIMIT = "limit"
OWN = {"foundling": False, "foundling compiled": True}


def serve(name: str, size: str) -> None:
    """Builds one side, then takes a step for each call and returns its seconds."""
    rows, seq_len, fields = SIZES[size]
    if name.endswith(MEMORY) or not name.startswith("transformers"):
        Runtime(threads=available_threads()).setup()
    torch.set_num_threads(available_threads())
    if name == LIMIT:
        kinds = (torch.float32, torch.bfloat16)
        fastest = min(kinds, key=lambda kind: sum(product_seconds(1024, 1024, 1024, kind) for _ in range(3)))
        step = lambda: limit_seconds(fields, rows * seq_len, seq_len, fastest)  # noqa: E731
    elif name in OWN:
        step = ours(fields, rows, seq_len, choose_precision("cpu")[0], OWN[name])
    else:
        step = theirs(fields, rows, seq_len, *PEERS[name.removesuffix(MEMORY)])

    def work() -> float:
        start = time.perf_counter()
        result = step()
        return result if name == LIMIT else time.perf_counter() - start

    answer_calls(work)


def start_side(name: str, size: str) -> Side:
    """After two steps, which compile and allocate."""
    side = Side("benchmarks.step", name, size)
    side()
    side()
    return side


def measure(size: str, rounds: int) -> dict[str, Any]:
    rows, seq_len, fields = SIZES[size]
    tokens, first = rows * seq_len, {}
    for name in [*PEERS, *OWN]:
        side = start_side(name, size)
        first[name] = min(side() for _ in range(3))
        side.end()
        print(f"{size}, trial: {name} {tokens / first[name]:.0f} tokens/s", file=sys.stderr, flush=True)
    peer, own = (min(names, key=lambda n: first[n]) for names in (PEERS, OWN))
    sides = {name: start_side(name, size) for name in (peer, peer + MEMORY, own, LIMIT)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(side())
    for side in sides.values():
        side.end()
    middle = {name: statistics.median(s) for name, s in seconds.items()}

    def ratio(to: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[to], seconds[own], strict=True)), 3)

    return {
        "size": size,
        "trial_tokens_per_second": {name: round(tokens / s, 1) for name, s in first.items()},
        "tokens_per_second": {name: round(tokens / s, 1) for name, s in middle.items()},
        "slowest_to_fastest": {name: round(max(s) / min(s), 2) for name, s in seconds.items()},
        "ratio_to_peer": ratio(peer),
        "ratio_to_peer_with_our_memory_setting": ratio(peer + MEMORY),
        "share_of_limit": ratio(LIMIT),
        "gflops": round(step_flops(fields, tokens, seq_len) / middle[own] / 1e9, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="*", help=", ".join(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.sizes[0])
    if unknown := set(args.sizes) - set(SIZES):
        parser.error(f"{', '.join(sorted(unknown))}: not a size; expected {', '.join(SIZES)}")
    for size in args.sizes or ["small"]:
        print(json.dumps(measure(size, args.rounds), indent=1), flush=True)


if __name__ == "__main__":
    main()
