# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: one thread a worker, one seed, deterministic kernels, no network, no screen."""

import os

# before torch, numpy or transformers are imported by anything
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import random
import sys

import hypothesis
import numpy as np
import pytest
import torch

from tests import shards

torch.set_num_threads(1)
torch.set_num_interop_threads(1)
torch.use_deterministic_algorithms(True)

# the same examples every time, and no test that fails because the machine was busy
hypothesis.settings.register_profile("foundling", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("foundling")


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


# --- the matrix of families and methods (tests/contract/matrix.py) ---------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", action="store_true", help="write down which cells of the matrix passed")
    parser.addoption("--check-matrix", action="store_true", help="fail if a cell that was green did not pass")
    parser.addoption("--shard", type=int, metavar="N", help="one shard of these tests: N modulo their number")
    parser.addoption("--record-durations", action="store_true", help="write tests/durations.json")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CELLS], config.stash[COLLECTED] = {}, {}


CELLS = pytest.StashKey[dict[tuple[str, str], bool]]()
COLLECTED = pytest.StashKey[dict[str, tuple[str, str] | None]]()
"""test -> its cell, of all tests, before -m and -k choose"""


def pytest_itemcollected(item: pytest.Item) -> None:
    cell = None
    if mark := item.get_closest_marker("covers"):
        cell = (item.callspec.params["name"], mark.args[0])  # pyright: ignore[reportAttributeAccessIssue]
        item.user_properties.append(("cell", list(cell)))
    item.config.stash[COLLECTED][item.nodeid] = cell


@pytest.fixture
def collected(request: pytest.FixtureRequest) -> dict[str, tuple[str, str] | None]:
    """All tests, slow ones included -> their cells of the matrix. Skips where a part of the tests was asked for."""
    found, root = request.config.stash[COLLECTED], request.config.rootpath
    files = {path.relative_to(root).as_posix() for path in (root / "tests").rglob("test_*.py")}
    if any("::" in arg for arg in request.config.args) or files != {name.partition("::")[0] for name in found}:
        pytest.skip("compares all tests: run `pytest tests`")
    return found


@pytest.hookimpl(trylast=True)  # after -m and -k have chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.shard is not None:
        chosen = shards.select([item.nodeid for item in items], config.option.shard)
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in chosen])
        items[:] = [item for item in items if item.nodeid in chosen]


def pytest_collection_finish() -> None:
    if processes := sys.modules.get("tests.processes"):  # a collected test uses it
        processes.start()


class Cells:
    """Hears of every test, those in other workers too."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        cells = self.config.stash[CELLS]
        for key, value in report.user_properties:
            if key == "cell" and (report.when == "call" or not report.passed):
                name, method = value  # pyright: ignore[reportGeneralTypeIssues]
                cells[name, method] = cells.get((name, method), True) and report.passed

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        cells, by = self.config.stash[CELLS], "slow" if "slow" == self.config.option.markexpr else "test"
        if hasattr(self.config, "workerinput"):
            return
        from tests.contract import matrix

        if self.config.option.matrix:
            matrix.write(cells, by)
        if self.config.option.check_matrix:
            green = {(n, m) for n, row in matrix.read().items() for m, cell in row.items() if cell == by}
            lost = sorted(f"{n} × {m}" for n, m in green if not cells.get((n, m)))
            if lost:
                print(f"\ndocs/matrix.md: green before and not now: {', '.join(lost)}")
                session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(Cells(session.config))
    session.config.pluginmanager.register(shards.Durations(session.config))
