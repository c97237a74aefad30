# SPDX-License-Identifier: Apache-2.0
"""LSTMs beside torch.nn.LSTM with the same weights: outputs, states, gradients, and what stands on them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.adapt.heads import HeadOptions, add_head
from foundling.adapt.quantize import quantize
from foundling.blocks.context import Context
from foundling.blocks.heads import head_states, pooled, scores
from foundling.blocks.init import initialise
from foundling.blocks.lstm import LSTM
from foundling.contracts.cache import State
from foundling.models import build, family
from foundling.objectives.bilm import BiLM
from foundling.objectives.causal import Causal
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from tests.contract.cases import VOCAB, case, close, text_batch, tokens

ORACLE = 5e-6


@torch.no_grad()
def oracle(layer: LSTM) -> nn.LSTM:
    """torch's layer with the weights of ours; it has two biases, which are added up."""
    made = nn.LSTM(layer.x.in_features, layer.d_hidden, batch_first=True, proj_size=projected(layer))
    for name, value in weights(layer).items():
        getattr(made, name).copy_(value)
    made.bias_hh_l0.zero_()
    return made


def projected(layer: LSTM) -> int:
    return 0 if layer.proj is None else layer.proj.out_features


def weights(layer: LSTM, of: str = "data") -> dict[str, Tensor]:
    """torch's name -> value, or gradient"""
    named: dict[str, Any] = {"weight_ih_l0": layer.x.weight, "weight_hh_l0": layer.h.weight, "bias_ih_l0": layer.x.bias}
    if layer.proj is not None:
        named["weight_hr_l0"] = layer.proj.weight
    return {name: getattr(p, of) for name, p in named.items()}


def test_a_language_model_is_torchs_layers_one_on_the_other() -> None:
    """Outputs, gradients of every weight, and the states that the cache ends with."""
    model, x = case("lstm").tiny(n_layers=3, d_hidden=48), tokens(3, 20)
    layers = [oracle(layer.mixer) for layer in model.layers]
    found, expected, states = model(x).hidden, model.embed_tokens(x).detach(), []
    for layer in layers:
        expected, state = layer(expected)
        states.append(state)
    close(found, expected, ORACLE)
    pull = torch.randn_like(found)
    (found * pull).sum().backward()
    (expected * pull).sum().backward()
    for layer, theirs in zip(model.layers, layers, strict=True):
        for name, gradient in weights(layer.mixer, "grad").items():
            close(gradient, getattr(theirs, name).grad, ORACLE * 4, name)
    cache = model.new_cache(3, 20)
    with torch.no_grad():
        model(x, cache=cache)
    for number, (h, c) in enumerate(states):
        close(cache.slot(number).get(State), torch.stack((h[0], c[0]), 1), ORACLE)


def test_elmos_directions_are_torchs_with_projections() -> None:
    """Each document from both ends; packed rows as documents apart."""
    model, x = case("elmo").tiny(), tokens(1, 18)
    documents = (torch.arange(18) > 10).long()[None]
    states = model.layer_states(x, documents)
    for document in (0, 1):
        piece = model.embed_tokens(x[documents == document][None]).detach()
        ahead = back = piece
        for number, layer in enumerate(model.layers):
            forward, backward = oracle(layer.ahead)(ahead)[0], oracle(layer.back)(back.flip(1))[0].flip(1)
            ahead, back = (forward + ahead, backward + back) if number else (forward, backward)
            mine = states[number + 1][documents == document]
            close(mine, torch.cat((ahead, back), -1)[0], ORACLE)


def test_gradients_through_a_projection() -> None:
    layer, x = LSTM(12, 20, d_out=8), torch.randn(2, 15, 12)
    theirs, pull = oracle(layer), torch.randn(2, 15, 8)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    (layer(a, Context()) * pull).sum().backward()
    (theirs(b)[0] * pull).sum().backward()
    assert a.grad is not None and b.grad is not None
    close(a.grad, b.grad, ORACLE * 4)
    for name, gradient in weights(layer, "grad").items():
        close(gradient, getattr(theirs, name).grad, ORACLE * 4, name)


def test_a_decoder_begins_with_the_encoders_last_state_and_attends_to_all() -> None:
    """By torch's layers: h and c from tanh projections of the last state, then tanh(W (h ‖ c)) with the context c."""
    model, x, source = case("lstm_seq2seq").tiny(), tokens(2, 7), tokens(2, 11, seed=3)
    memory = model.encode(source).states
    expected = model.embed_tokens(source).detach()
    for number, layer in enumerate(model.encoder.layers):
        out = oracle(layer.mixer)(expected)[0]
        expected = expected + out if number else out
    close(memory, expected, ORACLE)
    y = model.embed_tokens(x).detach()
    for number, layer in enumerate(model.layers[:2]):
        start = [torch.tanh(part(expected[:, -1]))[None].contiguous() for part in (layer.cross.k, layer.cross.v)]
        out = oracle(layer.mixer)(y, (start[0], start[1]))[0]
        y = y + out if number else out
    readout = model.layers[2]
    q, k, v = readout.cross.q(y), readout.cross.k(expected), readout.cross.v(expected)
    context = readout.cross.o(torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v)
    expected = torch.tanh(readout.combine(torch.cat((y, context), -1)))
    close(model(x, memory=model.encode(source)).hidden, expected, ORACLE)


def test_without_attention_the_last_state_is_all_that_is_read() -> None:
    model, x, source = case("lstm_seq2seq").tiny(attention=False), tokens(1, 5), tokens(1, 9, seed=4)
    memory = model.encode(source)
    changed = memory._replace(states=torch.cat((torch.randn_like(memory.states[:, :-1]), memory.states[:, -1:]), 1))
    assert torch.equal(model(x, memory=memory).hidden, model(x, memory=changed).hidden)


PATHS = ("library", "operator", "modules")


@contextmanager
def forced(path: str) -> Iterator[list[str]]:
    """Within it every LSTM layer is computed in one of the three ways that there are, which are listed as they run."""
    ran: list[str] = []

    def listed(name: str, method: Any) -> Any:
        def run(*args: Any) -> Any:
            ran.append(name)
            return method(*args)

        return run

    ways = {
        "_by_library": listed("library", LSTM._by_library) if path == "library" else lambda *_: None,
        "_fused": listed("operator", LSTM._fused) if path == "operator" else listed("modules", LSTM._by_modules),
    }
    with mock.patch.multiple(LSTM, **ways):
        yield ran


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("d_out", [None, 6])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_layer_is_torchs_whatever_computes_it(path: str, d_out: int | None, reverse: bool) -> None:
    """Two documents of a row, a padded row, a row of padding alone; states that documents begin with. torch's operator
    has no kernel for projections, so they go another way."""
    layer, draw = LSTM(8, 10, d_out=d_out, reverse=reverse), generator("paths")
    documents = torch.tensor([[0] * 5 + [1] * 4, [0] * 7 + [-1] * 2, [-1] * 9])
    x = torch.randn(3, 9, 8, generator=draw).requires_grad_()
    begin = torch.randn(3, 9, 2, 10, generator=draw).requires_grad_()
    pull = torch.randn(3, 9, d_out or 10, generator=draw) * (documents >= 0)[..., None]
    with mock.patch("foundling.blocks.lstm.PADDED", 9.0), forced(path) as ran:
        y = layer(x, Context(documents=documents), begin)
    (y * pull).sum().backward()
    assert ran == ["modules" if path == "library" and d_out else path]
    theirs, a, b = oracle(layer), x.detach().clone().requires_grad_(), begin.detach().clone().requires_grad_()
    for row, first, end in ((0, 0, 5), (0, 5, 9), (1, 0, 7)):
        piece, start = a[row : row + 1, first:end], b[row, 9 - end if reverse else first]
        h = start[0] if layer.proj is None else start[0] @ layer.proj.weight.T
        out, _ = theirs(piece.flip(1) if reverse else piece, (h[None, None], start[1][None, None]))
        out = out.flip(1) if reverse else out
        close(y[row, first:end], out[0], ORACLE)
        (out[0] * pull[row, first:end]).sum().backward(retain_graph=True)
    for mine, other in ((x, a), (begin, b)):
        assert mine.grad is not None and other.grad is not None
        close(mine.grad, other.grad, ORACLE * 4)
    for name, gradient in weights(layer, "grad").items():
        if name != "weight_hr_l0":  # part of its gradient is that of `h` above
            close(gradient, getattr(theirs, name).grad, ORACLE * 4, name)


def test_the_operator_and_its_modules_give_the_same_bits() -> None:
    """So that an adapter that changes nothing changes no bit."""
    layer, x = LSTM(8, 10), torch.randn(2, 9, 8)
    with torch.no_grad():
        with forced("operator"):
            plain = layer(x, Context())
        with forced("modules"):
            assert torch.equal(layer(x, Context()), plain)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_matrix_is_called_and_not_read(kind: Any) -> None:
    model, x = case("lstm").tiny(), tokens(2, 12)
    quantize(model, "layers.*.mixer.x", kind)
    with torch.no_grad():
        expected = model(x).hidden
    close(model(x).hidden, expected)


def test_a_feed_forward_model_reads_a_few_words() -> None:
    """Equation 1 by hand: zero before a document's first word."""
    model, x = case("ffn_lm").tiny(n_layers=1, context_size=3), tokens(1, 6)
    e, up = model.embedding(x)[0], model.layers[0].up
    for t in range(6):
        seen = [e[i] if i >= 0 else torch.zeros_like(e[0]) for i in (t - 2, t - 1, t)]
        close(model(x).hidden[0, t], torch.tanh(up.weight @ torch.cat(seen) + up.bias), ORACLE)


def test_both_sides_by_the_causal_loss_of_each() -> None:
    """The loss of both directions is the mean of next-token losses of the text and of the text read backwards."""
    model, batch = case("elmo").tiny(), text_batch(2, 0)
    batch["loss_mask"] = torch.ones_like(batch["loss_mask"])
    term = BiLM()(model, batch)["loss"]
    ahead, back = model.layer_states(batch["tokens"], batch["documents"])[-1].chunk(2, -1)
    x, nats = batch["tokens"], 0.0
    for begin, end in ((0, 10), (10, 24)):
        for states, targets in (
            (ahead[:, begin : end - 1], x[:, begin + 1 : end]),
            (back[:, begin + 1 : end], x[:, begin : end - 1]),
        ):
            nats += F.cross_entropy(model.head(states).flatten(0, 1), targets.flatten(), reduction="sum")
    close(term.sum, torch.as_tensor(nats))
    assert int(term.count) == 2 * 2 * (9 + 13) == BiLM().normalizers(batch)["loss"]


def test_a_gap_is_filled_by_the_product_of_both_predictions() -> None:
    model, x = case("elmo").tiny(), tokens(1, 9)
    both = [torch.log_softmax(model.logits(side), -1) for side in model.directions(x)]
    product = torch.log_softmax(both[0] + both[1], -1)
    close(torch.log_softmax(model.logits(model(x).hidden), -1), product)


def test_words_are_told_apart_by_how_they_are_spelled() -> None:
    """Equal spellings have equal vectors, convolutions are torch's, and what is made once is what is made for each."""
    model = case("elmo").tiny()
    cnn = model.embedding
    model.spell([b"bat", b"cat", b"bat"])
    a, b, c = cnn(torch.tensor([[0, 1, 2]]))[0]
    assert torch.equal(a, c) and (a - b).abs().max() > 1e-3
    close(cnn(torch.arange(VOCAB)[None])[0, :3], torch.stack((a, b, c)))
    assert cnn.spelling[0, :6].tolist() == [257, *b"bat", 258, 256]
    chars = cnn.chars(cnn.spelling[:3].long()).mT
    found = [
        F.relu(F.conv1d(chars, f.weight.unflatten(1, (width, -1)).mT, f.bias)).amax(-1)
        for width, f in zip(cnn.widths, cnn.filters, strict=True)
    ]
    x = torch.cat(found, -1)
    for highway in cnn.highways:
        y, gate = highway.up(x).chunk(2, -1)
        x = torch.sigmoid(gate) * x + torch.sigmoid(-gate) * F.relu(y)
    close(cnn.words(cnn.spelling[:3]), cnn.proj(x))


def test_a_long_word_is_cut() -> None:
    model = case("elmo").tiny()
    model.spell([b"a" * 100])
    assert model.embedding.spelling[0].tolist() == [257, *b"a" * 14, 258]


def test_dropouts_of_awd() -> None:
    """Each in training alone; whole words drop everywhere, channels for all tokens of a row."""
    x = torch.tensor([[4, 5, 4, 6, 4, 5]])
    rates = dict.fromkeys(("dropout", "input_dropout", "hidden_dropout", "embedding_dropout", "weight_dropout"), 0.5)
    for name in rates:
        model = case("lstm").tiny(**{name: 0.5})
        assert torch.equal(model(x).hidden, model(x).hidden)
        model.train()
        torch.manual_seed(0)
        assert not torch.equal(model(x).hidden, model(x).hidden), name
    words = case("lstm").tiny(embedding_dropout=0.5).train()
    dropped = torch.stack([(words.embed_tokens(x) == 0).all(-1)[0] for _ in range(40)])
    assert (
        (dropped[:, 0] == dropped[:, 2]).all()
        and (dropped[:, 0] == dropped[:, 4]).all()
        and 5 < dropped[:, 0].sum() < 35
    )
    states = case("lstm").tiny(dropout=0.5).train()(tokens(1, 12)).hidden[0] == 0
    assert (states.all(0) | ~states.any(0)).all() and 10 < states[0].sum() < 54


def test_learns_what_a_window_cannot_hold() -> None:
    """The first token of a row comes again at its end: beyond eight tokens, within an LSTM's state."""

    class Repeats:
        def __getitem__(self, n: int) -> dict[str, Tensor]:
            x = torch.randint(3, 11, (32, 13), generator=generator("repeat", n))
            x[:, 12] = x[:, 0]
            mask = torch.zeros(32, 12, dtype=torch.bool)
            mask[:, -1] = True
            return {
                "tokens": x[:, :-1].contiguous(), "targets": x[:, 1:].contiguous(), "loss_mask": mask,
                "documents": torch.zeros(32, 12, dtype=torch.int64), "sample_ids": torch.arange(32) + 32 * n,
            }  # fmt: skip

    losses = {}
    for name in ("lstm", "ffn_lm"):
        state = TrainState.build(case(name).fresh(), OptimOptions(learning_rate=0.01))
        steps = list(train(state, Causal(), Repeats(), Schedule(120), TrainOptions(32), Runtime()))
        losses[name] = sum(step.loss for step in steps[-10:]) / 10
    assert losses["lstm"] < 0.3 and losses["ffn_lm"] > 1.9, losses


def test_a_text_is_its_last_state_the_largest_and_the_mean() -> None:
    states, documents = torch.tensor([[[1.0, 5.0], [3.0, -1.0], [9.0, 9.0]]]), torch.tensor([[0, 0, -1]])
    assert pooled(states, documents, "concat").tolist() == [[3.0, -1.0, 3.0, 5.0, 2.0, 2.0]]
    assert torch.equal(pooled(states[:, :2], None, "concat"), pooled(states, documents, "concat"))
    assert pooled(states, torch.full((1, 3), -1), "concat").isfinite().all()


def test_a_head_learns_a_mix_of_the_layers() -> None:
    """Equation 1 by hand; at first the mean."""
    model, batch = case("elmo").tiny(), {"tokens": tokens(2, 9)}
    head = add_head(model, HeadOptions("classify", ("a", "b")), generator("head"))
    assert head.mix is not None and head.mix_scale is not None and len(head.mix) == 3
    layers = torch.stack(model.layer_states(batch["tokens"], None)).mean(2)
    close(head.features(head_states(model, batch, "mean", every=False).hidden), layers.mean(0))
    with torch.no_grad():
        head.mix.copy_(torch.tensor([1.0, 2.0, 3.0]).log())
        head.mix_scale.fill_(3.0)
        head.weight.normal_()
    mixed = (layers[0] + 2 * layers[1] + 3 * layers[2]) / 2
    assert head.bias is not None
    close(scores(model, batch), mixed @ head.weight.T + head.bias)


def test_a_deep_tied_model_starts_by_knowing_nothing() -> None:
    """Its own input must not pass unchanged to the head that is its embedding."""
    model = build("lstm", **family("lstm").module.sized(512, 32, 256, 4))
    initialise(model, generator("init"))
    batch = text_batch(4, 0)
    with torch.no_grad():
        term = Causal()(model, batch)["loss"]
    assert abs(float(term.sum) / int(term.count) - math.log(512)) < 0.5
