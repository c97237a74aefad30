# SPDX-License-Identifier: Apache-2.0
"""Mutated directories: a FoundlingError, or a model of the shapes that its configuration declares, at bounded cost.

The mutations are seeded and run in a process of their own, whose address space and processor time are limited: what
would allocate by a declared size, or loop over one, dies there.
"""

import copy
import json
import math
import random
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from foundling.models import FAMILIES
from tests.processes import SERVER

SPACE, SECONDS = 1 << 30, 1.0
"""above what the process takes when it starts; of one mutation"""
VALUES = [0, -1, 1, 2, 3, 7, 64, 1 << 24, (1 << 24) + 1, 1 << 31, 1 << 63, 1 << 200, 1e308, math.nan,
          math.inf, -math.inf, 0.5, "", "x", "llama", "relu", None, True, False, [], {}, [1, 2], ["x"] * 3, [[[]]],
          {"a": {"b": 1}}]  # fmt: skip


def places(value: Any, path: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, v in inner for p in [(*path, key), *places(v, (*path, key))]]


def mutate_json(value: Any, chance: random.Random) -> Any:
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
                chance.choice(VALUES)
            )
        elif action == 2 and isinstance(old, int) and not isinstance(old, bool):
            at[path[-1]] = chance.choice([old + 1, old - 1, old * 2, -old, old << 20, old / 2])
        elif action == 3 and isinstance(at, dict):
            at[path[-1]] = copy.deepcopy(at[chance.choice(list(at))])
        else:
            at[path[-1]] = copy.deepcopy(chance.choice(VALUES))
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


def mutate(directory: Path, chance: random.Random) -> None:
    """One file of the directory, as text, as bytes, or as what its header says."""
    file = directory / chance.choice(sorted(p.name for p in directory.iterdir() if p.name != "foundling.json"))
    data = file.read_bytes()
    if file.suffix == ".json":
        if chance.random() < 0.7:
            file.write_text(json.dumps(mutate_json(json.loads(data), chance)))
        else:
            file.write_bytes(mutate_bytes(data, chance, len(data)))
        return
    size = int.from_bytes(data[:8], "little")
    kind = chance.random()
    if kind < 0.5:
        head = json.dumps(mutate_json(json.loads(data[8 : 8 + size]), chance)).encode()
        file.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + size :])
    elif kind < 0.9:
        file.write_bytes(mutate_bytes(data, chance, 8 + size))
    else:
        length = chance.choice([0, 1, size - 1, size + 1, 1 << 31, (1 << 64) - 1])
        file.write_bytes(length.to_bytes(8, "little") + data[8:])


def batch(bases: list[Path], scratch: Path, seeds: range, pipe: Any) -> None:
    """Tries each seed; sends how many were refused and how many loaded, or the first that did neither."""
    import torch

    from foundling.errors import FoundlingError
    from foundling.models import family_of
    from foundling.weights.directory import load, skeleton

    torch.set_num_threads(1)
    for base in bases:
        load(base)  # imports and first calls are not a mutation's cost
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + SPACE, held + SPACE))
    spent = int(time.process_time())
    limit = spent + 30 + int(len(seeds) * SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    refused = loaded = 0
    worst = 0.0
    for seed in seeds:
        chance = random.Random(seed)
        directory = scratch / "mutated"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(chance.choice(bases), directory)
        mutate(directory, chance)
        begin = time.process_time()
        try:
            model = load(directory)
            declared = skeleton(family_of(model), model.config, "declared")
            found, wanted = ({name: p.shape for name, p in m.named_parameters()} for m in (model, declared))
            if getattr(model, "head", ...) is None:  # the directory of a base model
                wanted.pop("head.weight", None)
            assert found == wanted, "other shapes"
            loaded += 1
        except FoundlingError as error:
            assert "\n" not in str(error), repr(str(error))
            refused += 1
        except BaseException as error:
            pipe.send((f"seed {seed}: {type(error).__name__}: {error}", refused, loaded, worst))
            return
        worst = max(worst, time.process_time() - begin)
    pipe.send(("", refused, loaded, worst))


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> list[Path]:
    from foundling.weights.directory import save
    from tests.contract.cases import case

    root = tmp_path_factory.mktemp("bases")
    found = [save(case(name).tiny(), root / name) for name in FAMILIES]
    return [*found, save(case("llama").tiny(), root / "sharded", max_shard_bytes=60_000)]


def run(bases: list[Path], scratch: Path, seeds: range) -> float:
    ours, theirs = SERVER.Pipe()
    process = SERVER.Process(target=batch, args=(bases, scratch, seeds, theirs))
    process.start()
    theirs.close()
    try:
        problem, refused, loaded, worst = ours.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"the process died ({process.exitcode}) within {seeds}") from None
    process.join()
    assert not problem, problem
    assert refused + loaded == len(seeds) and refused > len(seeds) // 2 and loaded > len(seeds) // 50
    return worst


def test_300_mutations(bases, tmp_path) -> None:
    run(bases, tmp_path, range(300))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_10000_mutations(bases, tmp_path, part: int) -> None:
    worst = run(bases, tmp_path, range(1000 + part * 2500, 1000 + (part + 1) * 2500))
    print(f"the costliest mutation took {worst:.3f} s of processor time")
    assert worst < SECONDS
