# SPDX-License-Identifier: Apache-2.0
"""Two processes equal one that uses the same micro-batches: copied (DDP) and sharded (FSDP2), over gloo."""

import pytest

from tests.contract.cases import case
from tests.contract.matrix import covers
from tests.contract.ranks import STEPS, Workers, losses


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    pool = Workers(tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def alone():
    """What one process finds, computed once a family."""
    found: dict = {}
    return lambda name: found.setdefault(name, None) or found.update({name: losses(name, False, 0, 1)}) or found[name]


def compare(one: dict, two: list[dict]) -> None:
    assert len(one["losses"]) == STEPS and two[0]["losses"] == two[1]["losses"] and two[0]["hash"] == two[1]["hash"]
    for a, b in zip(one["losses"], two[0]["losses"], strict=True):
        assert a.keys() == b.keys()
        assert max(abs(a[n] - b[n]) for n in a) <= 1e-5, (a, b)


@covers("DDP")
def test_two_processes_equal_one(name: str, workers, alone) -> None:
    compare(alone(name), workers.run(name, False))


@covers("FSDP2")
def test_two_processes_that_share_the_parameters_equal_one(name: str, workers, alone) -> None:
    one, two = alone(name), workers.run(name, True)
    compare(one, two)
    total = sum(p.numel() for p in case(name).fresh().parameters())
    assert sum(rank["held"] for rank in two) == total, "each parameter is held once"
    assert max(rank["held"] for rank in two) < 0.6 * total
