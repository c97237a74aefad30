# SPDX-License-Identifier: Apache-2.0
"""Many requests at once: 32 of mixed length against padded batches of transformers, a shared prefix, prompt lookup, and
the cost of the deterministic mode.

python -m benchmarks.serving [mixed] [prefix] [lookup] [deterministic] [--weights bfloat16] [--rounds 3]

The model is the Llama of benchmarks/decode.py; each side runs in a process of its own, in turn. In `lookup` a logits
processor forces the completion, since a model of random weights copies nothing: real source code, once a repetition
with some lines changed (copy-heavy), once new.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

import foundling
from benchmarks.decode import directory
from benchmarks.sides import Side, answer_calls
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.request import Request
from foundling.decode.sampling import Sampling
from foundling.runtime.device import available_threads
from foundling.text import Tokenizer

VOCAB, REQUESTS = 32000, 32
PARTS = ("mixed", "prefix", "lookup", "deterministic")


def mixed() -> list[Request]:
    draw = random.Random(0)
    return [
        Request(
            [draw.randrange(3, VOCAB) for _ in range(draw.randrange(16, 257))], draw.randrange(16, 129), Sampling(0)
        )
        for _ in range(REQUESTS)
    ]


def ours_mixed(weights: str) -> dict[str, float]:
    engine = Engine(foundling.load(directory("llama")), EngineOptions(weights=weights, native=True))

    def work(**_: Any) -> dict[str, float]:
        utilisation, requests, n_tokens = [], mixed(), 0
        start = time.perf_counter()
        for request in requests:
            engine.add(request)
        while engine.busy:
            n_tokens += sum(len(output.new_tokens) for output in engine.step())
            if len(engine.active) > 1:
                utilisation.append(engine.scheduler.utilisation)
        return {"seconds": time.perf_counter() - start, "tokens": n_tokens, "utilisation": statistics.mean(utilisation)}

    return answer_calls(work)  # pyright: ignore[reportReturnType]


def theirs_mixed(dtype: str, batch: int) -> None:
    """Sorted by length, to minimise padding; each batch generates as many tokens as its longest request."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory("llama"), dtype=getattr(torch, dtype)).eval()

    def work(**_: Any) -> dict[str, float]:
        requests = sorted(mixed(), key=lambda r: (r.max_tokens, len(r.prompt)))
        start = time.perf_counter()
        for at in range(0, REQUESTS, batch):
            chosen = requests[at : at + batch]
            longest, new = max(len(r.prompt) for r in chosen), max(r.max_tokens for r in chosen)
            ids = torch.zeros(len(chosen), longest, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, r in enumerate(chosen):
                ids[row, longest - len(r.prompt) :] = torch.tensor(r.prompt)
                mask[row, longest - len(r.prompt) :] = 1
            with torch.inference_mode():
                model.generate(
                    ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
                )
        return {"seconds": time.perf_counter() - start, "tokens": sum(r.max_tokens for r in requests)}

    answer_calls(work)


def prefix(weights: str) -> None:
    model = foundling.load(directory("llama"))
    draw = random.Random(1)
    shared_prefix = [draw.randrange(3, VOCAB) for _ in range(1000)]
    engines = {
        share: Engine(model, EngineOptions(weights=weights, native=True, share_prefixes=share)) for share in (0, 1)
    }

    def first_token(engine: Engine) -> float:
        request = Request([*shared_prefix, *(draw.randrange(3, VOCAB) for _ in range(16))], 4, Sampling(0))
        start, first = time.perf_counter(), 0.0
        number = engine.add(request)
        while engine.busy:
            for output in engine.step():
                if output.request_id == number and output.new_tokens and not first:
                    first = time.perf_counter() - start
        return first

    def work(**_: Any) -> dict[str, float]:
        return {"apart": first_token(engines[0]), "shared": first_token(engines[1])}

    work()
    answer_calls(work)


class Script:
    """A logits processor that forces a given completion."""

    def __init__(self, tokens: Sequence[int], at: int = 0) -> None:
        self.tokens, self.at = tokens, at

    def start(self, prompt: Sequence[int]) -> "Script":
        return Script(self.tokens)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[self.tokens[self.at]] = 1e9
        return logits

    def accept(self, token: int) -> None:
        self.at += 1

    def copy(self) -> "Script":
        return Script(self.tokens, self.at)


def texts() -> dict[str, tuple[list[int], list[int]]]:
    """(prompt, completion): a module and the same with every twelfth line changed; two unrelated modules."""
    import colorsys
    import textwrap
    from pathlib import Path

    one, other = (Path(m.__file__).read_text(encoding="utf-8") for m in (textwrap, colorsys))
    tokenizer = Tokenizer.train([one, other], 1024)
    lines = one.splitlines(keepends=True)[:80]
    changed = [
        line.replace("self", "this").replace("text", "words") if n % 12 == 5 else line for n, line in enumerate(lines)
    ]
    prompt = tokenizer.encode("".join(lines))[:900]
    return {
        "copy-heavy": (prompt, tokenizer.encode("".join(changed))[:256]),
        "unrelated": (tokenizer.encode(other)[:900], tokenizer.encode("".join(lines))[:256]),
    }


def lookup(weights: str) -> None:
    model, cases = foundling.load(directory("llama")), texts()
    engines = {ahead: Engine(model, EngineOptions(weights=weights, native=True, lookup=ahead)) for ahead in (0, 8)}

    def seconds(engine: Engine, prompt: list[int], answer: list[int]) -> float:
        request = Request(prompt, len(answer), Sampling(0), processors=[Script(answer)])
        number, first = engine.add(request), 0.0
        while engine.busy:
            for output in engine.step():
                assert output.request_id == number
                first = first or time.perf_counter()
                if output.completion:
                    assert output.completion.tokens == answer
        return time.perf_counter() - first

    def work(**_: Any) -> dict[str, float]:
        return {
            f"{name}, {'lookup' if ahead else 'plain'}": seconds(engines[ahead], *cases[name])
            for name in cases
            for ahead in engines
        }

    work()
    answer_calls(work)


def deterministic(weights: str) -> None:
    """Eight requests. The rounding of torch depends on shapes, so its deterministic mode serves one request at a time;
    native code is always deterministic."""
    model, requests = foundling.load(directory("llama")), [Request(r.prompt[:32], 32, Sampling(0)) for r in mixed()[:8]]
    engines = {
        "torch": Engine(model, EngineOptions(native=False, share_prefixes=False)),
        "torch, deterministic": Engine(model, EngineOptions(native=False, deterministic=True)),
        "native": Engine(model, EngineOptions(weights=weights, native=True, share_prefixes=False)),
        "native, deterministic": Engine(
            model, EngineOptions(weights=weights, native=True, share_prefixes=False, deterministic=True)
        ),
    }

    def work(**_: Any) -> dict[str, float]:
        seconds = {}
        for name, engine in engines.items():
            start = time.perf_counter()
            engine.generate(requests)
            seconds[name] = time.perf_counter() - start
        return seconds

    answer_calls(work)


def serve(name: str, *args: str) -> None:
    torch.set_num_threads(available_threads())
    if name == "ours":
        ours_mixed(args[0])
    elif name == "theirs":
        theirs_mixed(args[0], int(args[1]))
    else:
        {"prefix": prefix, "lookup": lookup, "deterministic": deterministic}[name](args[0])


def measure_mixed(weights: str, rounds: int) -> dict[str, Any]:
    sides = {"foundling": Side("benchmarks.serving", "ours", weights)}
    sides |= {f"transformers, batches of {n}": Side("benchmarks.serving", "theirs", "float32", str(n)) for n in (8, 32)}
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            measured[name].append(side())
    for side in sides.values():
        side.end()
    ours = measured.pop("foundling")
    return {
        "tokens_per_second": round(statistics.median(o["tokens"] / o["seconds"] for o in ours), 1),
        "utilisation": round(statistics.mean(o["utilisation"] for o in ours), 3),
        "ratios": {
            name: round(statistics.median(t["seconds"] / o["seconds"] for t, o in zip(theirs, ours, strict=True)), 2)
            for name, theirs in measured.items()
        },
    }


def measure(name: str, weights: str, rounds: int) -> dict[str, Any]:
    directory("llama")
    if name == "mixed":
        return measure_mixed(weights, rounds)
    side = Side("benchmarks.serving", name, weights)
    measured = [side() for _ in range(rounds)]
    side.end()
    middle = {key: statistics.median(m[key] for m in measured) for key in measured[0]}
    pairs = {
        "prefix": [("apart", "shared")],
        "lookup": [(f"{k}, plain", f"{k}, lookup") for k in ("copy-heavy", "unrelated")],
        "deterministic": [(k, f"{k}, deterministic") for k in ("torch", "native")],
    }
    return {
        "seconds": {key: round(value, 3) for key, value in middle.items()},
        "ratios": {b: round(statistics.median(m[a] / m[b] for m in measured), 2) for a, b in pairs[name]},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--weights", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(*args.serve)
    for name in args.parts:
        if name not in PARTS:
            parser.error(f"{name}: not a part; expected {', '.join(PARTS)}")
    for name in args.parts or PARTS:
        print(json.dumps({name: measure(name, args.weights, args.rounds)}, indent=1), flush=True)


if __name__ == "__main__":
    main()
