# SPDX-License-Identifier: Apache-2.0
"""Raise an encoder-decoder by restoring corrupted text: spans behind sentinels (Raffel et al. 2020, T5), or the whole
text from one with gaps (Lewis et al. 2019, BART): `foundling raise DATA --family t5`."""

from __future__ import annotations

from typing import Any

import torch

from foundling.blocks.position import position_limit
from foundling.contracts.records import Metric
from foundling.data.loader import evaluation_batches
from foundling.decode.plain import generate
from foundling.evaluate.perplexity import corrupted_score
from foundling.recipes.learning import EVALUATE_ROWS, learning_for
from foundling.recipes.publish import DataRead, Outcome
from foundling.recipes.run import Run
from foundling.recipes.text import make_tokenizer, packed_batches, prepare_text
from foundling.recipes.training import runtime_of
from foundling.text import Tokenizer

RESTORED_LOSS = Metric(
    "loss", "nats per target token", True,
    "The mean negative log-probability of a token of the target, given the corrupted text and the target before it.",
)  # fmt: skip


def seq2seq(run: Run) -> dict[str, Any]:
    corpus = run.corpus()
    recipe, tokenizer = run.settle(corpus, lambda: prepare_text(run, corpus), make_tokenizer)
    tokens, model = run.tokens(corpus, tokenizer), run.model()
    learning = learning_for(recipe, tokenizer)
    run.train(model, learning.objective, learning.transform(packed_batches(recipe, tokens.train)))
    with run.measuring("measuring the held-out loss"):
        seq_len = recipe.train.seq_len
        windows = evaluation_batches(tokens.held_out, seq_len=seq_len, batch_size=EVALUATE_ROWS, stride=seq_len)
        held_out = corrupted_score(model, learning.objective, learning.transform, windows, runtime_of(recipe))
    run.progress.line(f"held out: {held_out.loss:.3f} nats a target token after {run.seconds:.0f} s")
    return run.publish(
        Outcome(
            kind="denoising model", model=model, tokenizer=tokenizer, data=DataRead.of_corpus(corpus, tokens),
            metric=RESTORED_LOSS, figures={"loss": held_out.loss}, loss_unit="nats per target token",
            samples=restored(model, tokenizer, learning.transform(windows)[0]),
            generation=generation_config(tokenizer, model),
            pipeline_tag="text2text-generation",
            next_commands=[("foundling generate {} --prompt 'some text'", "answer a source")],
        )
    )  # fmt: skip


def generation_config(tokenizer: Tokenizer, model: Any) -> dict[str, Any]:
    return {"decoder_start_token_id": model.config.start_id, "eos_token_id": tokenizer.eos, "do_sample": False}


def restored(model: Any, tokenizer: Tokenizer, batch: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Corrupted held-out text, and what the model makes of it."""
    sources = []
    for row, documents in zip(batch["source"][:5], batch["source_documents"][:5], strict=True):
        first = int(documents[0])
        sources.append(row[documents == first][:64].tolist())
    with torch.compiler.set_stance("force_eager"):
        max_tokens = min(48, position_limit(model) or 48)
        answers = generate(model, sources, max_tokens=max_tokens, temperature=0, stop=[tokenizer.eos])
    return [
        {
            "prompt": tokenizer.backend.decode(source, skip_special_tokens=False),
            "text": tokenizer.backend.decode(answer.tokens, skip_special_tokens=False),
            "note": "the likeliest tokens",
        }
        for source, answer in zip(sources, answers, strict=True)
    ]
