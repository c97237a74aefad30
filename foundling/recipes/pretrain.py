# SPDX-License-Identifier: Apache-2.0
"""Pretrain a decoder from left to right: `foundling raise DATA`, or continue with `--from DIR`."""

from __future__ import annotations

import math
from typing import Any

import torch

from foundling.contracts.records import BITS_PER_BYTE
from foundling.data.ingest import Corpus
from foundling.data.loader import evaluation_batches
from foundling.evaluate.baselines import measure_baselines
from foundling.evaluate.baselines.ngram import ByteNGram
from foundling.evaluate.perplexity import score
from foundling.evaluate.samples import judge_samples, sample_texts
from foundling.evaluate.subject import GeneratedText
from foundling.evaluate.tasks import tasks_for
from foundling.objectives.causal import Causal
from foundling.recipes.learning import EVALUATE_ROWS, EVALUATE_STRIDE
from foundling.recipes.publish import MAX_NGRAM_BYTES, DataRead, Outcome
from foundling.recipes.recipe import Recipe
from foundling.recipes.run import Run
from foundling.recipes.text import make_tokenizer, packed_batches, prepare_text
from foundling.recipes.training import runtime_of
from foundling.runtime.memory import trim_memory
from foundling.text import Tokenizer
from foundling.weights.directory import weights_hash

TEMPERATURE, TOP_P = 0.7, 0.95
"""Of the samples, and of the model's generation_config.json."""


def pretrain(run: Run) -> dict[str, Any]:
    corpus = run.corpus()
    recipe, tokenizer = run.settle(corpus, lambda: prepare_text(run, corpus), make_tokenizer)
    tokens, model = run.tokens(corpus, tokenizer), run.model()
    run.train(
        model, Causal(), packed_batches(recipe, tokens.train), 1 / run.prediction["bytes_per_token"] / math.log(2)
    )
    with run.measuring("measuring the held-out loss"):
        seq_len = recipe.train.seq_len
        batches = evaluation_batches(
            tokens.held_out, seq_len=seq_len, batch_size=EVALUATE_ROWS, stride=max(1, seq_len // EVALUATE_STRIDE)
        )
        held_out = score(model, Causal(), batches, corpus.held_out_bytes, runtime_of(recipe))
    run.progress.line(
        f"held out: {held_out.loss:.3f} nats a token, {held_out.bits_per_byte:.3f} bits per byte "
        f"after {run.seconds:.0f} s"
    )
    trim_memory()  # what training has freed: baselines would take theirs beside it
    with run.clock.phase("baselines"):
        run.progress.line("measuring gzip, xz and a byte 6-gram on the same text")
        baselines, ngram = baselines_of(corpus)
    with run.clock.phase("samples"):
        run.progress.line("sampling")
        samples = draw_samples(model, tokenizer, recipe)
        tasks = tasks_for(recipe.data.source, [d.name for d in corpus.held_out])
        texts = [d.text for d in corpus.held_out]
        digest = weights_hash(model) if tasks else None
        results = judge_samples(tasks, samples, ngram=ngram, held_out=texts, temperature=TEMPERATURE, model_hash=digest)
    return run.publish(
        Outcome(
            kind="base model", model=model, tokenizer=tokenizer, data=DataRead.of_corpus(corpus, tokens),
            metric=BITS_PER_BYTE, figures={"loss": held_out.loss, "bits_per_byte": held_out.bits_per_byte},
            baselines=baselines, results=results, samples=shown(samples),
            generation=generation_config(tokenizer),
            next_commands=[("foundling chat {}", "continue text of your own")],
        )
    )  # fmt: skip


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    eos = tokenizer.eos
    bos = eos if tokenizer.bos is None else tokenizer.bos
    return {"bos_token_id": bos, "eos_token_id": eos, "do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P}


def baselines_of(corpus: Corpus) -> tuple[dict[str, float], ByteNGram]:
    """Held-out bits per byte of compressors and of a byte 6-gram fitted to the training text (its first 32 MB)."""
    training, held_out = (d.text for d in corpus.train()), (d.text for d in corpus.held_out)
    return measure_baselines(training, held_out, max_ngram_bytes=MAX_NGRAM_BYTES)


def draw_samples(model: Any, tokenizer: Tokenizer, recipe: Recipe) -> list[GeneratedText]:
    """Texts from an empty prompt."""
    with torch.compiler.set_stance("force_eager"):
        return sample_texts(
            model.eval(), tokenizer, max_tokens=recipe.train.seq_len - 1, temperature=TEMPERATURE, top_p=TOP_P,
            seed=recipe.seed,
        )  # fmt: skip


def shown(samples: list[GeneratedText]) -> list[dict[str, Any]]:
    """As the report shows them."""
    note = f"from an empty prompt, temperature {TEMPERATURE}, top-p {TOP_P}"
    return [{"prompt": "", "text": sample.text, "note": note} for sample in samples]
