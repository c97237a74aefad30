# SPDX-License-Identifier: Apache-2.0
"""`foundling plan`: measures what an estimate needs on this machine and this text, and hands it to plan/estimate."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from foundling.config import from_dict
from foundling.data.ingest import Corpus
from foundling.errors import ConfigError
from foundling.limits import RANKS
from foundling.models import family
from foundling.plan.estimate import Shape, estimate_memory, estimate_run, settle_shape
from foundling.plan.law import load_law
from foundling.plan.memory import process_bytes, spare_memory
from foundling.plan.plan import cap_vocab_size
from foundling.plan.probe import PROXY_SIZE, PROXY_STEP_TOKENS, StepSpec, choose_precision, estimate_step
from foundling.recipes.learning import learning_of, target_len
from foundling.recipes.models import Origin, find_origin, objective_for, objective_of, parent_config, teacher_cost
from foundling.recipes.probes import corpus_facts
from foundling.recipes.progress import Progress
from foundling.recipes.recipe import ObjectiveSpec, Request
from foundling.recipes.run import Prepared, Run
from foundling.recipes.sizes import check_seq_len, max_seq_len, size_fields, student_origin
from foundling.recipes.text import prepare_text, tokenizer_for
from foundling.runtime.clock import Clock
from foundling.runtime.device import Runtime, available_threads, default_device, resolve_device
from foundling.runtime.memory import anonymous_bytes, free_memory
from foundling.text import Tokenizer
from foundling.train.options import OptimOptions

PROXY_WINDOW = 256
SEQ_LEN, VOCAB_SIZE = 512, 4096
"""Where neither the request nor a published size says."""


def shape_of(request: Request, ranks: int = 1) -> tuple[Shape, Origin, ObjectiveSpec]:
    """The size that a request states; ConfigError for what is missing or does not fit."""
    RANKS.check(ranks, "--ranks")
    objective, train = objective_of(request), request.get("train", {})
    origin = student_origin(find_origin(request.get("model", {})), objective)
    if origin.fields is None and not {"d_model", "n_layers"} <= origin.overrides.keys():
        raise ConfigError("the size is missing: give --d-model and --n-layers, or --preset (foundling families)")
    seq_len = train.get("seq_len", max_seq_len(origin) or SEQ_LEN)
    if "seq_len" in train:
        check_seq_len(seq_len, origin, objective)
    teacher, vocab_size = objective.teacher, request.get("data.vocab_size", VOCAB_SIZE)
    rows = parent_config(teacher).vocab_size if teacher else vocab_size
    fields = origin.fields or size_fields(origin, rows, seq_len, objective)[0]
    optim = from_dict(OptimOptions, request.get("optim", {}), where="optim")
    precision = request.get("runtime.precision") or choose_precision(default_device())[0]
    shape = Shape(
        origin.family, fields, seq_len, precision, optim, train.get("batch_size"), train.get("micro_batch_size"),
        train.get("activation_checkpointing"), ranks, target_len(objective, seq_len), teacher_cost(objective, seq_len),
    )  # fmt: skip
    return shape, origin, objective


def memory_estimate(request: Request, ranks: int = 1) -> dict[str, Any]:
    shape, *_ = shape_of(request, ranks)
    free = free_memory()
    return estimate_memory(shape, free=free, held=free + anonymous_bytes(os.getpid()), process=process_bytes())


def run_estimate(request: Request, progress: Progress, clock: Clock) -> dict[str, Any]:
    """FLOPs, time by a probe, memory by part, energy and, where the loss law holds, held-out loss of training on
    `request.budget` tokens."""
    shape, origin, objective = shape_of(request)
    device = resolve_device(request.get("runtime.device", default_device()))
    threads = request.get("runtime.threads", available_threads())
    runtime = Runtime(device, shape.precision, threads)
    runtime.setup()
    held = free_memory() + anonymous_bytes(os.getpid())
    shape, steps, memory = settle_shape(shape, request.budget.value, held=held, process=process_bytes())
    spare_memory(memory)
    with tempfile.TemporaryDirectory(prefix="foundling-plan-") as folder:
        run = Run(request, Path(folder), progress, clock)
        run.memory.done.set()  # estimate_step watches by itself
        corpus = run.corpus()
        vocab_size = cap_vocab_size(shape.fields["vocab_size"], corpus.train_bytes)
        tokenizer = tokenizer_for(run, corpus, origin, objective, vocab_size)
        learning = learning_of(objective, tokenizer, shape.fields, shape.seq_len, 0, device)
        step = StepSpec(
            shape.family, shape.fields, learning.objective, runtime, shape.optim, shape.batch_size or 1,
            shape.micro_batch_size or 1, shape.seq_len, bool(shape.activation_checkpointing), learning.transform,
            learning.target_len,
        )  # fmt: skip
        facts = None
        with clock.phase("probe"):
            progress.line("measuring this machine and the text")
            if objective.kind == "causal" and origin.directory is None:
                facts = proxy_facts(corpus, tokenizer, step)
            return estimate_run(
                shape, steps, memory,
                lambda flops: estimate_step(step, flops_per_token=flops, memory_bytes=held - shape.frozen.bytes),
                facts, load_law(), threads,
            )  # fmt: skip


def proxy_facts(corpus: Corpus, tokenizer: Tokenizer, step: StepSpec) -> Any:
    seq_len = min(step.seq_len, PROXY_WINDOW)
    rows = max(1, PROXY_STEP_TOKENS // seq_len)
    fields = family(step.family).module.sized(tokenizer.vocab_size, seq_len, *PROXY_SIZE)
    small = replace(step, fields=fields, seq_len=seq_len, batch_size=rows, micro_batch_size=rows)
    return corpus_facts(corpus, tokenizer, small)[0]


def optimal(
    request: Request,
    progress: Progress,
    clock: Clock,
    more: Callable[[Run, Prepared], dict[str, Any]] = lambda run, prepared: {},
) -> dict[str, Any]:
    """The recipe and prediction that `raise` would begin with, and what the other sizes would reach; and what is
    planned by these."""
    objective_for(request)  # refuses what cannot be raised, before anything is read
    with tempfile.TemporaryDirectory(prefix="foundling-plan-") as folder:
        run = Run(request, Path(folder), progress, clock)
        try:
            prepared = prepare_text(run, run.corpus())
            besides = more(run, prepared)
        finally:
            run.memory.done.set()
    prediction = dict(prepared.prediction)
    return {
        "recipe": asdict(prepared.recipe),
        "sizes": prediction.pop("considered"),
        "prediction": prediction,
        **besides,
    }
