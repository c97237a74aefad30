# SPDX-License-Identifier: Apache-2.0
"""Mutated directories: a FoundlingError, or a model of the shapes that its configuration declares, at bounded cost.

The mutations are seeded and run in a process of their own, whose address space and processor time are limited: what
would allocate by a declared size, or loop over one, dies there.
"""

import random
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from foundling.models import FAMILIES
from tests.mutations import mutate
from tests.processes import SERVER

SPACE, SECONDS = 1 << 30, 1.0
"""above what the process takes when it starts; of one mutation"""


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
