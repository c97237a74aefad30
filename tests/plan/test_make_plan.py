# SPDX-License-Identifier: Apache-2.0
"""A plan is a function of its inputs: with measurements by hand, what it chooses and predicts can be worked out."""

import pytest
from torch.nn import ModuleDict, Sequential

from foundling.blocks.attention import Attention, CrossAttention
from foundling.errors import BudgetError
from foundling.models import family
from foundling.plan.budget import Budget
from foundling.plan.choose import ladder
from foundling.plan.flops import matmul_parameters, skeleton, training_flops_per_token
from foundling.plan.law import Corpus, load_law
from foundling.plan.memory import FrozenCost
from foundling.plan.plan import ENCODE_SECONDS, PlanInputs, make_plan
from foundling.train.options import OptimOptions

RATE = 1e10  # FLOP/s
CORPUS = Corpus(train_bytes=4_000_000, bytes_per_token=2.0, scale=2.0, look=3.2)


class Measured:
    """A machine of RATE, on which a step takes what its FLOPs take; 10 s are gone, evaluation takes 5."""

    def __init__(self, seq_len: int, elapsed: float = 10.0) -> None:
        self.seq_len, self.gone, self.asked = seq_len, elapsed, []

    def elapsed(self) -> float:
        return self.gone

    def seconds_per_token(self, flops, fields) -> float:
        return flops / RATE

    def step_seconds(self, shape, memory) -> float:
        self.asked.append(shape)
        flops = training_flops_per_token(skeleton("llama", shape.fields), self.seq_len)
        return flops * shape.batch_size * self.seq_len / RATE

    def evaluation_seconds(self) -> float:
        return 5.0

    def peak_bytes(self) -> int:
        return 123


def inputs(budget: Budget, **changes) -> PlanInputs:
    settings = dict(
        budget=budget, family="llama", sizes=ladder("llama", 512, 64), corpus=CORPUS, law=load_law(),
        predicts_loss=True, train_tokens=2e6, held_out_bytes=100_000, seq_len=64, optim=OptimOptions(),
        precision="float32", threads=2, free_bytes=8 << 30, compiler_missing=None,
    )  # fmt: skip
    return PlanInputs(**(settings | changes))


def test_a_budget_of_time_is_spent_and_not_overspent() -> None:
    plan = make_plan(inputs(Budget("seconds", 600)), probes := Measured(64))
    step = probes.step_seconds(plan.shape, None)
    assert plan.prediction["seconds"] == pytest.approx(600, abs=2 * step + 1)
    assert plan.prediction["seconds"] <= 600 + 1
    rest = 10 + 5 + ENCODE_SECONDS * (plan.share * CORPUS.train_bytes + 100_000)
    assert plan.prediction["seconds"] == pytest.approx(rest + plan.total_steps * step, rel=1e-3)
    best = min(plan.considered, key=lambda choice: choice.bits_per_byte)
    assert plan.shape.fields == best.fields


def test_a_budget_of_tokens_or_flops_is_kept_to_a_step() -> None:
    plan = make_plan(inputs(Budget("tokens", 1e6)), Measured(64))
    per_step = plan.shape.batch_size * 64
    assert abs(plan.total_steps * per_step - 1e6) <= per_step / 2
    plan = make_plan(inputs(Budget("flops", 1e13)), Measured(64))
    assert plan.prediction["flops"] == pytest.approx(1e13, rel=0.02)
    with_teacher = make_plan(inputs(Budget("flops", 1e13), frozen=FrozenCost(0, 3_000_000)), Measured(64))
    assert with_teacher.prediction["flops"] == pytest.approx(1e13, rel=0.02)
    assert with_teacher.total_steps < plan.total_steps or with_teacher.shape.fields != plan.shape.fields


def test_a_share_that_was_given_is_counted_once() -> None:
    """`train_bytes` and `train_tokens` are of the share."""
    given = {"total_steps": 7, "batch_size": 4, "share": 0.25}
    plan = make_plan(inputs(Budget("tokens", 1e6), given=given), probes := Measured(64))
    expected = 10 + 5 + ENCODE_SECONDS * (CORPUS.train_bytes + 100_000) + 7 * probes.step_seconds(plan.shape, None)
    assert plan.prediction["seconds"] == pytest.approx(expected, abs=0.06)


def test_a_fixed_size_leaves_steps_and_batch_to_the_budget() -> None:
    fields = dict(family("gpt2").module.PRESETS["gpt2"]) | {"n_layers": 1}
    fixed = inputs(Budget("tokens", 1e5), family="gpt2", sizes=[fields], predicts_loss=False)

    class Gpt2(Measured):
        def step_seconds(self, shape, memory) -> float:
            return 1.0

    plan = make_plan(fixed, Gpt2(64))
    assert plan.shape.fields == fields and len(plan.considered) == 1
    assert "loss" not in plan.prediction and plan.prediction["seconds"] > 0


def test_what_was_given_is_held_fixed() -> None:
    given = {"total_steps": 7, "batch_size": 4, "micro_batch_size": 2, "activation_checkpointing": True, "share": 0.25}
    plan = make_plan(inputs(Budget("tokens", 1e6), given=given), Measured(64))
    assert (plan.total_steps, plan.shape.batch_size, plan.shape.micro_batch_size) == (7, 4, 2)
    assert plan.shape.activation_checkpointing and plan.share == 0.25
    assert plan.prediction["tokens"] == 7 * 4 * 64


def test_without_a_compiler_the_plan_says_so() -> None:
    plan = make_plan(inputs(Budget("seconds", 600), compiler_missing="no g++ found"), Measured(64))
    assert not plan.shape.compile and "no g++ found" in plan.notes[0]
    assert make_plan(inputs(Budget("seconds", 600)), Measured(64)).shape.compile


@pytest.mark.parametrize(("unit", "value"), [("seconds", 12), ("tokens", 5), ("flops", 10)])
def test_a_budget_below_one_step_names_the_least(unit: str, value: float) -> None:
    with pytest.raises(BudgetError, match="the least that works here is"):
        make_plan(inputs(Budget(unit, value)), Measured(64))  # pyright: ignore[reportArgumentType]


def test_flops_of_an_encoder_decoder_by_hand() -> None:
    """6 FLOPs a weight: the encoder and the keys and values of cross-attention read the source, the rest of the decoder
    the target. Attention takes 4 FLOPs a channel and key forward, 12 with its gradients."""
    d, ff, vocab, source, target = 32, 128, 320, 64, 16
    model = skeleton("t5", family("t5").module.sized(vocab, source, d, 2))
    assert model.config.n_heads * model.config.head_dim == d
    encoder, decoder = 2 * (4 * d * d + 2 * d * ff), 2 * (8 * d * d + 2 * d * ff) + d * vocab
    assert (encoder, decoder) == (24_576, 43_008) and matmul_parameters(model) == encoder + decoder
    memory = 2 * 2 * d * d
    products = 24_576 + memory + 0.25 * (43_008 - memory)
    assert products == 38_400
    # two layers each: all 64 keys in the encoder; 8 of 16 on average in the decoder, and all 64 of the memory
    along = 2 * 4 * d * 64 + 0.25 * (2 * 4 * d * 8 + 2 * 4 * d * 64)
    assert along == 20_992
    assert training_flops_per_token(model, source, target) == 6 * 38_400 + 3 * 20_992 == 293_376


def test_flops_of_attention_by_hand() -> None:
    """One layer of width 32 on 8 tokens: a bidirectional query sees 8 keys, a causal one 4 on average."""
    bert = skeleton("bert", family("bert").module.sized(100, 8, 32, 1))
    layer, head = 4 * 32 * 32 + 2 * 32 * 128, 32 * 32 + 32 * 100
    assert training_flops_per_token(bert, 8) == 6 * (layer + head) + 3 * 4 * 32 * 8 == 102_144
    gpt2 = skeleton("gpt2", family("gpt2").module.sized(100, 8, 32, 1))
    assert training_flops_per_token(gpt2, 8) == 6 * (layer + 3200) + 3 * 4 * 32 * 4 == 94_464


def test_flops_of_windows_and_chunks_by_hand() -> None:
    """Two heads of 4: 32 FLOPs a key."""
    sizes = (8, 2, 2, 4)
    plain, wide, narrow = Attention(*sizes), Attention(*sizes, window=90), Attention(*sizes, window=10)
    chunked, cross = Attention(*sizes, chunk=20), CrossAttention(*sizes)
    counts = [
        [m.sequence_flops(100, causal=causal) / 32 for m in (plain, wide, narrow, chunked, cross)]
        for causal in (True, False)
    ]
    alone = ModuleDict({"layers": Sequential(plain)})  # no stack says that it is causal: all keys are seen
    assert training_flops_per_token(alone, 100) == 6 * matmul_parameters(alone) + 3 * 32 * 100
    assert counts == [[50, 50, 10, 10, 100], [100, 100, 19, 20, 100]]
