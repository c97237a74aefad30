# SPDX-License-Identifier: Apache-2.0
"""Induction heads: they appear in a 2-layer attention-only model within a few steps, and with them in-context learning
(Olsson et al. 2022, "In-context Learning and Induction Heads"). Then the same scores on SmolLM2-135M.

python -m examples.induction [--steps 1700] [--layers 2,1] [--repeated 0.8] [--minutes 10] [--out FILE]

The text is the standard library of Python, in tokens of a BPE of VOCAB tokens; a share of the rows is random tokens
that are repeated. Along training, on held-out text: the loss, and the in-context score (the loss of the tokens around
the LATE-th minus that of those around the EARLY-th); on random tokens that are repeated once: their loss, and the
prefix-matching score of each head. A model of one layer, which cannot compose heads, is trained beside it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
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
    trace,
)
from foundling.interpret.circuits import token_losses
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("induction", __doc__)
    parser.add_argument("--steps", type=number(int, 1), default=STEPS)
    parser.add_argument("--layers", default="2,1", help="2, 1 or both: models to train")
    parser.add_argument("--repeated", type=number(float, 0, 1), default=REPEATED, help="share of rows that repeat")
    args = parser.parse_args(arguments)
    layers = [int(n) for n in chosen(args.layers, ("2", "1"), "--layers")]
    settings = {"steps": args.steps, "repeated": args.repeated, "vocab_size": VOCAB, "rows": ROWS}
    results, figures = parser.results(args, settings)
    for n in layers:
        results.get(f"{n} layers", lambda n=n: measured(trained, n, args.steps, args.repeated, threads=1))
    results.get("SmolLM2-135M-Instruct", lambda: measured(real, figures / "attention_heads.svg", threads=1))
    require_all(results)
    print(cost_of(results))
    figure(results, figures / "induction.svg")
    if "2 layers" in results.values:
        results.values["summary"] = summary(results.values["2 layers"]["curve"])
        results.save()
        print(json.dumps(results.values["summary"], indent=1))
        if (args.steps, args.repeated) == (STEPS, REPEATED):
            check(results)


if __name__ == "__main__":
    run(main)
