# SPDX-License-Identifier: Apache-2.0
"""Every cell of the matrix that counts as tested has a test, quick or slow as it says."""

from foundling.models import FAMILIES
from tests.contract import matrix


def test_every_family_has_a_row() -> None:
    without = [name for name in FAMILIES if name not in matrix.read()]
    unknown = [name for name in matrix.read() if name not in FAMILIES]
    assert not without and not unknown, f"run `make matrix`: no row for {without}, no family {unknown}"


def test_every_tested_cell_has_a_test(collected) -> None:
    """A cell stays in the file while its test does not run, also after the test was removed."""
    cells = {cell for cell in collected.values() if cell}
    tested = {(n, m) for n, row in matrix.read().items() for m, cell in row.items() if cell in ("test", "slow")}
    assert len(tested) > 300
    lapsed = sorted(f"{name} × {method}" for name, method in tested - cells)
    assert not lapsed, f"no test covers these, run `make matrix`: {', '.join(lapsed)}"
