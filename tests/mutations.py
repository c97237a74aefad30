# SPDX-License-Identifier: Apache-2.0
"""Seeded mutations of what a user may be given: JSON, bytes, safetensors, GGUF, tokenizers, manifests, unfinished runs.

A mutation is a function of a file or directory and a random.Random; it changes something in place. The same seed makes
the same change.
"""

import copy
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

VALUES = [0, -1, 1, 2, 3, 7, 64, 1 << 24, (1 << 24) + 1, 1 << 31, 1 << 63, 1 << 200, 1e308, math.nan,
          math.inf, -math.inf, 0.5, "", "x", "llama", "relu", None, True, False, [], {}, [1, 2], ["x"] * 3, [[[]]],
          {"a": {"b": 1}}]  # fmt: skip
UNTRUSTED = ["\x1b[2J\x1b[31m", "a\nfoundling: all is well", "\ud800", "\u202e txt", "\x00", "4096", "1e9",
             "x" * 100_000, 4096.0, -0.0, 10**400, "../../etc/passwd", "/etc/passwd", "NaN"]  # fmt: skip
"""values that test how a message is written, and how a type is checked"""
DEEP = "\ue000deep\ue000"
"""stands for brackets inside each other, which json.dumps would refuse to write"""


def places(value: Any, path: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, v in inner for p in [(*path, key), *places(v, (*path, key))]]


def mutate_json(value: Any, chance: random.Random, values: list[Any] = VALUES) -> Any:
    value = copy.deepcopy(value)
    for _ in range(chance.randint(1, 3)):
        known = places(value)
        if not known:
            return value
        path = chance.choice(known)
        at = value
        for key in path[:-1]:
            at = at[key]
        old, action = at[path[-1]], chance.randrange(6)
        if action == 0:
            del at[path[-1]]
        elif action == 1 and isinstance(at, dict):
            at[chance.choice(["x", str(path[-1]) + "_", "vocab_size", "model_type"])] = copy.deepcopy(
                chance.choice(values)
            )
        elif action == 2 and isinstance(old, int) and not isinstance(old, bool):
            at[path[-1]] = chance.choice([old + 1, old - 1, old * 2, -old, old << 20, min(old, 1 << 99) / 2])
        elif action == 3 and isinstance(at, dict):
            at[path[-1]] = copy.deepcopy(at[chance.choice(list(at))])
        else:
            at[path[-1]] = copy.deepcopy(chance.choice(values))
    return value


def mutate_bytes(data: bytes, chance: random.Random, within: int) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        if changed:
            changed[chance.randrange(min(within, len(changed)))] = chance.randrange(256)
    if chance.random() < 0.2:
        del changed[chance.randrange(len(changed) + 1) :]
    if chance.random() < 0.1:
        at = chance.randrange(min(within, len(changed)) + 1)
        changed[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 9)))
    return bytes(changed)


def mutate_safetensors(data: bytes, chance: random.Random, values: list[Any] = VALUES) -> bytes:
    """What the header says, its bytes, or its length."""
    size = int.from_bytes(data[:8], "little")
    kind = chance.random()
    if kind < 0.5:
        head = json.dumps(mutate_json(json.loads(data[8 : 8 + size]), chance, values)).encode()
        return len(head).to_bytes(8, "little") + head + data[8 + size :]
    if kind < 0.9:
        return mutate_bytes(data, chance, 8 + size)
    length = chance.choice([0, 1, size - 1, size + 1, 1 << 31, (1 << 64) - 1])
    return length.to_bytes(8, "little") + data[8:]


def mutate(directory: Path, chance: random.Random) -> None:
    """One file of a directory of weights, as text, as bytes, or as what its header says."""
    file = directory / chance.choice(sorted(p.name for p in directory.iterdir() if p.name != "foundling.json"))
    data = file.read_bytes()
    if file.suffix != ".json":
        file.write_bytes(mutate_safetensors(data, chance))
    elif chance.random() < 0.7:
        file.write_text(json.dumps(mutate_json(json.loads(data), chance)))
    else:
        file.write_bytes(mutate_bytes(data, chance, len(data)))


# --- what a message, a limit or a check of types meets --------------------------------------------------------------


def mutate_json_file(file: Path, chance: random.Random) -> None:
    """Values, types, names, nesting, keys that are there twice, or bytes."""
    text, kind = file.read_text(), chance.random()
    if kind < 0.2:
        file.write_bytes(mutate_bytes(text.encode(), chance, len(text)))
        return
    values = [*VALUES, *UNTRUSTED, DEEP]
    value = mutate_json(json.loads(text), chance, values)
    if kind < 0.4 and isinstance(value, dict) and value:  # a name that is not one
        key = chance.choice(list(value))
        value[chance.choice([v for v in UNTRUSTED if isinstance(v, str)])] = value.pop(key)
    depth = chance.choice([65, 900, 100_000])
    text = json.dumps(value).replace(json.dumps(DEEP), "[" * depth + "]" * depth)
    if kind > 0.9:
        text = text.replace("{", '{"model_type": "gpt2", "model_type": "llama",', 1)
    file.write_text(text)


def mutate_file(file: Path, chance: random.Random) -> None:
    """Any file, by what it is."""
    data = file.read_bytes()
    if file.suffix == ".json":
        mutate_json_file(file, chance)
    elif file.suffix == ".safetensors":
        file.write_bytes(mutate_safetensors(data, chance, [*VALUES, *UNTRUSTED]))
    elif file.suffix == ".gguf":
        file.write_bytes(mutate_gguf(data, chance))
    else:
        file.write_bytes(mutate_bytes(data, chance, len(data)))


def mutate_gguf(data: bytes, chance: random.Random) -> bytes:
    """Bytes of the header, the counts at its beginning, or a key or name in it."""
    kind = chance.random()
    head = min(len(data), data.find(b"token_embd") + 400)
    if kind < 0.3:
        at = chance.choice([4, 8, 16])  # version, tensors, keys
        size = 4 if at == 4 else 8
        count = chance.choice([0, 1, 1 << 20, (1 << 31) - 1, (1 << (8 * size)) - 1])
        return data[:at] + count.to_bytes(size, "little") + data[at + size :]
    if kind < 0.6:
        return mutate_bytes(data, chance, head)
    if kind < 0.7:
        return data[: chance.randrange(len(data))]
    names = [name for name in (b"general.architecture", b"llama.block_count", b"llama.rope.freq_base", b"llama",
             b"tokenizer.ggml.model", b"tokenizer.ggml.tokens", b"tokenizer.ggml.merges", b"token_embd.weight",
             b"blk.0.attn_q.weight", b"output_norm.weight", b"tokenizer.ggml.eos_token_id", b"gpt2",
             b"llama.embedding_length", b"llama.attention.head_count") if name in data]  # fmt: skip
    name = chance.choice(names)
    at = data.index(name) + (len(name) if chance.random() < 0.5 else -8 if chance.random() < 0.5 else 0)
    new = chance.choice(
        [b"\x1b[31m", b"\xff\xfe\xed\xa0", bytes(12), b"\n\nfoundling", (1 << 62).to_bytes(8, "little")]
    )
    return data[:at] + new + data[at + len(new) :]


def swap(directory: Path, other: Path, chance: random.Random) -> None:
    """A file of another model under the name of one of this."""
    names = [p.relative_to(directory) for p in files(directory)]
    from_other = [p for p in files(other)]
    name = chance.choice(names)
    alike = [p for p in from_other if p.suffix == name.suffix] or from_other
    shutil.copyfile(chance.choice(alike), directory / name)


def rename(directory: Path, _: Path, chance: random.Random) -> None:
    """A file under a name that a terminal would obey, or that no text can hold; or gone."""
    file = chance.choice(files(directory))
    raw = chance.choice(
        [b"\x1b[2Jx.json", b"a\nb.txt", b"\xff\xfe.safetensors", b"tokenizer.model", b"spiece.model", b""]
    )
    if raw:
        os.rename(file, os.fsencode(file.parent) + b"/" + raw)
    else:
        file.unlink()


def mutate_one(directory: Path, _: Path, chance: random.Random) -> None:
    mutate_file(chance.choice(files(directory)), chance)


def mutate_json_of(name: str) -> Callable[[Path, Path, random.Random], None]:
    def change(directory: Path, other: Path, chance: random.Random) -> None:
        file = directory / name
        mutate_json_file(file, chance) if file.exists() else mutate_one(directory, other, chance)

    return change


def mutate_tokenizer(directory: Path, other: Path, chance: random.Random) -> None:
    """A part of tokenizer.json that is damaged, or makes much of little."""
    file = directory / "tokenizer.json"
    if not file.exists():
        return mutate_one(directory, other, chance)
    table = json.loads(file.read_text())
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    wide = {"type": "Replace", "pattern": {"Regex": "."}, "content": "y" * 10_000}
    special = {"id": "</s>", "ids": [1] * 1000, "tokens": ["</s>"] * 1000}
    around = [{"SpecialToken": {"id": "</s>", "type_id": 0}}] * 1000
    template = {"type": "TemplateProcessing", "special_tokens": {"</s>": special}, "pair": [],
                "single": [*around, {"Sequence": {"id": "A", "type_id": 0}}]}  # fmt: skip
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "added_tokens")
    part = chance.choice(parts)
    extreme = {
        "normalizer": [{"type": "Sequence", "normalizers": [double] * 34}, wide,
                       {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "a"}, *[double] * 40]}],
        "post_processor": [template, {"type": "Sequence", "processors": [template] * 20}],
        "decoder": [wide, {"type": "Sequence", "decoders": [double] * 34}],
        "pre_tokenizer": [{"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False},
                          {"type": "Split", "pattern": {"Regex": "(?:"}, "behavior": "Isolated", "invert": False}],
        "model": [{**table["model"], "vocab": {}}, {**table["model"], "merges": [["a", "b"]] * 5}],
        "added_tokens": [[{"id": 1 << 31, "content": "z", "single_word": False, "lstrip": False, "rstrip": False,
                           "normalized": False, "special": True}], [{"id": 5}], []],
    }[part]  # fmt: skip
    if chance.random() < 0.5 or not table.get(part):
        table[part] = chance.choice(extreme)
    else:
        table[part] = mutate_json(table[part], chance, [*VALUES, *UNTRUSTED])
    file.write_text(json.dumps(table))


TEMPLATES = [
    "{{ 'x'.center(10000000000) }}", "{{ 'x' | center(10000000000) }}", "{{ 'x' | indent(10000000000, true) }}",
    "{{ '%010000000000d' | format(3) }}", "{{ ('x' * 1000) | replace('x', 'y' * 1000) | replace('y', 'z' * 10000) }}",
    "{% set ns = namespace(x='a') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% for a in 'x' * 9999 %}{% for b in 'x' * 9999 %}{% for c in 'x' * 9999 %}{% endfor %}{% endfor %}{% endfor %}",
    "{{ lipsum(100000000) }}", "{{ [1] | batch(10000000000, 1) | list }}", "{{ [1] | slice(1000000000) | list }}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", "{{ messages.__class__.__mro__ }}", "{% if %}",
    "{{ raise_exception('\x1b[31mred\nfoundling: well') }}", "{{ messages[99].content }}", "{{ cycler.__init__ }}",
    "{{ 'a' | tojson(indent=1000000000) }}", "{{ messages | tojson(indent=1000000000) }}", "{{ 7 ** 10000000 }}",
    "{{ ''.join(['ab' * 1000] * 100000) }}", "{{ '{:>10000000000}'.format(1) }}", "{{ 'a'.zfill(9999999999) }}",
    "{{ (1).__class__.__base__.__subclasses__() }}", "{{ dict(a=1).update }}", "{{ '\ud800' }}",
]  # fmt: skip


def mutate_template(directory: Path, other: Path, chance: random.Random) -> None:
    (directory / "chat_template.jinja").write_bytes(chance.choice(TEMPLATES).encode("utf-8", "surrogatepass"))


def files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.name != ".lock")
