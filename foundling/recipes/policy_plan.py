# SPDX-License-Identifier: Apache-2.0
"""The plan of learning from rewards: rollouts, updates and rows; time by one rollout and some updates, memory by an
estimate."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from foundling.adapt.method import stores_rounded
from foundling.adapt.options import DEFAULT_METHOD, AdaptOptions
from foundling.config import from_dict
from foundling.data.examples import Examples
from foundling.errors import BudgetError, ConfigError, DataError
from foundling.evaluate.rewards import Rewards, build_rewards, messages_of
from foundling.models import count_parameters
from foundling.objectives.policy import VALUE_HEAD, PolicyGradient, ValueHead
from foundling.plan.energy import estimate
from foundling.plan.flops import skeleton, training_flops_per_token
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
from foundling.recipes.models import find_origin, load_start, parent_hash
from foundling.recipes.pretraining_mix import read_pretraining
from foundling.recipes.progress import Progress
from foundling.recipes.recipe import Recipe, Request, RolloutSpec
from foundling.recipes.rollouts import SPARE_BYTES, Prompt, Rollouts, Sampler, kv_bytes, prompts_of
from foundling.recipes.run import Prepared, Run
from foundling.recipes.training import runtime_of, time_steps
from foundling.runtime.clock import Clock
from foundling.runtime.memory import trim_memory
from foundling.text.framing import Framing

N_MEASURED = 100
"""held-out prompts that are answered, at most"""
METHODS = ("full", "lora", "qlora", "bias", "top-k")
DEFAULTS = {"grpo": (8, 8, 1), "ppo": (32, 1, 4)}
"""kind -> prompts of a rollout, answers to each, and updates that share them"""


def prepare(run: Run, examples: Examples) -> Prepared:
    """The plan within what was given, and a prediction of what it costs."""
    recipe = resolve(run, examples)
    tokenizer = parent_tokenizer(recipe)
    runtime = runtime_of(recipe)
    rewards = rewards_of(recipe)
    beside = bytes_beside(recipe, rewards)
    fixed = run.request.get("train.micro_batch_size") is not None
    fit = fit_memory(recipe, None, beside=beside, fixed=fixed)
    if fit.bytes > usable_bytes():
        raise BudgetError(
            f"a step takes at least {fit.bytes / 2**30:.1f} GiB, {usable_bytes() / 2**30:.1f} GiB can be used here; "
            "give a smaller --max-tokens, or --method qlora"
        )
    recipe = with_fit(recipe, fit)
    model = build_policy(recipe)
    framing = framing_of(str(recipe.model.directory), tokenizer, model)
    encoded = run.encoded(examples, framing, prompt_seq_len(recipe))
    prompts, held_out = prompts_of(examples.train, encoded.train), prompts_of(examples.held_out, encoded.held_out)
    check_rewards(rewards, [*prompts, *held_out[:N_MEASURED]], recipe)
    sampler = Sampler(model, framing, recipe.rollout.max_tokens, runtime, recipe.rollout.weights)
    if (pretraining := read_pretraining(recipe, tokenizer)) is not None:
        recipe = replace(recipe, objective=replace(recipe.objective, pretraining_hash=pretraining.hash))
    rollouts = Rollouts(sampler, prompts, rewards, recipe, runtime, reference_loader(recipe), pretraining)
    with run.clock.phase("probe"):
        run.progress.line("timing a rollout and a few updates")
        start = time.perf_counter()
        rollouts[0]
        rollout = time.perf_counter() - start
        step = time_steps(recipe, model, Repeated(rollouts[0]), objective_of(recipe))
    answers, n_measured = recipe.rollout.n_answers, min(N_MEASURED, len(encoded.held_out))
    once, a_step = 2 * rollout * n_measured / answers, step + rollout / rollouts.updates
    recipe = settle_steps(run, recipe, steps_per_epoch(recipe, len(prompts)), a_step, once)
    t, params = recipe.train, count_parameters(model)["total"] - value_parameters(model)
    flops = training_flops_per_token(model, t.seq_len) * (1 + passes_forward(recipe) / 3)
    del model, sampler, rollouts
    trim_memory()
    seconds = run.clock.elapsed + t.total_steps * a_step + once
    run.memory.sample()
    peak = max(fit.bytes, run.memory.peak)
    prediction = {
        "seconds": round(seconds, 1), "peak_bytes": peak, "joules": estimate(seconds, recipe.runtime.threads, peak),
        "flops": flops * t.tokens, "params": params, "tokens": t.tokens, "step_seconds": round(a_step, 4),
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
    check_rollout(given, kind)
    if options.method not in METHODS:
        raise ConfigError(f"'{kind}' learns by the methods {', '.join(METHODS)}, not by '{options.method}'")
    if not run.request.get("rollout.reward"):
        raise ConfigError(f"'{kind}' learns from a reward: give one, such as --reward maths or --reward runs/reward")
    origin = find_origin(given["model"])
    check_kind(origin.model, kind)
    rewards = build_rewards(run.request.get("rollout.reward"))
    hashes = {directory: parent_hash(directory) for directory in rewards.directories}
    recipe = begin_recipe(run, origin, kind, options, runtime_given(run))
    n_prompts, group_size, n_updates = DEFAULTS[kind]
    reads = origin.model.config.max_seq_len
    max_tokens = run.request.get("rollout.max_tokens", min(RolloutSpec.max_tokens, reads // 2))
    rollout = replace(
        recipe.rollout, n_prompts=recipe.rollout.n_prompts or n_prompts, reward_hashes=hashes,
        group_size=recipe.rollout.group_size or group_size, max_tokens=max_tokens,
    )  # fmt: skip
    if rollout.weights and options.method == "qlora":
        raise ConfigError("--weights copies the weights, which qlora has in 4 bits; leave it out, or use --method lora")
    if rollout.weights and stores_rounded(options, recipe.runtime.precision):
        raise ConfigError(
            f"--weights copies the weights, which {options.method} keeps rounded in bfloat16; leave it out, or use "
            "--precision float32"
        )
    if rollout.kl_target is not None and not recipe.objective.kl_coef:
        raise ConfigError("--kl-target adapts --kl-coef, which is 0; give it a positive number to begin with")
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
    batch = run.request.get("train.batch_size", max(1, rollout.n_answers // n_updates))
    if rollout.n_answers % batch:
        raise ConfigError(
            f"--batch-size {batch} does not divide the {rollout.n_answers} answers of a rollout "
            f"({rollout.n_prompts} prompts × {rollout.group_size})"
        )
    micro = run.request.get("train.micro_batch_size", min(batch, 8))
    train = replace(recipe.train, seq_len=seq_len, batch_size=batch, micro_batch_size=micro, evaluate_every=None)
    return replace(recipe, rollout=rollout, train=train)


def check_rollout(given: dict[str, Any], kind: str) -> None:
    """ConfigError for a setting that would be ignored."""
    for name, of in (("gae_lambda", "ppo"), ("scale_rewards", "grpo")):
        if kind != of and given.get("rollout", {}).get(name) not in (None, getattr(RolloutSpec, name)):
            raise ConfigError(f"--{name.replace('_', '-')} is for {of}, this is {kind}; leave it out")
    for name in ("evaluate_every", "patience"):
        if given.get("train", {}).get(name):
            raise ConfigError(f"--{name.replace('_', '-')} is for examples, and '{kind}' has none; leave it out")


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


def reference_loader(recipe: Recipe) -> Callable[[], Any] | None:
    """Makes what the policy is compared with, the frozen start; None where that is LoRA's base."""
    directory, device = str(recipe.model.directory), recipe.runtime.device
    if recipe.adapt.method in ("lora", "qlora"):
        return None
    return lambda: load_start(directory, device=device).requires_grad_(False).eval()


def bytes_beside(recipe: Recipe, rewards: Rewards) -> int:
    """Of what is in memory beside the training step: reward models, keys and values while answers are drawn, a copy of
    the weights to draw by, and a reference."""
    model = skeleton(recipe.model.family, recipe.model.fields)
    weights = 4 * count_parameters(model)["total"]
    beside = sum(bytes_of(part.model.model) for part in rewards.parts if part.model is not None)
    beside += SPARE_BYTES + kv_bytes(model, recipe.train.seq_len)
    beside += weights if recipe.rollout.weights else 0
    return beside + (weights if recipe.objective.kl_coef > 0 and reference_loader(recipe) is not None else 0)


def bytes_of(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def check_rewards(rewards: Rewards, prompts: Sequence[Prompt], recipe: Recipe) -> None:
    """DataError for a prompt that a checker cannot score, or that is too long for a reward model with its answer."""
    rewards.check([prompt.row for prompt in prompts])
    for part in rewards.parts:
        if part.model is None:
            continue
        framing, reads = Framing(part.model.tokenizer), part.model.longest
        needed = max(len(framing.chat(messages_of(prompt.row))) for prompt in prompts) + recipe.rollout.max_tokens
        if needed > reads:
            raise DataError(
                f"the reward model {part.name} reads {reads:,} tokens, and the longest prompt with an answer may have "
                f"{needed:,}; give a smaller --max-tokens, or shorter prompts"
            )


def rewards_of(recipe: Recipe) -> Rewards:
    """Checkers find the files that a prompt names beside those of the prompts."""
    source = Path(recipe.data.source)
    folder = source if source.is_dir() else source.parent
    return build_rewards(recipe.rollout.reward, device=recipe.runtime.device, folder=folder)


def value_parameters(model: Any) -> int:
    """Of the value head, which is not published."""
    head = getattr(model, VALUE_HEAD, None)
    return 0 if head is None else sum(p.numel() for p in head.parameters())


def passes_forward(recipe: Recipe) -> int:
    """Over each answer, besides those of the updates: it is drawn, for PPO scored, and scored by the reference."""
    return 1 + (recipe.objective.kind == "ppo") + (recipe.objective.kl_coef > 0)


class Repeated:
    """One batch for ever: what steps are timed on."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __getitem__(self, n: int) -> Any:
        return self.batch
