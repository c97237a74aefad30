# SPDX-License-Identifier: Apache-2.0
"""Controlled comparisons of learning: one thing differs; corpora, seeds and floating-point operations are the same.

python -m benchmarks.learning NAME[,NAME...] [--corpora stdlib,packages] [--seeds 0,1,2] [--tokens 5e5] [--size 96x3]

Each line of the output is a run. Loss depends on no clock, so other work may go on beside it.
"""

import argparse
import itertools
import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch.nn.functional as F
from foundling.recipes.corpus import scale_sample
from foundling.recipes.planning import batch_rows
from torch import Tensor

from benchmarks.corpora import path_of
from foundling.blocks.attention import Attention
from foundling.blocks.init import initialise
from foundling.data.loader import PackedBatches, evaluation_batches
from foundling.data.shards import TokenArray, TokenShards
from foundling.evaluate.perplexity import score
from foundling.models import build, family
from foundling.objectives.causal import Causal
from foundling.plan.flops import matmul_parameters, skeleton, training_flops_per_token
from foundling.plan.law import compressibility
from foundling.recipes import corpus
from foundling.recipes.recipe import Recipe
from foundling.runtime.device import Runtime
from foundling.runtime.files import write_directory
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.train.loop import train
from foundling.train.options import TrainOptions
from foundling.train.state import TrainState

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "adamw": {"optimizer": "adamw"},
    "adamw-half": {"optimizer": "adamw", "learning_rate": 0.01},
    "adamw-double": {"optimizer": "adamw", "learning_rate": 0.04},
    "cosine": {"schedule": "cosine"},
    "decay-50": {"decay_share": 0.5},
    "decay-100": {"decay_share": 1.0},
    "no-decay": {"weight_decay": 0.0},
    "more-decay": {"weight_decay": 0.1},
    "window-128": {"seq_len": 128},
    "window-512": {"seq_len": 512},
    "half-batch": {"batch_scale": 0.5},
    "double-batch": {"batch_scale": 2},
    "tied": {"fields": {"tie_embeddings": True}},
    "half-rates": {"learning_rate": 0.01, "matrix_learning_rate": 0.01},
    "double-rates": {"learning_rate": 0.04, "matrix_learning_rate": 0.04},
    "gpt2": {"family": "gpt2"},
    "vocabulary-1024": {"vocab_size": 1024},
    "vocabulary-4096": {"vocab_size": 4096},
    "qk-norm": {"patch": "qk_norm"},
}


class Prepared:
    """A corpus split and tokenized once, kept below `directory`; what it is held against may be about the first
    `held_out_bytes` alone."""

    def __init__(self, name: str, directory: Path, vocab_size: int = 2048, held_out_bytes: int | None = None) -> None:
        self.name, self.vocab_size = name, vocab_size
        self.split, _ = corpus.read(path_of(name, directory), "text")
        home = directory / f"{name}-{vocab_size}"
        if not (home / "tokenizer").exists():
            home.mkdir(parents=True, exist_ok=True)
            write_directory(home / "tokenizer", corpus.train_tokenizer(self.split, vocab_size).save)
        self.tokenizer = Tokenizer.load(home / "tokenizer")
        self.tokens = corpus.write_tokens(home, self.split, self.tokenizer, 1.0)
        self.bytes_per_token = corpus.bytes_per_token(self.split, self.tokenizer)
        self.scale = compressibility(scale_sample(self.split))
        self.held_out: TokenShards | TokenArray = self.tokens.held_out
        self.held_out_bytes = self.split.held_out_bytes
        if held_out_bytes is not None:
            texts = [document.text for document in self.split.held_out]
            sizes = itertools.accumulate(len(text.encode()) for text in texts)
            some = [(text, size) for text, size in zip(texts, sizes, strict=True) if size <= held_out_bytes]
            some = some or [(texts[0], len(texts[0].encode()))]
            self.held_out, self.held_out_bytes = TokenArray((text for text, _ in some), self.tokenizer), some[-1][1]


def run(data: Prepared, d_model: int, n_layers: int, tokens: float, seed: int, threads: int, **changes: Any) -> dict:
    """Trains to the end and measures; `changes` are fields of the recipe, `fields` of the model, `batch_scale`."""
    changes, seq_len = dict(changes), changes.get("seq_len", 256)
    changes.pop("seq_len", None)
    fields, batch_scale = changes.pop("fields", {}), changes.pop("batch_scale", 1)
    batch_size = max(1, round(batch_rows(tokens, seq_len) * batch_scale))
    steps = round(tokens / (batch_size * seq_len))
    recipe = Recipe(
        data=data.name, total_steps=steps, vocab_size=data.tokenizer.vocab_size, d_model=d_model, n_layers=n_layers,
        seq_len=seq_len, batch_size=batch_size, micro_batch_size=min(batch_size, 16), threads=threads,
        precision="float32", compile=False, device="cpu", seed=seed, warmup_steps=steps // 50,
    )  # fmt: skip
    recipe = replace(recipe, **changes)
    sizes = family(recipe.family).module.sized(recipe.vocab_size, seq_len, d_model, n_layers) | fields
    runtime = Runtime(threads=threads)
    runtime.setup()
    model = build(recipe.family, **sizes)
    initialise(model, generator("init", seed))
    batches = PackedBatches(data.tokens.train, seq_len=seq_len, batch_size=batch_size, seed=seed)
    state = TrainState.build(model, recipe.optim())
    begin = time.monotonic()
    losses = [
        record.loss
        for record in train(
            state, Causal(), batches, recipe.make_schedule(), TrainOptions(recipe.micro_batch_size), runtime
        )
    ]
    seconds = time.monotonic() - begin
    held_out = evaluation_batches(data.held_out, seq_len=seq_len, batch_size=16, stride=seq_len // 2)
    found = score(model, Causal(), held_out, data.held_out_bytes, runtime)
    tail = losses[-max(1, len(losses) // 20) :]
    return {
        "corpus": data.name, "d_model": d_model, "n_layers": n_layers, "seed": seed, "tokens": recipe.tokens,
        "n": matmul_parameters(model), "bytes_read": round(recipe.tokens * data.bytes_per_token),
        "unique_bytes": data.split.train_bytes, "scale": round(data.scale, 4),
        "bits_per_byte": round(found.bits_per_byte, 5), "train_loss": round(sum(tail) / len(tail), 4),
        "seconds": round(seconds, 2),
    }  # fmt: skip


def without_transfer() -> ExitStack:
    """Within it a learning rate is one number for every width."""
    stack = ExitStack()
    stack.enter_context(mock.patch("foundling.train.optim.adam_scale", lambda role: 1.0))
    return stack


def qk_norm() -> ExitStack:
    """Within it queries and keys have length 1 a head, times √P (Henry et al. 2020, without the learned gain)."""

    def heads(self: Attention, x: Tensor) -> Tensor:
        return F.rms_norm(plain(self, x), (self.head_dim,))

    def qkv(self: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return heads(self, self.q(x)), heads(self, self.k(x)), plain(self, self.v(x))

    plain, stack = Attention.heads, ExitStack()
    stack.enter_context(mock.patch.object(Attention, "qkv", qkv))
    return stack


PATCHES = {"qk_norm": qk_norm, "without_transfer": without_transfer}


def flops(d_model: int, n_layers: int, vocab_size: int, changes: dict[str, Any]) -> int:
    """A token, of training."""
    seq_len, name = changes.get("seq_len", 256), changes.get("family", "llama")
    sizes = family(name).module.sized(vocab_size, seq_len, d_model, n_layers) | changes.get("fields", {})
    return training_flops_per_token(skeleton(name, sizes), seq_len)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("variants")
    parser.add_argument("--corpora", default="stdlib,packages")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tokens", type=float, default=5e5)
    parser.add_argument("--size", default="96x3")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out")
    args = parser.parse_args()
    d_model, n_layers = map(int, args.size.split("x"))
    directory = Path(tempfile.gettempdir()) / "foundling-benchmarks"
    data: dict[tuple[str, int], Prepared] = {}
    for seed, variant, name in itertools.product(
        args.seeds.split(","), args.variants.split(","), args.corpora.split(",")
    ):
        changes = dict(VARIANTS[variant])
        vocab_size, patch = changes.pop("vocab_size", 2048), changes.pop("patch", None)
        if (name, vocab_size) not in data:
            data[name, vocab_size] = Prepared(name, directory, vocab_size)
        cost = flops(d_model, n_layers, vocab_size, changes)
        tokens = args.tokens * flops(d_model, n_layers, 2048, {}) / cost
        with PATCHES[patch]() if patch else ExitStack():
            found = run(data[name, vocab_size], d_model, n_layers, tokens, int(seed), args.threads, **changes)
        line = json.dumps({"variant": variant, **found})
        print(line, flush=True)
        if args.out:
            with open(args.out, "a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
