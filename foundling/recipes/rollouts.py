# SPDX-License-Identifier: Apache-2.0
"""A policy's own completions as training batches: drawn by the engine from the policy as it is, rewarded, and packed
into rows (objectives/policy.py).

Rollout i is drawn when its first batch is asked for, which is right before the update that learns from it: from (seed,
i) and the weights alone. A checkpoint holds the rollout under way, so a resumed run learns from the same completions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foundling.adapt.added import merge, unmerge, wrapping
from foundling.adapt.lora import without_lora
from foundling.contracts.data import Batch
from foundling.data.encode import prompt_ids
from foundling.data.encoded import EncodedSplit
from foundling.data.kinds import PROMPT
from foundling.data.transforms.examples import pack, rounded
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.request import Completion, Request, sample_seed
from foundling.errors import DataError
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
from foundling.runtime.device import Runtime
from foundling.runtime.memory import trim_memory
from foundling.runtime.mode import evaluation_mode
from foundling.text.framing import Framing

AT_ONCE = 64
"""completions that the engine draws at once"""
STEP_TOKENS = 1024
CACHE_BYTES = 4 << 30
"""of keys and values, at most"""


class Prompt(NamedTuple):
    ids: list[int]
    row: dict[str, Any]
    """what the rewards read"""


def prompts_of(examples: Sequence[Any], split: EncodedSplit, framing: Framing) -> list[Prompt]:
    """Those that fit, with what the rewards read of them."""
    prompts = list[Prompt]()
    for place in split.places.tolist():
        fields = examples[place].fields
        ids = prompt_ids(examples[place], PROMPT, framing)
        prompts.append(Prompt(ids, {**fields["row"], "messages": fields["messages"]}))
    return prompts


@dataclass
class Drawn:
    """Completions of prompts, in order: `tokens` of prompt and completion with the token that ended it, the length of
    the prompt, and columns (C,) of the tokens of the completion."""

    tokens: list[Tensor]
    n_prompt: list[int]
    texts: list[str]
    truncated: list[bool]
    """ended by its length alone"""
    columns: dict[str, list[Tensor]] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def length(self, i: int) -> int:
        return len(self.tokens[i]) - self.n_prompt[i]


class Sampler:
    """Draws completions by the engine, which computes with the very modules that are trained: no copy of the weights,
    and no prefix of before an update (`Engine.forget_prefixes`). With `weights`, native code draws from a copy in that
    type, which is made anew each time. At temperature 1 and without truncation, so that what is drawn from is what is
    learnt."""

    def __init__(
        self, model: Any, framing: Framing, max_tokens: int, runtime: Runtime, weights: str | None = None
    ) -> None:
        self.model, self.framing, self.max_tokens, self.runtime = model, framing, max_tokens, runtime
        self.weights = weights
        self._engine: Engine | None = None

    def engine(self) -> Engine:
        """With the weights as they are. GenerationError where native code cannot compute the model."""
        options = EngineOptions(
            self.weights, None if self.weights else False, max_num_seqs=AT_ONCE, max_step_tokens=STEP_TOKENS,
            memory=CACHE_BYTES,
        )  # fmt: skip
        if self.weights and wrapping(self.model):
            merge(self.model, reversible=True)
            try:
                return Engine(self.model, options)
            finally:
                unmerge(self.model)
        if self.weights or self._engine is None:
            self._engine = Engine(self.model, options)
        else:
            self._engine.forget_prefixes()
        return self._engine

    def draw(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Drawn:
        """One completion of each prompt. DataError where one fails."""
        engine = self.engine()
        requests = [
            Request(
                prompt.ids, min(self.max_tokens, self.model.config.max_seq_len - len(prompt.ids)), seed=seed,
                stop=self.framing.ends, decode=self.framing.answer(prompt.ids), logprobs=0,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]  # fmt: skip
        with self.runtime.autocast(), torch.compiler.set_stance("force_eager"):
            completions = engine.generate(requests)
        return self._drawn(requests, completions)

    def _drawn(self, requests: Sequence[Request], completions: Sequence[Completion]) -> Drawn:
        drawn, logprobs = Drawn([], [], [], []), list[Tensor]()
        for request, completion in zip(requests, completions, strict=True):
            if completion.error is not None:
                raise DataError(f"a completion failed: {completion.error}")
            assert completion.logprobs is not None
            ids, own = list(completion.tokens), list(completion.logprobs)
            if completion.end is not None:
                ids, own = [*ids, completion.end[0]], [*own, completion.end[1]]
            drawn.tokens.append(torch.tensor([*request.prompt, *ids]))
            drawn.n_prompt.append(len(request.prompt))
            drawn.texts.append(completion.text or "")
            drawn.truncated.append(completion.finish_reason == "length")
            logprobs.append(torch.tensor(own))
        drawn.columns["sampler_logprobs"] = logprobs
        return drawn


def packed_batch(drawn: Drawn, which: Sequence[int], pad: int) -> tuple[Batch, list[tuple[int, int, int]]]:
    """Completions of these numbers packed into rows, longest first: tokens, targets, documents, loss_mask (B, T) and
    their columns; and where the tokens of each lie: (number, row, position of its first target)."""
    order = sorted(which, key=lambda i: -len(drawn.tokens[i]))
    lengths = np.array([len(drawn.tokens[i]) - 1 for i in order])
    width = rounded(int(lengths[0]))
    rows = [[order[place] for place in row] for row in pack(lengths, width)]
    tokens, targets = (torch.full((len(rows), width), pad) for _ in range(2))
    documents = torch.full((len(rows), width), -1)
    loss_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    columns = {name: torch.zeros(len(rows), width) for name in drawn.columns}
    places = list[tuple[int, int, int]]()
    for row, numbers in enumerate(rows):
        start = 0
        for document, i in enumerate(numbers):
            ids, first = drawn.tokens[i], start + drawn.n_prompt[i] - 1
            at, answer = slice(start, start + len(ids) - 1), slice(first, first + drawn.length(i))
            tokens[row, at], targets[row, at], documents[row, at] = ids[:-1], ids[1:], document
            loss_mask[row, answer] = True
            for name, column in columns.items():
                column[row, answer] = drawn.columns[name][i]
            places.append((i, row, first))
            start += len(ids) - 1
    named = {"tokens": tokens, "targets": targets, "documents": documents, "loss_mask": loss_mask}
    return named | columns, places


class Rollouts:
    """Batches for one update each, resumed by `state_dict`."""

    def __init__(
        self,
        sampler: Sampler,
        prompts: Sequence[Prompt],
        rewards: Rewards,
        recipe: Recipe,
        runtime: Runtime,
        reference: Any = None,
        pretraining: PretrainingText | None = None,
    ) -> None:
        """`reference`: a frozen model; None where the policy is one of LoRA, whose base it is."""
        self.sampler, self.model, self.prompts, self.rewards = sampler, sampler.model, prompts, rewards
        self.recipe, self.spec, self.reference, self.runtime = recipe, recipe.rollout, reference, runtime
        self.pretraining = pretraining
        assert recipe.rollout.n_prompts and recipe.rollout.group_size, "they are filled in when a recipe is resolved"
        self.n_prompts, self.group_size = recipe.rollout.n_prompts, recipe.rollout.group_size
        self.pad, self.kl_coef = sampler.framing.tokenizer.eos, recipe.objective.kl_coef
        self.updates = self.spec.updates(recipe.train.batch_size)
        self.current: Drawn | None = None
        self.number = -1

    def __getitem__(self, n: int) -> Batch:
        number, update = divmod(n, self.updates)
        if number != self.number:
            self.current, self.number = self._roll_out(number), number
        assert self.current is not None
        drawn, size = self.current, self.recipe.train.batch_size
        epoch, part = divmod(update, len(drawn) // size)
        order = self._rng("order", number, epoch).permutation(len(drawn))
        batch, _ = packed_batch(drawn, order[part * size : (part + 1) * size].tolist(), self.pad)
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
        n, chosen = self.n_prompts, list[Prompt]()
        for place in range(number * n, (number + 1) * n):
            epoch, at = divmod(place, len(self.prompts))
            chosen.append(self.prompts[int(self._rng("prompts", epoch).permutation(len(self.prompts))[at])])
        return chosen

    def _roll_out(self, number: int) -> Drawn:
        """Draws, rewards and scores the completions of a rollout, and computes their advantages."""
        prompts = [prompt for prompt in self.prompts_of(number) for _ in range(self.group_size)]
        first = int(self._rng("draws", number).integers(1 << 62))
        drawn = self.sampler.draw(prompts, [sample_seed(first, k) for k in range(len(prompts))])
        rows = [prompt.row for prompt in prompts]
        parts = self.rewards.by_part(rows, drawn.texts)
        drawn.rewards = self.rewards.summed(parts)
        numbers = {"truncated": drawn.truncated, "kl_coef": [self.kl_coef] * len(drawn)}
        for name, each in (numbers | (parts if len(parts) > 1 else {})).items():
            drawn.columns[LOGGED + name] = [torch.full((drawn.length(i),), float(x)) for i, x in enumerate(each)]
        self._score(drawn)
        if "reference_logprobs" in drawn.columns and self.spec.kl_target is not None:
            self.kl_coef = adapted_kl_coef(self.kl_coef, float(np.mean(kl_of(drawn))), self.spec.kl_target)
        trim_memory()
        return drawn

    def _score(self, drawn: Drawn) -> None:
        """Adds the columns that the objective reads."""
        ppo, columns = self.recipe.objective.kind == "ppo", drawn.columns
        lengths = [drawn.length(i) for i in range(len(drawn))]
        exact = self.runtime.precision == "float32" and not self.spec.weights
        if ppo or (self.updates > 1 and not exact):
            columns["old_logprobs"], values = self.score(self.model, drawn)
        else:
            columns["old_logprobs"], values = columns["sampler_logprobs"], []
        if self.kl_coef > 0:
            columns["reference_logprobs"] = self.reference_logprobs(drawn)
        if ppo:
            self._estimate_advantages(drawn, values)
        else:
            rewards = torch.tensor(drawn.rewards, dtype=torch.float64).view(-1, self.group_size)
            advantages = group_advantages(rewards, scale=self.spec.scale_rewards).flatten().float()
            columns["advantages"] = [a.repeat(n) for a, n in zip(advantages, lengths, strict=True)]
        columns["share"] = [torch.full((n,), 1 / n) for n in lengths]
        columns["rewards"] = [torch.full((n,), r) for r, n in zip(drawn.rewards, lengths, strict=True)]

    def _estimate_advantages(self, drawn: Drawn, values: list[Tensor]) -> None:
        """The reward comes with the last token; each token costs its log-ratio to the reference (Ouyang et al. 2022,
        equation 2)."""
        columns, advantages = drawn.columns, list[Tensor]()
        columns["old_values"], columns["returns"] = values, []
        for i, value in enumerate(values):
            rewards = torch.zeros_like(value)
            if "reference_logprobs" in columns:
                rewards -= self.kl_coef * (columns["old_logprobs"][i] - columns["reference_logprobs"][i])
            rewards[-1] += drawn.rewards[i]
            advantage, returns = generalised_advantages(rewards, value, gamma=1.0, lam=self.spec.gae_lambda)
            advantages.append(advantage)
            columns["returns"].append(returns)
        columns["advantages"] = whitened(advantages)

    def reference_logprobs(self, drawn: Drawn) -> list[Tensor]:
        with without_lora(self.model) if self.reference is None else nullcontext():
            return self.score(self.model if self.reference is None else self.reference, drawn)[0]

    def score(self, model: Any, drawn: Drawn) -> tuple[list[Tensor], list[Tensor]]:
        """Log-probabilities of the tokens of each completion and, of a model with a value head, values before them, by
        a training forward pass."""
        logprobs, values = ([torch.empty(0)] * len(drawn) for _ in range(2))
        micro, runtime = self.recipe.train.micro_batch_size, self.runtime
        bare = Drawn(drawn.tokens, drawn.n_prompt, drawn.texts, drawn.truncated)
        batch, places = packed_batch(bare, range(len(drawn)), self.pad)
        for at in range(0, len(batch["tokens"]), micro):
            part = {name: column[at : at + micro].to(runtime.device) for name, column in batch.items()}
            with evaluation_mode(model), runtime.autocast(), torch.compiler.set_stance("force_eager"):
                scored = [None if t is None else t.cpu() for t in score_tokens(model, part)]
            for i, row, first in places:
                for column, out in zip(scored, (logprobs, values), strict=True):
                    if column is not None and at <= row < at + micro:
                        out[i] = column[row - at, first : first + drawn.length(i)].clone()
        return logprobs, values

    def state_dict(self) -> dict[str, Any]:
        drawn = self.current
        state = {"number": self.number, "kl_coef": self.kl_coef}
        if drawn is None:
            return state
        lengths = torch.tensor([len(tokens) for tokens in drawn.tokens])
        columns = {name: torch.cat(column) for name, column in drawn.columns.items()}
        return state | {
            "tokens": torch.cat(drawn.tokens), "lengths": lengths, "n_prompt": list(drawn.n_prompt),
            "columns": columns,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number, self.kl_coef = int(state["number"]), float(state["kl_coef"])
        if "tokens" not in state:
            return
        n_prompt, lengths = state["n_prompt"], state["lengths"].tolist()
        tokens = list(state["tokens"].split(lengths))
        answers = [length - n for length, n in zip(lengths, n_prompt, strict=True)]
        columns = {name: list(column.split(answers)) for name, column in state["columns"].items()}
        empty = [""] * len(tokens)  # what only the drawing needs
        self.current = Drawn(tokens, n_prompt, empty, [False] * len(tokens), columns)


def kl_of(drawn: Drawn) -> list[float]:
    """Nats of each completion, the sum of `k3` over its tokens, whose mean is the KL divergence of completions."""
    columns = drawn.columns
    policy = columns.get("old_logprobs", columns["sampler_logprobs"])
    return [float(k3(own, other).sum()) for own, other in zip(policy, columns["reference_logprobs"], strict=True)]
