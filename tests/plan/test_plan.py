# SPDX-License-Identifier: Apache-2.0
"""Counts by hand, a law that finds what was planted, a dial that turns the right way."""

import math
import mmap
import os
import statistics
from dataclasses import replace
from itertools import pairwise

import pytest

from foundling.errors import BudgetError
from foundling.models import count_parameters, family
from foundling.plan.budget import Budget
from foundling.plan.choose import LADDER, choose, ladder
from foundling.plan.energy import Meter, estimate
from foundling.plan.flops import matmul_parameters, skeleton, training_flops_per_token
from foundling.plan.law import Corpus, LossLaw, compressibility, effective_bytes, fit, load_law
from foundling.runtime.memory import PeakMemory, tree_bytes


def test_flops_by_hand() -> None:
    fields = dict(vocab_size=100, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=40, max_seq_len=64)
    n = 2 * (16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 40) + 16 * 100
    for tie in (True, False):
        model = skeleton("llama", fields | {"tie_embeddings": tie})
        assert matmul_parameters(model) == n
        assert training_flops_per_token(model, 64) == 6 * n + 6 * 2 * 16 * 64


def test_gpt2_124m_is_the_published_count() -> None:
    """Kaplan et al. 2020: N = 12 L d² without embeddings, and the tied head multiplies."""
    model = skeleton("gpt2", family("gpt2").module.PRESETS["gpt2"])
    assert matmul_parameters(model) == 12 * 12 * 768**2 + 768 * 50257


def test_repeated_text_by_hand() -> None:
    assert effective_bytes(50, 100, 15.4) == 50
    assert effective_bytes(100, 100, 15.4) == 100
    assert effective_bytes(400, 100, 15.4) == pytest.approx(100 * (1 + 15.4 * (1 - math.exp(-3 / 15.4))))
    assert effective_bytes(1e9, 100, 15.4) < 100 * 16.4 + 1e-6


@pytest.mark.parametrize(
    ("bytes_read", "look", "late", "ratio"),
    [
        (5e5, 2.5, 0.0, 1.25),  # before repetition counts
        (1e7, 4.0, math.log(10), 2.0),
        (1e7, 2.5, math.log(10), 1.5),  # the least ratio
        (1e9, 4.0, math.log(100), 2.0),  # the effect is capped
    ],
)
def test_the_law_by_hand(bytes_read: float, look: float, late: float, ratio: float) -> None:
    law = LossLaw(E=0.3, A=5.0, alpha=0.34, B=1.2, beta=0.28, reuse=2.0, late=0.1, error=0.0, runs=0)
    terms = 0.3 + 5.0 / 1e6**0.34 + 1.2 / (bytes_read / 1e5) ** 0.28
    expected = look * terms * (ratio / 1.6) ** (-0.1 * late**2)
    assert law.bits_per_byte(1e6, bytes_read, Corpus(10**10, 3.0, 2.0, look)) == pytest.approx(expected)
    repeated = Corpus(10**6, 3.0, 2.0, 2.0)  # ten epochs at 1 byte a parameter: worth 0.2 epochs of new text
    d = 1e6 * (1 + 0.2 * (1 - math.exp(-9 / 0.2)))
    expected = 2.0 * (0.3 + 5.0 / 1e6**0.34 + 1.2 / (d / 1e5) ** 0.28) * (1.5 / 1.6) ** (-0.1 * math.log(d / 1e6) ** 2)
    assert law.bits_per_byte(1e6, 1e7, repeated) == pytest.approx(expected)


def test_the_fit_finds_a_planted_law() -> None:
    law = LossLaw(0.4, 6.0, 0.34, 1.2, 0.28, 2.0, 0.12, 0.0, 0)
    texts = {"a": Corpus(10**9, 3.0, 2.0, 2.5), "b": Corpus(10**9, 3.0, 1.5, 2.8)}  # two large and two small
    texts |= {"c": Corpus(10**6, 3.0, 1.8, 2.2), "d": Corpus(3 * 10**6, 3.0, 1.4, 2.3)}
    runs = [
        {"corpus": name, "n": n, "bytes_read": d, "unique_bytes": text.train_bytes, "scale": text.scale,
         "look": text.look, "bits_per_byte": law.bits_per_byte(n, d, text)}
        for n in (1e5, 5e5, 2e6, 1e7)
        for d in (1e6, 5e6, 3e7)
        for name, text in texts.items()
    ]  # fmt: skip
    found = fit(runs)
    assert found.error < 0.03 and found.late == pytest.approx(0.12, abs=0.01)
    unseen = Corpus(10**8, 3.0, 2.5, 2.1)
    for n, d in ((3e5, 2e6), (4e6, 6e7)):
        assert found.bits_per_byte(n, d, unseen) == pytest.approx(law.bits_per_byte(n, d, unseen), rel=0.02)


def test_the_law_in_the_repository_was_fitted_to_the_runs_beside_it() -> None:
    import json
    from importlib import resources

    table = json.loads((resources.files("foundling.plan") / "calibration.json").read_text())
    law = load_law()
    assert law.runs == len(table["runs"]) >= 10 and len({run["corpus"] for run in table["runs"]}) >= 3
    again = fit(table["runs"])
    for run in table["runs"]:
        text = Corpus(run["unique_bytes"], 3.0, run["scale"], run["look"])
        found = law.bits_per_byte(run["n"], run["bytes_read"], text)
        assert found == pytest.approx(again.bits_per_byte(run["n"], run["bytes_read"], text), rel=1e-3)
        assert found == pytest.approx(run["bits_per_byte"], rel=5 * law.error)


LAW = LossLaw(0.3, 5.0, 0.34, 1.2, 0.28, 2.0, 0.1, 0.0, 0)
CORPUS = Corpus(10**9, 3.5, 2.0, 2.0)


def chosen(unit, value, memory=1 << 45):
    sizes = ladder("llama", 4096, 256)
    return choose(
        Budget(unit, value), "llama", sizes, CORPUS, LAW, seconds_per_token=lambda f, _: f / 1e11, memory_bytes=memory,
        least_bytes=lambda fields: 16 * count_parameters(skeleton("llama", fields))["total"], seq_len=256,
    )[0]  # fmt: skip


@pytest.mark.parametrize("unit", ["seconds", "flops", "tokens"])
def test_a_larger_budget_never_chooses_a_smaller_model(unit) -> None:
    budgets = {"seconds": (10, 600, 36_000), "flops": (1e12, 1e14, 1e17), "tokens": (1e6, 5e7, 1e10)}[unit]
    sizes = [chosen(unit, b).parameters for b in budgets]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_the_sizes_that_are_considered_grow_steadily() -> None:
    weights = [width * width * depth for width, depth in LADDER]
    ratios = [b / a for a, b in pairwise(weights)]
    assert 1.5 < min(ratios) and max(ratios) < 3.5 and 1.7 < statistics.median(ratios) < 2.1
    assert all(width % 32 == 0 for width, _ in LADDER)


@pytest.mark.parametrize("budget", [Budget("tokens", 3e3), Budget("tokens", 3e6), Budget("seconds", 600)])
def test_a_small_text_gets_a_small_model(budget: Budget) -> None:
    """Larger ones are outside of what the law was fitted to."""
    sizes = ladder("llama", 512, 64)
    for train_bytes, most in ((80_000, 0), (1_000_000, 1.25e6)):
        choice, considered = choose(
            budget, "llama", sizes, replace(CORPUS, train_bytes=train_bytes), LAW,
            seconds_per_token=lambda f, _: f / 1e11, memory_bytes=1 << 40, least_bytes=lambda fields: 0, seq_len=64,
        )  # fmt: skip
        assert choice == considered[0] or choice.matmul_parameters <= most


def test_units_of_the_dial_agree() -> None:
    by_time = chosen("seconds", 1000)
    by_flops = chosen("flops", 1000 * 1e11)
    assert by_time.fields == by_flops.fields
    by_tokens = chosen("tokens", by_flops.tokens)
    assert by_tokens.fields["d_model"] == by_flops.fields["d_model"]


def test_what_does_not_fit_into_memory_is_not_chosen() -> None:
    assert chosen("flops", 1e18, memory=1 << 26).parameters < chosen("flops", 1e18).parameters
    with pytest.raises(BudgetError, match="at least"):
        chosen("flops", 1e18, memory=1 << 20)


def test_given_widths_and_depths_are_kept() -> None:
    assert {f["d_model"] for f in ladder("llama", 512, 64, d_model=96)} == {96}
    assert {f["n_layers"] for f in ladder("gpt2", 512, 64, n_layers=7)} == {7}


@pytest.mark.parametrize("value", [0, -3, math.nan, math.inf])
def test_budgets_that_are_no_numbers(value) -> None:
    with pytest.raises(BudgetError, match="--minutes"):
        Budget("seconds", value)


def test_compressibility_orders_texts() -> None:
    assert compressibility(b"ab" * 50_000) < compressibility(__doc__.encode() * 100) < compressibility(os.urandom(5000))


def test_memory_is_seen_when_taken() -> None:
    before = tree_bytes(os.getpid())
    watch = PeakMemory(every=0.01)
    size = 200 << 20  # from the kernel, since malloc may have kept as much of what tests before have freed
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block.write(b"x" * size)
        watch.sample()
    watch.done.set()
    assert watch.peak - before > 150 << 20


def test_energy_says_where_it_comes_from() -> None:
    assert estimate(10, 2, 2 * 2**30)["value"] == pytest.approx(10 * (24 + 0.745), abs=0.1)
    assert Meter().read(1.0, 2, 1 << 30)["source"].startswith(("estimate", "counter"))
