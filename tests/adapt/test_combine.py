# SPDX-License-Identifier: Apache-2.0
"""Merging tensors, worked by hand, and shallower models."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest
import torch

from foundling.adapt.combine import average, slerp, task, ties
from foundling.adapt.layers import evenly_spaced, spaced_layers, start_from_layers, take_layers
from foundling.adapt.lora import LoRAOptions, lora
from foundling.errors import AdaptError
from foundling.models import build, family
from foundling.runtime.rng import generator
from tests.contract.cases import case


def test_average_takes_shares_of_the_sum_of_the_weights() -> None:
    a, b = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 6.0])
    assert average([a, b], [1.0, 3.0]).tolist() == [2.5, 4.0]
    assert average([a.bfloat16(), b.bfloat16()], [0.5, 0.5]).dtype == torch.float32


def test_slerp_keeps_length_and_divides_the_angle() -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    for t, degrees in ((0.0, 0), (1 / 3, 30), (0.5, 45), (1.0, 90)):
        expected = [2 * math.cos(math.radians(degrees)), 2 * math.sin(math.radians(degrees))]
        assert slerp(a, b, t)[0].tolist() == pytest.approx(expected, abs=1e-6)
    # with lengths 1 and 3 at 60°: sin(15°)/sin(60°) · a + sin(45°)/sin(60°) · b
    x, y = torch.tensor([1.0, 0.0]), 3 * torch.tensor([0.5, math.sqrt(3) / 2])
    of_x, of_y = (math.sin(math.radians(d)) / math.sin(math.radians(60)) for d in (15, 45))
    assert slerp(x, y, 0.75).tolist() == pytest.approx((of_x * x + of_y * y).tolist(), abs=1e-6)


@pytest.mark.parametrize("b", [[1.0, 2.00001], [2.0, 4.0], [-1.0, -2.0], [0.0, 0.0]])
def test_slerp_is_linear_where_there_is_no_angle(b: list[float]) -> None:
    a, other = torch.tensor([1.0, 2.0]), torch.tensor(b)
    assert torch.equal(slerp(a, other, 0.25), torch.lerp(a, other, 0.25))


def test_task_vectors_by_hand() -> None:
    base = torch.tensor([1.0, 1.0])
    found = task(base, [torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.0])], [0.5, -2.0])
    assert found.tolist() == [2.0, 3.0], "1 + 0.5 · 2, 1 − 2 · (−1): the second task is unlearnt"


def test_ties_by_hand() -> None:
    base = torch.full((4,), 10.0)
    a, b = base + torch.tensor([4.0, -1.0, 3.0, 0.5]), base + torch.tensor([2.0, 5.0, -1.0, -6.0])
    # half of each is kept: (4, 0, 3, 0) and (0, 5, 0, −6); no signs clash, so each mean is of one
    assert ties(base, [a, b], [1.0, 1.0], 0.5).tolist() == [14.0, 15.0, 13.0, 4.0]
    # all is kept: signs of the sums (6, 4, 2, −5.5); means of those that agree: (4 + 2)/2, 5, 3, −6
    assert ties(base, [a, b], [1.0, 1.0], 1.0).tolist() == [13.0, 15.0, 13.0, 4.0]
    # weights 3 and 1: sums (14, 2, 8, −4.5); (3·4 + 2)/4, 5, 3, −6
    assert ties(base, [a, b], [3.0, 1.0], 1.0).tolist() == [13.5, 15.0, 13.0, 4.0]
    assert torch.equal(ties(base, [base, base], [1.0, 1.0], 0.2), base)


@pytest.mark.parametrize("name", ["llama", "bert", "mixtral"])
def test_a_shallower_model_has_the_layers_of_its_teacher(name: str) -> None:
    of = case(name)
    teacher = of.tiny(n_layers=4)
    student = take_layers(teacher, range(0, 4, 2))
    assert student.config.n_layers == 2 and not student.training
    for place, index in enumerate((0, 2)):
        for n, p in teacher.layers[index].named_parameters():
            copied = student.layers[place].get_parameter(n)
            assert torch.equal(copied, p) and copied.data_ptr() != p.data_ptr()
    assert torch.equal(of.outputs(take_layers(teacher, range(4))), of.outputs(teacher))
    del teacher.layers[3], teacher.layers[1]
    assert torch.equal(of.outputs(student), of.outputs(teacher)), "the same as leaving the others out"


def test_layers_that_cannot_be_taken_are_refused() -> None:
    with pytest.raises(AdaptError, match="expected one or more of 0 to 1"):
        take_layers(case("llama").tiny(), [2])
    with pytest.raises(AdaptError, match="layer 1 computes in another way than layer 0"):
        take_layers(case("gemma2").tiny(), [1])
    with pytest.raises(AdaptError, match="no single stack"):
        take_layers(case("t5").tiny(), [0])
    model = case("llama").tiny()
    lora(model, LoRAOptions("*.q"), generator("lora"))
    with pytest.raises(AdaptError, match="merge them first"):
        take_layers(model, [0])


def test_evenly_spaced_layers() -> None:
    assert evenly_spaced(6, 12) == [0, 2, 4, 7, 9, 11], "as DistilBERT's reference code"
    assert evenly_spaced(2, 4) == [0, 3] and evenly_spaced(1, 4) == [0]
    assert evenly_spaced(4, 4) == [0, 1, 2, 3]


SPACED = [
    (22, 11, [0, 2, 4, 6, 8, 10, 12, 14, 17, 18, 20]),
    (28, 14, [0, 2, 4, 6, 8, 10, 12, 14, 17, 18, 20, 23, 24, 26]),
    (12, 6, [0, 2, 4, 6, 8, 11]), (10, 5, [0, 2, 4, 6, 8]), (8, 4, [0, 2, 5, 6]), (4, 2, [0, 2]), (4, 1, [0]),
]  # fmt: skip
"""layers of a teacher and its student, and those taken: 0 alone has no norm, and each third has global attention"""


@pytest.mark.parametrize(("available", "n", "expected"), SPACED)
def test_layers_beside_evenly_spaced_ones_where_kinds_alternate(available: int, n: int, expected: list[int]) -> None:
    sizes = family("modernbert").module.sized(64, 64, 32, 1)
    teacher, student = (build("modernbert", device="meta", **sizes | {"n_layers": k}) for k in (available, n))
    assert spaced_layers(student.layers, teacher.layers) == expected

    def kind(index: int) -> int:
        return 0 if index == 0 else 1 + bool(index % 3)

    assert [kind(index) for index in expected] == [kind(place) for place in range(n)]

    def distance(of: Sequence[int]) -> int:
        return sum(abs(index - at) for index, at in zip(of, evenly_spaced(n, available), strict=True))

    if available <= 12:  # few enough to try all
        rising = (c for c in combinations(range(available), n) if all(kind(i) == kind(k) for k, i in enumerate(c)))
        assert distance(expected) == min(map(distance, rising))


def test_a_student_of_half_of_modernberts_layers_starts_from_its_teacher() -> None:
    teacher, student = case("modernbert").tiny(n_layers=22, period=3), case("modernbert").tiny(1, n_layers=11, period=3)
    taken = start_from_layers(student, teacher)
    assert taken == SPACED[0][2]
    for place, index in enumerate(taken):
        for name, p in teacher.layers[index].named_parameters():
            assert torch.equal(student.layers[place].get_parameter(name), p), (place, name)


def logits(model: Any) -> torch.Tensor:
    batch = case("bert").batch(0)  # of two documents a row
    return model.logits(model(batch["tokens"], documents=batch["documents"]).hidden)


STARTS = [
    ("bert", "distilbert"), ("bert", "bert"), ("distilbert", "bert"), ("roberta", "roberta"), ("albert", "albert"),
    ("modernbert", "modernbert"),
]  # fmt: skip


@pytest.mark.parametrize(("teacher", "student"), STARTS)
@torch.no_grad()
def test_a_student_of_as_many_layers_starts_as_its_teacher(teacher: str, student: str) -> None:
    theirs, ours = case(teacher).tiny(n_layers=3), case(student).tiny(seed=1, n_layers=3)
    before = logits(theirs)
    assert (logits(ours) - before).abs().max() > 1
    assert start_from_layers(ours, theirs) == list(range(len(theirs.layers)))
    torch.testing.assert_close(logits(ours), before, rtol=1e-5, atol=2e-5)
    for p in ours.parameters():
        p.add_(1)
    assert torch.equal(logits(theirs), before), "nothing is shared"


@torch.no_grad()
def test_a_student_starts_from_the_first_and_the_last_of_four_layers() -> None:
    teacher = case("bert").tiny(n_layers=4, pooled=True, n_classes=2, dropout=0.1)
    student = case("distilbert").tiny(seed=1)
    assert start_from_layers(student, teacher) == [0, 3]
    del teacher.layers[2], teacher.layers[1]
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-5, atol=2e-5)
    deeper = case("roberta").tiny(n_layers=4)
    shorter = case("roberta").tiny(seed=1, pooled=True, max_seq_len=30)  # its rows of positions begin at 2
    pooler = shorter.pooler.weight.clone()
    start_from_layers(shorter, deeper)
    del deeper.layers[2], deeper.layers[1]
    assert torch.equal(logits(shorter), logits(deeper)) and torch.equal(shorter.pooler.weight, pooler)


@pytest.mark.parametrize(
    ("name", "teacher", "student", "says"),
    [
        ("bert", {}, {"n_layers": 3}, "it has 3 layers, its teacher 2"),
        ("bert", {}, {"n_heads": 1}, "its layer 0 computes in another way than its teacher's layers from 0 on"),
        ("albert", {}, {"activation": "gelu"}, "its layer 0 computes in another way"),
        (
            "modernbert",
            {"n_layers": 4, "period": 3},
            {"n_layers": 4, "period": 2},
            "its layer 3 computes in another way",
        ),
        ("modernbert", {}, {"rope_theta": 100.0}, "its positions are rotated in another way"),
        ("bert", {"tie_embeddings": False}, {}, "its head over the vocabulary"),
        ("bert", {}, {"vocab_size": 80}, "its tensor embedding.weight"),
        ("bert", {}, {"max_seq_len": 80}, "its tensor position_embedding.weight"),
    ],
)
def test_a_student_that_does_not_fit_stays_as_it_was(name: str, teacher: dict, student: dict, says: str) -> None:
    model = case(name).tiny(seed=1, **student)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(AdaptError, match=says):
        start_from_layers(model, case(name).tiny(**teacher))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
