# SPDX-License-Identifier: Apache-2.0
"""What each part of the Transformer adds, on the task that asks for it."""

import itertools

import pytest
import torch

from examples.transformer_steps import (
    LOOKUPS,
    QUESTIONS,
    STEPS,
    TOKENS,
    VALUES,
    Model,
    WeightlessAttention,
    accuracy,
    activations,
    fresh,
    measure,
    rows_of,
)
from foundling.blocks.context import Context
from foundling.runtime.rng import generator

SIZES = {"d_model": 32, "n_layers": 2, "n_heads": 4}


def test_the_answers_are_those_of_the_tokens_that_are_asked_for() -> None:
    x, y = rows_of(3, generator("rows", 0))
    assert x.shape == (3, TOKENS, 2 + LOOKUPS) and y.shape == (3, TOKENS, QUESTIONS)
    for row, answers in zip(x.tolist(), y.tolist(), strict=True):
        value_of = {token[0]: token[1] for token in row}
        assert len(value_of) == TOKENS and max(value_of.values()) < VALUES
        for place, token in enumerate(row):
            assert answers[place] == [*(value_of[key] for key in token[2:]), row[place - 1][1]]


@torch.no_grad()
def permuted(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The encoder's states of permuted tokens, and the permuted states of the tokens. (The head is zero at first.)"""
    model = fresh(step, 0, **SIZES).double().eval()
    x = model.embed(rows_of(2, generator("rows", 0))[0])
    order = torch.randperm(TOKENS, generator=generator("order", 0))
    return model.encoder(x[:, order])[0], model.encoder(x)[0][:, order]


@pytest.mark.parametrize("step", range(3))
def test_without_positions_permuted_tokens_give_permuted_states(step) -> None:
    of_permuted, states = permuted(step)
    assert float(states.std()) > 0.1
    torch.testing.assert_close(of_permuted, states, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("step", (3, 4))
def test_with_positions_they_do_not(step) -> None:
    of_permuted, states = permuted(step)
    assert float((of_permuted - states).abs().max()) > 0.1


def test_weightless_attention_averages_by_similarity() -> None:
    x = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])  # scores 4/√2 with itself, 0 with the other
    share = float(torch.sigmoid(torch.tensor(4 / 2**0.5)))
    expected = torch.tensor([[[2 * share, 2 * (1 - share)], [2 * (1 - share), 2 * share]]])
    assert not [*WeightlessAttention().parameters()]
    torch.testing.assert_close(WeightlessAttention()(x, Context()), expected)


def test_each_step_has_the_parts_of_the_step_before() -> None:
    names = [{name for name, _ in Model(step, **SIZES).named_modules()} for step in range(len(STEPS))]
    counts = [sum(p.numel() for p in Model(step, **SIZES).parameters()) for step in range(len(STEPS))]
    assert all(a <= b for a, b in itertools.pairwise(names[1:]))
    assert counts[1] == counts[2] == counts[3], "heads and positions add no parameters"
    assert counts[1] - counts[0] == 2 * 4 * 32 * 32 and counts[4] - counts[3] == 5 * 2 * 32


@torch.no_grad()
def test_activations_are_noted_before_each_layer_and_the_head() -> None:
    model = fresh(4, 0, **SIZES).eval()
    entries = activations(model)
    assert len(entries) == 3 and all(abs(entry["read"] - 1) < 0.01 for entry in entries)
    x, _ = rows_of(64, generator("held-out rows", 0))
    first = model.encoder.embed_positions(model.embed(x), torch.arange(TOKENS)[None])
    assert entries[0]["deviation"] == pytest.approx(float(first.std()), rel=1e-3)
    without = activations(fresh(3, 0, **SIZES).eval())
    assert all(entry["read"] == entry["deviation"] for entry in without)


def test_a_model_that_knows_nothing_guesses() -> None:
    shares = accuracy(fresh(0, 0, **SIZES).eval(), 200)
    assert all(abs(share - 1 / VALUES) < 0.05 for share in shares.values())


@pytest.mark.slow
def test_each_part_helps_where_it_should() -> None:
    options = {"steps": 1200, "rows": 32, "items": 500, "learning_rate": 0.003}
    sizes = {"d_model": 64, "n_layers": 2, "n_heads": 4}
    shares = [measure(step, 0, sizes=sizes, **options)["accuracy"] for step in range(4)]
    by_key, before = ([share[name] for share in shares] for name in ("by key", "before"))
    assert by_key[1] > by_key[0] + 0.2 and by_key[2] > by_key[1] + 0.05, by_key
    assert max(before[:3]) < 0.4 and before[3] > before[2] + 0.2, before


@pytest.mark.slow
def test_norms_bound_what_a_deep_model_reads() -> None:
    sizes = {"d_model": 64, "n_layers": 12, "n_heads": 4}
    last = [activations(fresh(step, 0, **sizes).eval())[-1] for step in (3, 4)]
    assert last[0]["deviation"] > 10 * last[1]["deviation"] and abs(last[1]["read"] - 1) < 0.01, last
