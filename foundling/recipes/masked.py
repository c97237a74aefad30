# SPDX-License-Identifier: Apache-2.0
"""Raise an encoder by masked language modelling (Devlin et al. 2019), `foundling raise DATA --family bert`, or by what
both sides predict of a token (Peters et al. 2018), `--family elmo`; or distil it from a larger one (Sanh et al. 2019),
`--family distilbert --teacher DIR`."""

from __future__ import annotations

import math
from typing import Any

from foundling.contracts.records import Metric
from foundling.data.loader import evaluation_batches
from foundling.data.transforms.special import mask_id
from foundling.decode.fill import MaskFiller
from foundling.evaluate.perplexity import corrupted_score, pseudo_perplexity
from foundling.recipes.learning import EVALUATE_ROWS, POSITIONS, learning_for
from foundling.recipes.models import measured_as
from foundling.recipes.publish import DataRead, Outcome
from foundling.recipes.run import Run
from foundling.recipes.text import make_tokenizer, packed_batches, prepare_text
from foundling.recipes.training import runtime_of

METRICS = {
    "masked": Metric(
        "loss", "nats per masked token", True,
        "The mean negative log-probability of a token that is hidden, given all that stands on both sides of it.",
    ),
    "bilm": Metric(
        "loss", "nats per token and direction", True,
        "The mean negative log-probability of a token, given what stands before it and given what stands after it.",
    ),
}  # fmt: skip
KIND = {"masked": "masked language model", "bilm": "bidirectional language model"}


def masked(run: Run) -> dict[str, Any]:
    corpus = run.corpus()
    recipe, tokenizer = run.settle(corpus, lambda: prepare_text(run, corpus), make_tokenizer)
    measured = measured_as(recipe.objective.kind, recipe.model.family)
    tokens, model, metric = run.tokens(corpus, tokenizer), run.model(), METRICS[measured]
    if model.capabilities.spells:
        model.spell(tokenizer.spellings())
    learning = learning_for(recipe, tokenizer)
    run.train(model, learning.objective, learning.transform(packed_batches(recipe, tokens.train)))
    with run.measuring("measuring the held-out loss and pseudo-perplexity"):
        seq_len, runtime = recipe.train.seq_len, runtime_of(recipe)
        windows = evaluation_batches(tokens.held_out, seq_len=seq_len, batch_size=EVALUATE_ROWS, stride=seq_len)
        figures = {
            name: corrupted_score(m, learning.measure, learning.transform, windows, runtime).loss
            for name, m in (("loss", model), ("teacher", learning.teacher)) if m is not None
        }  # fmt: skip
        rows = [row.tolist() for batch in windows for row in batch["tokens"]]
        pseudo = pseudo_perplexity(
            model, rows, mask_id(tokenizer), runtime=runtime, kept=tokenizer.opening,
            max_positions=POSITIONS[measured], seed=recipe.seed,
        )  # fmt: skip
    loss, baselines = figures.pop("loss"), figures
    beside = "".join(f", {name} {value:.3f}" for name, value in baselines.items())
    run.progress.line(f"held out: {loss:.3f}{beside} {metric.name} after {run.seconds:.0f} s")
    filler = MaskFiller(model, tokenizer)
    return run.publish(
        Outcome(
            kind=("distilled " if baselines else "") + KIND[measured], model=model, tokenizer=tokenizer,
            data=DataRead.of_corpus(corpus, tokens), metric=metric, baselines=baselines,
            figures={"loss": loss, "pseudo_perplexity": pseudo.value or math.nan},
            loss_unit=metric.name + (" (log: teacher and text mixed)" if baselines else ""),
            results=[pseudo], samples=gaps(filler, corpus.held_out[0].text),
            pipeline_tag="fill-mask", next_commands=[("foundling fill {} 'a ___ in the text'", "fill a gap")],
        )
    )  # fmt: skip


def gaps(filler: MaskFiller, text: str) -> list[dict[str, Any]]:
    """A few lines of held-out text with one word hidden, and what the model puts there."""
    samples = []
    for line in (line for line in text.splitlines() if 4 <= len(line.split()) <= 20):
        words = line.split()
        words[len(words) // 2] = "___"
        prompt = " ".join(words)
        if len(filler.tokenizer.encode_framed(prompt)) > filler.model.config.max_seq_len:
            continue
        filled = filler.fill(prompt, n=1)
        samples.append({"prompt": prompt, "text": filled["text"], "note": "the likeliest token in the gap"})
        if len(samples) == 5:
            break
    return samples
