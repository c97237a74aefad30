# SPDX-License-Identifier: Apache-2.0
"""The contract that every family meets. A family joins by its line in FAMILIES; nothing here names one."""

import pytest
import torch

from foundling.blocks.init import initialise, roles
from foundling.contracts import LanguageModel
from foundling.models import FAMILIES, build, family, family_of
from foundling.objectives.causal import Causal
from foundling.runtime import Runtime, generator
from foundling.train.loop import TrainOptions, TrainState, train
from foundling.train.optim import Optimizer, OptimOptions
from foundling.train.schedule import Schedule
from foundling.weights.directory import load, save, weights_hash

VOCAB, T = 64, 24
pytestmark = pytest.mark.parametrize("name", FAMILIES)


def tiny(name: str, seed: int = 0, **fields) -> torch.nn.Module:
    """A small model whose every weight is random, so that each one shows in the output."""
    sizes = family(name).module.sized(VOCAB, 64, 64, 3)
    model = build(name, **(sizes | fields))
    draw = generator("tiny", seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * (0.3 if p.ndim > 1 else 0.5) + (0 if p.ndim > 1 else 1))
    return model.eval()


def tokens(rows: int = 2, length: int = T, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=generator("tokens", seed))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 5e-6) -> None:
    assert (a - b).abs().max() <= tolerance * b.abs().max(), f"{(a - b).abs().max() / b.abs().max():.2e}"


def test_shapes_and_protocol(name: str) -> None:
    model = tiny(name)
    assert isinstance(model, LanguageModel)
    assert family_of(model).name == name
    out = model(tokens())
    assert out.hidden.shape == (2, T, 64)
    assert model.logits(out.hidden).shape == (2, T, VOCAB)
    close(model(model.embed(tokens())).hidden, out.hidden)


def test_later_tokens_change_nothing_earlier(name: str) -> None:
    model, x = tiny(name), tokens()
    other = x.clone()
    other[:, 15:] = (other[:, 15:] + 1) % VOCAB
    a, b = model(x).hidden, model(other).hidden
    assert torch.equal(a[:, :15], b[:, :15])
    assert (a[:, 15:] - b[:, 15:]).abs().min(-1).values.max() > 0


def test_packed_documents_equal_documents_apart(name: str) -> None:
    model, x = tiny(name), tokens(1, 30)
    documents = torch.tensor([[0] * 7 + [1] * 1 + [2] * 12 + [3] * 10])
    packed = model(x, documents=documents).hidden
    for i in range(4):
        places = documents[0] == i
        close(packed[:, places], model(x[:, places]).hidden)


def test_padding_on_the_right_changes_nothing(name: str) -> None:
    model, x = tiny(name), tokens(2, 20)
    documents = torch.zeros(2, 20, dtype=torch.int64)
    documents[1, 13:] = -1
    hidden = model(x, documents=documents).hidden
    close(hidden[0], model(x[:1]).hidden[0])
    close(hidden[1, :13], model(x[1:, :13]).hidden[0])
    assert hidden.isfinite().all()


def test_cache_equals_reading_at_once(name: str) -> None:
    """Rows of different lengths, read in uneven parts, reordered in between."""
    model, x = tiny(name), tokens(3, 24)
    whole = model(x).hidden
    cache = model.new_cache(3, 24)
    lengths = [9, 4, 6]
    documents = torch.tensor([[0] * n + [-1] * (9 - n) for n in lengths])
    first = model(x[:, :9], documents=documents, cache=cache).hidden
    for row, n in enumerate(lengths):
        close(first[row, :n], whole[row, :n])
    order = torch.tensor([2, 0, 0, 1])
    cache = cache.select(order)
    assert cache.lengths.tolist() == [6, 9, 9, 4]
    for step in range(5):
        at = cache.lengths.clone()
        out = model(x[order, at][:, None], cache=cache).hidden
        close(out[:, 0], whole[order, at])
        assert cache.lengths.tolist() == (at + 1).tolist(), step


def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = tiny(name)
    x = tokens(2, T + 1)
    batch = {
        "tokens": x[:, :-1],
        "targets": x[:, 1:],
        "documents": torch.zeros(2, T, dtype=torch.int64),
        "loss_mask": torch.ones(2, T, dtype=torch.bool),
    }
    Causal()(model, batch)["loss"].sum.backward()
    for parameter, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, parameter


def test_every_parameter_has_a_role_and_a_start(name: str) -> None:
    model = build(name, **family(name).module.sized(VOCAB, 64, 64, 2))
    assert roles(model).keys() == dict(model.named_parameters()).keys()
    initialise(model, generator("a"))
    first = weights_hash(model)
    initialise(model, generator("b"))
    assert weights_hash(model) != first
    initialise(model, generator("a"))
    assert weights_hash(model) == first
    logits = model.logits(model(tokens()).hidden)
    assert torch.softmax(logits, -1).max() < 0.2, "a fresh model is nearly uniform"


def test_bfloat16_stays_near(name: str) -> None:
    """Autocast's own rounding is 2^-9; three layers of it stay within a few per cent."""
    model = tiny(name)
    exact = model(tokens()).hidden
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(tokens()).hidden
    assert (rounded - exact).norm() / exact.norm() < 0.05


def test_save_and_load_are_bitwise(name: str, tmp_path) -> None:
    for tie in (True, False):
        model = tiny(name, tie_embeddings=tie)
        save(model, tmp_path / str(tie))
        again = load(tmp_path / str(tie))
        assert again.config == model.config
        assert weights_hash(again) == weights_hash(model)
        assert torch.equal(again(tokens()).hidden, model(tokens()).hidden)


class Same:
    """One batch, over and over."""

    def __init__(self, rows: int) -> None:
        x = tokens(rows, T + 1)
        self.batch = {
            "tokens": x[:, :-1],
            "targets": x[:, 1:],
            "documents": (torch.arange(T) > 9).long().expand(rows, T),
            "loss_mask": torch.rand(rows, T, generator=generator("mask")) > 0.3,
        }

    def __getitem__(self, n: int):
        return self.batch


def losses(name: str, *, micro: int, steps: int = 5, optimizer="muon", compile: bool = False) -> list[float]:
    model = build(name, **family(name).module.sized(VOCAB, 64, 64, 2))
    initialise(model, generator("init", 0))
    options = OptimOptions(optimizer=optimizer, learning_rate=0.01)
    state = TrainState(model, Optimizer(model, options))
    runtime = Runtime(compile=compile)
    return [s.loss for s in train(state, Causal(), Same(8), Schedule(steps), TrainOptions(micro), runtime)]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_learns_and_accumulation_changes_nothing(name: str, optimizer: str) -> None:
    whole, parts = losses(name, micro=8, optimizer=optimizer), losses(name, micro=3, optimizer=optimizer)
    assert whole[-1] < whole[0] - 0.1
    assert whole == pytest.approx(parts, rel=1e-5)


def test_compiles_without_a_break(name: str) -> None:
    """aot_eager traces everything that inductor would; a graph break would raise."""
    model = tiny(name)
    exact = model(tokens()).hidden
    for layer in model.layers:
        layer.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    documents = torch.zeros(2, T, dtype=torch.int64)
    close(model(tokens(), documents=documents).hidden, exact)


def test_presets_have_their_published_size(name: str) -> None:
    published = {
        "gpt2": 124_439_808,
        "gpt2-medium": 354_823_168,
        "gpt2-large": 774_030_080,
        "gpt2-xl": 1_557_611_200,
        "llama-2-7b": 6_738_415_616,
        "llama-2-13b": 13_015_864_320,
        "llama-2-70b": 68_976_648_192,
        "llama-3-8b": 8_030_261_248,
    }
    for preset, fields in family(name).module.PRESETS.items():
        model = build(name, device="meta", **fields)
        assert sum(p.numel() for p in model.parameters()) == published[preset], preset
