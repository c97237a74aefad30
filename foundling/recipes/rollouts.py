# SPDX-License-Identifier: Apache-2.0
"""A policy's own completions as training batches: drawn by the engine from the policy as it is, rewarded, and packed
into rows (objectives/policy.py).

Rollout i is drawn when its first batch is asked for, which is right before the update that learns from it: from (seed,
i) and the weights alone. A checkpoint holds the rollout under way, so a resumed run learns from the same completions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foundling.adapt.added import merge, unmerge, wrapping
from foundling.adapt.lora import without_lora
from foundling.contracts.data import Batch
from foundling.data.encoded import EncodedSplit
from foundling.data.transforms.completions import Completions, pack_completions
from foundling.decode.engine.block_manager import count_blocks
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.engine.torch_runner import BLOCK_SIZE, TorchRunner
from foundling.decode.request import Completion, Request, max_completion, sample_seed
from foundling.errors import DataError, Interrupted
from foundling.evaluate.rewards import Rewards
from foundling.objectives.policy import (
    LOGGED,
    adapted_kl_coef,
    generalised_advantages,
    group_advantages,
    k3,
    score_tokens,
    whitened,
)
from foundling.recipes.pretraining_mix import PretrainingText
from foundling.recipes.recipe import Recipe
from foundling.runtime import signals
from foundling.runtime.device import Runtime
from foundling.runtime.memory import trim_memory
from foundling.runtime.mode import evaluation_mode
from foundling.text.framing import Framing

MAX_NUM_SEQS, STEP_TOKENS = 64, 1024
"""completions that the engine draws at once, and tokens that it computes in a step"""
SPARE_BYTES = 64 << 20
"""of the engine, beside the keys and values of all that it draws at once: for saved states"""


class Prompt(NamedTuple):
    ids: list[int]
    row: dict[str, Any]
    """what the rewards read"""


class Drawn(NamedTuple):
    completions: Completions
    """with `sampler_logprobs`"""
    texts: list[str]
    truncated: list[bool]
    """whether it ended by its length alone"""


def prompts_of(examples: Sequence[Any], split: EncodedSplit) -> list[Prompt]:
    """Those that fit, with what the rewards read of them."""
    prompts = list[Prompt]()
    for number, place in enumerate(split.places.tolist()):
        fields = examples[place].fields
        prompts.append(
            Prompt(split.example(number)["tokens"].tolist(), {**fields["row"], "messages": fields["messages"]})
        )
    return prompts


class Sampler:
    """Draws completions by an engine of its own each time, which computes with the very modules that are trained: there
    is no copy of the weights, and nothing that an older policy has computed. With `weights`, native code draws from a
    copy in that type. At temperature 1 and without truncation, so that what is drawn from is what is learnt."""

    def __init__(
        self, model: Any, framing: Framing, max_tokens: int, runtime: Runtime, weights: str | None = None
    ) -> None:
        self.model, self.framing, self.max_tokens, self.runtime = model, framing, max_tokens, runtime
        self.weights = weights

    def draw(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Drawn:
        """One completion of each prompt. DataError where one fails, GenerationError where native code cannot compute
        the model, Interrupted at a signal that has been noted."""
        requests = [
            Request(
                prompt.ids, self._most(prompt.ids), seed=seed, stop=self.framing.ends,
                decode=self.framing.answer(prompt.ids), logprobs=0,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]  # fmt: skip
        engine = self._engine(max((len(request.prompt) + request.max_tokens for request in requests), default=1))
        with self.runtime.autocast(), torch.compiler.set_stance("force_eager"):
            generated = dict[int, Completion]()
            for output in engine.stream(requests):
                if output.completion is not None:
                    generated[output.request_id] = output.completion
                if (number := signals.noted()) is not None:  # the rollout is drawn again, bit for bit
                    raise Interrupted(number)
        drawn, logprobs = Drawn(Completions([], []), [], []), list[Tensor]()
        for i, request in enumerate(requests):
            completion = generated[i]
            if completion.error is not None:
                raise DataError(f"a completion failed: {completion.error}")
            assert completion.logprobs is not None
            ids, own = list(completion.tokens), list(completion.logprobs)
            if completion.end is not None:
                ids, own = [*ids, completion.end[0]], [*own, completion.end[1]]
            drawn.completions.tokens.append(torch.tensor([*request.prompt, *ids]))
            drawn.completions.n_prompt.append(len(request.prompt))
            drawn.texts.append(completion.text or "")
            drawn.truncated.append(completion.finish_reason == "length")
            logprobs.append(torch.tensor(own))
        drawn.completions.columns["sampler_logprobs"] = logprobs
        return drawn

    def _most(self, prompt: Sequence[int]) -> int:
        """Tokens that a completion of this prompt may have."""
        most = max_completion(self.model, prompt)
        return self.max_tokens if most is None else min(self.max_tokens, most)

    def _engine(self, longest: int) -> Engine:
        """For texts of at most `longest` tokens."""
        memory = SPARE_BYTES + kv_bytes(self.model, longest)
        native = None if self.weights else False
        options = EngineOptions(
            self.weights, native, max_num_seqs=MAX_NUM_SEQS, max_step_tokens=STEP_TOKENS, memory=memory
        )
        if not self.weights or not wrapping(self.model):
            return Engine(self.model, options)
        merge(self.model, reversible=True)
        try:
            return Engine(self.model, options)
        finally:
            unmerge(self.model)


def kv_bytes(model: Any, longest: int) -> int:
    """Of keys and values of all completions that are drawn at once."""
    return MAX_NUM_SEQS * count_blocks(longest, BLOCK_SIZE) * TorchRunner.block_bytes(model)


class Rollouts:
    """Batches for one update each, resumed by `state_dict`."""

    def __init__(
        self,
        sampler: Sampler,
        prompts: Sequence[Prompt],
        rewards: Rewards,
        recipe: Recipe,
        runtime: Runtime,
        load_reference: Callable[[], Any] | None = None,
        pretraining: PretrainingText | None = None,
    ) -> None:
        """`load_reference` makes a frozen model; None where the policy is one of LoRA, whose base it is."""
        self.sampler, self.model, self.prompts, self.rewards = sampler, sampler.model, prompts, rewards
        self.recipe, self.spec, self.runtime = recipe, recipe.rollout, runtime
        self.pretraining, self.load_reference = pretraining, load_reference
        assert recipe.rollout.n_prompts and recipe.rollout.group_size, "they are filled in when a recipe is resolved"
        self.n_prompts, self.group_size = recipe.rollout.n_prompts, recipe.rollout.group_size
        self.pad, self.kl_coef = sampler.framing.tokenizer.eos, recipe.objective.kl_coef
        self.exact = runtime.precision == "float32" and not recipe.rollout.weights
        """whether the engine computes the probabilities of the training pass"""
        self.updates = self.spec.updates(recipe.train.batch_size)
        self.current: Completions | None = None
        self.number = -1
        self._reference: Any = None
        self._order = lru_cache(maxsize=2)(lambda epoch: self._rng("prompts", epoch).permutation(len(self.prompts)))

    def __getitem__(self, n: int) -> Batch:
        number, update = divmod(n, self.updates)
        if number != self.number:
            self.current, self.number = self._roll_out(number), number
        assert self.current is not None
        completions, size = self.current, self.recipe.train.batch_size
        epoch, part = divmod(update, len(completions) // size)
        order = self._rng("order", number, epoch).permutation(len(completions))
        batch, _ = pack_completions(completions, order[part * size : (part + 1) * size].tolist(), self.pad)
        if update == 0:  # the policy is still the one that they were drawn from
            batch.pop("old_logprobs", None)
        if self.pretraining:
            batch |= self.pretraining.columns(len(batch["tokens"]), self._rng("pretraining", n))
        return batch

    def _rng(self, *of: Any) -> np.random.Generator:
        name = f"rollouts {self.recipe.seed} {of}".encode()
        return np.random.default_rng(np.frombuffer(hashlib.sha256(name).digest(), dtype=np.uint32))

    def prompts_of(self, number: int) -> list[Prompt]:
        """Each once in an epoch, in a new order."""
        first, n = number * self.n_prompts, len(self.prompts)
        places = [divmod(place, n) for place in range(first, first + self.n_prompts)]
        return [self.prompts[int(self._order(epoch)[at])] for epoch, at in places]

    def _roll_out(self, number: int) -> Completions:
        """Draws, rewards and scores the completions of a rollout, and computes their advantages."""
        prompts = [prompt for prompt in self.prompts_of(number) for _ in range(self.group_size)]
        first = int(self._rng("draws", number).integers(1 << 62))
        drawn = self.sampler.draw(prompts, [sample_seed(first, k) for k in range(len(prompts))])
        parts = self.rewards.by_part([prompt.row for prompt in prompts], drawn.texts)
        rewards, completions = self.rewards.summed(parts), drawn.completions
        numbers: dict[str, Sequence[float]] = {"truncated": drawn.truncated, "kl_coef": [self.kl_coef] * len(prompts)}
        if len(parts) > 1:
            numbers |= {f"reward/{name}": values for name, values in parts.items()}
        for name, values in numbers.items():
            completions.add_constant(LOGGED + name, values)
        self._score(completions, rewards)
        if self.spec.kl_target is not None:
            self.kl_coef = adapted_kl_coef(self.kl_coef, float(np.mean(kl_of(completions))), self.spec.kl_target)
        trim_memory()
        return completions

    def _score(self, completions: Completions, rewards: list[float]) -> None:
        """Adds the columns that the objective reads."""
        ppo, columns = self.recipe.objective.kind == "ppo", completions.columns
        values = list[Tensor]()
        if ppo or (not self.exact and (self.updates > 1 or self.spec.kl_target is not None)):
            columns["old_logprobs"], values = self.score(self.model, completions)
        else:
            columns["old_logprobs"] = columns["sampler_logprobs"]
        if self.kl_coef > 0:
            columns["reference_logprobs"] = self.reference_logprobs(completions)
        if ppo:
            self._estimate_advantages(completions, rewards, values)
        else:
            groups = torch.tensor(rewards, dtype=torch.float64).view(-1, self.group_size)
            advantages = group_advantages(groups, scale=self.spec.scale_rewards)
            completions.add_constant("advantages", advantages.flatten().tolist())
            completions.add_constant("kl_coef", [self.kl_coef] * len(completions))
        completions.add_constant("share", [1 / completions.length(i) for i in range(len(completions))])
        completions.add_constant("rewards", rewards)

    def _estimate_advantages(self, completions: Completions, rewards: list[float], values: list[Tensor]) -> None:
        """The reward comes with the last token; each token costs its log-ratio to the reference (Ouyang et al. 2022,
        equation 2)."""
        columns, advantages = completions.columns, list[Tensor]()
        columns["returns"] = []
        for i, value in enumerate(values):
            of_tokens = torch.zeros_like(value)
            if "reference_logprobs" in columns:
                of_tokens -= self.kl_coef * (columns["old_logprobs"][i] - columns["reference_logprobs"][i])
            of_tokens[-1] += rewards[i]
            advantage, returns = generalised_advantages(of_tokens, value, gamma=1.0, lam=self.spec.gae_lambda)
            advantages.append(advantage)
            columns["returns"].append(returns)
        columns["advantages"] = whitened(advantages)

    def reference_logprobs(self, completions: Completions) -> list[Tensor]:
        """Of the tokens of each completion, by the model that the policy started from. It stays in memory where
        updates read it."""
        if self.load_reference is None:
            with without_lora(self.model):
                return self.score(self.model, completions)[0]
        reference = self._reference or self.load_reference()
        if self.recipe.objective.kl_coef > 0:
            self._reference = reference
        return self.score(reference, completions)[0]

    def score(self, model: Any, completions: Completions) -> tuple[list[Tensor], list[Tensor]]:
        """Log-probabilities of the tokens of each completion and, of a model with a value head, values before them, by
        a training forward pass."""
        logprobs, values = ([torch.empty(0)] * len(completions) for _ in range(2))
        micro, runtime = self.recipe.train.micro_batch_size, self.runtime
        batch, places = pack_completions(completions, range(len(completions)), self.pad, with_columns=False)
        for at in range(0, len(batch["tokens"]), micro):
            part = {name: column[at : at + micro].to(runtime.device) for name, column in batch.items()}
            with evaluation_mode(model), runtime.autocast(), torch.compiler.set_stance("force_eager"):
                scored = [None if t is None else t.cpu() for t in score_tokens(model, part)]
            for i, row, first in places:
                for column, out in zip(scored, (logprobs, values), strict=True):
                    if column is not None and at <= row < at + micro:
                        out[i] = column[row - at, first : first + completions.length(i)].clone()
        return logprobs, values

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"number": self.number, "kl_coef": self.kl_coef}
        if self.current is None:
            return state
        columns = {name: torch.cat(column) for name, column in self.current.columns.items()}
        lengths = [len(tokens) for tokens in self.current.tokens]
        return state | {
            "tokens": torch.cat(self.current.tokens), "lengths": lengths, "n_prompt": list(self.current.n_prompt),
            "columns": columns,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number, self.kl_coef = int(state["number"]), float(state["kl_coef"])
        if "tokens" in state:
            lengths, n_prompt = state["lengths"], state["n_prompt"]
            answers = [length - n for length, n in zip(lengths, n_prompt, strict=True)]
            columns = {name: list(column.split(answers)) for name, column in state["columns"].items()}
            self.current = Completions(list(state["tokens"].split(lengths)), n_prompt, columns)


def kl_of(completions: Completions) -> list[float]:
    """Nats of each completion, the sum of `k3` over its tokens, whose mean is the KL divergence of completions."""
    columns = completions.columns
    policy = columns.get("old_logprobs", columns["sampler_logprobs"])
    return [float(k3(own, other).sum()) for own, other in zip(policy, columns["reference_logprobs"], strict=True)]
