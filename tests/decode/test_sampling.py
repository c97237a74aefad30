# SPDX-License-Identifier: Apache-2.0
"""Draws against their exact distributions, and generation against reading at once."""

import pytest
import torch
from scipy.stats import chisquare

from foundling.decode.plain import generate
from foundling.decode.request import sample_seed
from foundling.decode.sampling import Sampling, compute_probs, draw_tokens
from foundling.errors import GenerationError
from foundling.models import build, family
from foundling.runtime.rng import generator


def written(*args, **options) -> list[list[int]]:
    return [answer.tokens for answer in generate(*args, **options)]


LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -4.0])


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(), 6),
        (Sampling(temperature=0.5), 6),
        (Sampling(top_k=3), 3),
        (Sampling(top_p=0.8), 3),
        (Sampling(temperature=2.0, top_k=4, top_p=0.9), 4),
    ],
)
def test_draws_follow_the_distribution(sampling: Sampling, kept: int) -> None:
    probs = compute_probs(LOGITS[None], sampling.params)
    assert int((probs > 0).sum()) == kept
    exact = torch.softmax(LOGITS.double() / sampling.temperature, -1)
    exact[kept:] = 0
    torch.testing.assert_close(probs[0].double(), exact / exact.sum(), rtol=1e-5, atol=1e-7)
    n = 4000
    drawn = draw_tokens(probs.expand(n, -1), list(range(n)), [0] * n)
    counts = torch.bincount(drawn, minlength=6)[:kept]
    assert chisquare(counts.numpy(), (exact[:kept] / exact.sum() * n).numpy()).pvalue > 1e-3


def test_greedy_takes_the_likeliest_whatever_the_seed() -> None:
    probs = compute_probs(LOGITS[None].expand(9, -1), Sampling(temperature=0).params)
    assert draw_tokens(probs, list(range(9)), [0] * 9).tolist() == [0] * 9


def test_a_row_draws_the_same_whatever_is_beside_it() -> None:
    probs = compute_probs(torch.randn(5, 40), Sampling().params)
    together = draw_tokens(probs, [3, 1, 4, 1, 5], [0, 1, 2, 3, 4])
    apart = [int(draw_tokens(probs[i : i + 1], [s], [i])) for i, s in enumerate([3, 1, 4, 1, 5])]
    assert together.tolist() == apart


@pytest.fixture(scope="module")
def model():
    model = build("llama", **family("llama").module.sized(50, 40, 32, 2))
    draw = generator("model")
    for p in model.parameters():
        p.data.copy_(torch.randn(p.shape, generator=draw) * 0.4)
    return model.eval()


def test_greedy_generation_equals_reading_everything_again(model) -> None:
    prompts = [[1, 2, 3], [7], [4, 4, 4, 4, 9, 9]]
    answers = written(model, prompts, max_tokens=12, temperature=0)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(model.logits(model(torch.tensor([ids])).hidden[0, -1]).argmax()))
        assert answer == ids[len(prompt) :]


def test_rows_that_stop_early_leave_the_others_alone(model) -> None:
    prompts = [[i] for i in range(12)]
    free = written(model, prompts, max_tokens=20, seed=5)
    stop = free[3][4]
    stopped = written(model, prompts, max_tokens=20, seed=5, stop=[stop])
    for a, b in zip(free, stopped, strict=True):
        assert b == (a[: a.index(stop)] if stop in a else a)
    assert written(model, prompts[2:3], max_tokens=20, seed=sample_seed(5, 2)) == [free[2]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(tokens=[[]], max_tokens=3), "empty"),
        (dict(tokens=[], max_tokens=3), "empty"),
        (dict(tokens=[[1]], max_tokens=0), "at least 1"),
        (dict(tokens=[[1] * 30], max_tokens=11), "at most 10"),
        (dict(tokens=[[50]], max_tokens=3), "outside the vocabulary"),
        (dict(tokens=[[1]], max_tokens=3, temperature=-1.0), "temperature"),
        (dict(tokens=[[1]], max_tokens=3, temperature=float("nan")), "temperature"),
        (dict(tokens=[[1]], max_tokens=3, top_p=0.0), "top_p"),
        (dict(tokens=[[1]], max_tokens=3, top_k=-2), "top_k"),
    ],
)
def test_bad_requests_are_one_line(model, call: dict, message: str) -> None:
    with pytest.raises(GenerationError, match=message) as caught:
        written(model, **call)
    assert "\n" not in str(caught.value)
