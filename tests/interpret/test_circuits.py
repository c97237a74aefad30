# SPDX-License-Identifier: Apache-2.0
"""Readings of an induction circuit whose weights are set by hand, so that every answer is known."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from foundling.adapt.added import merge
from foundling.adapt.lora import LoRAOptions, lora
from foundling.adapt.prefix import prefix_tuning
from foundling.adapt.quantize import dequantize, quantize
from foundling.blocks.attention import Attention
from foundling.blocks.layer import MixerBlock
from foundling.blocks.position import PositionTable
from foundling.blocks.stack import Decoder
from foundling.errors import InterpretError
from foundling.interpret import (
    Head,
    attribute,
    composition,
    in_context_score,
    induction_scores,
    ov_reading,
    qk_reading,
    skip_trigrams,
    trace,
)
from foundling.interpret.circuits import ROWS, DirectPath
from foundling.interpret.look import head_kinds
from foundling.runtime.rng import generator
from tests.contract.cases import case

V, T = 8, 40
TOKEN, PLACE, BEFORE, OUT = (slice(a, b) for a, b in ((0, V), (V, V + T), (V + T, 2 * V + T), (2 * V + T, 3 * V + T)))
D, P, SHARP = 3 * V + T, T, 60.0


class ByHand(Decoder):
    """A state is four one-hot vectors: token, position, the token before, what to say. Head 0 of layer 0 attends to the
    position before and writes its token into BEFORE; head 0 of layer 1 asks for its token in BEFORE, and says the token
    that it finds there: induction by K-composition (Elhage et al. 2021). The second heads do nothing."""

    def __init__(self) -> None:
        layers = [MixerBlock(nn.Identity(), Attention(D, 2, 2, P)) for _ in range(2)]
        config = SimpleNamespace(vocab_size=V, d_model=D, tie_embeddings=False, max_seq_len=T)
        super().__init__(config, [*layers], nn.Identity())
        self.position_embedding = PositionTable(T, D)
        with torch.no_grad():
            for p in self.parameters():
                p.zero_()
            self.embedding.weight[:, TOKEN] = torch.eye(V)
            self.position_embedding.weight[:, PLACE] = torch.eye(T)
            self.head.weight[:, OUT] = torch.eye(V) * 9
            first, second = (layer.mixer for layer in layers)
            first.q.weight[1:P, PLACE] = torch.eye(T)[1:] * SHARP  # position t asks in row t …
            first.k.weight[1:P, PLACE] = torch.eye(T)[:-1] * SHARP  # … where position t − 1 answers
            first.v.weight[:V, TOKEN] = torch.eye(V)
            first.o.weight[BEFORE, :V] = torch.eye(V)
            second.q.weight[:V, TOKEN] = torch.eye(V) * SHARP
            second.k.weight[:V, BEFORE] = torch.eye(V) * SHARP
            second.v.weight[:V, TOKEN] = torch.eye(V)
            second.o.weight[OUT, :V] = torch.eye(V)

    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.position_embedding(positions)


def test_the_circuit_is_recognised() -> None:
    scores = induction_scores(ByHand(), generator("test", 0), rows=4, length=8)
    # of 8 random tokens some repeat within a copy, and the weight is shared among all that follow them
    assert scores.previous_token[0, 0] > 0.99 and scores.previous_token[:, 1].max() < 0.3
    head, best = scores.best()
    assert head == Head(1, 0) and best > 0.5 and scores.second_loss < 0.7 * scores.first_loss
    ids = torch.tensor([0, 1, 2, 3, 1, 2, 3])
    kinds = head_kinds(trace(ByHand(), ids[None]).heads[1].weights()[0], ids)
    assert kinds["induction"][0] > 0.99 and kinds["induction"][1] == pytest.approx((1 / 5 + 1 / 6 + 1 / 7) / 3)


def test_a_repeated_text_without_repetition_inside_is_copied() -> None:
    tokens = torch.tensor([[7, *range(7), *range(7)]])  # the first token takes itself for the one before it
    model = ByHand()
    with torch.no_grad():
        assert (model.logits(model(tokens).hidden)[0, 8:-1].argmax(-1) == tokens[0, 9:]).all()
    assert in_context_score(model, tokens, early=3, late=12) < -1


def test_readings_of_the_weights() -> None:
    model, ids = ByHand(), torch.arange(V)
    copying = ov_reading(model, Head(1, 0), ids)
    assert torch.allclose(copying, 9 * torch.eye(V))  # what it attends to, it says
    assert not ov_reading(model, Head(0, 0), ids).any() and not ov_reading(model, Head(1, 1), ids).any()
    # bare embeddings carry no token before: the later head scores nothing by itself, all comes by composition
    assert not qk_reading(model, Head(1, 0), ids, ids).any()


def test_skip_trigrams_of_a_head_that_attends_by_token() -> None:
    """The second head of layer 0 attends from token t + 1 to token t, and says token t + 2; a little from t + 3 too."""
    model, next_token = ByHand(), torch.eye(V).roll(1, 0)
    mixer = model.layers[0].mixer
    with torch.no_grad():
        mixer.q.weight[P : P + V, TOKEN] = next_token.T + 0.5 * torch.linalg.matrix_power(next_token.T, 3)
        mixer.k.weight[P : P + V, TOKEN] = torch.eye(V) * 4 * P**0.5
        mixer.v.weight[P : P + V, TOKEN] = torch.eye(V)
        mixer.o.weight[OUT, P : P + V] = torch.linalg.matrix_power(next_token, 2)
    expected = torch.zeros(V, V)  # of queries in rows and keys in columns
    for key in range(V):
        expected[(key + 1) % V, key], expected[(key + 3) % V, key] = 4, 2
    assert torch.allclose(qk_reading(model, Head(0, 1), torch.arange(V), torch.arange(V)), expected, atol=1e-5)
    first, last = skip_trigrams(model, Head(0, 1), torch.tensor([2, 7]), n=2)
    # above the means of a row, (4 + 2) / 8 of scores and 9 / 8 of logits
    assert first.source == 2 and [token for token, _ in first.destinations] == [3, 5]
    assert [score for _, score in first.destinations] == pytest.approx([3.25, 1.25]) and first.outputs[0] == (4, 7.875)
    assert [token for token, _ in last.destinations] == [0, 2] and last.outputs[0] == (1, 7.875)
    (some,) = skip_trigrams(model, Head(0, 1), torch.tensor([2]), n=8, ids=torch.tensor([5, 4]))
    assert [token for token, _ in some.destinations] == [5, 4] and [token for token, _ in some.outputs] == [4, 5]


def test_what_a_query_gives_all_keys_makes_no_destination() -> None:
    model = ByHand()
    mixer = model.layers[0].mixer
    with torch.no_grad():
        mixer.q.weight[P, 0], mixer.k.weight[P, TOKEN] = 50.0, 50.0  # token 0 scores all keys alike
        mixer.q.weight[P + 1, 1] = mixer.k.weight[P + 1, 3] = 2.0  # token 1 scores token 3
    (trigrams,) = skip_trigrams(model, Head(0, 1), torch.tensor([3]), n=1)
    assert trigrams.destinations[0][0] == 1


def test_the_head_that_copies_carries_the_logit_of_what_it_copies() -> None:
    model, ids = ByHand(), torch.tensor([[0, 1, 2, 3, 1, 2]])
    values = {part.name: part.value for part in attribute(model, trace(model, ids), 3)}
    assert values.pop("layers.1.mixer.head.0") == pytest.approx(9, abs=1e-3)
    assert all(value == pytest.approx(0, abs=1e-3) for value in values.values()), values


def test_the_later_head_composes_by_its_keys_alone() -> None:
    parts = composition(ByHand(), Head(0, 0), Head(1, 0))
    # ‖A B‖ / (‖A‖ ‖B‖) of matrices of V equal singular values is 1 / √V
    assert parts == {"q": 0.0, "k": pytest.approx(V**-0.5), "v": 0.0}
    with pytest.raises(InterpretError, match="layer 1 is not before layer 1"):
        composition(ByHand(), Head(1, 0), Head(1, 1))


def test_heads_that_share_nothing_compose_by_chance() -> None:
    """About 1/√D of random directions: with B = U S Vᵀ, ‖A B‖² is Σ s² ‖A u‖², and E ‖A u‖² = ‖A‖² / D of random u."""
    model = case("gpt2").tiny()
    parts = [composition(model, Head(0, a), Head(1, b)) for a in range(2) for b in range(2)]
    assert all(0.7 < share * model.config.d_model**0.5 < 1.4 for part in parts for share in part.values()), parts


@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2", "gpt_neox", "gpt2"])
def test_the_direct_path_of_the_first_layer_is_that_of_a_text_of_one_token(name: str) -> None:
    model = case(name).tiny()
    alone = [trace(model, torch.tensor([[token]])) for token in (3, 7)]
    asking, answering = (record.heads[0] for record in alone)
    scale, group = asking.module.attend.scale, asking.q.shape[1] // asking.k.shape[1]
    score = asking.q[0, 1, 0] @ answering.k[0, 1 // group, 0] * (asking.q.shape[-1] ** -0.5 if scale is None else scale)
    scores = qk_reading(model, Head(0, 1), torch.tensor([3]), torch.tensor([7]))
    assert float(scores) == pytest.approx(float(score), abs=1e-5)
    path = DirectPath(model, 0)
    vectors = torch.stack([path.written(h, path.vectors("v", h, torch.tensor([7])))[0] for h in range(2)])
    expected = answering.outputs()[0, :2, 0]
    layer = model.layers[0]
    if name == "gemma2":
        expected = expected * (1 + layer.mixer_post_norm.weight)
    if name == "olmo2":
        expected = expected * layer.mixer_norm.weight
    assert torch.allclose(vectors, expected, atol=1e-5)
    # as matrices: the residual stream of a first token, its norm's scale divided out, is read as the vectors are
    state, norm = alone[1].stack[0].before[0, 0], None if name == "olmo2" else layer.mixer_norm
    if norm is not None:
        centred = state - state.mean() if name in ("gpt2", "gpt_neox") else state
        state = state * torch.rsqrt(centred.pow(2).mean() + norm.eps)
    constant = torch.zeros(model.config.d_model) if getattr(norm, "bias", None) is None else norm.bias
    values = state @ path.reading("v", 1) + path.module.v(constant).unflatten(0, (-1, path.module.head_dim))[1 // group]
    assert torch.allclose(values, path.vectors("v", 1, torch.tensor([7]))[0], atol=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_readings_go_through_the_norm_behind_the_attention(name: str) -> None:
    """A gain of zero in all dimensions but one leaves the readings nothing else."""
    model = case(name).tiny()
    for layer in model.layers:
        norm = layer.mixer_post_norm if name == "gemma2" else layer.mixer_norm
        with torch.no_grad():
            norm.weight.fill_(-norm.offset)
            norm.weight[3] += 2.0
    logits = ov_reading(model, Head(0, 0), torch.arange(8))
    direction = model.head.weight[:, 3]
    assert logits.any() and torch.allclose(logits / logits[:, :1], (direction / direction[0]).expand(8, -1), atol=1e-3)
    written = DirectPath(model, 0).written(0, torch.randn(2, model.config.head_dim))
    assert written[:, 3].all() and not written[:, [*range(3), *range(4, model.config.d_model)]].any()
    assert composition(model, Head(0, 0), Head(1, 0))["v"] > 0


def test_post_norm_decoders_have_no_direct_path() -> None:
    for read in (
        lambda m: ov_reading(m, Head(0, 0), torch.tensor([1])),
        lambda m: composition(m, Head(0, 0), Head(1, 0)),
    ):
        with pytest.raises(InterpretError, match="norm after each sum"):
            read(case("gpt").tiny())


@pytest.mark.parametrize("kind", ["lora", "int8", "nf4"])
def test_readings_of_adapters_and_quantised_weights_are_those_of_the_plain_model(kind: str) -> None:
    model, plain = case("llama").tiny(), case("llama").tiny()
    before = composition(plain, Head(0, 1), Head(1, 0))
    for one in (model, plain):
        if kind == "lora":
            for name in lora(one, LoRAOptions(rank=4), generator("lora", 0)):
                nn.init.normal_(one.get_submodule(name).b, generator=generator(name, 0))
        else:
            quantize(one, kind=kind)
    merge(plain) if kind == "lora" else dequantize(plain)
    assert type(plain.layers[0].mixer.q) is nn.Linear is not type(model.layers[0].mixer.q)
    parts = composition(model, Head(0, 1), Head(1, 0))
    assert parts == pytest.approx(composition(plain, Head(0, 1), Head(1, 0)), abs=1e-5) and parts != before
    ids = torch.arange(20)
    for read in (lambda m: ov_reading(m, Head(1, 1), ids), lambda m: qk_reading(m, Head(1, 1), ids, ids)):
        assert (read(model) - read(plain)).norm() < 1e-5 * read(plain).norm()


@torch.no_grad()
def test_a_whole_vocabulary_is_read_in_parts_and_no_further_than_the_scores() -> None:
    model, sizes = case("llama").tiny(vocab_size=3 * ROWS), dict[str, list[int]]()
    for name, module in model.layers[1].named_modules():
        if name in ("mixer.q", "mixer.o", "ffn"):
            note = lambda module, inputs, name=name: sizes.setdefault(name, []).append(len(inputs[0]))  # noqa: E731
            module.register_forward_pre_hook(note)
    ids, sources = torch.arange(3 * ROWS), torch.tensor([3, 5])
    skip_trigrams(model, Head(1, 0), sources)
    assert sizes["mixer.q"].count(ROWS) == 6 and max(sizes["mixer.q"]) == ROWS
    assert max(sizes["mixer.o"]) <= 2 and max(sizes["ffn"]) == 1
    whole, some = (qk_reading(model, Head(1, 0), sources, part) for part in (ids, ids[ROWS + 1 : ROWS + 9]))
    assert torch.allclose(whole[:, ROWS + 1 : ROWS + 9], some, atol=1e-5)


def test_readings_in_bfloat16() -> None:
    model, ids = case("gemma2").tiny(), torch.arange(8)
    expected = ov_reading(model, Head(1, 1), ids), composition(model, Head(0, 0), Head(1, 1))
    model = model.to(torch.bfloat16)
    logits, parts = ov_reading(model, Head(1, 1), ids), composition(model, Head(0, 0), Head(1, 1))
    assert (logits - expected[0]).norm() < 0.03 * expected[0].norm() and parts == pytest.approx(expected[1], rel=0.03)


def test_the_in_context_score_averages_the_tokens_from_the_two_on() -> None:
    tokens = torch.tensor([[7, *range(7), *range(7)]])
    model = ByHand()
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(
            model.logits(model(tokens).hidden)[0, :-1], tokens[0, 1:], reduction="none"
        )
    expected = losses[11:14].mean() - losses[2:5].mean()  # the loss of token t is in column t − 1
    assert in_context_score(model, tokens, early=3, late=12, width=3) == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(InterpretError, match="0 wide"):
        in_context_score(model, tokens, early=3, late=12, width=0)


def test_bad_requests() -> None:
    model = ByHand()
    with pytest.raises(InterpretError, match="no layer 2; the model has 2"):
        ov_reading(model, Head(2, 0), torch.tensor([1]))
    with pytest.raises(InterpretError, match="no head 2; the layer has 2"):
        ov_reading(model, Head(0, 2), torch.tensor([1]))
    with pytest.raises(InterpretError, match="no attention"):
        induction_scores(case("mamba").tiny(), generator("test", 0))
    with pytest.raises(InterpretError, match="layer 0 of Mamba has no attention"):
        ov_reading(case("mamba").tiny(), Head(0, 0), torch.tensor([1]))
    with pytest.raises(InterpretError, match="layer 1 of FFNLM has no attention"):
        ov_reading(case("ffn_lm").tiny(), Head(1, 0), torch.tensor([1]))
    with pytest.raises(InterpretError, match="no tokens 50 and 500"):
        in_context_score(model, torch.zeros(1, 20, dtype=torch.int64))
    for ids in ([], [-1], [V]):
        with pytest.raises(InterpretError, match=f"give some of the {V} of the model, from 0 to {V - 1}"):
            ov_reading(model, Head(0, 0), torch.tensor(ids, dtype=torch.int64))
    with pytest.raises(InterpretError, match="of 0 tokens; give at least"):
        induction_scores(model, generator("test", 0), ids=torch.tensor([], dtype=torch.int64))
    prefixed = case("llama").tiny()
    prefix_tuning(prefixed, 2, generator("prefix", 0))
    with pytest.raises(InterpretError, match="behind a prefix"):
        qk_reading(prefixed, Head(0, 0), torch.tensor([1]), torch.tensor([1]))
