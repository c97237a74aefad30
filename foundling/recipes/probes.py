# SPDX-License-Identifier: Apache-2.0
"""What the plan of a text run measures: this machine, the corpus, a step of the model that is then trained."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

from foundling.blocks.init import initialise
from foundling.data.ingest import Corpus
from foundling.data.loader import PackedBatches, evaluation_batches
from foundling.data.sampling import sample_spans, sample_text
from foundling.data.shards import TokenArray
from foundling.data.tokens import bytes_per_token, scale_sample
from foundling.evaluate.perplexity import score
from foundling.models import build, family
from foundling.objectives.causal import Causal
from foundling.plan import law
from foundling.plan.flops import skeleton, training_flops_per_token
from foundling.plan.memory import MemoryEstimate, spare_memory
from foundling.plan.plan import StepShape
from foundling.plan.probe import (
    PROXY_SIZE,
    PROXY_STEP_TOKENS,
    PROXY_STEPS,
    RandomBatches,
    StepSpec,
    fit_step_time,
    proxy_run,
    step_seconds,
)
from foundling.recipes.learning import EVALUATE_ROWS, EVALUATE_STRIDE, POSITIONS
from foundling.recipes.models import Origin, draw_start, load_parent, measured_as
from foundling.recipes.recipe import ObjectiveSpec, Recipe
from foundling.recipes.run import Run
from foundling.recipes.sizes import rows_for
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.train.options import OptimOptions
from foundling.train.schedule import Schedule

PROXY_BYTES = 1_000_000
"""Text that the windows of a proxy run are taken from."""
JUDGED_BYTES = 200_000
"""Held-out text that it is measured on."""
STEP_SHARE, MOST_STEP_SECONDS = 0.015, 6.0
"""A step is timed for this share of the run's expected time, and no longer than this."""
PROXY_OPTIM = OptimOptions(learning_rate=0.01)
"""What the loss law was calibrated with."""


class TextProbes:
    """Probes of a text run. The model that is timed is the one that is trained afterwards."""

    def __init__(
        self, run: Run, corpus: Corpus, tokenizer: Tokenizer, spec: StepSpec, origin: Origin, objective: ObjectiveSpec
    ) -> None:
        self.run, self.corpus, self.spec, self.origin, self.kind = run, corpus, spec, origin, objective.kind
        self.measured = measured_as(objective.kind, spec.family)
        self.model: Any = None
        self.buffers: dict[str, Any] = {}
        self.per_token = bytes_per_token(corpus, tokenizer)
        with run.clock.phase("probe"):
            run.progress.line("measuring this machine")
            small, large = self._sized(*PROXY_SIZE, tokenizer, objective), self._sized(256, 2, tokenizer, objective)
            seconds = None
            if self.kind == "causal":
                self.facts, seconds = corpus_facts(corpus, tokenizer, small)
            else:
                scale = law.compressibility(scale_sample(corpus))
                self.facts = law.Corpus(corpus.train_bytes, self.per_token, scale, law.TYPICAL * scale)
            self.frozen = 0.0  # seconds a token of a teacher, whatever the student
            if self.kind == "distill":
                # the states of an encoder are compared with its teacher's: no proxy of another width can be
                own = small if self.measured == "causal" else self._shaped(spec.fields)
                both, alone = (step_seconds(s, least_seconds=0.2) for s in (own, replace(own, objective=Causal())))
                self.frozen = max(0.0, both - alone) / (own.batch_size * own.seq_len)
                small, large = (replace(s, objective=Causal()) for s in (small, large))
            self.slope, self.per_width = fit_step_time(small, large, seconds)

    def _sized(self, d_model: int, n_layers: int, tokenizer: Tokenizer, objective: ObjectiveSpec) -> StepSpec:
        longest = max(self.spec.seq_len, self.spec.target_len or 0)
        return self._shaped(
            family(self.spec.family).module.sized(rows_for(tokenizer, objective), longest, d_model, n_layers)
        )

    def _shaped(self, fields: dict[str, Any]) -> StepSpec:
        rows = max(1, PROXY_STEP_TOKENS // self.spec.seq_len)
        return replace(self.spec, fields=fields, batch_size=rows, micro_batch_size=rows)

    def elapsed(self) -> float:
        return self.run.clock.elapsed

    def seconds_per_token(self, flops: int, fields: dict[str, Any]) -> float:
        return self.frozen + self.slope * flops + self.per_width * fields["d_model"] * fields["n_layers"]

    def step_seconds(self, shape: StepShape, memory: MemoryEstimate) -> float:
        spare_memory(memory)
        runtime = replace(self.spec.runtime, compile=shape.compile)
        self.spec = spec = replace(
            self.spec, fields=shape.fields, runtime=runtime, batch_size=shape.batch_size,
            micro_batch_size=shape.micro_batch_size, activation_checkpointing=shape.activation_checkpointing,
        )  # fmt: skip
        self.model = self.origin.model
        if self.model is None:
            self.model = build(spec.family, device=runtime.device, **shape.fields)
            initialise(self.model, generator("probe"))
        elif runtime.device != "cpu":
            self.model.to(runtime.device)
        self.buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        least = min(MOST_STEP_SECONDS, STEP_SHARE * self._expected_seconds(shape))
        if shape.compile:
            self.run.progress.line("compiling the layers")
        with self.run.clock.phase("compile" if shape.compile else "probe"):
            return step_seconds(spec, least_seconds=least, model=self.model)

    def _expected_seconds(self, shape: StepShape) -> float:
        """Of the whole run, from the two sizes that were timed."""
        budget, given = self.run.request.budget, self.run.request.given.get("train", {})
        if budget.unit == "seconds":
            return budget.value
        model = skeleton(self.spec.family, shape.fields)
        flops = training_flops_per_token(model, self.spec.seq_len, self.spec.target_len)
        tokens = budget.value if budget.unit == "tokens" else budget.value / flops
        if "total_steps" in given:
            tokens = given["total_steps"] * shape.batch_size * self.spec.seq_len
        return tokens * self.seconds_per_token(flops, shape.fields)

    def evaluation_seconds(self) -> float:
        """By two batches of random tokens."""
        tokens = self.corpus.held_out_bytes / self.per_token
        with self.run.clock.phase("probe"):
            batch = RandomBatches(EVALUATE_ROWS, self.spec.seq_len, self.spec.fields["vocab_size"])
            held_out = [self.spec.transform(batch)[0]]
            score(self.model, self.spec.objective, held_out, 1, self.spec.runtime)
            start = time.perf_counter()
            score(self.model, self.spec.objective, held_out * 2, 1, self.spec.runtime)
            seconds = (time.perf_counter() - start) / 2
        stride = EVALUATE_STRIDE if self.measured == "causal" else 1
        rows = tokens * stride / self.spec.seq_len + POSITIONS.get(self.measured, 0)
        return seconds * math.ceil(rows / EVALUATE_ROWS)

    def peak_bytes(self) -> int:
        self.run.memory.sample()
        return self.run.memory.peak

    def restored(self, recipe: Recipe) -> Any:
        """The model that was timed (and compiled), with the weights that training starts from."""
        for name, buffer in self.model.named_buffers():  # steps on noise may have counted
            buffer.copy_(self.buffers[name])
        if self.origin.directory is None:
            if note := draw_start(self.model, recipe):
                self.run.progress.line(note)
        else:
            self.model.load_state_dict(load_parent(self.origin.directory).state_dict())
        return self.model


def corpus_facts(corpus: Corpus, tokenizer: Tokenizer, spec: StepSpec) -> tuple[law.Corpus, float]:
    """What a loss prediction needs to know of the text, and the seconds of a step of the proxy model `spec`. The same
    each time on the same data.

    The small model is measured on held-out text, which may be less like the rest than the rest is like itself. Nothing
    is chosen by it: the scale of a corpus is the same for all sizes."""
    sample = list(sample_text(corpus, PROXY_BYTES)) or list(sample_text(corpus, corpus.train_bytes))
    tokens = TokenArray(sample, tokenizer)
    batches = PackedBatches(tokens, seq_len=min(spec.seq_len, tokens.n_tokens // 2), batch_size=spec.batch_size, seed=0)
    schedule = Schedule(PROXY_STEPS)
    model, seconds = proxy_run(spec.family, spec.fields, Causal(), spec.runtime, batches, PROXY_OPTIM, schedule)
    judged = list(sample_spans(corpus.held_out, JUDGED_BYTES / corpus.held_out_bytes))
    text = evaluation_batches(
        TokenArray(judged, tokenizer), seq_len=spec.seq_len, batch_size=EVALUATE_ROWS, stride=spec.seq_len
    )
    bits = score(model, Causal(), text, sum(len(t.encode()) for t in judged), spec.runtime).bits_per_byte
    scale = law.compressibility(scale_sample(corpus))
    return law.Corpus(corpus.train_bytes, bytes_per_token(corpus, tokenizer), scale, bits), seconds
