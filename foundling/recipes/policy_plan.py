# SPDX-License-Identifier: Apache-2.0
"""The plan of learning from rewards: rollouts, updates and rows; time by one rollout and some updates, memory by an
estimate."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from foundling.adapt.options import DEFAULT_METHOD, AdaptOptions
from foundling.config import from_dict
from foundling.data.examples import Examples
from foundling.errors import BudgetError, ConfigError
from foundling.evaluate.rewards import build_rewards
from foundling.models import count_parameters
from foundling.objectives.policy import VALUE_HEAD, PolicyGradient, ValueHead
from foundling.plan.energy import estimate
from foundling.plan.flops import training_flops_per_token
from foundling.plan.memory import spare_memory
from foundling.recipes.adapting import build_adapted, check_kind, framing_of
from foundling.recipes.finetune_data import choose_seq_len, parent_tokenizer
from foundling.recipes.finetune_plan import (
    begin_recipe,
    check_settings,
    fit_memory,
    memory_of,
    runtime_given,
    settle_steps,
    usable_bytes,
    with_fit,
)
from foundling.recipes.models import find_origin, load_start
from foundling.recipes.pretraining_mix import read_pretraining
from foundling.recipes.progress import Progress
from foundling.recipes.recipe import Recipe, Request, RolloutSpec
from foundling.recipes.rollouts import Rollouts, Sampler, prompts_of
from foundling.recipes.run import Prepared, Run
from foundling.recipes.training import runtime_of, time_steps
from foundling.runtime.clock import Clock
from foundling.runtime.memory import trim_memory
from foundling.weights.directory import weights_hash
from foundling.weights.loading import load

N_MEASURED = 100
"""held-out prompts that are answered, at most"""
METHODS = ("full", "lora", "qlora", "bias", "top-k")
DEFAULTS = {"grpo": (8, 8), "ppo": (32, 1)}
"""kind -> prompts of a rollout, answers to each"""


def prepare(run: Run, examples: Examples) -> Prepared:
    """The plan within what was given, and a prediction of what it costs."""
    recipe = resolve(run, examples)
    tokenizer = parent_tokenizer(recipe)
    if (fit := fit_memory(recipe, None)).bytes > usable_bytes():
        raise BudgetError(
            f"a step takes at least {fit.bytes / 2**30:.1f} GiB, {usable_bytes() / 2**30:.1f} GiB can be used here; "
            "give a smaller --max-tokens, or --method qlora"
        )
    recipe = with_fit(recipe, fit)
    model, runtime = build_policy(recipe), runtime_of(recipe)
    framing = framing_of(str(recipe.model.directory), tokenizer, model)
    encoded = run.encoded(examples, framing, prompt_seq_len(recipe))
    prompts = prompts_of(examples.train, encoded.train, framing)
    sampler = Sampler(model, framing, recipe.rollout.max_tokens, runtime, recipe.rollout.weights)
    rewards = build_rewards(recipe.rollout.reward, device=runtime.device)
    rewards.check([prompt.row for prompt in prompts])
    if (pretraining := read_pretraining(recipe, tokenizer)) is not None:
        recipe = replace(recipe, objective=replace(recipe.objective, pretraining_hash=pretraining.hash))
    rollouts = Rollouts(sampler, prompts, rewards, recipe, runtime, reference_of(recipe), pretraining)
    with run.clock.phase("probe"):
        run.progress.line("timing a rollout and a few updates")
        start = time.perf_counter()
        rollouts[0]
        rollout = time.perf_counter() - start
        step = time_steps(recipe, model, Repeated(rollouts[0]), objective_of(recipe))
    answers, n_measured = recipe.rollout.n_answers, min(N_MEASURED, len(encoded.held_out))
    once, a_step = 2 * rollout * n_measured / answers, step + rollout / rollouts.updates
    recipe = settle_steps(run, recipe, steps_per_epoch(recipe, len(prompts)), a_step, once)
    t, flops, params = recipe.train, training_flops_per_token(model, recipe.train.seq_len), count_parameters(model)
    del model, sampler, rollouts
    trim_memory()
    seconds = run.clock.elapsed + t.total_steps * a_step + once
    run.memory.sample()
    peak = max(fit.bytes, run.memory.peak)
    prediction = {
        "seconds": round(seconds, 1), "peak_bytes": peak, "joules": estimate(seconds, recipe.runtime.threads, peak),
        "flops": flops * t.tokens, "params": params["total"], "tokens": t.tokens, "step_seconds": round(a_step, 4),
        "train_bytes": examples.train_bytes,
    }  # fmt: skip
    return Prepared(recipe, prediction, tokenizer, build_policy(recipe))


def plan_policy(request: Request, *, progress: Progress, clock: Clock) -> dict[str, Any]:
    """What `foundling align ppo|grpo … --plan` prints: the recipe, and what its method takes. Nothing is written."""
    with tempfile.TemporaryDirectory(prefix="foundling-plan-") as folder:
        run = Run(request, Path(folder), progress, clock)
        try:
            prepared = prepare(run, run.examples())
        finally:
            run.memory.done.set()
    recipe, predicted, model = prepared.recipe, prepared.prediction, prepared.model
    trained, method = sum(p.numel() for p in model.parameters() if p.requires_grad), recipe.adapt.method
    row = {
        "trained": trained, "share": trained / predicted["params"], "micro_batch_size": recipe.train.micro_batch_size,
        "fits": predicted["peak_bytes"] <= usable_bytes(),
        **{name: predicted[name] for name in ("seconds", "step_seconds", "peak_bytes")},
    }  # fmt: skip
    return {"recipe": asdict(recipe), "method": method, "methods": {method: row}}


def resolve(run: Run, examples: Examples) -> Recipe:
    """All but steps and micro-batches. ConfigError for what does not go together."""
    given, kind = run.request.given, run.request.get("objective.kind")
    options = from_dict(AdaptOptions, {"method": DEFAULT_METHOD} | given.get("adapt", {}), where="adapt")
    check_settings(given, options, kind)
    if options.method not in METHODS:
        raise ConfigError(f"'{kind}' learns by the methods {', '.join(METHODS)}, not by '{options.method}'")
    if not run.request.get("rollout.reward"):
        raise ConfigError(f"'{kind}' learns from a reward: give one, such as --reward maths or --reward runs/reward")
    origin = find_origin(given["model"])
    check_kind(origin.model, kind)
    rewards = build_rewards(run.request.get("rollout.reward"))
    hashes = {directory: weights_hash(load(directory)) for directory in rewards.directories}
    recipe = begin_recipe(run, origin, kind, options, runtime_given(run))
    n_prompts, group_size = DEFAULTS[kind]
    reads = origin.model.config.max_seq_len
    max_tokens = run.request.get("rollout.max_tokens", min(RolloutSpec.max_tokens, reads // 2))
    rollout = replace(
        recipe.rollout, n_prompts=recipe.rollout.n_prompts or n_prompts, reward_hashes=hashes,
        group_size=recipe.rollout.group_size or group_size, max_tokens=max_tokens,
    )  # fmt: skip
    if rollout.weights and options.method == "qlora":
        raise ConfigError("--weights copies the weights, which qlora has in 4 bits; leave it out, or use --method lora")
    if kind == "grpo" and (rollout.group_size or 0) < 2:
        raise ConfigError("grpo compares the answers to one prompt: give --group-size 2 or more")
    framing = framing_of(origin.directory or "", parent_tokenizer(recipe), origin.model)
    longest = reads - max_tokens
    if longest < 1:
        raise ConfigError(f"--max-tokens {max_tokens} leaves no token for a prompt; the model reads {reads} in all")
    asked = run.request.get("train.seq_len")
    if asked is not None and asked <= rollout.max_tokens:
        raise ConfigError(
            f"--seq-len {asked} holds prompt and answer: give more than --max-tokens {rollout.max_tokens}"
        )
    asked = asked and asked - rollout.max_tokens
    seq_len = rollout.max_tokens + choose_seq_len(asked, examples, framing, longest, options)
    batch = run.request.get("train.batch_size", rollout.n_answers)
    if rollout.n_answers % batch:
        raise ConfigError(
            f"--batch-size {batch} does not divide the {rollout.n_answers} answers of a rollout "
            f"({rollout.n_prompts} prompts × {rollout.group_size})"
        )
    micro = run.request.get("train.micro_batch_size", min(batch, 8))
    train = replace(recipe.train, seq_len=seq_len, batch_size=batch, micro_batch_size=micro, evaluate_every=None)
    return replace(recipe, rollout=rollout, train=train)


def prompt_seq_len(recipe: Recipe) -> int:
    """The longest prompt that leaves an answer its tokens."""
    return recipe.train.seq_len - recipe.rollout.max_tokens


def steps_per_epoch(recipe: Recipe, n_prompts: int) -> int:
    assert recipe.rollout.n_prompts
    return -(-n_prompts // recipe.rollout.n_prompts) * recipe.rollout.updates(recipe.train.batch_size)


def objective_of(recipe: Recipe) -> PolicyGradient:
    o, ppo = recipe.objective, recipe.objective.kind == "ppo"
    return PolicyGradient(
        clip_low=o.clip_low, clip_high=o.clip_high, kl_coef=0.0 if ppo else o.kl_coef, normalise=o.normalise,
        max_tokens=recipe.rollout.max_tokens, value_coef=o.value_coef if ppo else 0.0,
        pretraining_coef=o.pretraining_coef,
    )  # fmt: skip


def build_policy(recipe: Recipe) -> Any:
    """The model as training starts, for PPO with a value head, in a process that gives freed memory back."""
    t = recipe.train
    spare_memory(memory_of(recipe, None, t.micro_batch_size, t.activation_checkpointing))
    model = build_adapted(recipe, None)
    if recipe.objective.kind == "ppo":
        setattr(model, VALUE_HEAD, ValueHead(recipe.model.fields["d_model"]).to(recipe.runtime.device))
    return model


def reference_of(recipe: Recipe) -> Any:
    """What the policy is compared with: None where it is LoRA's base, else the start, frozen."""
    if recipe.adapt.method in ("lora", "qlora"):
        return None
    assert recipe.model.directory
    return load_start(recipe.model.directory, device=recipe.runtime.device).requires_grad_(False).eval()


class Repeated:
    """One batch for ever: what steps are timed on."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __getitem__(self, n: int) -> Any:
        return self.batch
