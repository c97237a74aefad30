# SPDX-License-Identifier: Apache-2.0
"""Learn from rewards: `foundling align ppo|grpo DIR PROMPTS --reward …`. The policy answers prompts, checkers or reward
models say how good the answers are, and the next update makes better ones likelier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from foundling.contracts.records import Metric, Result
from foundling.evaluate.intervals import interval_of
from foundling.evaluate.rewards import Rewards
from foundling.objectives.policy import VALUE_HEAD
from foundling.recipes.adapting import KINDS, framing_of, writer
from foundling.recipes.finetune import data_read
from foundling.recipes.finetune_data import parent_tokenizer
from foundling.recipes.judging import AFTER, BEFORE, generation_of
from foundling.recipes.policy_plan import (
    N_MEASURED,
    build_policy,
    objective_of,
    prepare,
    prompt_seq_len,
    reference_loader,
    rewards_of,
)
from foundling.recipes.pretraining_mix import read_pretraining
from foundling.recipes.publish import Outcome
from foundling.recipes.rollouts import Prompt, Rollouts, Sampler, kl_of, prompts_of
from foundling.recipes.run import Run
from foundling.recipes.training import runtime_of

N_COMPARED = 5
"""held-out prompts that are shown with their answers"""
METRIC = Metric(
    "reward", "reward", False,
    "The mean reward of an answer to each held-out prompt, drawn at temperature 1 as the answers are that it learns "
    "from.",
)  # fmt: skip
TASK = "answers to held-out prompts"


def policy(run: Run) -> dict[str, Any]:
    examples = run.examples()
    recipe, tokenizer = run.settle(examples, lambda: prepare(run, examples), parent_tokenizer)
    model, kind = run.model(build_policy), recipe.objective.kind
    assert recipe.model.directory
    framing, runtime = framing_of(recipe.model.directory, tokenizer, model), runtime_of(recipe)
    encoded = run.encoded(examples, framing, prompt_seq_len(recipe))
    rewards = rewards_of(recipe)
    sampler = Sampler(model, framing, recipe.rollout.max_tokens, runtime, recipe.rollout.weights)
    prompts, held_out = prompts_of(examples.train, encoded.train), prompts_of(examples.held_out, encoded.held_out)
    pretraining = read_pretraining(recipe, tokenizer)
    rollouts = Rollouts(sampler, prompts, rewards, recipe, runtime, reference_loader(recipe), pretraining)
    judge = PolicyJudge(held_out[:N_MEASURED], rewards, rollouts)
    with run.clock.phase("evaluate"):
        run.progress.line("measuring the model before")
        before = judge.measure(BEFORE)
    run.train(model, objective_of(recipe), rollouts)
    with run.measuring("measuring it after"):
        after = judge.measure(AFTER)
    if kind == "ppo":  # it is no part of what is published
        delattr(model, VALUE_HEAD)
    figures, earlier = after.figures, before.figures
    run.progress.line(f"held out: reward {figures['reward']:.4g}, before {earlier['reward']:.4g}")
    return run.publish(
        Outcome(
            kind=KINDS[kind], model=model, tokenizer=tokenizer, data=data_read(examples, encoded), metric=METRIC,
            figures=figures, loss_unit="per token", baselines={"before": earlier["reward"]},
            results=[*before.results, *after.results], comparisons=judge.comparisons(before, after),
            write_model=writer(recipe, None, run.out), generation=generation_of(model, framing, recipe.model.directory),
            next_commands=[("foundling chat {}", "talk to it")],
        )
    )  # fmt: skip


@dataclass
class Measured:
    figures: dict[str, float]
    results: list[Result]
    texts: list[str]


@dataclass
class PolicyJudge:
    prompts: list[Prompt]
    rewards: Rewards
    rollouts: Rollouts

    def measure(self, subject: str) -> Measured:
        """One answer to each prompt, drawn by the same seeds each time: the rewards, the nats by which the policy has
        left its reference, and the length."""
        drawn = self.rollouts.sampler.draw(self.prompts, range(len(self.prompts)))
        parts = self.rewards.by_part([prompt.row for prompt in self.prompts], drawn.texts)
        completions, rollouts = drawn.completions, self.rollouts
        completions.columns["old_logprobs"], _ = rollouts.score(rollouts.model, completions)
        completions.columns["reference_logprobs"] = rollouts.reference_logprobs(completions)
        numbers = {"reward": self.rewards.summed(parts)}
        numbers |= {f"reward/{name}": values for name, values in parts.items() if len(parts) > 1}
        numbers["kl_per_answer"] = kl_of(completions)
        numbers["length"] = [float(completions.length(i)) for i in range(len(completions))]
        results = list[Result]()
        for name, each in numbers.items():
            low, high, method = interval_of(each)
            results.append(Result(TASK, name, float(np.mean(each)), len(each), subject, low, high, method))
        return Measured({r.metric: r.value or 0.0 for r in results}, results, drawn.texts)

    def comparisons(self, before: Measured, after: Measured) -> list[dict[str, str]]:
        shown = zip(self.prompts, before.texts, after.texts, strict=True)
        return [
            {"prompt": p.row["prompt"], "reference": str(p.row.get("answer", "")), "before": old, "after": new}
            for p, old, new in list(shown)[:N_COMPARED]
        ]
