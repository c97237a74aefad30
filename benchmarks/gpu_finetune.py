# SPDX-License-Identifier: Apache-2.0
"""Finetuning on CUDA: every method on every family against the CPU, a LoRA step beside peft's, `finetune` reproduced.

`make gpu` runs it after benchmarks.gpu: python -m benchmarks.gpu_finetune [--out FILE]. The step is that of a model
in SmolLM2's shape with random weights, so that speed and memory are those of the real one, and losses say nothing.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import foundling
from benchmarks.lora import ALPHA, RANK, Examples, ours, theirs
from benchmarks.runs import foundling_json
from foundling.adapt.method import apply
from foundling.adapt.options import AdaptOptions
from foundling.adapt.soft import virtual_ids
from foundling.blocks.init import initialise
from foundling.data.transforms.virtual import VirtualBatches
from foundling.models import FAMILIES, build
from foundling.plan.memory import estimate_training_memory
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from tests.contract.cases import Data, case
from tests.contract.matrix import why_not

DEVICE, BOUND = "cuda", 1e-4
METHODS = {"lora": "LoRA", "qlora": "QLoRA", "prompt": "prompt", "prefix": "prefix", "bias": "partial"}
"""method -> its column in docs/matrix.md, which says the families that it makes sense for"""
SHAPE = {
    "vocab_size": 49152, "d_model": 576, "n_layers": 30, "n_heads": 9, "n_kv_heads": 3, "head_dim": 64, "d_ff": 1536,
    "max_seq_len": 2048,
}  # fmt: skip
"""of SmolLM2-135M"""
ROWS, LENGTH, STEPS = 16, 1024, 24
SIDES: dict[str, Callable[[str, Examples], Any]] = {
    "foundling lora": lambda path, data: ours("lora", path, data, DEVICE),
    "foundling lora compiled": lambda path, data: ours("lora", path, data, DEVICE, compiled=True),
    "foundling qlora": lambda path, data: ours("qlora", path, data, DEVICE),
    "peft bfloat16": lambda path, data: theirs("bfloat16", path, data, DEVICE),
    "peft bfloat16 autocast": lambda path, data: theirs("bfloat16 autocast", path, data, DEVICE),
    "peft bfloat16 compiled": lambda path, data: theirs("bfloat16 compiled", path, data, DEVICE),
}


def losses(name: str, method: Any, device: str) -> list[float]:
    """Of four steps of a tiny model in float32."""
    of = case(name)
    model = of.tiny()
    apply(model, AdaptOptions(method, rank=4, n_virtual=3), generator("adapt"))
    model = model.to(device).train()
    state = TrainState.build(model, OptimOptions(optimizer="adamw", learning_rate=0.003))
    batches = VirtualBatches(Data(of), virtual_ids(model))
    return [r.loss for r in train(state, of.objective(), batches, Schedule(4), TrainOptions(4), Runtime(device))]


def worst(method: str) -> dict[str, Any]:
    """The largest relative difference of a loss from the CPU's, over the families."""
    differences, errors = dict[str, float](), dict[str, str]()
    names = [name for name in FAMILIES if why_not(name, METHODS[method]) is None]
    for name in names:
        try:
            here, there = losses(name, method, "cpu"), losses(name, method, DEVICE)
            differences[name] = max(abs(a - b) / abs(a) for a, b in zip(here, there, strict=True))
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"[:300]
    most = max(differences, key=differences.__getitem__, default=None)
    passed = sum(value <= BOUND for value in differences.values())
    return {"families": len(names), "passed": passed, "worst": most and {most: differences[most]}, "errors": errors}


def random_model(path: str) -> None:
    torch.manual_seed(0)
    model = build("llama", **SHAPE, tie_embeddings=True)
    initialise(model, generator("init"))
    foundling.save(model.to(torch.bfloat16), path)


def random_examples() -> Examples:
    """A third of each row is an answer."""
    tokens = torch.randint(0, SHAPE["vocab_size"], (STEPS, ROWS, LENGTH + 1), generator=generator("tokens"))
    answers = torch.zeros_like(tokens, dtype=torch.bool)
    answers[..., -LENGTH // 3 :] = True
    return tokens, answers


def adapter_steps() -> dict[str, Any]:
    """Tokens a second and peak memory of each side, the faster of two rounds in turn."""
    found = dict[str, Any]()
    with tempfile.TemporaryDirectory() as path:
        random_model(path)
        data = random_examples()
        for _ in range(2):
            for name, side in SIDES.items():
                try:
                    result = timed(side(path, data))
                except Exception as error:
                    found[name] = f"{type(error).__name__}: {error}"[:300]
                    continue
                before = found.get(name, result)
                found[name] = max(result, before, key=lambda r: r["tokens_per_second"])
                print(name, found[name], flush=True)
                torch.cuda.empty_cache()
    fields = SHAPE | {"tie_embeddings": True}
    for method in ("lora", "qlora"):
        plan = estimate_training_memory(
            "llama", fields, micro_batch_size=ROWS, seq_len=LENGTH, precision="bfloat16",
            optim=OptimOptions(optimizer="adamw"), adapt=AdaptOptions(method, rank=RANK, alpha=ALPHA),
        )  # fmt: skip
        found[f"foundling {method}"]["planned_gib"] = round((plan.peak - plan.process) / 2**30, 2)
    return {"rows": ROWS, "length": LENGTH, "rank": RANK} | found


def timed(step: Callable[[int], float]) -> dict[str, float]:
    torch.cuda.synchronize()
    for n in range(4):
        step(n)
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for n in range(4, STEPS):
        step(n)
    seconds = (time.perf_counter() - start) / (STEPS - 4)
    rate, peak = ROWS * LENGTH / seconds, torch.cuda.max_memory_allocated()
    return {"tokens_per_second": round(rate), "peak_gib": round(peak / 2**30, 2)}


def reproduces() -> dict[str, Any]:
    """method -> whether a second run of the same recipe has the same weights, and what it took beside its plan."""
    found = dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        size = "--tokens 1e6 --d-model 128 --n-layers 2 --vocab-size 2048 --total-steps 20 --seq-len 128"
        foundling_json("raise", *size.split(), "--device", DEVICE, "--out", f"{folder}/base")
        rows = [{"text": f"the {w} is {n}", "label": w} for n in range(40) for w in ("river", "stone", "cloud")]
        data = Path(folder, "rows.jsonl")
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for method in ("lora", "qlora", "prompt", "full"):
            out = f"{folder}/{method}"
            options = ["--as", "classify", "--method", method, "--device", DEVICE, "--epochs", "3", "--out", out]
            result = foundling_json("finetune", f"{folder}/base", data, *options)
            actual, predicted = result["actual"], result["predicted"]
            found[method] = {
                "identical": foundling_json("reproduce", out)["identical"], "accuracy": actual["accuracy"],
                "seconds": [predicted["seconds"], actual["seconds"]],
            }  # fmt: skip
            print(method, found[method], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default="docs/results/gpu_finetune.json")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        sys.exit("gpu_finetune: torch finds no CUDA device here")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    parts = {"methods": lambda: {method: worst(method) for method in METHODS}}
    for name, part in (parts | {"step": adapter_steps, "reproduce": reproduces}).items():
        result[name] = part()
        print(json.dumps({name: result[name]}, indent=1), flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
