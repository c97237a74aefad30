# SPDX-License-Identifier: Apache-2.0
"""Layers are compiled one by one: alike layers share one compilation, and a new context does not cause another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from foundling.contracts.model import layers_of
from tests.contract.cases import T, case, tokens


class Compilations:
    """A backend that runs the graph as it is and counts how many it was given."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


@pytest.mark.parametrize(
    ("name", "fields", "kinds"),
    [
        ("llama", {}, 1),
        ("gemma2", {"window": 8}, 2),
        pytest.param("gemma3", {"window": 8, "period": 2}, 2, marks=pytest.mark.slow),
        ("mamba2", {}, 1),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_one_compilation_for_each_kind_of_layer(name: str, fields: dict[str, Any], kinds: int, packed: bool) -> None:
    """Four layers, three steps."""
    of, compilations = case(name), Compilations()
    model = of.tiny(n_layers=4, **fields)
    documents = (torch.arange(T) > 9).long().repeat(2, 1) if packed else None
    expected = [of.hidden(model, tokens(seed=step), documents=documents) for step in range(3)]
    torch.compiler.reset()
    for layer in layers_of(model):
        layer.compile(backend=compilations, fullgraph=True, dynamic=False)
    for step in range(3):
        assert torch.equal(of.hidden(model, tokens(seed=step), documents=documents), expected[step])
        assert compilations.count == kinds, f"step {step}"
