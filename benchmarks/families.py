# SPDX-License-Identifier: Apache-2.0
"""Model families against those of transformers at their best settings, in turn, each in a process of its own.

python -m benchmarks.families [mamba2] [scaling] [mixtral] [bert] [bert8] [bert_mixed] [bert8_mixed] [--rounds 5]

mamba2: forward and backward at 2,048 tokens, two layers of the 130m size. scaling: the same at several lengths, the
time of a token of Mamba-2 next to that of Llama. mixtral: one layer at 4,096 tokens, against theirs and against a dense
layer with as many active FLOPs. bert: encoding with the base size, 8 texts of 128 tokens. bert8: the same with 8-bit
products on both sides (ours has a scale for every 768 weights or inputs; torch's dynamic quantisation has one for each
matrix and one for all inputs). bert_mixed, bert8_mixed: 8 texts of 32 to 256 tokens in one batch, as a server gets
them, padded for their side. The best setting of each side in a short trial is compared. All sides have the memory
setting of `Runtime.setup`, which is ours. Weights are random: speed does not depend on them.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.sides import Side, answer_calls
from foundling.blocks.context import GLOBAL, Context
from foundling.blocks.init import initialise
from foundling.blocks.mask import Mask
from foundling.blocks.position import RoPE
from foundling.contracts.model import layers_of
from foundling.decode.native.encoder import native_encoder
from foundling.models import build, family
from foundling.runtime.device import Runtime, available_threads
from foundling.runtime.memory import free_memory
from foundling.runtime.rng import generator
from foundling.weights.directory import load

VOCAB = 2048
MAMBA2 = dict(vocab_size=VOCAB, d_model=768, n_layers=2, n_heads=24)
LLAMA = dict(
    vocab_size=VOCAB, d_model=768, n_layers=2, n_heads=12, n_kv_heads=12, head_dim=64, d_ff=2048, max_seq_len=8192
)
MIXTRAL = dict(vocab_size=VOCAB, d_model=1024, n_layers=1, n_heads=16, n_kv_heads=8, head_dim=64, d_expert=1792)
LENGTHS = (512, 1024, 2048, 4096, 8192)
Work = Callable[[int, int], Tensor]
"""(rows, seq_len) -> output"""


class Made(NamedTuple):
    module: nn.Module
    work: Work
    units: list[nn.Module]
    """what torch.compile compiles"""


def ids(rows: int, seq_len: int) -> Tensor:
    return torch.randint(3, VOCAB, (rows, seq_len), generator=generator("ids", rows, seq_len))


def states(rows: int, seq_len: int, width: int) -> Tensor:
    return torch.randn(rows, seq_len, width, generator=generator("states", rows, seq_len)).requires_grad_()


def build_ours(name: str, fields: dict[str, Any]) -> Made:
    model = build(name, **fields)
    initialise(model, generator("bench"))
    return Made(model, lambda rows, steps: model(ids(rows, steps)).hidden, layers_of(model))


def wrap_theirs(model: Any) -> Made:
    return Made(model, lambda rows, steps: model(ids(rows, steps)).last_hidden_state, [model])


def mamba2(option: str) -> Made:
    if not option:
        return build_ours("mamba2", MAMBA2)
    import transformers

    c = MAMBA2
    config = transformers.Mamba2Config(
        vocab_size=VOCAB, hidden_size=c["d_model"], num_heads=c["n_heads"], head_dim=64, n_groups=1, state_size=128,
        num_hidden_layers=c["n_layers"], chunk_size=int(option.removeprefix("chunk")), use_cache=False,
    )  # fmt: skip
    return wrap_theirs(transformers.Mamba2Model(config))


def scaling(option: str) -> Made:
    return build_ours(option, MAMBA2 if option == "mamba2" else LLAMA)


def mixtral(option: str) -> Made:
    c, width = MIXTRAL, MIXTRAL["d_model"]
    if option in ("", "dense"):
        rope = RoPE(c["head_dim"], 1e6)
        if option:
            dense = LLAMA | {k: v for k, v in c.items() if k != "d_expert"} | {"d_ff": 2 * c["d_expert"]}
            layer = build("llama", **dense).layers[0]
        else:
            layer = build("mixtral", **c).layers[0]

        def ours(rows: int, steps: int) -> Tensor:
            ctx = Context({GLOBAL: Mask()}, {GLOBAL: rope(torch.arange(steps)[None])})
            out = layer(states(rows, steps, width), ctx)
            return out[0] if isinstance(out, tuple) else out

        return Made(layer, ours, [layer])
    gathered_bytes = 4 * 2 * 4096 * 2 * c["d_expert"] * width  # batched_mm copies a matrix for each choice of a token
    if option == "batched_mm" and gathered_bytes > free_memory():
        raise SystemExit(f"batched_mm would take {gathered_bytes >> 30} GiB")
    import transformers
    from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer, MixtralRotaryEmbedding

    config = transformers.MixtralConfig(
        hidden_size=width, intermediate_size=c["d_expert"], num_attention_heads=c["n_heads"], num_hidden_layers=1,
        num_key_value_heads=c["n_kv_heads"], head_dim=c["head_dim"], attn_implementation="sdpa",
        experts_implementation=option,
    )  # fmt: skip
    layer, rope = MixtralDecoderLayer(config, 0), MixtralRotaryEmbedding(config)
    for p in layer.parameters():
        nn.init.normal_(p, std=0.02)

    def theirs(rows: int, steps: int) -> Tensor:
        x = states(rows, steps, width)
        return layer(x, position_embeddings=rope(x, torch.arange(steps)[None]))

    return Made(layer, theirs, [layer])


def texts(rows: int, seq_len: int, mixed: bool) -> dict[str, Tensor]:
    """Tokens, and which of them are real: all; or, if `mixed`, an eighth of the first row up to all of the last."""
    lengths = torch.linspace(seq_len // 8, seq_len, rows).long() if mixed else torch.full((rows,), seq_len)
    return {"tokens": ids(rows, seq_len), "real": torch.arange(seq_len) < lengths[:, None]}


def bert(option: str) -> Made:
    """`option`: "torch" or a type of weights for native code, both ours, or "theirs …"; " mixed" for mixed lengths."""
    kind, mixed = option.removesuffix(" mixed"), option.endswith(" mixed")
    if kind.startswith("theirs"):
        import transformers

        model: Any = transformers.BertModel(transformers.BertConfig(attn_implementation="sdpa")).eval()
        if kind == "theirs int8":
            model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)

        def theirs(rows: int, seq_len: int) -> Tensor:
            tokens, real = texts(rows, seq_len, mixed).values()
            return model(tokens, attention_mask=real.long() if mixed else None).last_hidden_state

        return Made(model, theirs, [model])
    ours = build("bert", **family("bert").module.PRESETS["bert-base"])
    initialise(ours, generator("bench"))
    with torch.inference_mode():
        fast: Any = ours if kind == "torch" else native_encoder(ours, kind)  # pyright: ignore

    def work(rows: int, seq_len: int) -> Tensor:
        tokens, real = texts(rows, seq_len, mixed).values()
        return fast.encode(tokens, documents=real.long() - 1 if mixed else None).states

    return Made(ours, work, layers_of(ours))


@torch.inference_mode()
def quantisation_error() -> dict[str, float]:
    """Relative error of the hidden states of their BERT in 8 bits: by their quantisation, and by ours."""
    import transformers

    model = transformers.BertModel(transformers.BertConfig()).eval()
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        ours = native_encoder(load(directory), "int8")
    tokens = ids(8, 128)
    states = model(tokens).last_hidden_state
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    sides = {"foundling": ours.encode(tokens).states, "transformers": quantised(tokens).last_hidden_state}
    return {side: round(float((out - states).norm() / states.norm()), 5) for side, out in sides.items()}


class Case(NamedTuple):
    make: Callable[[str], Made]
    shape: tuple[int, int]
    options: dict[str, list[str]]
    """side -> its settings besides precision and compiling; ours first"""
    targets: dict[str, float]
    """side -> the least ratio of its seconds to ours that we accept"""
    trains: bool = True
    """whether the backward pass counts too"""


CASES = {
    "mamba2": Case(mamba2, (1, 2048), {"foundling": [""], "transformers": ["chunk64", "chunk256"]},
                   {"transformers": 2.0}),
    "scaling": Case(scaling, (1, 2048), {"mamba2": ["mamba2"], "llama": ["llama"]}, {}),
    "mixtral": Case(mixtral, (8, 512), {"foundling": [""], "transformers": ["eager", "grouped_mm", "batched_mm"],
                                        "dense": ["dense"]}, {"transformers": 1.2, "dense": 0.8}),
    "bert": Case(bert, (8, 128), {"foundling": ["torch", "float32"], "transformers": ["theirs"]},
                 {"transformers": 1.2}, False),
    "bert8": Case(bert, (8, 128), {"foundling": ["int8"], "transformers": ["theirs int8"]},
                  {"transformers": 1.2}, False),
    "bert_mixed": Case(bert, (8, 256), {"foundling": ["torch mixed", "float32 mixed"],
                                        "transformers": ["theirs mixed"]}, {"transformers": 1.2}, False),
    "bert8_mixed": Case(bert, (8, 256), {"foundling": ["int8 mixed"], "transformers": ["theirs int8 mixed"]},
                        {"transformers": 1.2}, False),
}  # fmt: skip
HOPELESS = 4
"""A setting that is this many times slower than the best so far is not run again."""
SETTINGS = list(itertools.product(("float32", "bfloat16"), ("plain", "compiled")))
PACKED = {"float32": ["plain"], "int8": ["plain"], "theirs int8": ["plain", "compiled"]}
"""options of bert whose precision torch does not set"""


def serve(name: str, option: str, precision: str, compiled: str) -> None:
    """Builds one side, then works for each call and returns its seconds."""
    case = CASES[name]
    Runtime(threads=available_threads()).setup()
    made = case.make(option)
    made.module.train(case.trains)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16" and case.trains)
    if precision == "bfloat16" and not case.trains:
        made.module.to(torch.bfloat16)
    for unit in made.units if compiled == "compiled" else ():
        unit.compile(dynamic=False)

    def work(rows: int, seq_len: int) -> float:
        start = time.perf_counter()
        with autocast, torch.set_grad_enabled(case.trains):
            out = made.work(rows, seq_len)
        if case.trains:
            out.float().square().mean().backward()
            made.module.zero_grad()
        return time.perf_counter() - start

    answer_calls(work)


def trial(name: str, case: Case, compiling: bool) -> tuple[dict[str, Side], dict[str, float]]:
    """(the fastest setting of each side, still running; the seconds of all)"""
    rows, seq_len = case.shape
    fastest: dict[str, Side] = {}
    trials: dict[str, float] = {}
    for side, options in case.options.items():
        best = float("inf")
        for option, (precision, compiled) in itertools.product(options, SETTINGS):
            if compiled == "compiled" and not compiling:
                continue
            packed = PACKED.get(option.removesuffix(" mixed"))
            if packed and (precision != "float32" or compiled not in packed):
                continue
            one = Side("benchmarks.families", name, option, precision, compiled)
            label = " ".join(filter(None, (side, option if option != side else "", precision, compiled)))
            try:
                seconds = one(rows=rows, seq_len=seq_len)
                if seconds < HOPELESS * best or compiled == "compiled":  # whose first run compiles
                    seconds = min(one(rows=rows, seq_len=seq_len) for _ in range(2))
            except (SystemExit, OSError):  # a setting that fails, or does not fit into memory, is left out
                if side == "foundling":
                    raise
                print(f"{name}, trial: {label} does not run", file=sys.stderr, flush=True)
                continue
            trials[label] = round(seconds, 4)
            print(f"{name}, trial: {label} {seconds:.3f} s", file=sys.stderr, flush=True)
            if seconds < best:
                if side in fastest:
                    fastest[side].end()
                best, fastest[side] = seconds, one
            else:
                one.end()
    return fastest, trials


def measure(name: str, rounds: int, compiling: bool) -> dict[str, Any]:
    case = CASES[name]
    fastest, trials = trial(name, case, compiling)
    shapes = [(1, n) for n in LENGTHS] if name == "scaling" else [case.shape]
    seconds: dict[tuple[str, int], list[float]] = {(side, n): [] for side in fastest for _, n in shapes}
    for _, (rows, n) in itertools.product(range(rounds + 1), shapes):  # the first round is not counted
        for side, one in fastest.items():
            seconds[side, n].append(one(rows=rows, seq_len=n))
    for one in fastest.values():
        one.end()
    runs = {key: s[1:] for key, s in seconds.items()}
    own, result = next(iter(fastest)), {"case": name, "trial_seconds": trials}
    result["microseconds_per_token"] = {
        f"{side} at {n}": round(1e6 * statistics.median(runs[side, n]) / (rows * n), 1)
        for side in fastest
        for rows, n in shapes
    }
    result["slowest_to_fastest"] = {f"{side} at {n}": round(max(s) / min(s), 2) for (side, n), s in runs.items()}
    result["times_our_seconds"] = {
        f"{side} at {n}": round(statistics.median(a / b for a, b in zip(s, runs[own, n], strict=True)), 3)
        for (side, n), s in runs.items()
        if side != own
    }
    if name == "bert8":
        result["relative_error"] = quantisation_error()
    result["targets"] = case.targets
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", choices=["true", "false"], default="true")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(*args.serve)
    for name in args.cases or list(CASES):
        if name not in CASES:
            parser.error(f"{name}: not a case; expected {', '.join(CASES)}")
        print(json.dumps(measure(name, args.rounds, args.compile == "true"), indent=1), flush=True)


if __name__ == "__main__":
    main()
