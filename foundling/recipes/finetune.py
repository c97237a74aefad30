# SPDX-License-Identifier: Apache-2.0
"""Finetune a model on examples: `foundling finetune DIR DATA`."""

from __future__ import annotations

from typing import Any

from foundling.adapt.probe import OneClassError
from foundling.recipes.adapting import (
    KINDS,
    base_framing,
    framing_of,
    head_options,
    objective_of,
    with_ends,
    writer,
)
from foundling.recipes.finetune_data import batches_of, longest_text, parent_tokenizer, start_id, validation_split
from foundling.recipes.finetune_plan import build_within, prepare
from foundling.recipes.judging import BEFORE, Judge, generation_of
from foundling.recipes.preferences import POLICIES, add_reference
from foundling.recipes.probing import begin_as_probe, is_solved, solve_head
from foundling.recipes.publish import DataRead, Outcome
from foundling.recipes.run import Run
from foundling.recipes.training import runtime_of
from foundling.recipes.validation import Validation


def finetune(run: Run) -> dict[str, Any]:
    examples = run.examples()
    recipe, tokenizer = run.settle(examples, lambda: prepare(run, examples), parent_tokenizer)
    kind, head = recipe.objective.kind, head_options(recipe.objective.kind, examples)
    model = run.model(lambda recipe: build_within(recipe, head))
    assert recipe.model.directory
    framing = framing_of(recipe.model.directory, tokenizer, model)
    encoded = run.encoded(examples, base_framing(framing), longest_text(recipe))
    if kind in ("chat", *POLICIES):
        framing = with_ends(framing, encoded.train)
    objective, runtime = objective_of(recipe.objective), runtime_of(recipe)
    judge = Judge(examples, encoded, framing, objective, runtime, start_id(model), kind)
    if kind in POLICIES:
        add_reference(run, model, encoded, judge.rows, runtime)
    train, validation = validation_split(encoded.train, recipe)
    solved, probed = is_solved(recipe), False
    if recipe.adapt.probe and not solved:
        with run.clock.phase("train"):
            run.progress.line("solving the new head as a linear probe")
            try:
                begin_as_probe(recipe, model, train)
                probed = True
            except OneClassError as error:
                run.progress.line(f"note: {error}; the head begins at zero")
    with run.clock.phase("evaluate"):
        run.progress.line("measuring the linear probe" if probed else "measuring the model before")
        before = judge.measure(model, BEFORE)
    watched = None
    if validation is not None and recipe.train.evaluate_every:
        watched = Validation(judge.loss_on(validation), recipe.train.evaluate_every, recipe.train.patience)
    if solved:
        run.solve("solving the head on the features of all examples", lambda: solve_head(recipe, model, encoded.train))
    else:
        run.train(model, objective, batches_of(train, recipe, model), validation=watched)
    with run.measuring("measuring it after"):
        after = judge.measure(model)
    run.progress.line(judge.sentence(before, after, "as a linear probe" if probed else "before"))
    return run.publish(
        Outcome(
            kind=KINDS[kind], model=model, tokenizer=tokenizer, data=data_read(examples, encoded),
            metric=judge.metric, figures=after.figures, loss_unit=judge.loss_unit,
            baselines=judge.baselines(before, probed), results=[*before.results, *after.results],
            comparisons=judge.comparisons(before, after), write_model=writer(recipe, head, run.out),
            generation=generation_of(model, framing, recipe.model.directory), pipeline_tag=judge.pipeline_tag,
            next_commands=[judge.next_command],
        )
    )  # fmt: skip


def data_read(examples: Any, encoded: Any) -> DataRead:
    texts = [text for example in examples.held_out[:2] if (text := first_text(example.fields))]
    return DataRead(
        len(examples.train), examples.train_bytes, len(examples.held_out), examples.held_out_bytes,
        dict(examples.removed) | dict(examples.skipped) | dict(encoded.skipped), examples.data_hash,
        examples.source_bytes, texts, examples.train_bytes / max(1, encoded.train.n_tokens),
    )  # fmt: skip


def first_text(fields: dict[str, Any]) -> str:
    """Something of an example that can be shown."""
    if "messages" in fields:
        texts = [str(message["content"]) for message in fields["messages"]]
        return "\n".join([*texts, *fields.get("completions", [])])
    return str(fields.get("text") or fields.get("source") or " ".join(fields.get("words", [])))
