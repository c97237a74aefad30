# SPDX-License-Identifier: Apache-2.0
"""A LoRA step of a real model beside peft's and transformers': speed, memory and loss curve.

python -m benchmarks.lora MODEL_DIR [--rounds 5] [--write docs/results/lora.json]

MODEL_DIR is a Llama with a tokenizer and a chat template, such as SmolLM2-135M-Instruct. All sides train adapters of
rank 16 on every projection of the layers with fused AdamW and clipping, 8 rows of at most 128 tokens a step, with the
loss on the answers alone. They read the same tokens, start from the same adapters, work each in a process of its own
and take turns step by step. The best setting of the peer in a trial is compared: as it is, and again with our memory
setting (`Runtime.setup`: freed memory is kept). Memory is the most that the process ever had resident, files that it
maps included.
"""

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.runs import resident_peak
from benchmarks.sides import Side, answer_calls
from foundling.adapt.added import adapter_tensors
from foundling.adapt.frozen import store_frozen
from foundling.adapt.method import apply
from foundling.adapt.options import AdaptOptions
from foundling.objectives.causal import Causal
from foundling.plan.probe import product_rate
from foundling.runtime.device import Runtime, available_threads
from foundling.runtime.memory import trim_memory
from foundling.runtime.rng import generator
from foundling.text.tokenizer import Tokenizer
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.state import TrainState
from foundling.train.update import update
from foundling.weights.directory import load, weights_hash

ROWS, LENGTH, STEPS = 8, 128, 24
RANK, ALPHA, RATE = 16, 32.0, 2e-4
WORDS = """apple river stone cloud table green seven window paper horse music garden silver winter bread ocean letter
bridge yellow candle forest summer copper mirror pencil rocket island velvet button ladder""".split()  # noqa: SIM905
OWN = ("foundling lora", "foundling qlora")
PEERS = ("peft bfloat16", "peft bfloat16 autocast", "peft float32 autocast", "peft bfloat16 compiled")
MEMORY = ", our memory setting"


Examples = tuple[Tensor, Tensor]


def examples(tokenizer: Any) -> Examples:
    """tokens (STEPS, ROWS, LENGTH + 1) and which of them belong to an answer: words in capitals and in order, as
    JSON."""
    draw, rows = random.Random(0), list[tuple[list[int], list[bool]]]()
    while len(rows) < STEPS * ROWS:
        words = draw.sample(WORDS, 16)
        asked = f"<|im_start|>user\nSort these words: {', '.join(words)}<|im_end|>\n<|im_start|>assistant\n"
        answer = json.dumps({"sorted": sorted(w.upper() for w in words)}) + "<|im_end|>\n"
        first, second = tokenizer.encode_marked(asked), tokenizer.encode_marked(answer)
        ids = (first + second)[: LENGTH + 1]
        mask = ([False] * len(first) + [True] * len(second))[: LENGTH + 1]
        rest = LENGTH + 1 - len(ids)
        rows.append((ids + [0] * rest, mask + [False] * rest))
    tokens, answers = (torch.tensor([row[i] for row in rows]) for i in (0, 1))
    return tokens.view(STEPS, ROWS, -1), answers.bool().view(STEPS, ROWS, -1)


def adapters(model: Any) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in adapter_tensors(model).items()}


def ours(method: Any, directory: str, data: Examples, device: str = "cpu", *, compiled: bool = False) -> Any:
    tokens, answers = data
    model = load(directory)
    digest = weights_hash(model)
    apply(model, AdaptOptions(method, rank=RANK, alpha=ALPHA), generator("lora"))
    store_frozen(model, digest)
    trim_memory()
    runtime = Runtime(device, precision="bfloat16", threads=available_threads(), compile=compiled)
    model = model.to(device).train()
    state = TrainState.build(model, OptimOptions(optimizer="adamw", learning_rate=RATE, weight_decay=0.0))
    _, rows, length = tokens.shape

    def step(n: int) -> float:
        batch = {
            "tokens": tokens[n, :, :-1].contiguous(), "targets": tokens[n, :, 1:].contiguous(),
            "documents": torch.zeros(rows, length - 1, dtype=torch.int64), "loss_mask": answers[n, :, 1:],
            "sample_ids": torch.arange(rows),
        }  # fmt: skip
        return update(state, Causal(), batch, TrainOptions(rows), runtime).loss

    return step


def theirs(name: str, directory: str, data: Examples, device: str = "cpu") -> Any:
    import peft
    import transformers

    half = "bfloat16" in name
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16 if half else torch.float32, attn_implementation="sdpa"
    )
    model.config.use_cache = False
    options = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")  # pyright: ignore
    model = peft.get_peft_model(model, options).train()
    tokens, answers = data
    same_start(model, directory)
    model = model.to(device)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    call = torch.compile(model) if "compiled" in name else model

    def step(n: int) -> float:
        labels = tokens[n, :, 1:].masked_fill(~answers[n, :, 1:], -100).to(device)
        with torch.autocast(device, torch.bfloat16, enabled="autocast" in name):
            loss = call(input_ids=tokens[n, :, :-1].to(device), labels=labels, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def same_start(model: Any, directory: str) -> None:
    """peft's adapters become those that ours start from."""
    places = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
    own = load(directory)
    apply(own, AdaptOptions("lora", rank=RANK, alpha=ALPHA), generator("lora"))
    named = dict(model.named_parameters())
    for name, value in adapters(own).items():
        _, layer, part, leaf, which = name.split(".")
        place = f"self_attn.{places[leaf]}" if part == "mixer" else f"mlp.{leaf}_proj"
        to = named[f"base_model.model.model.layers.{layer}.{place}.lora_{which.upper()}.default.weight"]
        to.data.copy_(value)


def serve(name: str, directory: str) -> None:
    """Builds a side, then answers each call with seconds, loss and peak bytes of a step."""
    if name in OWN or name.endswith(MEMORY):
        Runtime(threads=available_threads()).setup()
    torch.set_num_threads(available_threads())
    data = examples(Tokenizer.load(directory))
    if name in OWN:
        step = ours(name.rpartition(" ")[2], directory, data)
    else:
        step = theirs(name.removesuffix(MEMORY), directory, data)

    def work(n: int) -> dict[str, float]:
        start = time.perf_counter()
        loss = step(n)
        return {"seconds": time.perf_counter() - start, "loss": loss, "peak": resident_peak()}

    answer_calls(work)


def trial(directory: str, peers: tuple[str, ...]) -> dict[str, float]:
    """Seconds of the faster of two steps, after two that allocate and compile."""
    found = {}
    for name in peers:
        side = Side("benchmarks.lora", name, directory)
        try:
            found[name] = min([side(n=n)["seconds"] for n in range(4)][2:])
        except SystemExit:
            found[name] = float("inf")
        side.end()
        print(f"trial: {name} {ROWS * LENGTH / found[name]:.0f} tokens/s", file=sys.stderr, flush=True)
    return found


def measure(directory: str, rounds: int, peers: tuple[str, ...]) -> dict[str, Any]:
    first = trial(directory, peers)
    best = min(first, key=lambda name: first[name])
    names = (*OWN, best, best + MEMORY)
    sides = {name: Side("benchmarks.lora", name, directory) for name in names}
    records: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for n in range(min(rounds + 2, STEPS)):
        for name, side in sides.items():
            records[name].append(side(n=n))
    for side in sides.values():
        side.end()
    timed = {name: [r["seconds"] for r in of[2:]] for name, of in records.items()}
    peak = {name: of[-1]["peak"] for name, of in records.items()}

    def ratio(to: str) -> float:
        return round(statistics.median(a / b for a, b in zip(timed[to], timed[OWN[0]], strict=True)), 3)

    return {
        "command": "python -m benchmarks.lora MODEL_DIR",
        "rows": ROWS, "length": LENGTH, "rank": RANK, "threads": available_threads(),
        "bfloat16_to_float32_product": round(product_rate("bfloat16", "cpu") / product_rate("float32", "cpu"), 2),
        "trial_tokens_per_second": {name: round(ROWS * LENGTH / s, 1) for name, s in first.items()},
        "tokens_per_second": {n: round(ROWS * LENGTH / statistics.median(s), 1) for n, s in timed.items()},
        "speed_to_peer": ratio(best), "speed_to_peer_with_our_memory_setting": ratio(best + MEMORY),
        "peak_mib": {name: round(p / 2**20) for name, p in peak.items()},
        "memory_to_peer": round(peak[OWN[0]] / peak[best], 3),
        "memory_to_peer_with_our_memory_setting": round(peak[OWN[0]] / peak[best + MEMORY], 3),
        "losses": {name: [round(r["loss"], 4) for r in of] for name, of in records.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.directory)
    result = json.dumps(measure(args.directory, args.rounds, tuple(args.peers)), indent=1)
    print(result, flush=True)
    if args.write:
        args.write.write_text(result + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
