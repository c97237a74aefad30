# SPDX-License-Identifier: Apache-2.0
"""Completions that a policy learns from: drawn with the probabilities that the training pass computes, from the weights
as they are, and the same again after a checkpoint."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foundling.adapt.lora import LoRAOptions, lora
from foundling.adapt.options import AdaptOptions
from foundling.data.transforms.completions import pack_completions
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.request import Request
from foundling.errors import DataError, Interrupted
from foundling.evaluate.rewards import build_rewards
from foundling.objectives.policy import VALUE_HEAD, PolicyGradient, ValueHead
from foundling.recipes.recipe import (
    DataSpec,
    ModelSpec,
    ObjectiveSpec,
    Recipe,
    RolloutSpec,
    RuntimeSpec,
    ScheduleSpec,
    TrainSpec,
)
from foundling.recipes.rollouts import Prompt, Rollouts, Sampler, kl_of
from foundling.runtime import signals
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from foundling.train.checkpoint import load_checkpoint, save_checkpoint
from foundling.train.options import OptimOptions
from foundling.train.state import TrainState
from foundling.train.update import update
from tests.contract.cases import case

RUNTIME = Runtime("cpu", "float32", 1)
FAMILIES = ["llama", "gpt2", "gemma2", "mixtral", "mamba", "mamba2", "rwkv", "jamba"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the cat sat on the mat and the dog ate it"] * 20, 320)


def recipe_of(**rollout: Any) -> Recipe:
    spec = RolloutSpec(("matches:t",), n_prompts=3, group_size=4, max_tokens=9, **rollout)
    return Recipe(
        DataSpec("prompts.jsonl"), ModelSpec(), ObjectiveSpec("grpo"),
        OptimOptions(optimizer="adamw", learning_rate=0.01), ScheduleSpec(), TrainSpec(9, 48, 6, 2),
        RuntimeSpec("cpu", "float32", 1, False), AdaptOptions("lora"), spec,
    )  # fmt: skip


def rollouts_of(model: Any, tokenizer: Tokenizer, recipe: Recipe, reference: Any = None) -> Rollouts:
    texts = ["the cat", "the dog ate the cat and sat on", "on the mat and the dog", "it"]
    prompts = [Prompt(tokenizer.encode(text) + [tokenizer.eos], {"prompt": text}) for text in texts]
    sampler = Sampler(model, Framing(tokenizer), recipe.rollout.max_tokens, RUNTIME, recipe.rollout.weights)
    return Rollouts(sampler, prompts, build_rewards(recipe.rollout.reward), recipe, RUNTIME, reference)


def policy(name: str, tokenizer: Tokenizer) -> Any:
    """With adapters whose updates are not zero."""
    model = case(name).tiny(vocab_size=tokenizer.vocab_size)
    lora(model, LoRAOptions(), generator("lora"))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=generator("moved", p.numel())))
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_drawn_has_the_probabilities_that_training_computes(name: str, tokenizer: Tokenizer) -> None:
    """Before and after an update: neither packing nor the engine's blocks, shared prefixes and saved states change
    them, and no rollout reads what an older policy computed."""
    model, recipe = policy(name, tokenizer), recipe_of()
    rollouts = rollouts_of(model, tokenizer, recipe)
    state, seen = TrainState.build(model, recipe.optim), list[torch.Tensor]()
    for n in (0, 1, 2):
        batch = rollouts[n]
        drawn = rollouts.current
        assert drawn is not None
        if n % 2 == 0:
            again, _ = rollouts.score(model, drawn)
            for own, other in zip(drawn.columns["sampler_logprobs"], again, strict=True):
                torch.testing.assert_close(own, other, atol=1e-4, rtol=0)
            seen.append(torch.cat(drawn.columns["sampler_logprobs"]))
        record = update(state, PolicyGradient(), batch, recipe.train_options(), RUNTIME)
        assert record.losses["mismatch"] < 1e-4 or n % 2
    assert len(seen[0]) != len(seen[1]) or (seen[0] - seen[1]).abs().max() > 1e-3  # it did learn


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_native_code_draws_from_a_copy_that_is_made_anew(weights: str, tokenizer: Tokenizer) -> None:
    """In float32 with the probabilities of the policy; in 8 bits with others, which updates are told of. The policy
    keeps its adapters, bit for bit."""
    model, recipe = policy("llama", tokenizer), recipe_of(weights=weights)
    before = {name: p.clone() for name, p in model.named_parameters()}
    rollouts = rollouts_of(model, tokenizer, recipe)
    state = TrainState.build(model, recipe.optim)
    batch = rollouts[0]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        n for n in before if n[-2:] in (".a", ".b")
    }
    for n in range(3):
        record = update(state, PolicyGradient(), rollouts[n] if n else batch, recipe.train_options(), RUNTIME)
        assert record.losses["mismatch"] < (1e-4 if weights == "float32" else 0.1)
        assert weights == "float32" or record.losses["mismatch"] > 1e-4


def test_the_reference_of_adapters_is_the_base(tokenizer: Tokenizer) -> None:
    base, model = case("llama").tiny(vocab_size=tokenizer.vocab_size), policy("llama", tokenizer)
    recipe = recipe_of()
    own, other = (rollouts_of(model, tokenizer, recipe, load) for load in (None, lambda: base))
    drawn = own.sampler.draw(own.prompts, range(4)).completions
    for mine, theirs in zip(own.reference_logprobs(drawn), other.reference_logprobs(drawn), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    drawn.columns["reference_logprobs"] = own.reference_logprobs(drawn)
    assert min(kl_of(drawn)) > 0
    again, _ = own.score(model, drawn)  # the adapters are back
    torch.testing.assert_close(torch.cat(again), torch.cat(drawn.columns["sampler_logprobs"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_changed_weights_are_drawn_from_at_once(name: str, tokenizer: Tokenizer) -> None:
    """An engine that had computed a prefix before would still read it: so the test can fail."""
    model = case(name).tiny(vocab_size=tokenizer.vocab_size)
    ids = tokenizer.encode("the cat sat on the mat and the dog ate it") * 4
    request, before = Request(ids, 3, logprobs=0), Engine(model, EngineOptions(native=False))
    before.generate([request])
    sampler, prompts = Sampler(model, Framing(tokenizer), 3, RUNTIME), [Prompt(ids, {})]
    first = sampler.draw(prompts, [0]).completions.columns["sampler_logprobs"][0]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator("change", p.numel())))
    second = sampler.draw(prompts, [0]).completions.columns["sampler_logprobs"][0]
    fresh = Engine(model, EngineOptions(native=False)).generate([request])[0].logprobs or []
    stale = before.generate([request])[0].logprobs or []
    assert second.tolist() == pytest.approx(fresh, abs=1e-6) and second.tolist() != first.tolist()
    assert stale != pytest.approx(fresh, abs=1e-3)


def test_a_signal_ends_the_drawing(tokenizer: Tokenizer) -> None:
    rollouts = rollouts_of(policy("llama", tokenizer), tokenizer, recipe_of())
    with pytest.raises(Interrupted), signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        rollouts[0]
        pytest.fail("it went on drawing")
    assert rollouts.current is None and rollouts.number == -1
    assert int(rollouts[0]["loss_mask"].sum()) > 0  # and the same is drawn again


def test_packing_keeps_every_token_and_column(tokenizer: Tokenizer) -> None:
    rollouts = rollouts_of(policy("llama", tokenizer), tokenizer, recipe_of())
    drawn = rollouts.sampler.draw([*rollouts.prompts, *rollouts.prompts], range(8)).completions
    batch, places = pack_completions(drawn, [0, 3, 5, 6], tokenizer.eos)
    assert sorted(i for i, _, _ in places) == [0, 3, 5, 6]
    assert int(batch["loss_mask"].sum()) == sum(drawn.length(i) for i, _, _ in places)
    for i, row, first in places:
        answer = slice(first, first + drawn.length(i))
        assert batch["targets"][row, answer].tolist() == drawn.tokens[i][drawn.n_prompt[i] :].tolist()
        assert batch["sampler_logprobs"][row, answer].tolist() == drawn.columns["sampler_logprobs"][i].tolist()
        assert batch["documents"][row, first - drawn.n_prompt[i] + 1 : answer.stop].unique().numel() == 1


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_a_checkpoint_holds_the_rollout_under_way(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Two updates learn from a rollout; stopped between them, the second learns from the same completions."""
    recipe = recipe_of(kl_target=0.5)
    recipe = replace(recipe, objective=replace(recipe.objective, kind=kind, kl_coef=0.1))

    def begin() -> tuple[Any, Rollouts, TrainState, PolicyGradient]:
        model = policy("llama", tokenizer)
        if kind == "ppo":
            setattr(model, VALUE_HEAD, ValueHead(64))
        objective = PolicyGradient(value_coef=0.1 if kind == "ppo" else 0.0)
        return model, rollouts_of(model, tokenizer, recipe), TrainState.build(model, recipe.optim), objective

    model, rollouts, state, objective = begin()
    for n in range(3):
        update(state, objective, rollouts[n], recipe.train_options(), RUNTIME)
    path, kl_coef = save_checkpoint(tmp_path, state, {}, batches=rollouts), rollouts.kl_coef
    expected = [update(state, objective, rollouts[n], recipe.train_options(), RUNTIME).losses for n in (3, 4)]
    other, resumed, later, objective = begin()
    load_checkpoint(path, later, batches=resumed)
    assert resumed.kl_coef == kl_coef != 0.1 and resumed.number == 1
    assert [update(later, objective, resumed[n], recipe.train_options(), RUNTIME).losses for n in (3, 4)] == expected
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_reward_that_fails_names_itself(tokenizer: Tokenizer) -> None:
    recipe = recipe_of()
    recipe = replace(recipe, rollout=replace(recipe.rollout, reward=("instructions",)))
    with pytest.raises(DataError, match="the reward 'instructions' cannot be computed"):
        rollouts_of(policy("llama", tokenizer), tokenizer, recipe)[0]
