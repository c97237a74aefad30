# SPDX-License-Identifier: Apache-2.0
"""Translation by three models: an LSTM whose decoder begins with the encoder's last state, the same with attention, and
the Transformer, with as many parameters, on the same batches, by the same optimiser.

python -m examples.translation [--small] [--tasks dates,help] [--seeds 3] [--minutes 60]

dates: a line of one to four dates, each in one of eight languages and four formats of CLDR, into digits. What has to
be remembered grows with the line. Measured: lines that are wholly right, and dates that are right, of days that no
training line holds.

help: sentences of the LibreOffice help from English into German. Measured: chrF and BLEU by sacrebleu, and the loss, of
sentences that are held out, also by length of the source. sacrebleu is not a dependency: `pip install sacrebleu`.

Each model is trained in a process of its own, whose time and peak memory are stated. A second call goes on from the
results of the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.fetch import fetch
from benchmarks.runs import Results, train_model
from examples.pairs import END, DateBatches, Dates, Ids, Pair, PairBatches, aligned, pair_batch
from examples.programs import Parser, chosen, cost_of, measured, require_all, run, save_figure, seeds_of, spread, table
from foundling.decode.generate import generate
from foundling.errors import ConfigError
from foundling.evaluate.intervals import interval_of
from foundling.runtime.rng import generator
from foundling.text import Tokenizer

LSTM, ATTENTION, TRANSFORMER = "LSTM", "LSTM with attention", "Transformer"
MODELS = (LSTM, ATTENTION, TRANSFORMER)
TASKS = ("dates", "help")
VOCAB = 2048
"""pieces of English and German together"""
LENGTHS = ((3, 6), (7, 9), (10, 12))
"""words of an English sentence, both ends included"""
AT_ONCE = 64
"""sources that are answered together"""


def config_of(model: str, task: str, vocab_size: int) -> tuple[str, dict[str, Any]]:
    """Family and fields. The widths are such that the three have within a tenth the same number of parameters."""
    shape: dict[str, Any] = {"vocab_size": vocab_size, "max_seq_len": 512}
    if model == TRANSFORMER:
        width = {"dates": 84, "help": 96}[task]
        sizes = {"d_model": width, "n_heads": 4, "d_ff": 4 * width}
        return "transformer", shape | sizes | {"n_layers": 2, "n_decoder_layers": 2}
    wide = {"dates": (148, 128), "help": (152, 136)}[task]
    sizes = {"d_model": wide[model == ATTENTION], "attention": model == ATTENTION}
    return "lstm_seq2seq", shape | sizes | {"n_layers": 1, "n_decoder_layers": 1}


# ------------------------------------------------------------------------------------------------------------ measuring


def answers_of(model: Any, sources: Sequence[list[int]], max_tokens: int) -> list[list[int]]:
    """The likeliest token at each step, of sources of like length together."""
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    result: list[list[int]] = [[] for _ in sources]
    for at in range(0, len(order), AT_ONCE):
        rows = order[at : at + AT_ONCE]
        done = generate(model, [sources[i] for i in rows], max_tokens=max_tokens, temperature=0, stop=[END])
        for i, completion in zip(rows, done, strict=True):
            result[i] = completion.tokens
    return result


def figure_of(scores: Sequence[float]) -> dict[str, float]:
    """Mean and 95 % interval over items."""
    low, high, _ = interval_of(scores)
    values = {"value": sum(scores) / len(scores), "low": low, "high": high, "of": len(scores)}
    return {name: round(value, 4) for name, value in values.items() if value is not None}


def dates_right(target: str, answer: str) -> list[float]:
    """Of each date of a line, eight digits, whether it is right where it stands."""
    return [float(target[at : at + 8] == answer[at : at + 8]) for at in range(0, len(target), 8)]


def date_scores(model: Any, dates: Dates, most: int, items: int) -> dict[str, Any]:
    """Of each number of dates: mean tokens of a source, whole lines and single dates that are right."""
    result: dict[str, Any] = {}
    for count in range(1, most + 1):
        draw = generator("held-out dates", count)
        lines = [dates.line(count, draw, held_out=True) for _ in range(items)]
        sources = [dates.encode(line)[0] for line in lines]
        answers = [dates.decode(tokens) for tokens in answers_of(model, sources, 8 * most + 1)]
        single = [score for (_, target), a in zip(lines, answers) for score in dates_right(target, a)]
        result[str(count)] = {
            "tokens": round(sum(map(len, sources)) / items, 1),
            "lines": figure_of([float(target == a) for (_, target), a in zip(lines, answers)]),
            "dates": figure_of(single),
        }
    return result


@torch.inference_mode()
def nats_per_token(model: Any, pairs: Sequence[Ids]) -> float:
    nats, tokens = 0.0, 0
    for at in range(0, len(pairs), AT_ONCE):
        batch = pair_batch(pairs[at : at + AT_ONCE])
        memory = model.encode(batch["source"], documents=batch["source_documents"])
        hidden = model(batch["tokens"], documents=batch["documents"], memory=memory).hidden
        counted = batch["loss_mask"]
        nats += float(cross_entropy(model.logits(hidden[counted]), batch["targets"][counted], reduction="sum"))
        tokens += int(counted.sum())
    return nats / tokens


def sacrebleu() -> Any:
    try:
        return import_module("sacrebleu")
    except ImportError:
        raise ConfigError("chrF and BLEU are computed by sacrebleu; install it: pip install sacrebleu") from None


def overlap(targets: list[str], answers: list[str]) -> dict[str, float]:
    """chrF (Popović 2015) and BLEU (Papineni et al. 2002) of the whole, with sacrebleu's tokens."""
    chrf, bleu = sacrebleu().corpus_chrf(answers, [targets]), sacrebleu().corpus_bleu(answers, [targets])
    return {"chrF": round(chrf.score, 2), "BLEU": round(bleu.score, 2)}


def chrf_interval(targets: list[str], answers: list[str]) -> dict[str, float]:
    """Of the mean of the sentences' own chrF: the corpus figure has no items to draw."""
    return figure_of([sacrebleu().sentence_chrf(a, [t]).score for a, t in zip(answers, targets)])


def help_scores(model: Any, tokenizer: Tokenizer, pairs: list[Pair]) -> dict[str, Any]:
    encoded = [(tokenizer.encode(source), tokenizer.encode(target)) for source, target in pairs]
    longest = max(len(target) for _, target in encoded)
    answers = [tokenizer.decode(tokens) for tokens in answers_of(model, [s for s, _ in encoded], longest + 1)]
    targets = [target for _, target in pairs]
    result: dict[str, Any] = overlap(targets, answers) | {"nats per token": round(nats_per_token(model, encoded), 4)}
    result["sentence chrF"] = chrf_interval(targets, answers)
    result["by length"] = {}
    for low, high in LENGTHS:
        rows = [i for i, (source, _) in enumerate(pairs) if low <= len(source.split()) <= high]
        if len(rows) > 1:
            part = [targets[i] for i in rows], [answers[i] for i in rows]
            result["by length"][f"{low}–{high}"] = overlap(*part) | {"sentence chrF": chrf_interval(*part)}
    result["samples"] = [[*pairs[i], answers[i]] for i in range(0, len(pairs), len(pairs) // 3)]
    return result


# ------------------------------------------------------------------------------------------------------------- training


def trained(model: str, task: str, vocab_size: int, batches: Any, steps: int, seed: int) -> tuple[Any, dict[str, Any]]:
    family, fields = config_of(model, task, vocab_size)
    net = train_model(family, fields, batches, steps, seed=seed)
    cost = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "target tokens": sum(int(batches[n]["loss_mask"].sum()) for n in range(steps)),
    }
    return net, cost


def measure_dates(model: str, seed: int, *, most: int, steps: int, rows: int, items: int) -> dict[str, Any]:
    dates = Dates()
    net, cost = trained(model, "dates", dates.vocab_size, DateBatches(dates, most, rows, seed), steps, seed)
    return cost | {"by dates": date_scores(net, dates, most, items)}


def help_pairs() -> tuple[list[Pair], list[Pair]]:
    below = Path("usr/share/libreoffice/help")
    english, german = fetch("libreoffice-help-en-us") / below / "en-US", fetch("libreoffice-help-de") / below / "de"
    return aligned(english / "text", german / "text", LENGTHS[0][0], LENGTHS[-1][1])


def measure_help(model: str, seed: int, *, steps: int, rows: int, items: int) -> dict[str, Any]:
    sacrebleu()  # before minutes of training
    train, held_out = help_pairs()
    tokenizer = Tokenizer.train((text for pair in train for text in pair), VOCAB)
    encoded = [(tokenizer.encode(source), tokenizer.encode(target)) for source, target in train]
    net, cost = trained(model, "help", tokenizer.vocab_size, PairBatches(encoded, rows, seed), steps, seed)
    draw = torch.randperm(len(held_out), generator=generator("held-out sentences", 0))[:items]
    pairs = [held_out[i] for i in sorted(draw.tolist())]
    return cost | {"pairs": len(train)} | help_scores(net, tokenizer, pairs)


# -------------------------------------------------------------------------------------------------------------- results


def over_seeds(results: Results, model: str, seeds: Sequence[int]) -> dict[int, dict[str, list[float]]]:
    """Number of dates -> what is measured of it, of each seed."""
    runs = [results.values[f"dates, {model}, seed {seed}"]["by dates"] for seed in seeds]
    return {
        int(count): {"tokens": [run[count]["tokens"] for run in runs]}
        | {name: [run[count][name]["value"] for run in runs] for name in ("lines", "dates")}
        for count in runs[0]
    }


def cost_columns(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Tokens and minutes are means over the runs."""
    minutes = sum(run["minutes"] for run in runs) / len(runs)
    memory = max(run["peak memory (MB)"] for run in runs)
    tokens = sum(run["target tokens"] for run in runs) / len(runs)
    return [f"{runs[0]['parameters']:,}", f"{tokens:,.0f}", f"{minutes:.1f}", f"{memory:,}"]


COST = ["parameters", "target tokens", "minutes", "peak memory (MB)"]


def date_tables(results: Results, seeds: Sequence[int]) -> str:
    scores = {model: over_seeds(results, model, seeds) for model in MODELS}
    counts = list(scores[LSTM])
    parts = []
    for name, title in (("lines", "whole lines right"), ("dates", "single dates right")):
        head = [title, *(f"{count} ({scores[LSTM][count]['tokens'][0]:.0f} tokens)" for count in counts)]
        parts.append(table([head, *([m, *(spread(scores[m][c][name]) for c in counts)] for m in MODELS)]))
    runs = {model: [results.values[f"dates, {model}, seed {seed}"] for seed in seeds] for model in MODELS}
    parts.append(table([["dates", *COST], *([model, *cost_columns(runs[model])] for model in MODELS)]))
    return "\n\n".join(parts)


def help_tables(results: Results) -> str:
    runs = {model: results.values[f"help, {model}"] for model in MODELS}
    lengths = list(runs[LSTM]["by length"])
    head = ["help", "chrF", "BLEU", "nats per token", *COST]
    rows = [[m, r["chrF"], r["BLEU"], r["nats per token"], *cost_columns([r])] for m, r in runs.items()]
    by_length = [["mean chrF of a sentence, by words of the source", "all", *lengths]]
    for model, measurement in runs.items():
        cells = [measurement, *measurement["by length"].values()]
        figures = [cell["sentence chrF"] for cell in cells]
        by_length.append([model, *(f"{f['value']:.1f} ({f['low']:.1f}–{f['high']:.1f})" for f in figures)])
    return table([head, *rows]) + "\n\n" + table(by_length)


def figure(results: Results, seeds: Sequence[int], file: Path) -> None:
    """Exact match against the length of the source; a bar from the smallest to the largest of the seeds."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
    for axis, name, title in zip(axes, ("lines", "dates"), ("whole lines", "single dates")):
        for model in MODELS:
            scores = over_seeds(results, model, seeds).values()
            x = [score["tokens"][0] for score in scores]
            values = [score[name] for score in scores]
            mean = [sum(v) / len(v) for v in values]
            bars = [[m - min(v) for m, v in zip(mean, values)], [max(v) - m for m, v in zip(mean, values)]]
            axis.errorbar(x, mean, yerr=bars, marker="o", capsize=3, label=model)
        axis.set(xlabel="tokens of the source", title=title, ylim=(-0.02, 1.04))
    axes[0].set(ylabel="exact match, held-out days")
    axes[1].legend()
    save_figure(fig, file)


def check(results: Results, seeds: Sequence[int]) -> None:
    """Of single dates, so that no figure falls only because a line has more of them: without attention the share falls
    with length, and by more than that of both others, of every seed."""
    for n in range(len(seeds)):
        falls = {}
        for model in MODELS:
            by_count = [score["dates"][n] for score in over_seeds(results, model, seeds).values()]
            falls[model] = by_count[0] - by_count[-1]
        assert falls[LSTM] > 0.2, falls
        assert all(falls[LSTM] > falls[model] + 0.1 for model in (ATTENTION, TRANSFORMER)), falls


def main() -> None:
    parser = Parser("translation", __doc__, small="fewer steps, one seed")
    parser.add_argument("--tasks", default="dates,help")
    args = parser.parse_args()
    tasks, seeds = chosen(args.tasks, TASKS, "--tasks"), seeds_of(args, 1 if args.small else 3)
    full = {"dates": {"most": 4, "steps": 700, "rows": 32, "items": 400},
            "help": {"steps": 1000, "rows": 32, "items": 800}}  # fmt: skip
    small = {"dates": {"most": 3, "steps": 250, "rows": 32, "items": 100},
             "help": {"steps": 40, "rows": 32, "items": 40}}  # fmt: skip
    settings = small if args.small else full
    results, picture = parser.results(args, settings)
    for seed, model in itertools.product(seeds, MODELS if "dates" in tasks else ()):
        name = f"dates, {model}, seed {seed}"
        results.get(name, lambda m=model, s=seed: measured(measure_dates, m, s, **settings["dates"]))
    for model in MODELS if "help" in tasks else ():
        results.get(f"help, {model}", lambda m=model: measured(measure_help, m, 0, **settings["help"]))
    require_all(results)
    if "dates" in tasks:
        print("\n" + date_tables(results, seeds))
        figure(results, seeds, picture)
    if "help" in tasks:
        print("\n" + help_tables(results))
    print("\n" + cost_of(results))
    if "dates" in tasks and not args.small:
        check(results, seeds)


if __name__ == "__main__":
    run(main)
