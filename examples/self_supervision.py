# SPDX-License-Identifier: Apache-2.0
"""Five ways to learn from text without labels, and what each is worth when there are labels.

python -m examples.self_supervision [objectives,labels] [--small] [--minutes 30]

Next token, masked tokens, spans behind sentinels, denoising and replaced tokens (ELECTRA) learn from the descriptions
of Debian packages, at equal training FLOPs, each by a model of its usual kind and of one width. Replaced tokens go on
from the model of masked tokens, for a third of the FLOPs: from random weights the discriminator calls every token
original for as long as we train. (Clark et al. 2020, section 3.2, saw this where the generator is trained first, and
began with its weights.) The score beside each is that of the best constant prediction of the same held-out targets, the
entropy of their frequencies, sentinels left out: below it, a model has learnt more than how often tokens come.
Then each is finetuned on 100 and 1,000 labelled descriptions of 20 sections,
and so are the same models from random weights: supervised against self-supervised at equal labels.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy.stats import rankdata
from torch import Tensor

import foundling
from benchmarks.corpora import WORK
from benchmarks.datasets import part
from benchmarks.finetune_labels import held_out
from benchmarks.learning import TokenizedCorpus, rates
from benchmarks.runs import Results
from examples.programs import Parser, chosen, cost_of, finetuned, measured, require_all, run, table
from foundling.adapt.heads import HeadOptions, add_head
from foundling.blocks.heads import scores
from foundling.blocks.init import initialise
from foundling.config import to_dict
from foundling.contracts.data import Batch, Batches
from foundling.contracts.objective import Term
from foundling.data.loader import PackedBatches, evaluation_batches
from foundling.data.transforms.special import sentinel_ids
from foundling.errors import ConfigError
from foundling.evaluate.perplexity import corrupted_score
from foundling.models import build, family
from foundling.objectives.replaced import LABELS, Electra, ReplacedTokens
from foundling.plan.flops import skeleton, training_flops_per_token
from foundling.plan.plan import batch_rows
from foundling.recipes.finetune_plan import LEARNING_RATES
from foundling.recipes.learning import Learning, learning_of
from foundling.recipes.recipe import ObjectiveSpec
from foundling.runtime.device import Runtime, available_threads
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.train.loop import train
from foundling.train.options import TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState

PARTS = ("objectives", "labels")
KINDS: dict[str, tuple[str, Any, int]] = {
    "next token": ("llama", "causal", 4),
    "masked tokens": ("modernbert", "masked", 4),
    "spans": ("t5", "span", 2),
    "denoising": ("bart", "infill", 2),
    "replaced tokens": ("modernbert", "replaced", 4),
}
"""objective -> family, its name in a recipe, layers (of encoder and decoder each, where there are two)"""
CORPUS, VOCAB, SEQ_LEN, D_MODEL = "sections", 2048, 128, 128
FLOPS, SMALL = 6e12, 1 / 20
CONTINUED = {"replaced tokens": ("masked tokens", 1 / 3, 0.3)}
"""objective -> whose model it goes on from, its share of the FLOPs, the factor on the learning rates"""
MASK_RATE = 0.3
"""of masked tokens: more of them than BERT's 0.15 teach more in a short training (Wettig et al. 2023)"""
MAX_LEN = SEQ_LEN + 16
"""positions: the target of denoising has the text and a margin (recipes.learning.target_len)"""
GENERATOR_LAYERS = 1
"""a quarter of the discriminator's (Clark et al. 2020, section 3.2: a quarter to a half of its size)"""
EPOCHS = {100: 20, 1000: 4}
"""labels -> epochs of finetuning"""
FINETUNE = ["--as", "classify", "--method", "full", "--pool", "concat", "--batch-size", "8", "--seq-len", str(SEQ_LEN)]
TIMES = (1, 10)
"""factors on the default learning rate of finetuning"""


def directory(name: str, flops: float) -> Path:
    return WORK / "self-supervision" / (name.replace(" ", "-") + ("" if flops == FLOPS else f"-{flops:g}"))


def sized(name: str, n_layers: int) -> dict[str, Any]:
    return family(KINDS[name][0]).module.sized(VOCAB, MAX_LEN, D_MODEL, n_layers)


def untrained(name: str, n_layers: int = 0, seed: int = 0) -> Any:
    kind, _, usual = KINDS[name]
    model = build(kind, **sized(name, n_layers or usual))
    initialise(model, generator("init", seed))
    return model


def start(name: str, flops: float) -> Any:
    """The model as its training begins, with a generator beside it where tokens are replaced."""
    if name not in CONTINUED:
        return untrained(name)
    discriminator = foundling.load(directory(CONTINUED[name][0], flops))
    add_head(discriminator, HeadOptions("tag", LABELS), generator("head"))
    return Electra(untrained(name, GENERATOR_LAYERS, seed=1), discriminator)


def learning(name: str, tokenizer: Tokenizer, fields: dict[str, Any]) -> Learning:
    objective = KINDS[name][1]
    if objective == "replaced":
        masked = learning_of(ObjectiveSpec("masked"), tokenizer, fields, SEQ_LEN, seed=0)
        return replace(masked, objective=ReplacedTokens(seed=0))
    rate = MASK_RATE if objective == "masked" else ObjectiveSpec.mask_rate
    return learning_of(ObjectiveSpec(objective, mask_rate=rate), tokenizer, fields, SEQ_LEN, seed=0)


def flops_per_token(name: str, target_len: int | None) -> int:
    kind, objective, n_layers = KINDS[name]
    flops = training_flops_per_token(skeleton(kind, sized(name, n_layers)), SEQ_LEN, target_len)
    if objective == "replaced":
        flops += training_flops_per_token(skeleton(kind, sized(name, GENERATOR_LAYERS)), SEQ_LEN)
    return flops


def constant_nats(targets: Tensor) -> float:
    """(N,) -> the entropy of their frequencies in nats: no constant prediction has a smaller loss on them."""
    shares = torch.unique(targets, return_counts=True)[1].double() / len(targets)
    return float(-(shares * shares.log()).sum())


class Uncounted:
    """Batches whose loss leaves out the targets `tokens`, such as sentinels, which come in order whatever the text."""

    def __init__(self, batches: Batches, tokens: Sequence[int]) -> None:
        self.batches, self.tokens = batches, torch.tensor(tokens, dtype=torch.int64)

    def __getitem__(self, n: int) -> Batch:
        batch = self.batches[n]
        return batch | {"loss_mask": batch["loss_mask"] & ~torch.isin(batch["targets"], self.tokens)}


def scored_batches(made: Learning, tokenizer: Tokenizer, name: str, batches: Batches) -> Batches:
    """What is measured: held-out batches as the objective reads them, without the loss of sentinels."""
    return Uncounted(made.transform(batches), sentinel_ids(tokenizer) if KINDS[name][1] == "span" else ())


def pretrained(name: str, flops: float = FLOPS) -> dict[str, Any]:
    """Trains and saves the model; its held-out loss and that of the best constant prediction."""
    data, runtime = TokenizedCorpus(CORPUS, VOCAB, 100_000), Runtime(threads=available_threads())
    runtime.setup()
    share, factor = CONTINUED[name][1:] if name in CONTINUED else (1.0, 1.0)
    model = start(name, flops)
    made = learning(name, data.tokenizer, to_dict(getattr(model, "discriminator", model).config))
    tokens = share * flops / flops_per_token(name, made.target_len)
    rows = batch_rows(tokens, SEQ_LEN)
    steps = round(tokens / (rows * SEQ_LEN))
    batches = made.transform(PackedBatches(data.train, seq_len=SEQ_LEN, batch_size=rows, seed=0))
    windows = evaluation_batches(data.held_out, seq_len=SEQ_LEN, batch_size=16, stride=SEQ_LEN)
    measure = partial(corrupted_score, model, made.objective, partial(scored_batches, made, data.tokenizer, name))
    before = measure(windows, runtime)
    state, schedule = TrainState.build(model, rates(factor)), Schedule(steps, warmup_steps=steps // 50)
    for record in train(state, made.objective, batches, schedule, TrainOptions(64), runtime):
        if record.n % max(1, steps // 5) == 0:
            print(f"  {name}, step {record.n} of {steps}: {record.loss:.3f}", flush=True)
    after, test = measure(windows, runtime), scored_batches(made, data.tokenizer, name, windows)
    held_out = [test[n] for n in range(len(windows))]
    if isinstance(model, Electra):
        constant, extra = replaced_figures(model, made.objective, held_out)
        model = model.discriminator
    else:
        constant, extra = constant_nats(torch.cat([batch["targets"][batch["loss_mask"]] for batch in held_out])), {}
    out = directory(name, flops)
    shutil.rmtree(out, ignore_errors=True)
    foundling.save(model, out, tokenizer=data.tokenizer)
    figures = {"before": before.loss, "after": after.loss, "best constant": constant, **extra}
    return {
        "tokens": steps * rows * SEQ_LEN, "steps": steps,
        "interval of after": [round(end, 4) for end in (after.low, after.high) if end is not None],
        **{key: round(value, 4) for key, value in figures.items()},
    }  # fmt: skip


@torch.inference_mode()
def replaced_figures(model: Electra, objective: ReplacedTokens, batches: list[Any]) -> tuple[float, dict[str, Any]]:
    """The entropy of replaced or not, and how well the discriminator tells: precision and recall of `replaced`, and how
    often a replaced token has a higher score than an original one; and the generator's nats per masked token."""
    labels, margins, nats = list[Tensor](), list[Tensor](), list[Term]()
    for batch in batches:
        hidden = model.generator(batch["tokens"], documents=batch["documents"]).hidden
        rewritten = objective.rewritten(model, hidden, batch)
        nats.append(objective(model, batch)["generator"])
        labels.append(rewritten["targets"][rewritten["loss_mask"]])
        margins.append(scores(model.discriminator, rewritten).diff(dim=-1)[..., 0][rewritten["loss_mask"]])
    label, margin = torch.cat(labels), torch.cat(margins)
    call, ranks = margin > 0, rankdata(margin.numpy())
    n = int(label.sum())
    higher = (ranks[label.numpy() == 1].sum() - n * (n + 1) / 2) / (n * (len(label) - n))
    right = int((label & call).sum())
    generated = sum(float(term.sum) for term in nats) / sum(int(term.count) for term in nats)
    return constant_nats(label), {
        "precision": right / max(1, int(call.sum())), "recall": right / n, "AUC": float(higher),
        "replaced": n / len(label), "generator": generated,
    }  # fmt: skip


def random_weights(name: str) -> Path:
    """The same model, untrained."""
    out = directory(name + " random", FLOPS)
    if not out.exists():
        foundling.save(untrained(name), out, tokenizer=TokenizedCorpus(CORPUS, VOCAB, 100_000).tokenizer)
    return out


def objective_table(values: dict[str, Any]) -> str:
    rows: list[tuple[Any, ...]] = [("objective", "model", "tokens", "before", "after", "best constant")]
    for name in KINDS:
        if cell := values.get(name):
            low, high = cell["interval of after"]
            before, after, constant = (f"{cell[key]:.3f}" for key in ("before", "after", "best constant"))
            counted = f"{cell['tokens'] / 1e6:.2f} M"
            rows.append((name, KINDS[name][0], counted, before, f"{after} ({low:.3f}–{high:.3f})", constant))
    return table(rows)


def starts(name: str, flops: float) -> dict[str, tuple[Path, list[str]]]:
    """How a row of labels begins -> its directory, and options of finetuning."""
    bases = {"": directory(name, flops)}
    if name not in CONTINUED:  # whose untrained model is another's
        bases[", from scratch"] = random_weights(name)
    return {
        f"{beginning}, rate × {n}": (base, ["--learning-rate", f"{n * LEARNING_RATES['full']:g}"])
        for beginning, base in bases.items()
        for n in TIMES
    }


def label_table(values: dict[str, Any]) -> str:
    rows: list[tuple[Any, ...]] = [("start", "model", *(f"{size:,} labels" for size in EPOCHS))]
    for name, (kind, _, _) in KINDS.items():
        for beginning in starts(name, FLOPS):
            cells = [values.get(f"{name}, {size}{beginning}") for size in EPOCHS]
            if any(cells):
                label = beginning.removeprefix(", ") if "scratch" in beginning else name + beginning
                rows.append((label, kind, *(f"{cell['accuracy']:.3f}" if cell else "" for cell in cells)))
    return table(rows)


def learn_labels(results: Results, flops: float) -> None:
    for name in KINDS:
        for beginning, (base, options) in starts(name, flops).items():
            for size, epochs in EPOCHS.items():
                data, more = part(CORPUS, f"train-{size}"), [*FINETUNE, "--epochs", str(epochs), *options]
                results.get(
                    f"{name}, {size}{beginning}",
                    lambda base=base, data=data, more=more: finetuned(base, data, held_out(CORPUS), more),
                )


def main() -> None:
    parser = Parser("self_supervision", __doc__, small="a twentieth of the training", seeds=False)
    parser.add_argument("parts", nargs="?", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    args = parser.parse_args()
    parts = chosen(args.parts, PARTS, "parts")
    flops = FLOPS * (SMALL if args.small else 1)
    settings = {
        "FLOPs": flops, "d_model": D_MODEL, "vocabulary": VOCAB, "seq_len": SEQ_LEN, "objectives": KINDS,
        "continued": CONTINUED, "mask rate": MASK_RATE, "finetuning": FINETUNE,
        "epochs": list(EPOCHS.items()),
    }  # fmt: skip
    results, _ = parser.results(args, settings)
    if "objectives" in parts:
        for name in KINDS:
            results.get(name, lambda name=name: measured(pretrained, name, flops))
        print("\n" + objective_table(results.values))
    if "labels" in parts:
        if missing := [name for name in KINDS if name not in results.values]:
            raise ConfigError(f"labels need the models of {', '.join(missing)}; run the part objectives first")
        learn_labels(results, flops)
        print("\n" + label_table(results.values))
    print("\n" + cost_of(results))
    require_all(results)


if __name__ == "__main__":
    run(main)
