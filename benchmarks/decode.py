# SPDX-License-Identifier: Apache-2.0
"""Decoding against transformers, CTranslate2 and llama.cpp, each at its best setting, each in a process of its own, in
turn.

python -m benchmarks.decode [llama] [gpt2] [--rounds 5] [--batches 1,8] [--peers transformers,ctranslate2,llamacpp]

A prompt of 128 random ids and 128 new tokens, greedy. Weights are random: speed does not depend on them. CTranslate2
and llama.cpp are measured if they are installed (`pip install ctranslate2 llama-cpp-python`). The bandwidth is that of
summing an array larger than the caches on all threads: the larger of two measurements, just before and just after.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

import foundling
from benchmarks.corpora import WORK
from benchmarks.sides import Side, answer_calls
from foundling.blocks.init import initialise
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.engine.native_runner import NativeRunner
from foundling.decode.sampling import Sampling
from foundling.models import build
from foundling.models.decoder.gpt2 import PRESETS
from foundling.runtime.device import available_threads
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.weights.convert.gguf import save_gguf

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "llama",
        dict(vocab_size=32000, d_model=1024, n_layers=24, n_heads=16, n_kv_heads=16, head_dim=64, d_ff=2816,
             max_seq_len=2048),
    ),
    "gpt2": ("gpt2", PRESETS["gpt2"]),
}  # fmt: skip
PROMPT, ANSWER = 128, 128
OURS = {f"foundling {weights}": weights for weights in ("float32", "bfloat16", "int8", "int4")}
THEIRS = {
    "transformers": ["transformers float32", "transformers bfloat16"],
    "ctranslate2": ["ctranslate2 int8"],
    "llamacpp": ["llama.cpp float16", "llama.cpp int8", "llama.cpp int4"],
}


def directory(size: str) -> Path:
    """A model directory, which transformers loads as well, with a GGUF file for each type of weights."""
    path = WORK / f"decode-{size}"
    if not path.exists():
        WORK.mkdir(exist_ok=True)
        name, fields = MODELS[size]
        model = build(name, **fields)
        initialise(model, generator("decode"))
        tokenizer = Tokenizer.train(["any text gives a vocabulary\n"], 320)
        foundling.save(model, path, tokenizer=tokenizer)
        if size == "llama":
            for weights in ("float16", "int8", "int4"):
                save_gguf(model, path / f"{weights}.gguf", weights=weights, tokenizer=tokenizer)
    return path


def prompts(size: str, batch: int) -> list[list[int]]:
    vocab = MODELS[size][1]["vocab_size"]
    return torch.randint(3, vocab, (batch, PROMPT), generator=generator("prompt")).tolist()


class Ours:
    def __init__(self, size: str, weights: str) -> None:
        model = foundling.load(directory(size))
        self.engine = Engine(model, EngineOptions(weights=weights, native=True, share_prefixes=False))

    def __call__(self, rows: list[list[int]], new: int) -> None:
        foundling.generate(self.engine, rows, max_tokens=new, sampling=Sampling(0))

    def weight_bytes(self) -> int:
        assert isinstance(self.engine.runner, NativeRunner)
        return self.engine.runner.program.weight_bytes


class Transformers:
    def __init__(self, size: str, dtype: str) -> None:
        import transformers

        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            directory(size), dtype=getattr(torch, dtype)
        ).eval()

    def __call__(self, rows: list[list[int]], new: int) -> None:
        x = torch.tensor(rows)
        with torch.inference_mode():
            self.model.generate(
                x, attention_mask=torch.ones_like(x), max_new_tokens=new, min_new_tokens=new, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip


class CTranslate2:
    def __init__(self, size: str, kind: str) -> None:
        import ctranslate2

        path = WORK / f"decode-{size}-ctranslate2-{kind}"
        if not path.exists():
            import transformers
            from tokenizers import Tokenizer as Backend
            from tokenizers.models import WordLevel

            vocab = {f"t{i}": i for i in range(MODELS[size][1]["vocab_size"])}
            fast = transformers.PreTrainedTokenizerFast(
                tokenizer_object=Backend(WordLevel(vocab, unk_token="t0")),
                unk_token="t0",
                bos_token="t1",
                eos_token="t2",
            )
            source = WORK / f"decode-{size}-words"
            transformers.AutoModelForCausalLM.from_pretrained(directory(size)).save_pretrained(source)
            fast.save_pretrained(source)
            ctranslate2.converters.TransformersConverter(str(source)).convert(str(path), quantization=kind)
        self.model = ctranslate2.Generator(
            str(path), device="cpu", compute_type=kind, intra_threads=available_threads(), inter_threads=1
        )

    def __call__(self, rows: list[list[int]], new: int) -> None:
        self.model.generate_batch(
            [[f"t{i}" for i in row] for row in rows], max_length=new, min_length=new, include_prompt_in_result=False,
            sampling_topk=1, end_token=[],
        )  # fmt: skip


class LlamaCpp:
    def __init__(self, size: str, kind: str) -> None:
        import llama_cpp

        self.model = llama_cpp.Llama(
            str(directory(size) / f"{kind}.gguf"), n_ctx=PROMPT + ANSWER + 8, n_batch=512,
            n_threads=available_threads(), n_threads_batch=available_threads(), verbose=False,
        )  # fmt: skip

    def __call__(self, rows: list[list[int]], new: int) -> None:
        (row,) = rows
        self.model.reset()  # else it reuses the cache of an equal prompt
        tokens = self.model.generate(row, temp=0.0, reset=True)
        for _ in range(new):
            next(tokens)


SIDES = {"foundling": Ours, "transformers": Transformers, "ctranslate2": CTranslate2, "llama.cpp": LlamaCpp}


def bandwidth() -> float:
    """Bytes a second in reading 1 GiB."""
    x = torch.ones(1 << 28)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        x.sum()
        best = min(best, time.perf_counter() - start)
    return x.numel() * 4 / best


def serve(name: str, size: str) -> None:
    torch.set_num_threads(available_threads())
    if name == "bandwidth":
        return answer_calls(lambda **_: bandwidth())
    kind, _, setting = name.partition(" ")
    side = SIDES[kind](size, setting)

    def work(batch: int, new: int) -> float:
        if batch == 0:
            return side.weight_bytes()
        rows = prompts(size, batch)
        start = time.perf_counter()
        side(rows, new)
        return time.perf_counter() - start

    answer_calls(work)


def measure(size: str, rounds: int, batches: list[int], peers: list[str]) -> dict[str, Any]:
    directory(size)
    names = [*OURS, *(name for peer in peers for name in THEIRS[peer])]
    if size != "llama":
        names = [name for name in names if not name.startswith("llama.cpp")]
    results: dict[str, Any] = {"size": size}
    for batch in batches:
        taking = [name for name in names if batch == 1 or not name.startswith("llama.cpp")]
        sides = {name: Side("benchmarks.decode", name, size) for name in taking}
        read = Side("benchmarks.decode", "bandwidth", size)
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in taking}
        for side in sides.values():
            side(batch=batch, new=2)
        speeds: dict[str, list[float]] = {name: [] for name in OURS}
        for _ in range(rounds):
            for name, side in sides.items():
                before = read() if name in OURS else 0.0
                seconds[name].append((side(batch=batch, new=1), side(batch=batch, new=ANSWER)))
                if name in OURS:
                    speeds[name].append(max(before, read()))
        decode = {n: statistics.median(batch * (ANSWER - 1) / (b - a) for a, b in s) for n, s in seconds.items()}
        prefill = {n: statistics.median(batch * PROMPT / a for a, _ in s) for n, s in seconds.items()}
        result: dict[str, Any] = {
            "decode_tokens_per_second": {n: round(v, 1) for n, v in decode.items()},
            "prompt_tokens_per_second": {n: round(v, 1) for n, v in prefill.items()},
            "bandwidth_gb_per_second": round(statistics.median(s for of in speeds.values() for s in of) / 1e9, 1),
        }
        if batch == 1:
            result["share_of_bandwidth"] = {
                n: round(statistics.median(
                    sides[n](batch=0, new=0) * (ANSWER - 1) / (b - a) / speed
                    for (a, b), speed in zip(seconds[n], speeds[n], strict=True)), 3)
                for n in OURS
            }  # fmt: skip
        for side in [*sides.values(), read]:
            side.end()
        result["ratios"] = {
            f"{own} / {peer}": round(statistics.median(
                (d - c) / (b - a) for (a, b), (c, d) in zip(seconds[own], seconds[peer], strict=True)), 2)
            for own in OURS for peer in taking if peer not in OURS
        }  # fmt: skip
        result["prompt_ratios"] = {
            f"{own} / {peer}": round(statistics.median(
                b / a for (a, _), (b, _) in zip(seconds[own], seconds[peer], strict=True)), 2)
            for own in OURS for peer in taking if peer not in OURS
        }  # fmt: skip
        results[f"batch {batch}"] = result
        print(json.dumps({size: {f"batch {batch}": result}}, indent=1), file=sys.stderr, flush=True)
    return results


def main() -> None:
    packages = {"transformers": True, "ctranslate2": "ctranslate2", "llamacpp": "llama_cpp"}
    installed = [peer for peer, module in packages.items() if module is True or importlib.util.find_spec(str(module))]
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="*", help=", ".join(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--peers", default=",".join(installed))
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(*args.serve)
    for size in args.sizes:
        if size not in MODELS:
            parser.error(f"{size}: not a size; expected {', '.join(MODELS)}")
    for size in args.sizes or list(MODELS):
        batches = [int(b) for b in args.batches.split(",")]
        print(json.dumps(measure(size, args.rounds, batches, args.peers.split(",") if args.peers else []), indent=1))


if __name__ == "__main__":
    main()
