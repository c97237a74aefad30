# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: every family on CUDA against the CPU, training and decoding speed, and `reproduce`.

make gpu            (python -m benchmarks.gpu [--out FILE]; needs CUDA and torch 2.11 or newer, no network)

Outputs are compared in float32 without TF32. A family passes below 1e-4: CUDA sums in another order, over up to a few
thousand terms, and reads log and exp from other tables.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from foundling.decode.plain import generate
from foundling.models import FAMILIES, build, family
from foundling.objectives.causal import Causal
from foundling.plan.flops import skeleton, training_flops_per_token
from foundling.plan.probe import StepSpec, step_seconds
from foundling.runtime.device import Runtime
from foundling.train.options import OptimOptions
from tests.contract.cases import case

DEVICE, BOUND, SEQ_LEN = "cuda", 1e-4, 1024
SIZE = (32768, SEQ_LEN, 768, 12)  # vocab_size, seq_len, d_model and n_layers of GPT-2
RAISE = "--tokens 1e6 --d-model 128 --n-layers 2 --vocab-size 2048 --total-steps 60 --seq-len 128"


def attempt(measure: Callable[[str], object], name: str) -> object:
    """The result, or the error, which is a result too: the other families go on."""
    try:
        return measure(name)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def difference(name: str) -> float:
    """The largest difference of a tiny model's outputs from the CPU's, relative to the largest output."""
    model = case(name).tiny()
    expected, outputs = case(name).outputs(model), case(name).outputs(model.to(DEVICE)).cpu()
    return float((outputs - expected).abs().max() / expected.abs().max())


def training_speed(name: str, compiled: bool = False, rows: int = 16) -> dict[str, float]:
    """In bfloat16, steps of 16 × 1,024 tokens, by the default optimiser."""
    fields, runtime = family(name).module.sized(*SIZE), Runtime(DEVICE, "bfloat16", compile=compiled)
    spec = StepSpec(name, fields, Causal(), runtime, OptimOptions(), rows, rows, SEQ_LEN)
    rate = rows * SEQ_LEN / step_seconds(spec, least_seconds=2, least_steps=10)
    share = rate * training_flops_per_token(skeleton(name, fields), SEQ_LEN) / 989e12  # of an H100 or H200, dense
    return {"tokens_per_second": round(rate), "share_of_989_tflops": round(share, 4)}


def decoding_speed(name: str, rows: int = 8, new: int = 128) -> float:
    """Tokens a second over all rows, in bfloat16, prompts included."""
    model = build(name, device=DEVICE, **family(name).module.sized(*SIZE)).to(torch.bfloat16).eval()
    prompts = [[1 + i] * 32 for i in range(rows)]
    generate(model, prompts, max_tokens=8, temperature=0)  # warm-up; returns tokens, so it waits for the device
    start = time.perf_counter()
    generate(model, prompts, max_tokens=new, temperature=0)
    return round(rows * new / (time.perf_counter() - start), 1)


def reproduces() -> bool:
    """Whether a model raised on the GPU has the same weights, bit for bit, when it is raised again."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "foundling"]
        subprocess.run([*command, "raise", *RAISE.split(), "--device", DEVICE, "--out", f"{folder}/a"])
        done = subprocess.run([*command, "reproduce", f"{folder}/a", "--json"], stdout=subprocess.PIPE, text=True)
        return bool(json.loads(done.stdout or "{}").get("identical"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default="docs/results/gpu.json")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        sys.exit("make gpu: torch finds no CUDA device here")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    families = {name: attempt(difference, name) for name in FAMILIES}
    passed = sum(isinstance(value, float) and value <= BOUND for value in families.values())
    result = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "families": families}
    print(json.dumps(result, indent=1), flush=True)
    measures = {"train": training_speed, "train_compiled": lambda name: training_speed(name, compiled=True)}
    for what, measure in (measures | {"decode_tokens_per_second": decoding_speed}).items():
        result[what] = {name: attempt(measure, name) for name in ("llama", "gpt2")}
        print(what, result[what], flush=True)
    result["reproduce_identical"] = reproduces()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{passed} of {len(FAMILIES)} families within {BOUND:g}; reproduce: {result['reproduce_identical']}")


if __name__ == "__main__":
    main()
