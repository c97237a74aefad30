# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: every family once on CUDA against the CPU, training and decoding speed, and `reproduce`.

make gpu            (python -m benchmarks.gpu [--out FILE]; needs CUDA, torch 2.11 or newer, no network)

Outputs are compared in float32 without TF32. A family passes where the largest difference is below 1e-4 of the largest
output: CUDA sums in another order, over up to a few thousand terms, and reads log and exp from other tables.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from foundling.blocks.init import initialise
from foundling.data.loader import packed
from foundling.decode.plain import generate
from foundling.models import FAMILIES, build, family
from foundling.objectives.causal import Causal
from foundling.plan.flops import training_flops_per_token
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from tests.contract.cases import case

BOUND = 1e-4


def on_cuda(name: str) -> float:
    """The largest difference of a tiny model's outputs from the CPU's, by the largest output."""
    of = case(name)
    model = of.tiny()
    expected = of.outputs(model)
    found = of.outputs(model.cuda()).cpu()
    return float((found - expected).abs().max() / expected.abs().max())


class Random:
    def __init__(self, rows: int, seq_len: int, vocab_size: int) -> None:
        tokens = torch.randint(0, vocab_size, (rows, seq_len + 1), generator=generator("gpu"))
        self.batch = packed(tokens, eos=0)

    def __getitem__(self, n: int) -> Any:
        return self.batch


def training_speed(name: str, compiled: bool = False, rows: int = 16, seq_len: int = 1024) -> dict[str, float]:
    """Tokens a second of a model of GPT-2's size in bfloat16, and its share of 989 TFLOP/s (H100 and H200, dense)."""
    model = build(name, device="cuda", **family(name).module.sized(32768, seq_len, 768, 12))
    initialise(model, generator("gpu"))
    runtime = Runtime("cuda", "bfloat16", compile=compiled)
    marks, state = [], TrainState.build(model, OptimOptions())
    for record in train(state, Causal(), Random(rows, seq_len, 32768), Schedule(100), TrainOptions(rows), runtime):
        record.grad_norm  # noqa: B018  waits for the device
        marks.append(time.perf_counter())
        if len(marks) == 13:
            break
    rate = 10 * rows * seq_len / (marks[-1] - marks[-11])
    flops = training_flops_per_token(model, seq_len)
    return {"tokens_per_second": round(rate), "share_of_989_tflops": round(rate * flops / 989e12, 4),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)}  # fmt: skip


def decoding_speed(name: str, rows: int = 8, new: int = 128) -> float:
    model = build(name, device="cuda", **family(name).module.sized(32768, 1024, 768, 12)).to(torch.bfloat16).eval()
    prompts = [[1 + i] * 32 for i in range(rows)]
    generate(model, prompts, max_tokens=8, temperature=0)
    torch.cuda.synchronize()
    start = time.perf_counter()
    generate(model, prompts, max_tokens=new, temperature=0)
    torch.cuda.synchronize()
    return round(rows * new / (time.perf_counter() - start), 1)


def reproduced() -> bool:
    """Raised on the GPU and again: the same bits."""
    with tempfile.TemporaryDirectory() as folder:
        run = [sys.executable, "-m", "foundling"]
        size = [
            "--d-model",
            "128",
            "--n-layers",
            "2",
            "--vocab-size",
            "2048",
            "--total-steps",
            "60",
            "--seq-len",
            "128",
        ]
        subprocess.run(
            [*run, "raise", "--tokens", "1e6", *size, "--device", "cuda", "--out", f"{folder}/a"], check=True
        )
        done = subprocess.run([*run, "reproduce", f"{folder}/a", "--json"], capture_output=True, text=True, check=False)
        print(done.stderr[-500:], file=sys.stderr)
        return bool(json.loads(done.stdout or "{}").get("identical"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("docs/results/gpu.json"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("make gpu: torch finds no CUDA device here")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "families": {}}
    for name in FAMILIES:
        try:
            found["families"][name] = on_cuda(name)
        except Exception as error:
            found["families"][name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        print(name, found["families"][name], flush=True)
    passed = [n for n, e in found["families"].items() if isinstance(e, float) and e <= BOUND]
    for what, of in (("train", training_speed), ("train_compiled", lambda n: training_speed(n, True)),
                     ("decode_tokens_per_second", decoding_speed)):  # fmt: skip
        found[what] = {n: of(n) for n in ("llama", "gpt2")}
        print(what, found[what], flush=True)
    found["reproduce_identical"] = reproduced()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(passed)} of {len(FAMILIES)} families within {BOUND:g}; reproduce: {found['reproduce_identical']}")


if __name__ == "__main__":
    main()
