# SPDX-License-Identifier: Apache-2.0
"""A plan is a function of its inputs: with measurements by hand, what it chooses and predicts can be worked out."""

import pytest

from foundling.errors import BudgetError
from foundling.models import family
from foundling.plan.budget import Budget
from foundling.plan.choose import ladder
from foundling.plan.flops import matmul_parameters, skeleton, training_flops_per_token
from foundling.plan.law import Corpus, load_law
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
    the target; attention along each sequence, causal at half its square."""
    d, ff, layers, vocab, source, target = 32, 128, 2, 320, 64, 16
    fields = family("t5").module.sized(vocab, source, d, layers)
    model = skeleton("t5", fields)
    encoder = layers * (4 * d * d + 2 * d * ff)
    decoder = layers * (8 * d * d + 2 * d * ff) + d * vocab
    assert matmul_parameters(model) == encoder + decoder
    share = target / source
    products = encoder + layers * 2 * d * d + share * (decoder - layers * 2 * d * d)
    heads = d // fields["head_dim"]
    along = {name: m.sequence_flops for name, m in model.named_modules() if hasattr(m, "sequence_flops")}
    expected = 6 * products + 3 * sum(
        f(source) if name.startswith("encoder.") else share * f(source if name.endswith("cross") else target)
        for name, f in along.items()
    )
    assert heads and training_flops_per_token(model, source, target) == int(expected)
