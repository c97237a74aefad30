# SPDX-License-Identifier: Apache-2.0
"""Readings of an induction circuit whose weights are set by hand, so that every answer is known."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from foundling.blocks.attention import Attention
from foundling.blocks.layer import MixerBlock
from foundling.blocks.position import PositionTable
from foundling.blocks.stack import Decoder
from foundling.errors import InterpretError
from foundling.interpret import (
    Head,
    composition,
    in_context_score,
    induction_scores,
    ov_reading,
    qk_reading,
    skip_trigrams,
    trace,
)
from foundling.interpret.circuits import direct_path
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
    (found,) = skip_trigrams(model, Head(1, 0), torch.tensor([5]), n=1)
    assert found.source == 5 and found.outputs == [(5, 9.0)]
    # bare embeddings carry no token before: the later head scores nothing by itself, all comes by composition
    assert not qk_reading(model, Head(1, 0), ids, ids).any()


def test_the_later_head_composes_by_its_keys_alone() -> None:
    parts = composition(ByHand(), Head(0, 0), Head(1, 0))
    # ‖A B‖ / (‖A‖ ‖B‖) of matrices of V equal singular values is 1 / √V
    assert parts == {"q": 0.0, "k": pytest.approx(V**-0.5), "v": 0.0}
    with pytest.raises(InterpretError, match="layer 1 is not before layer 1"):
        composition(ByHand(), Head(1, 0), Head(1, 1))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_the_direct_path_of_the_first_layer_is_that_of_a_text_of_one_token(name: str) -> None:
    model = case(name).tiny()
    alone = trace(model, torch.tensor([[7]]))
    record = direct_path(model, 0, torch.tensor([3, 7]))
    assert torch.allclose(record.heads[0].outputs()[1], alone.heads[0].outputs()[0], atol=1e-6)
    scores = qk_reading(model, Head(0, 1), torch.tensor([3]), torch.tensor([7]))
    heads = record.heads[0]
    group, scale = heads.q.shape[1] // heads.k.shape[1], heads.module.attend.scale
    expected = heads.q[0, 1, 0] @ heads.k[1, 1 // group, 0] * (heads.q.shape[-1] ** -0.5 if scale is None else scale)
    assert float(scores) == pytest.approx(float(expected), abs=1e-5)


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
    with pytest.raises(InterpretError, match="no tokens 50 and 500"):
        in_context_score(model, torch.zeros(1, 20, dtype=torch.int64))
