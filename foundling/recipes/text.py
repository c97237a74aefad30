# SPDX-License-Identifier: Apache-2.0
"""What kinds of run that learn from text share: the tokenizer, the plan from a budget, and its probes."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, replace
from typing import Any

from foundling.blocks.init import initialise
from foundling.config import from_dict, merged
from foundling.data.ingest import Corpus
from foundling.data.loader import PackedBatches, evaluation_batches
from foundling.data.sampling import sample_spans, sample_text
from foundling.data.shards import TokenArray
from foundling.data.tokens import bytes_per_token, scale_sample, train_tokenizer
from foundling.data.transforms.special import mask_id
from foundling.errors import BudgetError, ConfigError
from foundling.evaluate.perplexity import score
from foundling.models import build, family
from foundling.objectives.causal import Causal
from foundling.plan import law
from foundling.plan.choose import ladder
from foundling.plan.flops import matmul_parameters
from foundling.plan.memory import MemoryEstimate, spare_memory
from foundling.plan.plan import Plan, PlanInputs, StepShape, cap_vocab_size, make_plan, text_sizes
from foundling.plan.probe import (
    PROXY_SIZE,
    PROXY_STEP_TOKENS,
    PROXY_STEPS,
    RandomBatches,
    StepSpec,
    choose_precision,
    fit_step_time,
    proxy_run,
    step_seconds,
)
from foundling.recipes.learning import learning_of, target_len
from foundling.recipes.models import (
    Origin,
    check_fields,
    check_unused,
    find_origin,
    objective_of,
    parent_vocab_size,
)
from foundling.recipes.recipe import ObjectiveSpec, Recipe
from foundling.recipes.run import Prepared, Run
from foundling.runtime.device import Runtime, available_threads, compiler_missing, default_device, resolve_device
from foundling.runtime.memory import anonymous_bytes, free_memory
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.train.options import OptimOptions
from foundling.train.schedule import Schedule

PROXY_BYTES = 1_000_000
"""Text that the windows of a proxy run are taken from."""
JUDGED_BYTES = 200_000
"""Held-out text that it is measured on."""
PROXY_OPTIM = OptimOptions(learning_rate=0.01)
"""What the loss law was calibrated with."""
NGRAM_BESIDE = ("causal", "distill")
"""objectives that are measured in bits per byte, beside an n-gram model"""
POSITIONS = {"masked": 500}
"""held-out tokens that pseudo-perplexity masks, one row each"""
EVALUATE_ROWS, EVALUATE_STRIDE = 16, 2
"""Held-out windows overlap by half: each token is predicted with at least half a window before it."""


def make_tokenizer(recipe: Recipe, corpus: Corpus) -> Tokenizer:
    """The tokenizer of a resolved recipe: a parent's, or trained on the data."""
    parent = recipe.model.directory or recipe.objective.teacher
    return named(
        Tokenizer.load(parent) if parent else train_tokenizer(corpus, recipe.data.vocab_size or 0), recipe.objective
    )


def named(tokenizer: Tokenizer, objective: ObjectiveSpec) -> Tokenizer:
    """With the mask's name, where the objective hides tokens behind one: who fills gaps looks for it."""
    if objective.kind not in ("masked", "infill") or tokenizer.mask is not None:
        return tokenizer
    mask = tokenizer.backend.id_to_token(mask_id(tokenizer))
    assert mask is not None
    return tokenizer.naming(mask_token=mask)


def packed_batches(recipe: Recipe, tokens: Any) -> PackedBatches:
    t = recipe.train
    return PackedBatches(tokens, seq_len=t.seq_len, batch_size=t.batch_size, seed=recipe.seed)


def prepare_text(run: Run, corpus: Corpus) -> Prepared:
    """Chooses size and steps for the run's budget, within what was given, and predicts what they cost."""
    request, given = run.request, run.request.given
    check_unused(given)
    origin, objective = find_origin(given.get("model", {})), objective_of(request)
    runtime_given, train_given = given.get("runtime", {}), given.get("train", {})
    device = resolve_device(runtime_given.get("device", default_device()))
    threads = runtime_given.get("threads", available_threads())
    Runtime(threads=threads).setup()
    with run.clock.phase("probe"):
        precision, rate = choose_precision(device)
    runtime = Runtime(device, runtime_given.get("precision", precision), threads)
    vocab_size, seq_len = text_sizes(request.budget, rate, corpus.train_bytes)
    tokenizer = named(tokenizer_for(run, corpus, origin, objective, vocab_size), objective)
    share = request.get("data.share", 1.0)
    train_tokens = share * corpus.train_bytes / bytes_per_token(corpus, tokenizer)
    seq_len = _seq_len(train_tokens, origin, objective, seq_len, train_given.get("seq_len"))
    sizes = size_fields(origin, rows_for(tokenizer, objective), seq_len, objective, start_id=tokenizer.eos)
    optim = from_dict(OptimOptions, given.get("optim", {}), where="optim")
    learning = learning_of(objective, tokenizer, sizes[0], seq_len, given.get("seed", 0), device)
    spec = StepSpec(
        origin.family, sizes[0], learning.objective, runtime, optim, 1, 1, seq_len, transform=learning.transform,
        target_len=learning.target_len, ema_decay=train_given.get("ema_decay"),
    )  # fmt: skip
    teacher = learning.objective.teacher if objective.kind == "distill" else None
    probes = TextProbes(run, corpus, tokenizer, spec, origin, objective)
    inputs = PlanInputs(
        budget=request.budget, family=origin.family, sizes=sizes, law=law.load_law(),
        corpus=replace(probes.facts, train_bytes=int(share * corpus.train_bytes)),
        predicts_loss=objective.kind == "causal" and origin.directory is None, train_tokens=train_tokens,
        held_out_bytes=corpus.held_out_bytes, seq_len=seq_len, optim=optim, precision=runtime.precision,
        threads=threads, free_bytes=free_memory() + anonymous_bytes(os.getpid()) - _bytes_of(teacher),
        compiler_missing=compiler_missing(device), target_len=spec.target_len,
        given=train_given | {k: runtime_given[k] for k in ("compile",) if k in runtime_given}
        | {k: given["data"][k] for k in ("share",) if k in given.get("data", {})},
        later_bytes=later_bytes(corpus.train_bytes) if objective.kind in NGRAM_BESIDE else 0,
        frozen_flops=0.0 if teacher is None else 2.0 * matmul_parameters(teacher),
    )  # fmt: skip
    plan = make_plan(inputs, probes)
    for note in plan.notes:
        run.progress.line(f"note: {note}")
    recipe = _recipe(run, origin, objective, optim, runtime, tokenizer, seq_len, plan)
    model = probes.restored(recipe.seed)
    return Prepared(recipe, plan.prediction | {"considered": _considered(plan)}, tokenizer, model)


def later_bytes(train_bytes: int) -> int:
    """Memory of the process after training: what is left of it, and a byte n-gram as baseline."""
    from foundling.recipes.publish import MAX_NGRAM_BYTES, NGRAM_BYTES_PER_BYTE, TRIMMED_BYTES

    return TRIMMED_BYTES + NGRAM_BYTES_PER_BYTE * min(train_bytes, MAX_NGRAM_BYTES)


def _bytes_of(model: Any) -> int:
    return 0 if model is None else sum(p.numel() * p.element_size() for p in model.parameters())


def tokenizer_for(run: Run, corpus: Corpus, origin: Origin, objective: ObjectiveSpec, vocab_size: int) -> Tokenizer:
    """A parent's tokenizer, or one that is trained here: of the size given, else of `vocab_size`, and never of more
    tokens than the model has rows."""
    if parent := origin.directory or objective.teacher:
        if (asked := run.request.get("data.vocab_size")) is not None:
            raise ConfigError(f"the tokenizer of {parent} is used as it is; leave vocab_size {asked} out")
        return Tokenizer.load(parent)
    rows = (origin.fields or origin.overrides).get("vocab_size")
    if rows is not None:
        vocab_size = cap_vocab_size(rows, corpus.train_bytes)
    with run.clock.phase("tokenizer"):
        run.progress.line("training the tokenizer")
        return train_tokenizer(corpus, run.request.get("data.vocab_size", vocab_size))


def rows_for(tokenizer: Tokenizer, objective: ObjectiveSpec) -> int:
    """Rows of the embedding: a student has as many as its teacher, which may have more than there are tokens."""
    return parent_vocab_size(objective.teacher) if objective.teacher else tokenizer.vocab_size


def _seq_len(train_tokens: float, origin: Origin, objective: ObjectiveSpec, chosen: int, given: int | None) -> int:
    """Tokens in a row: as given, else `chosen`, or less where text or model are short."""
    longest = (origin.fields or origin.overrides).get("max_seq_len")
    seq_len = given or max(8, min(chosen, int(train_tokens / 4), longest or chosen))
    over = max(seq_len, target_len(objective, seq_len) or 0) - longest if longest else 0
    if over > 0 and given:
        raise ConfigError(f"seq_len {seq_len} is more than the {longest} tokens that the model reads allow")
    seq_len -= max(0, over)
    if train_tokens < 2 * seq_len:
        raise BudgetError(
            f"the training text is {train_tokens:.0f} tokens, one window takes {2 * seq_len}; give more text"
        )
    return seq_len


def size_fields(
    origin: Origin, vocab_size: int, seq_len: int, objective: ObjectiveSpec, start_id: int = 0
) -> list[dict[str, Any]]:
    """Configurations to choose from: one where they are fixed, else a ladder with what was given laid over it, less the
    sizes that do not go with it. `vocab_size`: rows of the embedding; `start_id`: what a decoder reads first, where a
    family asks. ConfigError where no size goes with what was given."""
    if origin.fields is not None:
        fields = check_fields(origin.family, origin.fields)
        if fields["vocab_size"] < vocab_size:
            raise ConfigError(
                f"the tokenizer has {vocab_size} tokens, the model {fields['vocab_size']} rows; give --vocab-size "
                f"{fields['vocab_size'] // 64 * 64} at most"
            )
        return [fields]
    d_model, n_layers = origin.overrides.get("d_model"), origin.overrides.get("n_layers")
    if d_model is not None and (d_model < 32 or d_model % 32):
        raise ConfigError(f"'d_model' is {d_model!r}, expected a multiple of 32 (the width of a head)")
    if n_layers is not None and n_layers < 1:
        raise ConfigError(f"'n_layers' is {n_layers!r}, expected at least 1")
    names = family(origin.family).config.__dataclass_fields__
    start = {"start_id": start_id} if "start_id" in names else {}
    longest = max(seq_len, target_len(objective, seq_len) or 0)
    sizes, refused = [], None
    for size in ladder(origin.family, vocab_size, longest, d_model=d_model, n_layers=n_layers):
        try:
            sizes.append(check_fields(origin.family, start | _adjusted(size, origin.overrides)))
        except ConfigError as error:
            refused = error
    if refused and not sizes:
        raise refused
    return sizes


def _adjusted(size: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A size with some of its fields replaced, and what follows from the number of heads adjusted to them."""
    fields = size | {k: v for k, v in overrides.items() if k not in ("d_model", "n_layers")}
    if "n_heads" in overrides:
        if "n_kv_heads" in size and "n_kv_heads" not in overrides:
            fields["n_kv_heads"] = fields["n_heads"]
        whole = size.get("head_dim", 0) * size["n_heads"] == size["d_model"]
        if whole and "head_dim" not in overrides and fields["n_heads"]:
            fields["head_dim"] = size["d_model"] // fields["n_heads"]
    return fields


def _considered(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "d_model": c.fields["d_model"], "n_layers": c.fields["n_layers"], "params": c.parameters,
            "tokens": round(c.tokens), "bits_per_byte": round(c.bits_per_byte, 4),
        }
        for c in plan.considered
    ]  # fmt: skip


def _recipe(
    run: Run, origin: Origin, objective: ObjectiveSpec, optim: OptimOptions, runtime: Runtime, tokenizer: Tokenizer,
    seq_len: int, plan: Plan,
) -> Recipe:  # fmt: skip
    """What was chosen, under what was given."""
    shape = plan.shape
    parent = origin.directory or objective.teacher
    chosen = {
        "data": {
            "source": run.request.data, "vocab_size": None if parent else tokenizer.vocab_size, "share": plan.share,
        },
        "optim": asdict(optim),
        "schedule": {"warmup_steps": plan.warmup_steps},
        "train": {
            "total_steps": plan.total_steps, "seq_len": seq_len, "batch_size": shape.batch_size,
            "micro_batch_size": shape.micro_batch_size, "checkpoint_every": plan.checkpoint_every,
            "activation_checkpointing": shape.activation_checkpointing,
        },
    }  # fmt: skip
    here = {
        "device": runtime.device,
        "precision": runtime.precision,
        "threads": runtime.threads,
        "compile": shape.compile,
    }
    model = {
        "family": origin.family, "preset": origin.preset, "directory": origin.directory,
        "weights_hash": origin.weights_hash, "fields": shape.fields,
    }  # fmt: skip
    resolved = merged(chosen, run.request.given) | {
        "runtime": here | {"compile": shape.compile}, "model": model, "objective": asdict(objective),
    }  # fmt: skip
    return from_dict(Recipe, resolved, where="recipe")


class TextProbes:
    """Probes of a text run. The model that is timed is the one that is trained afterwards."""

    def __init__(
        self, run: Run, corpus: Corpus, tokenizer: Tokenizer, spec: StepSpec, origin: Origin, objective: ObjectiveSpec
    ) -> None:
        self.run, self.corpus, self.spec, self.origin, self.kind = run, corpus, spec, origin, objective.kind
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
                alone = replace(small, objective=Causal()), replace(large, objective=Causal())
                tokens = small.batch_size * small.seq_len
                both, seconds = (step_seconds(s, least_seconds=0.2) for s in (small, alone[0]))
                self.frozen, (small, large) = max(0.0, both - seconds) / tokens, alone
            self.slope, self.per_width = fit_step_time(small, large, seconds)

    def _sized(self, d_model: int, n_layers: int, tokenizer: Tokenizer, objective: ObjectiveSpec) -> StepSpec:
        rows = max(1, PROXY_STEP_TOKENS // self.spec.seq_len)
        longest = max(self.spec.seq_len, self.spec.target_len or 0)
        fields = family(self.spec.family).module.sized(rows_for(tokenizer, objective), longest, d_model, n_layers)
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
        budget = self.run.request.budget
        least = min(6.0, 0.015 * budget.value) if budget.unit == "seconds" else 1.0
        if shape.compile:
            self.run.progress.line("compiling the layers")
        with self.run.clock.phase("compile" if shape.compile else "probe"):
            return step_seconds(spec, least_seconds=least, model=self.model)

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
        stride = EVALUATE_STRIDE if self.kind in NGRAM_BESIDE else 1
        rows = tokens * stride / self.spec.seq_len + POSITIONS.get(self.kind, 0)
        return seconds * math.ceil(rows / EVALUATE_ROWS)

    def peak_bytes(self) -> int:
        self.run.memory.sample()
        return self.run.memory.peak

    def restored(self, seed: int) -> Any:
        """The model that was timed (and compiled), with the weights that training starts from."""
        for name, buffer in self.model.named_buffers():  # steps on noise may have counted
            buffer.copy_(self.buffers[name])
        if self.origin.directory is None:
            initialise(self.model, generator("init", seed))
        else:
            from foundling.weights.directory import load

            self.model.load_state_dict(load(self.origin.directory).state_dict())
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
