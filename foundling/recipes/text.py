# SPDX-License-Identifier: Apache-2.0
"""What kinds of run that learn from text share: the tokenizer, and the plan from a budget."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from typing import Any

from foundling.config import from_dict, merged
from foundling.data.ingest import Corpus
from foundling.data.loader import PackedBatches
from foundling.data.tokens import bytes_per_token, train_tokenizer
from foundling.data.transforms.special import mask_id
from foundling.errors import BudgetError, ConfigError
from foundling.plan import law
from foundling.plan.plan import Plan, PlanInputs, cap_vocab_size, make_plan, text_sizes
from foundling.plan.probe import StepSpec, choose_precision
from foundling.recipes.learning import learning_of
from foundling.recipes.models import Origin, check_unused, find_origin, measured_as, objective_of, teacher_cost
from foundling.recipes.probes import TextProbes
from foundling.recipes.publish import MAX_NGRAM_BYTES, NGRAM_BYTES_PER_BYTE, TRIMMED_BYTES
from foundling.recipes.recipe import ObjectiveSpec, Recipe
from foundling.recipes.run import Prepared, Run
from foundling.recipes.sizes import fit_seq_len, rows_for, size_fields, student_origin
from foundling.runtime.device import Runtime, available_threads, compiler_missing, default_device, resolve_device
from foundling.runtime.memory import anonymous_bytes, free_memory
from foundling.text import Tokenizer
from foundling.train.options import OptimOptions
from foundling.weights.loading import files_of


def make_tokenizer(recipe: Recipe, corpus: Corpus) -> Tokenizer:
    """The tokenizer of a resolved recipe: a parent's, or trained on the data."""
    parent = recipe.model.directory or recipe.objective.teacher
    tokenizer = Tokenizer.load(files_of(parent)) if parent else train_tokenizer(corpus, recipe.data.vocab_size or 0)
    return named(tokenizer, measured_as(recipe.objective.kind, recipe.model.family))


def named(tokenizer: Tokenizer, measured: str) -> Tokenizer:
    """With the mask's name, where what is read hides tokens behind one: who fills gaps looks for it."""
    if measured not in ("masked", "bilm", "infill") or tokenizer.mask is not None:
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
    if request.budget.unit == "epochs":
        raise BudgetError("a budget in epochs is for finetuning; give --minutes, --flops or --tokens")
    check_unused(given)
    objective = objective_of(request)
    origin = student_origin(find_origin(given.get("model", {})), objective)
    measured = measured_as(objective.kind, origin.family)
    runtime_given, train_given = given.get("runtime", {}), given.get("train", {})
    device = resolve_device(runtime_given.get("device", default_device()))
    threads = runtime_given.get("threads", available_threads())
    Runtime(threads=threads).setup()
    with run.clock.phase("probe"):
        precision, rate = choose_precision(device)
    runtime = Runtime(device, runtime_given.get("precision", precision), threads)
    vocab_size, seq_len = text_sizes(request.budget, rate, corpus.train_bytes)
    tokenizer = named(tokenizer_for(run, corpus, origin, objective, vocab_size), measured)
    share = request.get("data.share", 1.0)
    train_tokens = share * corpus.train_bytes / bytes_per_token(corpus, tokenizer)
    seq_len = fit_seq_len(train_tokens, origin, objective, seq_len, train_given.get("seq_len"))
    sizes = size_fields(origin, rows_for(tokenizer, objective), seq_len, objective, start_id=tokenizer.eos)
    optim = from_dict(OptimOptions, given.get("optim", {}), where="optim")
    learning = learning_of(objective, tokenizer, sizes[0], seq_len, given.get("seed", 0), device)
    spec = StepSpec(
        origin.family, sizes[0], learning.objective, runtime, optim, 1, 1, seq_len, transform=learning.transform,
        target_len=learning.target_len, ema_decay=train_given.get("ema_decay"),
    )  # fmt: skip
    probes = TextProbes(run, corpus, tokenizer, spec, origin, objective)
    inputs = PlanInputs(
        budget=request.budget, family=origin.family, sizes=sizes, law=law.load_law(),
        corpus=replace(probes.facts, train_bytes=int(share * corpus.train_bytes)),
        predicts_loss=objective.kind == "causal" and origin.directory is None, train_tokens=train_tokens,
        held_out_bytes=corpus.held_out_bytes, seq_len=seq_len, optim=optim, precision=runtime.precision,
        threads=threads, free_bytes=free_memory() + anonymous_bytes(os.getpid()),
        compiler_missing=compiler_missing(device), target_len=spec.target_len,
        given=train_given | {k: runtime_given[k] for k in ("compile",) if k in runtime_given}
        | {k: given["data"][k] for k in ("share",) if k in given.get("data", {})},
        later_bytes=later_bytes(corpus.train_bytes) if measured == "causal" else 0,
        frozen=teacher_cost(objective, seq_len),
    )  # fmt: skip
    plan = make_plan(inputs, probes)
    for note in plan.notes:
        run.progress.line(f"note: {note}")
    recipe = _recipe(run, origin, objective, optim, runtime, tokenizer, seq_len, plan)
    model = probes.restored(recipe)
    return Prepared(recipe, plan.prediction | {"considered": _considered(plan)}, tokenizer, model)


def later_bytes(train_bytes: int) -> int:
    """Memory of the process after training: what is left of it, and a byte n-gram as baseline."""
    return TRIMMED_BYTES + NGRAM_BYTES_PER_BYTE * min(train_bytes, MAX_NGRAM_BYTES)


def tokenizer_for(run: Run, corpus: Corpus, origin: Origin, objective: ObjectiveSpec, vocab_size: int) -> Tokenizer:
    """A parent's tokenizer, or one that is trained here: of the size given, else of `vocab_size`, and never of more
    tokens than the model has rows."""
    if parent := origin.directory or objective.teacher:
        if (asked := run.request.get("data.vocab_size")) is not None:
            raise ConfigError(f"the tokenizer of {parent} is used as it is; leave vocab_size {asked} out")
        tokenizer, teacher = Tokenizer.load(files_of(parent)), objective.teacher
        if teacher and tokenizer.backend.get_vocab() != Tokenizer.load(teacher).backend.get_vocab():
            raise ConfigError(f"{parent} and its teacher {teacher} have different tokens; both need the same tokenizer")
        return tokenizer
    rows = (origin.fields or origin.overrides).get("vocab_size")
    if rows is not None:
        vocab_size = cap_vocab_size(rows, corpus.train_bytes)
    with run.clock.phase("tokenizer"):
        run.progress.line("training the tokenizer")
        return train_tokenizer(corpus, run.request.get("data.vocab_size", vocab_size))


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
        "device": runtime.device, "precision": runtime.precision, "threads": runtime.threads, "compile": shape.compile,
    }  # fmt: skip
    model = {
        "family": origin.family, "preset": origin.preset, "directory": origin.directory,
        "weights_hash": origin.weights_hash, "fields": shape.fields,
    }  # fmt: skip
    resolved = merged(chosen, run.request.given) | {
        "runtime": here, "model": model, "objective": asdict(objective),
    }  # fmt: skip
    return from_dict(Recipe, resolved, where="recipe")
