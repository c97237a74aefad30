# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of the tokens of a loss mask: values, gradients and memory against the whole logits."""

from itertools import accumulate

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from foundling.adapt.method import apply
from foundling.adapt.options import AdaptOptions
from foundling.objectives import chunked
from foundling.objectives.chunked import token_logprobs
from foundling.runtime.rng import generator
from tests.contract.cases import case

SHAPE = (3, 70)
"""210 tokens, 126 of them counted: two chunks of 64, the last of which is filled up"""


def inputs(model, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, targets, loss_mask and a weight for each token"""
    draw = generator("token logprobs")
    hidden = torch.randn(*SHAPE, model.head.in_features, generator=draw).requires_grad_()
    targets = torch.randint(0, model.head.out_features, SHAPE, generator=draw)
    some = torch.zeros(SHAPE[0] * SHAPE[1], dtype=torch.bool)
    some[torch.randperm(len(some), generator=draw)[:126]] = True
    return hidden, targets, some.view(SHAPE) if mask is None else mask, torch.randn(SHAPE, generator=draw)


def whole(model, hidden: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    logprobs = torch.log_softmax(model.logits(hidden).float(), -1)
    return logprobs.gather(-1, targets[..., None])[..., 0] * mask


def gradients(model, hidden: Tensor, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    hidden.grad = None
    loss.backward()
    named = {"hidden": hidden, **dict(model.named_parameters())}
    return {name: p.grad.clone() for name, p in named.items() if p.grad is not None}


MODELS = {
    "llama": {"tie_embeddings": False},
    "tied": {"tie_embeddings": True},
    "t5": {},
    "gemma2": {"logit_cap": 2.0},
}


def build(name: str, head: str):
    model = case("llama" if name == "tied" else name).tiny(**MODELS[name]).requires_grad_(head == "trained")
    if head == "lora":
        apply(model, AdaptOptions("lora", pattern="head"), generator("lora"))
        with torch.no_grad():
            model.head.b.normal_(generator=generator("b"))
    return model


@pytest.mark.parametrize("head", ["frozen", "trained", "lora"])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_the_whole_logits(name: str, head: str, monkeypatch) -> None:
    """Each token is weighed apart, as where a policy's advantages weigh them: the gradient of the sum would not do."""
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", 1)
    model = build(name, head)
    hidden, targets, mask, weights = inputs(model)
    value = token_logprobs(model, hidden, targets, mask)
    ours = gradients(model, hidden, (value.square() * weights).sum())
    expected = whole(model, hidden, targets, mask)
    theirs = gradients(model, hidden, (expected.square() * weights).sum())
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    assert ours.keys() == theirs.keys() and (len(ours) > 1) == (head != "frozen")
    for n, gradient in theirs.items():
        torch.testing.assert_close(ours[n], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()), msg=n)
    with torch.no_grad():
        assert torch.equal(token_logprobs(model, hidden, targets, mask), value) or head != "frozen"


@pytest.mark.parametrize("head", ["frozen", "trained"])
def test_in_bfloat16_both_are_as_near_as_bfloat16_is(head: str, monkeypatch) -> None:
    """The backward pass runs outside autocast, as in training. Rounding is measured, not assumed: the whole logits in
    bfloat16 against those in float32."""
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", 1)
    model = build("gemma2", head)
    hidden, targets, mask, weights = inputs(model)
    exact = whole(model, hidden, targets, mask)
    exact_by = gradients(model, hidden, (exact * weights).sum())
    with torch.autocast("cpu", torch.bfloat16):
        rounded, value = whole(model, hidden, targets, mask), token_logprobs(model, hidden, targets, mask)
    assert value.dtype == torch.float32
    rounded_by = gradients(model, hidden, (rounded * weights).sum())
    ours_by = gradients(model, hidden, (value * weights).sum())
    assert (value - exact).norm() <= 1.5 * (rounded - exact).norm()
    for n, gradient in exact_by.items():
        assert (ours_by[n] - gradient).norm() <= 1.5 * (rounded_by[n] - gradient).norm(), n


@pytest.mark.parametrize("head", ["frozen", "trained"])
def test_no_token_or_every_token_of_the_mask(head: str) -> None:
    model = build("llama", head)
    hidden, targets, _, _ = inputs(model)
    nothing = token_logprobs(model, hidden, targets, torch.zeros(SHAPE, dtype=torch.bool))
    assert nothing.shape == SHAPE and not nothing.any()
    assert not gradients(model, hidden, nothing.sum())["hidden"].any()
    every = torch.ones(SHAPE, dtype=torch.bool)
    expected = whole(model, hidden, targets, every)
    torch.testing.assert_close(token_logprobs(model, hidden, targets, every), expected, rtol=1e-5, atol=1e-5)


def peak_bytes(work) -> int:
    """The most that `work` had allocated at once, as the allocator tells it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        work()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.parametrize("head", ["frozen", "trained"])
def test_memory_is_that_of_a_chunk(head: str, monkeypatch) -> None:
    """Beside the gradients: at most what a chunk's logits, their log-softmax and its gradient take, and half of that
    where the head is frozen; the whole logits take more."""
    model = case("llama").tiny(vocab_size=4096, tie_embeddings=False).requires_grad_(head == "trained")
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", 64 * 4096)
    hidden, targets, _, _ = inputs(model)
    mask = torch.ones(SHAPE, dtype=torch.bool)
    chunk = 4 * 64 * 4096
    ours = peak_bytes(lambda: token_logprobs(model, hidden, targets, mask).sum().backward())
    of_head = 2 * model.head.weight.nbytes if head == "trained" else 0
    assert ours < (1.5 if head == "frozen" else 3) * chunk + 3 * hidden.nbytes + of_head
    assert peak_bytes(lambda: whole(model, hidden, targets, mask).sum().backward()) > 2 * chunk * 210 / 64
