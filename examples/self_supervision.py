# SPDX-License-Identifier: Apache-2.0
"""Five ways to learn from text without labels, and what each is worth when there are labels.

python -m examples.self_supervision [objectives,labels] [--small] [--minutes 30]

Next token, masked tokens, spans behind sentinels, denoising and replaced tokens (ELECTRA) learn from the descriptions
of Debian packages, at equal training FLOPs, each by a model of its usual kind and of one width. The score beside each
is that of the best constant prediction of the same held-out targets, the entropy of their frequencies: below it, a
model has learnt more than how often tokens come. Then each is finetuned on 100 and 1,000 labelled descriptions of 20
sections, and so are the same models from random weights: supervised against self-supervised at equal labels.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import foundling
from benchmarks.corpora import WORK
from benchmarks.datasets import part
from benchmarks.finetune_labels import held_out
from benchmarks.learning import TokenizedCorpus
from benchmarks.runs import Results
from examples.programs import Parser, chosen, cost_of, finetuned, measured, require_all, run, table
from foundling.adapt.heads import HeadOptions, add_head
from foundling.blocks.heads import scores
from foundling.blocks.init import initialise
from foundling.config import to_dict
from foundling.data.loader import PackedBatches, evaluation_batches
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
from foundling.train.options import OptimOptions, TrainOptions
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
CORPUS, VOCAB, SEQ_LEN, D_MODEL, FLOPS = "sections", 2048, 128, 128, 6e12
MASK_RATE = 0.3
"""of masked and replaced tokens: more of them than BERT's 0.15 teach more in a short training (Wettig et al. 2023)"""
MAX_LEN = SEQ_LEN + 16
"""positions: the target of denoising has the text and a margin (recipes.learning.target_len)"""
SAME_SCRATCH = ("replaced tokens",)
"""objectives whose untrained model is another's"""
GENERATOR_LAYERS = 1
"""a quarter of the discriminator's (Clark et al. 2020, section 3.2: a quarter to a half of its size)"""
EPOCHS = {100: 20, 1000: 4}
"""labels -> epochs of finetuning"""
FINETUNE = ["--as", "classify", "--method", "full", "--pool", "concat", "--batch-size", "8", "--seq-len", str(SEQ_LEN)]
TIMES = (1, 10)
"""the default rate that finetunes random weights, which need more of it"""


def directory(name: str, small: bool) -> Path:
    return WORK / "self-supervision" / (name.replace(" ", "-") + ("-small" if small else ""))


def fresh(name: str) -> tuple[Any, dict[str, Any]]:
    """An untrained model, and its fields."""
    kind, objective, n_layers = KINDS[name]
    model = build(kind, **family(kind).module.sized(VOCAB, MAX_LEN, D_MODEL, n_layers))
    fields = to_dict(model.config)
    initialise(model, generator("init", 0))
    if objective != "replaced":
        return model, fields
    add_head(model, HeadOptions("tag", LABELS), generator("head"))
    small = build(kind, **family(kind).module.sized(VOCAB, MAX_LEN, D_MODEL, GENERATOR_LAYERS))
    initialise(small, generator("init", 1))
    return Electra(small, model), fields


def learning(name: str, tokenizer: Tokenizer, fields: dict[str, Any]) -> Learning:
    objective = KINDS[name][1]
    kind = "masked" if objective == "replaced" else objective
    rate = MASK_RATE if kind == "masked" else ObjectiveSpec.mask_rate
    made = learning_of(ObjectiveSpec(kind, mask_rate=rate), tokenizer, fields, SEQ_LEN, seed=0)
    return replace(made, objective=ReplacedTokens(seed=0, weight=1)) if objective == "replaced" else made


def flops_per_token(name: str, fields: dict[str, Any], target_len: int | None) -> int:
    kind, objective, _ = KINDS[name]
    flops = training_flops_per_token(skeleton(kind, fields), SEQ_LEN, target_len)
    if objective == "replaced":
        smaller = skeleton(kind, family(kind).module.sized(VOCAB, MAX_LEN, D_MODEL, GENERATOR_LAYERS))
        flops += training_flops_per_token(smaller, SEQ_LEN)
    return flops


def constant_nats(targets: Tensor) -> float:
    """(N,) -> the entropy of their frequencies in nats: no constant prediction has a smaller loss on them."""
    shares = torch.unique(targets, return_counts=True)[1].double() / len(targets)
    return float(-(shares * shares.log()).sum())


def pretrained(name: str, small: bool) -> dict[str, Any]:
    """Trains and saves the model; its held-out loss and that of the best constant prediction."""
    data, runtime = TokenizedCorpus(CORPUS, VOCAB, 100_000), Runtime(threads=available_threads())
    runtime.setup()
    model, fields = fresh(name)
    made = learning(name, data.tokenizer, fields)
    tokens = FLOPS / (20 if small else 1) / flops_per_token(name, fields, made.target_len)
    rows = batch_rows(tokens, SEQ_LEN)
    steps = round(tokens / (rows * SEQ_LEN))
    batches = made.transform(PackedBatches(data.train, seq_len=SEQ_LEN, batch_size=rows, seed=0))
    windows = evaluation_batches(data.held_out, seq_len=SEQ_LEN, batch_size=16, stride=SEQ_LEN)
    before = corrupted_score(model, made.objective, made.transform, windows, runtime)
    state, schedule = TrainState.build(model, OptimOptions()), Schedule(steps, warmup_steps=steps // 50)
    for record in train(state, made.objective, batches, schedule, TrainOptions(64), runtime):
        if record.n % max(1, steps // 5) == 0:
            print(f"  {name}, step {record.n} of {steps}: {record.loss:.3f}", flush=True)
    after = corrupted_score(model, made.objective, made.transform, windows, runtime)
    asked = made.transform(windows)
    extra: dict[str, Any] = {}
    if isinstance(model, Electra):
        constant, extra = replaced_figures(model, made.objective, [asked[n] for n in range(len(windows))])
        model = model.discriminator
    else:
        constant = constant_nats(torch.cat([asked[n]["targets"][asked[n]["loss_mask"]] for n in range(len(windows))]))
    out = directory(name, small)
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
    """The entropy of replaced or not, and how well the discriminator tells: precision and recall of `replaced`."""
    labels, calls = list[Tensor](), list[Tensor]()
    for batch in batches:
        hidden = model.generator(batch["tokens"], documents=batch["documents"]).hidden
        told = objective.rewritten(model, hidden, batch)
        labels.append(told["targets"][told["loss_mask"]])
        calls.append(scores(model.discriminator, told).argmax(-1)[told["loss_mask"]])
    label, call = torch.cat(labels), torch.cat(calls)
    right = int((label & call).sum())
    return constant_nats(label), {
        "precision": right / max(1, int(call.sum())), "recall": right / max(1, int(label.sum()))
    }  # fmt: skip


def random_weights(name: str) -> Path:
    """The same model, untrained."""
    out = directory(name + " random", False)
    if not out.exists():
        model, _ = fresh(name)
        tokenizer = TokenizedCorpus(CORPUS, VOCAB, 100_000).tokenizer
        foundling.save(model.discriminator if isinstance(model, Electra) else model, out, tokenizer=tokenizer)
    return out


def objectives(results: Results, small: bool) -> None:
    rows: list[tuple[Any, ...]] = [("objective", "model", "tokens", "before", "after", "best constant", "of replaced")]
    for name in KINDS:
        if cell := results.get(name, lambda name=name: measured(pretrained, name, small)):
            told = f"precision {cell['precision']:.2f}, recall {cell['recall']:.2f}" if "recall" in cell else ""
            counted = f"{cell['tokens'] / 1e3:.0f}k"
            values = [f"{cell[key]:.3f}" for key in ("before", "after", "best constant")]
            rows.append((name, KINDS[name][0], counted, *values, told))
    print("\n" + table(rows))


def starts(name: str, small: bool) -> dict[str, tuple[Path, list[str]]]:
    """How a row of `labels` begins -> its directory, and options of finetuning."""
    rates = {f", from scratch, rate × {n}": ["--learning-rate", f"{n * LEARNING_RATES['full']:g}"] for n in TIMES}
    scratch = {key: (random_weights(name), options) for key, options in rates.items()}
    return {"": (directory(name, small), [])} | (scratch if name not in SAME_SCRATCH else {})


def labels(results: Results, small: bool) -> None:
    sizes = list(EPOCHS)[: 1 if small else None]
    rows: list[tuple[Any, ...]] = [("start", "model", *(f"{size:,} labels" for size in sizes))]
    for name in KINDS:
        if name not in results.values:
            continue
        for start, (base, options) in starts(name, small).items():
            cells = []
            for size in sizes:
                data, more = part(CORPUS, f"train-{size}"), [*FINETUNE, "--epochs", str(EPOCHS[size]), *options]
                cells.append(
                    results.get(
                        f"{name}, {size}{start}",
                        lambda base=base, data=data, more=more: finetuned(base, data, held_out(CORPUS), more),
                    )
                )
            label = start.removeprefix(", ") or name
            rows.append((label, KINDS[name][0], *(f"{cell['accuracy']:.3f}" if cell else "" for cell in cells)))
    print("\n" + table(rows))


def main() -> None:
    parser = Parser("self_supervision", __doc__, small="a twentieth of the training", seeds=False)
    parser.add_argument("parts", nargs="?", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    args = parser.parse_args()
    parts = chosen(args.parts, PARTS, "parts")
    settings = {"FLOPs": FLOPS / (20 if args.small else 1), "d_model": D_MODEL, "vocabulary": VOCAB, "seq_len": SEQ_LEN}
    results, _ = parser.results(args, settings)
    for name in parts:
        {"objectives": objectives, "labels": labels}[name](results, args.small)
    print("\n" + cost_of(results))
    require_all(results)


if __name__ == "__main__":
    run(main)
