# SPDX-License-Identifier: Apache-2.0
"""Controlled comparisons of learning: one setting differs; corpora, seeds and floating-point operations are equal.

python -m benchmarks.learning NAME[,NAME...] [--corpora stdlib,packages] [--seeds 0,1,2] [--tokens 5e5] [--size 96x3]

Each line of the output is a run. The loss depends on no clock, so other work may run at the same time.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch.nn.functional as F
from torch import Tensor

from benchmarks.corpora import WORK, corpus_of
from foundling.blocks.attention import Attention
from foundling.blocks.init import initialise
from foundling.data.loader import PackedBatches, evaluation_batches
from foundling.data.shards import TokenArray, TokenShards
from foundling.data.tokens import bytes_per_token, scale_sample, tokenize_corpus, train_tokenizer
from foundling.evaluate.perplexity import score
from foundling.models import build, family
from foundling.objectives.causal import Causal
from foundling.plan.flops import matmul_parameters, skeleton, training_flops_per_token
from foundling.plan.law import compressibility
from foundling.plan.plan import batch_rows
from foundling.runtime.device import Runtime
from foundling.runtime.files import write_directory
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState

MICRO_BATCH_SIZE = {"cpu": 16, "cuda": 64}
"""device -> rows at once"""


@dataclass(frozen=True)
class Setting:
    """What a comparison changes; the defaults are those of `foundling raise`."""

    family: str = "llama"
    fields: dict[str, Any] = field(default_factory=dict)
    """of the family's configuration, over those of its size"""
    vocab_size: int = 2048
    seq_len: int = 256
    batch_scale: float = 1.0
    """factor on the rows of a step"""
    optim: OptimOptions = field(default_factory=OptimOptions)
    schedule: Schedule = field(default_factory=lambda: Schedule(1))
    """its steps and warm-up follow from the tokens"""
    patch: str | None = None
    """of PATCHES"""

    def config(self, d_model: int, n_layers: int) -> dict[str, Any]:
        sized = family(self.family).module.sized(self.vocab_size, self.seq_len, d_model, n_layers)
        return sized | self.fields

    def flops_per_token(self, d_model: int, n_layers: int) -> int:
        """of training"""
        return training_flops_per_token(skeleton(self.family, self.config(d_model, n_layers)), self.seq_len)


def rates(factor: float, **options: Any) -> OptimOptions:
    """Both default learning rates times `factor`."""
    default = OptimOptions()
    return OptimOptions(
        learning_rate=factor * default.learning_rate, matrix_learning_rate=factor * default.matrix_learning_rate,
        **options,
    )  # fmt: skip


SETTINGS = {
    "default": Setting(),
    "adamw": Setting(optim=OptimOptions("adamw")),
    "adamw-half": Setting(optim=rates(0.5, optimizer="adamw")),
    "adamw-double": Setting(optim=rates(2, optimizer="adamw")),
    "cosine": Setting(schedule=Schedule(1, "cosine")),
    "decay-50": Setting(schedule=Schedule(1, decay_share=0.5)),
    "decay-100": Setting(schedule=Schedule(1, decay_share=1.0)),
    "no-decay": Setting(optim=OptimOptions(weight_decay=0.0)),
    "more-decay": Setting(optim=OptimOptions(weight_decay=0.1)),
    "window-128": Setting(seq_len=128),
    "window-512": Setting(seq_len=512),
    "half-batch": Setting(batch_scale=0.5),
    "double-batch": Setting(batch_scale=2),
    "tied": Setting(fields={"tie_embeddings": True}),
    "half-rates": Setting(optim=rates(0.5)),
    "double-rates": Setting(optim=rates(2)),
    "gpt2": Setting(family="gpt2"),
    "vocabulary-1024": Setting(vocab_size=1024),
    "vocabulary-4096": Setting(vocab_size=4096),
    "qk-norm": Setting(patch="qk_norm"),
}


class TokenizedCorpus:
    """A corpus split and tokenized once, below WORK. With `held_out_bytes` only the first held-out documents of about
    so many bytes are measured on."""

    def __init__(self, name: str, vocab_size: int = 2048, held_out_bytes: int | None = None) -> None:
        self.name, self.corpus = name, corpus_of(name)
        directory = WORK / name / f"vocabulary-{vocab_size}"
        if not (directory / "tokenizer").exists():
            directory.mkdir(parents=True, exist_ok=True)
            write_directory(directory / "tokenizer", train_tokenizer(self.corpus, vocab_size).save)
        self.tokenizer = Tokenizer.load(directory / "tokenizer")
        tokens = tokenize_corpus(directory, self.corpus, self.tokenizer)
        self.train = tokens.train
        self.bytes_per_token = bytes_per_token(self.corpus, self.tokenizer)
        self.scale = compressibility(scale_sample(self.corpus))
        self.held_out: TokenShards | TokenArray = tokens.held_out
        self.held_out_bytes = self.corpus.held_out_bytes
        if held_out_bytes is not None:
            texts = [document.text for document in self.corpus.held_out]
            sizes = list(itertools.accumulate(len(text.encode()) for text in texts))
            n = max(1, sum(size <= held_out_bytes for size in sizes))
            self.held_out, self.held_out_bytes = TokenArray(texts[:n], self.tokenizer), sizes[n - 1]


def run(
    data: TokenizedCorpus, d_model: int, n_layers: int, tokens: float, seed: int, threads: int,
    setting: Setting = Setting(), device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Trains a model on about `tokens` tokens, in float32, and measures it on the held-out text."""
    seq_len = setting.seq_len
    batch_size = max(1, round(batch_rows(tokens, seq_len) * setting.batch_scale))
    steps = round(tokens / (batch_size * seq_len))
    runtime = Runtime(device, threads=threads)
    runtime.setup()
    model = build(setting.family, device=device, **setting.config(d_model, n_layers))
    initialise(model, generator("init", seed))
    batches = PackedBatches(data.train, seq_len=seq_len, batch_size=batch_size, seed=seed)
    state = TrainState.build(model, setting.optim)
    schedule = replace(setting.schedule, total_steps=steps, warmup_steps=steps // 50)
    options = TrainOptions(min(batch_size, MICRO_BATCH_SIZE[device]))
    start = time.monotonic()
    losses = [step.loss for step in train(state, Causal(), batches, schedule, options, runtime)]
    seconds = time.monotonic() - start
    held_out = evaluation_batches(data.held_out, seq_len=seq_len, batch_size=16, stride=seq_len // 2)
    measured = score(model, Causal(), held_out, data.held_out_bytes, runtime)
    tail, tokens_read = losses[-max(1, len(losses) // 20) :], steps * batch_size * seq_len
    return {
        "corpus": data.name, "d_model": d_model, "n_layers": n_layers, "seed": seed, "tokens": tokens_read,
        "n": matmul_parameters(model), "bytes_read": round(tokens_read * data.bytes_per_token),
        "unique_bytes": data.corpus.train_bytes, "scale": round(data.scale, 4),
        "bits_per_byte": round(measured.bits_per_byte, 5), "train_loss": round(sum(tail) / len(tail), 4),
        "seconds": round(seconds, 2),
    }  # fmt: skip


@contextmanager
def without_transfer() -> Iterator[None]:
    """Within it a learning rate is one number for every width."""
    with mock.patch("foundling.train.optim.adam_scale", lambda role: 1.0):
        yield


@contextmanager
def qk_norm() -> Iterator[None]:
    """Within it the queries and keys of a head are normalised to length √P (Henry et al. 2020, without the gain)."""
    plain = Attention.heads

    def heads(self: Attention, x: Tensor) -> Tensor:
        return F.rms_norm(plain(self, x), (self.head_dim,))

    def qkv(self: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return heads(self, self.q(x)), heads(self, self.k(x)), plain(self, self.v(x))

    with mock.patch.object(Attention, "qkv", qkv):
        yield


PATCHES = {"qk_norm": qk_norm}


def patched(setting: Setting) -> AbstractContextManager[None]:
    return PATCHES[setting.patch]() if setting.patch else nullcontext()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", help=f"of {', '.join(SETTINGS)}; separated by commas")
    parser.add_argument("--corpora", default="stdlib,packages")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tokens", type=float, default=5e5)
    parser.add_argument("--size", default="96x3", help="d_model x n_layers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", help="file to append the lines to")
    args = parser.parse_args()
    d_model, n_layers = map(int, args.size.split("x"))
    names, data = args.settings.split(","), dict[tuple[str, int], TokenizedCorpus]()
    if unknown := set(names) - set(SETTINGS):
        parser.error(f"{', '.join(sorted(unknown))}: not a setting; expected {', '.join(SETTINGS)}")
    for seed, name, corpus in itertools.product(args.seeds.split(","), names, args.corpora.split(",")):
        setting = SETTINGS[name]
        key = corpus, setting.vocab_size
        if key not in data:
            data[key] = TokenizedCorpus(*key)
        cost, default_cost = (s.flops_per_token(d_model, n_layers) for s in (setting, Setting()))
        with patched(setting):
            result = run(
                data[key], d_model, n_layers, args.tokens * default_cost / cost, int(seed), args.threads, setting
            )
        line = json.dumps({"setting": name, **result})
        print(line, flush=True)
        if args.out:
            with open(args.out, "a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
