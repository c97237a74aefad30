# SPDX-License-Identifier: Apache-2.0
"""Induction heads: they appear in a 2-layer attention-only model within a few steps, and with them in-context learning
(Olsson et al. 2022, "In-context Learning and Induction Heads"). Then the same scores on SmolLM2-135M.

python -m examples.induction [--steps 1700] [--layers 2,1] [--repeated 0.8] [--minutes 10] [--out FILE]

The text is the standard library of Python, in tokens of a BPE of VOCAB tokens; a share of the rows is random tokens
that are repeated. Along training, on held-out text: the loss, and the in-context score (the mean loss of WIDTH tokens
from the LATE-th on minus that of as many from the EARLY-th on); on random tokens that are repeated once: their loss,
and the prefix-matching score of each head. A model of one layer, which cannot compose heads, is trained beside it.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import foundling
from benchmarks.chat_task import smollm2
from benchmarks.corpora import corpus_of
from benchmarks.runs import Results, causal_batch
from examples.programs import Parser, chosen, cost_of, measured, number, require_all, run, save_figure
from foundling.blocks.attention import Attention
from foundling.blocks.init import initialise
from foundling.blocks.layer import MixerBlock
from foundling.blocks.norm import RMSNorm
from foundling.blocks.position import RoPE
from foundling.blocks.stack import Decoder
from foundling.contracts.data import Batch
from foundling.interpret import (
    Head,
    composition,
    in_context_score,
    induction_scores,
    ov_reading,
    patch_effects,
    sites_of,
    skip_trigrams,
    trace,
)
from foundling.interpret.circuits import SkipTrigrams, token_losses
from foundling.interpret.look import token_name
from foundling.objectives.causal import Causal
from foundling.report.look import HeadMap, heads_svg
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState

VOCAB, T, ROWS = 320, 128, 16
EARLY, LATE, WIDTH = 10, 90, 20
TEXT_BYTES, TOKENIZER_TEXTS = 3_000_000, 200
STEPS, WARMUP, REPEATED = 1700, 50, 0.8
EVERY = 25
"""steps between two measurements"""
SENTENCE = "The fox ran over the hill. The owl saw the moon. The fox ran over the"


@dataclass(frozen=True)
class AttentionOnlyConfig:
    vocab_size: int = VOCAB
    d_model: int = 64
    n_layers: int = 2
    n_heads: int = 4
    head_dim: int = 16
    max_seq_len: int = T
    tie_embeddings: bool = False


def attention_only(c: AttentionOnlyConfig) -> Decoder:
    """Attention and nothing else in every layer (Elhage et al. 2021). Rotary positions, and biases: with them a head
    can look at the token before whatever the tokens are."""
    layers = [
        MixerBlock(RMSNorm(c.d_model, 1e-5), Attention(c.d_model, c.n_heads, c.n_heads, c.head_dim, bias=True))
        for _ in range(c.n_layers)
    ]
    return Decoder(c, [*layers], RMSNorm(c.d_model, 1e-5), rope=RoPE(c.head_dim, 10_000.0))


class Rows:
    """Rows of T + 1 tokens: spans of text, and in a share of them random tokens and the same again."""

    def __init__(self, tokens: torch.Tensor, repeated: float) -> None:
        self.tokens, self.n_repeated = tokens, round(repeated * ROWS)

    def __getitem__(self, n: int) -> Batch:
        draw = generator("rows", 0, n)
        at = torch.randint(len(self.tokens) - T - 1, (ROWS, 1), generator=draw)
        rows = self.tokens[at + torch.arange(T + 1)]
        for row in range(self.n_repeated):
            length = int(torch.randint(10, T // 2, (), generator=draw))
            rows[row] = torch.randint(VOCAB, (length,), generator=draw).repeat(T // length + 2)[: T + 1]
        return causal_batch(rows)


def text_tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Of training and held-out files of the standard library."""
    corpus = corpus_of("stdlib")
    texts, size = [], 0
    for document in corpus.train():
        texts.append(document.text)
        size += len(document.text)
        if size > TEXT_BYTES:
            break
    tokenizer = Tokenizer.train(texts[:TOKENIZER_TEXTS], VOCAB)
    held_out = [document.text for document in corpus.held_out][:40]
    train_ids, test_ids = (
        torch.tensor([i for ids in tokenizer.encode_batch(some) for i in [tokenizer.eos, *ids]])
        for some in (texts, held_out)
    )
    return train_ids, test_ids


def measure(model: Decoder, held_out: torch.Tensor) -> dict[str, Any]:
    scores = induction_scores(model, generator("repeated", 0), rows=8, length=40)
    with torch.no_grad():
        loss = token_losses(model, model(held_out).hidden, held_out).mean()
    return {
        "text loss": round(float(loss), 4),
        "in-context score": round(in_context_score(model, held_out, early=EARLY, late=LATE, width=WIDTH), 4),
        "loss of the second copy": round(scores.second_loss, 4),
        "prefix matching": [[round(v, 4) for v in row] for row in scores.prefix_matching.tolist()],
        "previous token": [[round(v, 4) for v in row] for row in scores.previous_token.tolist()],
    }


def trained(n_layers: int, steps: int, repeated: float, seed: int = 0) -> dict[str, Any]:
    """Measurements along training, and which heads compose at its end."""
    runtime = Runtime(threads=1)
    runtime.setup()
    train_tokens, test_tokens = text_tokens()
    held_out = test_tokens[: 32 * T].view(32, T)
    model = attention_only(AttentionOnlyConfig(n_layers=n_layers))
    initialise(model, generator("init", seed))
    state = TrainState.build(model, OptimOptions())
    curve = {"0": measure(model, held_out)}
    schedule = Schedule(steps, warmup_steps=min(WARMUP, steps // 2))
    for record in train(state, Causal(), Rows(train_tokens, repeated), schedule, TrainOptions(ROWS), runtime):
        if record.n % EVERY == 0 or record.n == steps:
            curve[str(record.n)] = measure(model, held_out)
            best = max(map(max, curve[str(record.n)]["prefix matching"]))
            print(f"  step {record.n}: loss {record.loss:.3f}, best prefix matching {best:.3f}", flush=True)
    result: dict[str, Any] = {"curve": curve}
    if n_layers == 2:
        induction = int(torch.tensor(curve[str(steps)]["prefix matching"][1]).argmax())
        heads = range(AttentionOnlyConfig.n_heads)
        result["k-composition"] = [
            round(composition(model, Head(0, head), Head(1, induction))["k"], 4) for head in heads
        ]
    return result


def summary(curve: dict[str, Any]) -> dict[str, Any]:
    """The best head before and after the phase change: its step is the first of half the final score, and before is up
    to half that step."""
    best = {int(step): max(map(max, values["prefix matching"])) for step, values in curve.items()}
    last = max(best)
    change = min(step for step, value in best.items() if value >= best[last] / 2)
    before = max(step for step in best if step <= change / 2)
    at = {"before": before, "change": change, "after": last}
    return {
        name: {
            "step": step,
            "best prefix matching": best[step],
            **{k: curve[str(step)][k] for k in ("text loss", "in-context score", "loss of the second copy")},
        }
        for name, step in at.items()
    }


@torch.no_grad()
def real(drawing: Path) -> dict[str, Any]:
    """The same scores of SmolLM2-135M-Instruct, and a drawing of its strongest induction and previous-token heads."""
    directory = smollm2()
    model, tokenizer = foundling.load(directory).eval(), Tokenizer.load(directory)
    opening = tokenizer.eos if tokenizer.bos is None else tokenizer.bos
    ids = torch.tensor(sorted(set(range(model.config.vocab_size)) - tokenizer.special))
    scores = induction_scores(model, generator("repeated", 0), rows=4, length=50, ids=ids, start=opening)
    texts = [document.text for document in corpus_of("stdlib").held_out]
    rows = [row for row in (tokenizer.encode(text[:4000])[:512] for text in texts[:60]) if len(row) == 512][:8]
    head, best = scores.best()
    layer, number = divmod(int(scores.previous_token.argmax()), scores.previous_token.shape[1])
    draw_heads(model, tokenizer, opening, [head, Head(layer, number)], drawing)
    strong = int((scores.prefix_matching > 0.4).sum())
    return {
        "best induction head": [*head], "prefix matching": round(best, 4), "heads above 0.4": strong,
        "of heads": scores.prefix_matching.numel(),
        "best previous-token head": [layer, number], "previous token": round(float(scores.previous_token.max()), 4),
        "loss of the first copy": round(scores.first_loss, 3), "loss of the second copy": round(scores.second_loss, 3),
        "in-context score": round(in_context_score(model, torch.tensor(rows), early=50, late=500, width=10), 3),
        "copying": copying(model, head, ids), "patching": patching(model, tokenizer, opening),
    }  # fmt: skip


def copying(model: Any, head: Head, ids: torch.Tensor, n: int = 256) -> dict[str, float]:
    """Of how many random tokens the head's OV reading raises the token itself by most, and among its ten first; by
    chance 1 and 10 of the vocabulary."""
    chosen = ids[torch.randperm(len(ids), generator=generator("copying", 0))[:n]]
    logits = ov_reading(model, head, chosen)
    rank = (logits > logits.gather(1, chosen[:, None])).sum(1)
    return {"first": round(float((rank == 0).float().mean()), 3), "ten": round(float((rank < 10).float().mean()), 3)}


def patching(model: Any, tokenizer: Tokenizer, opening: int) -> dict[str, float]:
    """Which heads at the last token bring back " hill" over " gate", when the text says that the fox ran over the gate:
    the share of the difference of the logits that each restores alone, the five largest."""
    clean, corrupted = (
        torch.tensor([[opening, *tokenizer.encode(SENTENCE.replace("hill", word))]]) for word in ("hill", "gate")
    )
    hill, gate = (tokenizer.encode(" " + word)[0] for word in ("hill", "gate"))
    sites = sites_of(model, heads=True, positions=[clean.shape[1] - 1])

    def score(logits: torch.Tensor) -> float:
        return float(logits[0, hill] - logits[0, gate])

    effects = patch_effects(model, clean, corrupted, sites, score)
    best = sorted(effects, key=lambda site: -effects[site])[:5]
    return {f"{site.module} {site.head}": round(effects[site], 3) for site in best}


def draw_heads(model: Any, tokenizer: Tokenizer, opening: int, heads: list[Head], file: Path) -> None:
    ids = [opening, *tokenizer.encode(SENTENCE)]
    record = trace(model, torch.tensor([ids]))
    maps = [
        HeadMap(layer, head, tuple(map(tuple, record.heads[layer].weights()[0, head].tolist())))
        for layer, head in heads
    ]
    svg = heads_svg([token_name(tokenizer, i) for i in ids], maps)
    svg = svg.replace('style="', 'style="background: #fcfbf8; color: #1f2328; ', 1)
    file.write_text(svg, encoding="utf-8")


SOURCES = (" raise", " try", "coding", "(self", "def", " for", "args", "file", " is", " len", " return", "class")


def layer_on_text(steps: int, vocab_size: int) -> tuple[Decoder, Tokenizer, torch.Tensor, torch.Tensor, float]:
    """One layer of 8 heads without positions, so that skip trigrams are all that its heads do; its tokenizer, the text
    and held-out text, and the mean loss of the last 50 steps."""
    corpus, runtime = corpus_of("stdlib"), Runtime(threads=1)
    runtime.setup()
    texts = [document.text for document in islice(corpus.train(), 500)]
    tokenizer = Tokenizer.train(texts[:TOKENIZER_TEXTS], vocab_size)
    held_out = [document.text for document in corpus.held_out][:40]
    text, unseen = (
        torch.tensor([i for ids in tokenizer.encode_batch(some) for i in [tokenizer.eos, *ids]])
        for some in (texts, held_out)
    )
    model = attention_only(AttentionOnlyConfig(vocab_size=vocab_size, d_model=128, n_layers=1, n_heads=8))
    model.rope = None
    initialise(model, generator("init", 0))
    state, schedule = TrainState.build(model, OptimOptions()), Schedule(steps, warmup_steps=steps // 40)
    losses = [r.loss for r in train(state, Causal(), Rows(text, 0.0), schedule, TrainOptions(ROWS), runtime)]
    return model.eval(), tokenizer, text, unseen, sum(losses[-50:]) / len(losses[-50:])


@torch.no_grad()
def probabilities(model: Decoder, one: SkipTrigrams, windows: torch.Tensor) -> list[float]:
    """Of the first output after the first destination, behind windows (n, 31) that lack the source, and with the source
    as their eleventh token."""
    rows = windows[(windows != one.source).all(1)][:256]
    rows = torch.cat([rows, torch.full((len(rows), 1), one.destinations[0][0])], 1)
    with_source = rows.clone()
    with_source[:, 10] = one.source
    logits = [model.logits(model(some).hidden[:, -1]) for some in (rows, with_source)]
    return [round(float(some.softmax(-1)[:, one.outputs[0][0]].mean()), 4) for some in logits]


def skip_trigram_table(steps: int = 2000, vocab_size: int = 1024, common: int = 500, file: Path | None = None) -> None:
    """docs/results/skip_trigrams.json: of each of SOURCES the head whose best destination and best output have the
    largest product, among the tokens that the text has `common` times, and what the model then predicts.

    python -c "from examples.induction import skip_trigram_table as table; table()"
    """
    start = time.monotonic()
    model, tokenizer, text, unseen, loss = layer_on_text(steps, vocab_size)
    results = Results("skip_trigrams", file)
    ids = torch.nonzero(torch.bincount(text, minlength=vocab_size) >= common).flatten()
    encoded = [tokenizer.encode(word) for word in SOURCES]
    sources = torch.tensor([word[0] for word in encoded if len(word) == 1])
    by_head = [skip_trigrams(model, Head(0, head), sources, n=3, ids=ids) for head in range(8)]
    table = []
    for choices in zip(*by_head, strict=True):
        one = max(choices, key=lambda each: each.destinations[0][1] * each.outputs[0][1])
        without, with_source = probabilities(model, one, unseen[: len(unseen) // 31 * 31].view(-1, 31))
        table.append({
            "source": token_name(tokenizer, one.source), "head": choices.index(one),
            "destinations": [(token_name(tokenizer, token), round(score, 2)) for token, score in one.destinations],
            "outputs": [(token_name(tokenizer, token), round(logit, 2)) for token, logit in one.outputs],
            "probability": without, "probability with the source": with_source,
        })  # fmt: skip
        print(json.dumps(table[-1], ensure_ascii=False), flush=True)
    results.values |= results.measured() | {"steps": steps, "loss": round(loss, 3), "table": table}
    results.values["minutes"] = round((time.monotonic() - start) / 60, 2)
    results.save()


def check(results: Results) -> None:
    """The best head of two layers is below 0.1 before and at least 0.8 after the change, and the context helps by more
    after it; the heads of one layer stay below 0.1."""
    two = summary(results.values["2 layers"]["curve"])
    assert two["before"]["best prefix matching"] < 0.1, two
    assert two["after"]["best prefix matching"] >= 0.8, two
    assert two["after"]["in-context score"] < two["before"]["in-context score"], two
    if "1 layers" in results.values:
        one = results.values["1 layers"]["curve"].values()
        assert max(max(values["prefix matching"][0]) for values in one) < 0.1


def figure(results: Results, file: Path) -> None:
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    for n, style in ((2, "-"), (1, "--")):
        if f"{n} layers" not in results.values:
            continue
        curve = results.values[f"{n} layers"]["curve"]
        steps, values, name = [int(step) for step in curve], list(curve.values()), f"{n} layer{'s' * (n > 1)}"
        axes[0].plot(steps, [v["text loss"] for v in values], f"C0{style}", label=f"text, {name}")
        axes[0].plot(steps, [v["loss of the second copy"] for v in values], f"C1{style}", label=f"second copy, {name}")
        axes[1].plot(steps, [v["in-context score"] for v in values], f"C0{style}", label=name)
        for layer in range(n):
            for head in range(AttentionOnlyConfig.n_heads):
                label = f"layer {layer} of {n}" if head == 0 else None
                line = [v["prefix matching"][layer][head] for v in values]
                axes[2].plot(steps, line, f"C{2 + layer}{style}", label=label, linewidth=1)
    titles = ("loss (nats a token)", "in-context score on text", "prefix matching of each head")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize=7)
    save_figure(fig, file)


def main() -> None:
    parser = Parser("induction", __doc__, small="", seeds=False)
    parser.add_argument("--steps", type=number(int, 1), default=STEPS)
    parser.add_argument("--layers", default="2,1", help="2, 1 or both: models to train")
    parser.add_argument("--repeated", type=number(float, 0, 1), default=REPEATED, help="share of rows that repeat")
    args = parser.parse_args()
    layers = [int(n) for n in chosen(args.layers, ("2", "1"), "--layers")]
    settings = {"steps": args.steps, "repeated": args.repeated, "vocab_size": VOCAB, "rows": ROWS}
    results, picture = parser.results(args, settings)
    for n in layers:
        results.get(f"{n} layers", lambda n=n: measured(trained, n, args.steps, args.repeated, threads=1))
    results.get("SmolLM2-135M-Instruct", lambda: measured(real, picture.with_name("attention_heads.svg"), threads=1))
    require_all(results)
    print(cost_of(results))
    figure(results, picture)
    if "2 layers" in results.values:
        results.values["summary"] = summary(results.values["2 layers"]["curve"])
        results.save()
        print(json.dumps(results.values["summary"], indent=1))
        if (args.steps, args.repeated) == (STEPS, REPEATED):
            check(results)


if __name__ == "__main__":
    run(main)
