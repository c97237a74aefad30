# SPDX-License-Identifier: Apache-2.0
"""A router's balance arises inside the model: it is logged as the mean over micro-batches, however many there are."""

import pytest

from foundling.runtime.device import Runtime
from foundling.train.loop import TrainOptions, train
from foundling.train.schedule import Schedule
from tests.contract.cases import ROWS, Data, case
from tests.rounding import bound


@pytest.mark.parametrize("size", [ROWS, 4, 3, 1])
def test_the_logged_balance_is_the_mean_over_micro_batches(size: int) -> None:
    of = case("mixtral")
    state, objective = of.state("adamw"), of.objective()
    batch, parts = of.batch(0), []
    for first in range(0, ROWS, size):
        rows = {name: column[first : first + size] for name, column in batch.items()}
        term = objective(state.model, rows)["router_balance"]
        parts.append(float(term.sum.detach() / term.count))
    step = next(iter(train(state, objective, Data(of), Schedule(1), TrainOptions(size), Runtime())))
    assert step.losses["router_balance"] == pytest.approx(sum(parts) / len(parts), rel=bound())
    assert sum(parts) / len(parts) > 0.5, "about one where experts share the work"
