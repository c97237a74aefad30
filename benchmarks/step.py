# SPDX-License-Identifier: Apache-2.0
"""The training step against transformers' best setting and against the machine's own limit.

python -m benchmarks.step [small] [gpt2] [--rounds 5] [--json]

Both sides train GPT-2 of one shape on the same random tokens with fused AdamW and clipping, in turn, step for step. The limit is the time
that the step's products would take at the best rate that a product of their shape reaches here, in any layout.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from foundling.blocks.init import initialise
from foundling.models import build
from foundling.models.gpt2 import PRESETS
from foundling.objectives.causal import Causal
from foundling.plan.flops import training_flops_per_token
from foundling.plan.probe import RandomBatches
from foundling.runtime import Precision, Runtime, available_threads, generator
from foundling.train.loop import TrainOptions, TrainState, train
from foundling.train.optim import Optimizer, OptimOptions
from foundling.train.schedule import Schedule

SIZES = {
    "small": (8, 256, dict(vocab_size=50304, d_model=384, n_layers=6, n_heads=6, d_ff=1536, max_seq_len=256)),
    "gpt2": (2, 1024, PRESETS["gpt2"] | dict(vocab_size=50304, max_seq_len=1024)),
}
Stepper = Callable[[], float]


def ours(fields: dict[str, Any], rows: int, seq_len: int, precision: Precision) -> Stepper:
    """One step a call; the loss comes back, so that the step has ended."""
    model = build("gpt2", **fields)
    initialise(model, generator("bench"))
    runtime = Runtime(precision=precision, threads=available_threads(), compile=True)
    state = TrainState(model, Optimizer(model, OptimOptions(optimizer="adamw", learning_rate=1e-3)))
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
    targets = torch.randint(0, fields["vocab_size"], (rows, seq_len))  # as many places counted as in ours

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = call(input_ids=tokens, labels=tokens, shift_labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def in_turn(steppers: dict[str, Stepper], rounds: int) -> dict[str, list[float]]:
    for step in steppers.values():
        step(), step()
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(rounds):
        for name, step in steppers.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def product_seconds(m: int, k: int, n: int, rounds: int = 3) -> float:
    """The least time of (m, k) x (k, n) here: float32 and bfloat16, either matrix laid out by rows or by columns."""
    best = float("inf")
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
        out = torch.empty(m, n, dtype=dtype)
        for left in (a, a.t().contiguous().t()):
            for right in (b, b.t().contiguous().t()):
                for _ in range(rounds if best < float("inf") or dtype == torch.float32 else 1):
                    begin = time.perf_counter()
                    torch.mm(left, right, out=out)
                    taken = time.perf_counter() - begin
                    best = min(best, taken)
                    if taken > 3 * best:  # a precision that is emulated here
                        break
    return best


def limit_seconds(fields: dict[str, Any], tokens: int, seq_len: int) -> dict[str, Any]:
    """Σ flops_i / best rate at that shape, over the three products of every Linear; attention at the mean rate."""
    d, f, v, n = fields["d_model"], fields["d_ff"], fields["vocab_size"], fields["n_layers"]
    flops, seconds, parts = 0.0, 0.0, {}
    for name, (inside, outside, count) in {
        "d x d": (d, d, 4 * n),
        "up": (d, f, n),
        "down": (f, d, n),
        "head": (d, v, 1),
    }.items():
        shapes = ((tokens, inside, outside), (tokens, outside, inside), (outside, tokens, inside))
        each = sum(product_seconds(*shape) for shape in shapes)
        part = 6.0 * tokens * inside * outside
        parts[name] = round(part / each / 1e9)
        flops, seconds = flops + count * part, seconds + count * each
    model = build("gpt2", device="meta", **fields)
    total = training_flops_per_token(model, seq_len) * tokens
    return {"flops": total, "seconds": seconds * total / flops, "best_gflops": parts}


def measure(size: str, rounds: int) -> dict[str, Any]:
    rows, seq_len, fields = SIZES[size]
    torch.set_num_threads(available_threads())
    steppers = {
        f"transformers {precision}{' compiled' if compiled else ''}": theirs(fields, rows, seq_len, precision, compiled)
        for precision, compiled in (("float32", False), ("float32", True), ("bfloat16", True))
    }
    steppers["foundling float32"] = ours(fields, rows, seq_len, "float32")
    for name, step in list(steppers.items()):  # a setting out of the race is not timed again and again
        step(), step()
        begin = time.perf_counter()
        step()
        print(f"{size} {name}: {time.perf_counter() - begin:.2f} s, first look", flush=True)
        if name.startswith("transformers bfloat16") and time.perf_counter() - begin > 20 * rows:
            del steppers[name]
    before = limit_seconds(fields, rows * seq_len, seq_len)
    seconds = in_turn(steppers, rounds)
    after = limit_seconds(fields, rows * seq_len, seq_len)
    limit = min(before["seconds"], after["seconds"])
    middle = {name: statistics.median(s) for name, s in seconds.items()}
    peer = min((n for n in middle if n.startswith("transformers")), key=lambda n: middle[n])
    own = min((n for n in middle if n.startswith("foundling")), key=lambda n: middle[n])
    tokens = rows * seq_len
    return {
        "size": size,
        "tokens_per_second": {name: round(tokens / s, 1) for name, s in middle.items()},
        "spread": {name: round(max(s) / min(s), 2) for name, s in seconds.items()},
        "best_peer": peer,
        "ratio": round(middle[peer] / middle[own], 3),
        "gflops": round(before["flops"] / middle[own] / 1e9, 1),
        "limit_tokens_per_second": round(tokens / limit, 1),
        "share_of_limit": round(limit / middle[own], 3),
        "best_product_gflops": after["best_gflops"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="*", choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for size in args.sizes or ["small"]:
        print(json.dumps(measure(size, args.rounds), indent=1), flush=True)


if __name__ == "__main__":
    main()
