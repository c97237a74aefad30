# SPDX-License-Identifier: Apache-2.0
"""The Transformer's encoder built up, a part at a time, on one task that has a question for each part.

python -m examples.transformer_steps [--small] [--seeds 2] [--minutes 60]

A row has twelve tokens. Each has a key, which no other token of the row has, a value, and the keys of four others.
Asked of each token are the values of those four tokens (whom to read follows from what stands in the tokens, and four
are read at once), and the value of the token before it (whom to read follows from the position alone). A guess is
right in one of eight cases.

The steps: weightless attention, softmax(x xᵀ / √D) x; projections q, k, v and o; several heads of the same width
together; positions; norms. Each has all parts of the step before. What is not attention (embeddings, MLPs, head) is
alike in all. Projections into the residual stream are drawn like all others: the zeros that the library begins with
would hide what norms are for.

Besides, a figure of the mean and deviation of activations by depth, with and without norms, before and after training.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.runs import Results
from examples.programs import Parser, cost_of, measured, require_all, run, save_figure, seeds_of, spread, table
from foundling.blocks.attention import Attention
from foundling.blocks.context import Context
from foundling.blocks.init import initialise
from foundling.blocks.layer import Block
from foundling.blocks.mlp import MLP
from foundling.blocks.norm import LayerNorm
from foundling.blocks.position import sinusoids
from foundling.blocks.seq2seq import SourceEncoder
from foundling.contracts.data import Batch
from foundling.contracts.objective import Loss, Term
from foundling.errors import DivergedError
from foundling.runtime.device import Runtime, available_threads
from foundling.runtime.rng import generator
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState

STEPS = ("weightless attention", "q, k, v, o", "heads", "positions", "norms")
TOKENS, KEYS, VALUES, LOOKUPS = 12, 16, 8, 4
QUESTIONS = LOOKUPS + 1


# ---------------------------------------------------------------------------------------------------------------- task


def rows_of(n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """x (n, T, 2 + LOOKUPS): key, value, keys of others; the answers (n, T, QUESTIONS). Before the first token of a row
    stands its last."""
    keys = torch.rand(n, KEYS, generator=draw).argsort(1)[:, :TOKENS]
    values = torch.randint(VALUES, (n, TOKENS), generator=draw)
    places = torch.randint(TOKENS, (LOOKUPS, n, TOKENS), generator=draw)
    x = torch.stack([keys, values, *(keys.gather(1, place) for place in places)], -1)
    y = torch.stack([*(values.gather(1, place) for place in places), values.roll(1, 1)], -1)
    return x, y


class Rows:
    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed = rows, seed

    def __getitem__(self, n: int) -> Batch:
        x, y = rows_of(self.rows, generator("steps", self.seed, n))
        return {"x": x, "y": y, "sample_ids": torch.arange(self.rows)}


class Answers:
    """loss: cross-entropy of all answers, in nats."""

    def normalizers(self, batch: Batch) -> dict[str, int]:
        return {"loss": batch["y"].numel()}

    def __call__(self, model: Any, batch: Batch) -> Loss:
        nats = F.cross_entropy(model(batch["x"]).flatten(0, 2), batch["y"].flatten(), reduction="sum")
        return {"loss": Term(nats, batch["y"].numel())}


# --------------------------------------------------------------------------------------------------------------- model


class WeightlessAttention(nn.Module):
    """softmax(x xᵀ / √D) x: similar tokens are averaged, and nothing is learnt."""

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D)"""
        return torch.softmax(x @ x.mT * x.shape[-1] ** -0.5, -1) @ x


class Encoder(SourceEncoder):
    def __init__(self, layers: list[nn.Module], norm: nn.Module, *, positions: bool) -> None:
        super().__init__(layers, norm)
        self.positions = positions

    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + sinusoids(positions, x.shape[-1]) if self.positions else x


class Model(nn.Module):
    """The parts up to `step`, of STEPS: a token is the sum of what its symbols embed as."""

    first: Tensor

    def __init__(self, step: int, *, d_model: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding((1 + LOOKUPS) * KEYS + VALUES, d_model)
        first = [0, (1 + LOOKUPS) * KEYS, *((1 + n) * KEYS for n in range(LOOKUPS))]  # rows of key, value, others' keys
        self.register_buffer("first", torch.tensor(first), persistent=False)
        heads = n_heads if step >= 2 else 1

        def norm() -> nn.Module:
            return LayerNorm(d_model, 1e-5) if step >= 4 else nn.Identity()

        def layer() -> nn.Module:
            mixer = Attention(d_model, heads, heads, d_model // heads) if step else WeightlessAttention()
            return Block(norm(), mixer, norm(), MLP(d_model, 4 * d_model, F.relu, bias=True))

        self.encoder = Encoder([layer() for _ in range(n_layers)], norm(), positions=step >= 3)
        self.head = nn.Linear(d_model, QUESTIONS * VALUES, bias=False)

    @property
    def layers(self) -> nn.ModuleList:
        return self.encoder.layers

    def embed(self, x: Tensor) -> Tensor:
        return self.embedding(x + self.first).sum(2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, 2 + LOOKUPS) -> logits (B, T, QUESTIONS, VALUES)"""
        hidden, _ = self.encoder(self.embed(x))
        return self.head(hidden).unflatten(-1, (QUESTIONS, VALUES))


def fresh(step: int, seed: int, **sizes: int) -> Model:
    """Every matrix is drawn with deviation 1/√fan_in, so that each part adds as much as it reads; embeddings so that a
    token is of deviation 1."""
    model, draw = Model(step, **sizes), generator("init", seed)
    initialise(model, draw)
    with torch.no_grad():
        for module in model.encoder.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(torch.randn(module.weight.shape, generator=draw) * module.in_features**-0.5)
        model.embedding.weight.copy_(torch.randn(model.embedding.weight.shape, generator=draw) * (2 + LOOKUPS) ** -0.5)
    return model


# ----------------------------------------------------------------------------------------------------------- measuring


@torch.inference_mode()
def accuracy(model: Model, rows: int) -> dict[str, float]:
    """Of each question, on rows that no training drew, and of all."""
    x, y = rows_of(rows, generator("held-out rows", 0))
    right = (model(x).argmax(-1) == y).float()
    parts = {"by key": right[..., :-1], "before": right[..., -1], "all": right}
    shares = {name: float(part.mean()) for name, part in parts.items()}
    return {name: round(share, 4) for name, share in shares.items()}


@torch.inference_mode()
def activations(model: Model, rows: int = 64) -> list[dict[str, float]]:
    """Before each layer, and before the head: the mean and the deviation of all numbers of the residual stream, and the
    deviation of what the next part reads, which is after a norm where there is one."""
    x, _ = rows_of(rows, generator("held-out rows", 0))
    parts: list[Any] = [*model.layers, model.encoder.norm]
    streams: list[Tensor] = []
    hooks = [part.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0])) for part in parts]
    model(x)
    for hook in hooks:
        hook.remove()
    norms = [*(layer.mixer_norm for layer in parts[:-1]), parts[-1]]
    result = []
    for stream, norm in zip(streams, norms, strict=True):
        values = {"mean": stream.mean(), "deviation": stream.std(), "read": norm(stream).std()}
        result.append({name: float(f"{float(value):.4g}") for name, value in values.items()})
    return result


def measure(
    step: int, seed: int, *, steps: int, rows: int, items: int, learning_rate: float, sizes: dict[str, int]
) -> dict[str, Any]:
    runtime = Runtime(threads=available_threads())
    runtime.setup()
    model = fresh(step, seed, **sizes)
    before = activations(model.eval())
    state = TrainState.build(model, OptimOptions(optimizer="adamw", learning_rate=learning_rate))
    losses = []
    schedule, options = Schedule(steps, warmup_steps=steps // 20), TrainOptions(rows)
    try:
        for record in train(state, Answers(), Rows(rows, seed), schedule, options, runtime):
            if record.n % max(1, steps // 10) == 0:
                losses.append(round(record.loss, 4))
    except DivergedError as error:  # what norms are for; the weights are those before
        print(f"  {error}", flush=True)
    model.eval()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "losses": losses,
        "steps": state.step,
        "skipped steps": state.skipped,
        "accuracy": accuracy(model, items),
        "before training": before,
        "after training": activations(model),
    }


# ------------------------------------------------------------------------------------------------------------- results


DEEP = ((3, 0.003, "without norms"), (3, 0.0003, "without norms"), (4, 0.003, "with norms"))
"""steps and learning rates of the deep models: a tenth of the rate of all others may save what has no norms"""
TWICE = "norms, twice as many steps"


def name_of(step: int, seed: int, layers: int) -> str:
    return f"{STEPS[step]}, {layers} layers, seed {seed}"


def deep_name(step: int, rate: float, layers: int) -> str:
    return f"{name_of(step, 0, layers)}, learning rate {rate}"


def step_table(results: Results, seeds: Sequence[int], layers: int) -> str:
    rows = [["step", "parameters", "values by key", "value before", "all", "minutes", "peak memory (MB)"]]
    lines = {title: [name_of(step, seed, layers) for seed in seeds] for step, title in enumerate(STEPS)}
    for title, names in (lines | {"norms, twice as many steps, one seed": [TWICE]}).items():
        runs = [results.values[name] for name in names]
        shares = [spread([run["accuracy"][name] for run in runs]) for name in ("by key", "before", "all")]
        minutes = sum(run["minutes"] for run in runs) / len(runs)
        memory = max(run["peak memory (MB)"] for run in runs)
        rows.append([title, f"{runs[0]['parameters']:,}", *shares, f"{minutes:.1f}", f"{memory:,}"])
    return table(rows)


def depth_table(results: Results, layers: int) -> str:
    """The deep models with positions, without norms and with them."""
    head = [f"{layers} layers", "learning rate", "all", "steps", "of them not finite"]
    when = ("before training", "after training")
    rows: list[list[Any]] = [[*head, *(f"deviation {name}, first to last" for name in when)]]
    for step, rate, title in DEEP:
        run = results.values[deep_name(step, rate, layers)]
        grown = [f"{run[name][0]['deviation']:.3g} to {run[name][-1]['deviation']:.3g}" for name in when]
        rows.append([title, rate, run["accuracy"]["all"], run["steps"], run["skipped steps"], *grown])
    return table(rows)


def figure(results: Results, seeds: Sequence[int], layers: int, deep: int, file: Path) -> None:
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
    for offset, name in ((-0.2, "by key"), (0.2, "before")):
        runs = [
            [results.values[name_of(s, seed, layers)]["accuracy"][name] for seed in seeds] for s in range(len(STEPS))
        ]
        means = [sum(values) / len(values) for values in runs]
        bars = [[m - min(v) for m, v in zip(means, runs)], [max(v) - m for m, v in zip(means, runs)]]
        places = [step + offset for step in range(len(STEPS))]
        axes[0].bar(places, means, 0.4, yerr=bars, capsize=2, label=f"value {name}")
    axes[0].axhline(1 / VALUES, color="black", linestyle=":", linewidth=1)
    axes[0].set_xticks(range(len(STEPS)), [title.replace(" ", "\n", 1) for title in STEPS], fontsize=7)
    axes[0].set(ylabel="accuracy", ylim=(0, 1.02), title=f"{layers} layers")
    for (step, rate, title), color in zip(DEEP, ("C3", "C1", "C0")):
        run = results.values[deep_name(step, rate, deep)]
        for when, style in (("before training", "--"), ("after training", "-")):
            for axis, name in ((axes[1], "mean"), (axes[2], "deviation")):
                values = [entry[name] for entry in run[when]]
                axis.plot(range(deep + 1), values, style, color=color, label=f"{title}, rate {rate}, {when}")
    axes[1].set(xlabel="layers read", title=f"mean of activations, {deep} layers", yscale="symlog")
    axes[2].set(xlabel="layers read", title=f"deviation, {deep} layers", yscale="log")
    axes[0].legend(fontsize=7)
    fig.legend(*axes[2].get_legend_handles_labels(), loc="outside lower right", ncols=3, fontsize=7)
    save_figure(fig, file)


def check(results: Results, seeds: Sequence[int], layers: int, deep: int) -> None:
    """Each part helps where it should, of every seed: attention that learns whom to read, several heads for several
    tokens, positions for the token before; and norms in a deep model."""
    for seed in seeds:
        shares = [results.values[name_of(step, seed, layers)]["accuracy"] for step in range(len(STEPS))]
        by_key = [share["by key"] for share in shares]
        assert by_key[1] > by_key[0] + 0.2 and by_key[2] > by_key[1] + 0.05, by_key
        assert shares[3]["before"] > shares[2]["before"] + 0.2, shares
    *without, with_norms = (results.values[deep_name(step, rate, deep)] for step, rate, _ in DEEP)
    assert all(with_norms["accuracy"]["all"] > run["accuracy"]["all"] + 0.02 for run in without)
    assert without[0]["before training"][-1]["deviation"] > 10 * with_norms["before training"][-1]["deviation"]


def main() -> None:
    parser = Parser("transformer_steps", __doc__, small="a quarter of the steps, one seed")
    args = parser.parse_args()
    seeds = seeds_of(args, 1 if args.small else 2)
    sizes = {"d_model": 64, "n_heads": 4, "n_layers": 2}
    settings: dict[str, Any] = {"steps": 300 if args.small else 1200, "rows": 32, "items": 1000, "learning_rate": 0.003}
    deep = {"n_layers": 4 if args.small else 12}, {"steps": 60 if args.small else 800}
    results, picture = parser.results(args, {"sizes": sizes, "training": settings, "deep": deep})
    layers = sizes["n_layers"]
    for step, rate, _ in DEEP:
        shape, training = sizes | deep[0], {**settings, **deep[1], "learning_rate": rate}
        name = deep_name(step, rate, shape["n_layers"])
        results.get(name, lambda s=step, a=shape, b=training: measured(measure, s, 0, sizes=a, **b))
    for seed, step in itertools.product(seeds, range(len(STEPS))):
        name = name_of(step, seed, layers)
        results.get(name, lambda s=step, n=seed: measured(measure, s, n, sizes=sizes, **settings))
    longer = settings | {"steps": 2 * settings["steps"]}
    results.get(TWICE, lambda: measured(measure, len(STEPS) - 1, 0, sizes=sizes, **longer))
    require_all(results)
    print("\n" + step_table(results, seeds, layers) + "\n\n" + depth_table(results, deep[0]["n_layers"]))
    print("\n" + cost_of(results))
    figure(results, seeds, layers, deep[0]["n_layers"], picture)
    if not args.small:
        check(results, seeds, layers, deep[0]["n_layers"])


if __name__ == "__main__":
    run(main)
