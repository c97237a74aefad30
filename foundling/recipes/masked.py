# SPDX-License-Identifier: Apache-2.0
"""Raise an encoder by masked language modelling (Devlin et al. 2019): `foundling raise DATA --family bert`."""

from __future__ import annotations

from typing import Any

from foundling.contracts.records import Metric
from foundling.data.transforms.special import mask_id
from foundling.decode.fill import Filler
from foundling.evaluate.perplexity import held_out_windows, pseudo_perplexity, score
from foundling.recipes.learning import learning_for
from foundling.recipes.publish import Outcome
from foundling.recipes.run import Run
from foundling.recipes.text import EVALUATE_ROWS, make_tokenizer, packed_batches, prepare_text
from foundling.recipes.training import runtime_of

MASKED_LOSS = Metric(
    "loss", "nats per masked token", True,
    "The mean negative log-probability of a token that is hidden, given all that stands on both sides of it.",
)  # fmt: skip


def masked(run: Run) -> dict[str, Any]:
    corpus = run.corpus()
    recipe, tokenizer = run.settle(corpus, lambda: prepare_text(run, corpus), make_tokenizer)
    tokens, model = run.tokens(corpus, tokenizer), run.model()
    learning = learning_for(recipe, tokenizer)
    run.train(model, learning.objective, learning.transform(packed_batches(recipe, tokens.train)))
    with run.measuring("measuring the held-out masked loss and pseudo-perplexity"):
        windows = held_out_windows(tokens.held_out, seq_len=recipe.train.seq_len, batch_size=EVALUATE_ROWS)
        hidden = [learning.transform(windows)[n] for n in range(len(windows))]
        held_out = score(model, learning.objective, hidden, corpus.held_out_bytes, runtime_of(recipe))
        pseudo = pseudo_perplexity(model, windows, mask=mask_id(tokenizer), seed=recipe.seed)
    run.progress.line(f"held out: {held_out.loss:.3f} nats a masked token after {run.seconds:.0f} s")
    filler = Filler(model, tokenizer)
    return run.publish(
        Outcome(
            kind="masked language model", model=model, tokenizer=tokenizer, corpus=corpus, tokens=tokens,
            metric=MASKED_LOSS, figures={"loss": held_out.loss, "pseudo_perplexity": pseudo.value},
            loss_unit="nats per masked token", results=[pseudo], samples=gaps(filler, corpus.held_out[0].text),
            pipeline_tag="fill-mask", next_commands=[("foundling fill {} 'a ___ in the text'", "fill a gap")],
        )
    )  # fmt: skip


def gaps(filler: Filler, text: str) -> list[dict[str, Any]]:
    """A few lines of held-out text with one word hidden, and what the model puts there."""
    samples = []
    for line in (line for line in text.splitlines() if 4 <= len(line.split()) <= 20):
        words = line.split()
        words[len(words) // 2] = "___"
        prompt = " ".join(words)
        filled = filler.fill(prompt, n=1)
        samples.append({"prompt": prompt, "text": filled["text"], "note": "the likeliest token in the gap"})
        if len(samples) == 5:
            break
    return samples
