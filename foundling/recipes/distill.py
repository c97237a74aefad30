# SPDX-License-Identifier: Apache-2.0
"""Distil a decoder into a smaller one (Hinton et al. 2015): `foundling raise DATA --teacher DIR`.
An encoder is distilled by masked.py."""

from __future__ import annotations

from typing import Any

from foundling.contracts.records import BITS_PER_BYTE
from foundling.data.loader import evaluation_batches
from foundling.evaluate.perplexity import score
from foundling.recipes.learning import EVALUATE_ROWS, EVALUATE_STRIDE, learning_for
from foundling.recipes.pretrain import baselines_of, draw_samples, generation_config, shown
from foundling.recipes.publish import DataRead, Outcome
from foundling.recipes.run import Run
from foundling.recipes.text import make_tokenizer, packed_batches, prepare_text
from foundling.recipes.training import runtime_of


def distill(run: Run) -> dict[str, Any]:
    corpus = run.corpus()
    recipe, tokenizer = run.settle(corpus, lambda: prepare_text(run, corpus), make_tokenizer)
    tokens, model = run.tokens(corpus, tokenizer), run.model()
    learning = learning_for(recipe, tokenizer)
    run.train(model, learning.objective, packed_batches(recipe, tokens.train))
    with run.measuring("measuring student and teacher on the held-out text"):
        seq_len, runtime = recipe.train.seq_len, runtime_of(recipe)
        batches = evaluation_batches(
            tokens.held_out, seq_len=seq_len, batch_size=EVALUATE_ROWS, stride=max(1, seq_len // EVALUATE_STRIDE)
        )
        student, teacher = (
            score(m, learning.measure, batches, corpus.held_out_bytes, runtime) for m in (model, learning.teacher)
        )
    run.progress.line(
        f"held out: student {student.bits_per_byte:.3f}, teacher {teacher.bits_per_byte:.3f} bits per byte"
    )
    with run.clock.phase("baselines"):
        baselines, _ = baselines_of(corpus)
    with run.clock.phase("samples"):
        samples = shown(draw_samples(model, tokenizer, recipe))
    return run.publish(
        Outcome(
            kind="distilled model", model=model, tokenizer=tokenizer, data=DataRead.of_corpus(corpus, tokens),
            metric=BITS_PER_BYTE, figures={"loss": student.loss, "bits_per_byte": student.bits_per_byte},
            loss_unit="nats per token (log: teacher and text mixed)",
            baselines={"teacher": teacher.bits_per_byte} | baselines,
            samples=samples,
            generation=generation_config(tokenizer),
            next_commands=[("foundling chat {}", "continue text of your own")],
        )
    )  # fmt: skip
