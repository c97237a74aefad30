# SPDX-License-Identifier: Apache-2.0
"""Encoders in native code against the same encoders in torch: whatever the lengths, whoever stands beside."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import foundling
from foundling.decode.fill import fill
from foundling.decode.native.encoder import ROWS
from foundling.decode.native.program import FORMS
from foundling.errors import GenerationError
from foundling.models import FAMILIES, build, family
from tests.contract.cases import case
from tests.rounding import bound

ENCODERS = [name for name, entry in FAMILIES.items() if entry.kind == "encoder" and name not in ("modernbert", "elmo")]
NEAR = {"float32": bound(), "bfloat16": 2 * 2**-8, "int8": 4 / 127, "int4": 2 / 7}
"""Of the states' size. A weight or activation is rounded by 2^-9 of itself, 1/254 or 1/14 of its largest; two layers
and the tails of an activation make some four times as much of it."""


def sample(rows: int, length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and documents: packed, padded behind and before, one that goes on further right, one of one token, a row
    with nothing in it."""
    made = torch.Generator().manual_seed(seed)
    documents = torch.zeros(rows, length, dtype=torch.int64)
    documents[1, length // 3 :] = 7
    documents[2, length - 5 :] = -1
    documents[3, :3] = -1
    documents[4, 2:9], documents[4, 9:10] = 1, 2
    documents[5] = -1
    return torch.randint(3, 64, (rows, length), generator=made), documents


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ENCODERS)
@torch.inference_mode()
def test_states_are_those_of_torch(name: str, form: str) -> None:
    model = case(name).tiny()
    for block in model.layers:
        block.ffn.up.weight *= 4  # into both tails of the activation
    fast = foundling.native_encoder(model, form)
    tokens, documents = sample(7, 24)
    for marks in (None, documents):
        want, got = model.encode(tokens, documents=marks), fast.encode(tokens, documents=marks)
        real = torch.ones_like(documents, dtype=torch.bool) if marks is None else marks >= 0
        error = (got.states - want.states)[real].norm() / want.states[real].norm()
        assert (1e-4 if form != "float32" else 0) <= error < NEAR[form], error
        assert got.documents is want.documents is marks and not got.states[~real].any()
        if want.pooled is not None:
            a, b = got.pooled[real[:, 0]], want.pooled[real[:, 0]]
            assert (a - b).norm() < 3 * NEAR[form] * b.norm()
    assert "read" not in vars(model)


@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_widths_that_are_no_multiples(form: str) -> None:
    """Two spans of scales, the second short; a last panel and a last group that are not full."""
    fields = {"vocab_size": 64, "n_layers": 1, "n_heads": 4, "max_seq_len": 32, "masked": False}
    model = build("bert", **fields, d_model=4 * 197, d_ff=1610)
    for p in model.parameters():
        p.normal_(std=p.shape[-1] ** -0.5)
    tokens = torch.randint(3, 64, (3, 9))
    want, got = model.encode(tokens).states, foundling.native_encoder(model, form).encode(tokens).states
    assert (1e-4 if form != "float32" else 0) <= (got - want).norm() / want.norm() < NEAR[form]


@pytest.mark.parametrize("form", ["float32", "int8"])
@torch.inference_mode()
def test_more_than_is_read_at_once(form: str) -> None:
    """And a text's states are the same to the bit wherever it stands."""
    model = case("bert").tiny()
    fast = foundling.native_encoder(model, form)
    lengths = torch.randint(1, 33, (150,), generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(3, 64, (150, 32), generator=torch.Generator().manual_seed(2))
    documents = torch.where(torch.arange(32) < lengths[:, None], 0, -1)
    assert int(lengths.sum()) > 2 * ROWS
    states = fast.encode(tokens, documents=documents).states
    for row, length in enumerate(lengths.tolist()):
        alone = fast.encode(tokens[row : row + 1, :length]).states[0]
        assert torch.equal(states[row, :length], alone)


def test_what_else_an_encoder_does() -> None:
    model = case("bert").tiny()
    fast = foundling.native_encoder(model, "float32")
    text = [5, 9, 4, 17, 4, 30]
    plain, native = fill(model, text, 4), fill(fast, text, 4)
    assert plain.tokens == native.tokens and len(native.gaps) == 2
    for a, b in zip(plain.gaps, native.gaps, strict=True):
        assert [token for token, _ in a] == [token for token, _ in b]
        assert [p for _, p in a] == pytest.approx([p for _, p in b], rel=1e-4)
    half = case("bert").tiny().to(torch.bfloat16)
    with torch.inference_mode():
        made = foundling.native_encoder(model, "float32")
    with torch.no_grad():
        assert torch.equal(made.encode(torch.tensor([text])).states, fast.encode(torch.tensor([text])).states)
    with torch.inference_mode():
        got = foundling.native_encoder(half).encode(torch.tensor([text])).states
        assert got.dtype == torch.bfloat16
        assert (got - half.encode(torch.tensor([text])).states).norm() < 0.05 * got.norm()
        before = fast.encode(torch.tensor([text])).states
        model.layers[0].ffn.up.weight.zero_()
        model.layers[0].ffn_norm.weight.zero_()
        assert torch.equal(fast.encode(torch.tensor([text])).states, before), "packed as they were"


def test_the_copy_is_its_own_and_threads_take_turns() -> None:
    model = case("bert").tiny()
    fast = foundling.native_encoder(model)
    fast.head = None
    fast.register_forward_hook(lambda *_: None)
    assert model.head is not None and not model._forward_hooks
    with pytest.raises(GenerationError, match="cannot be copied or saved"):
        copy.deepcopy(fast)
    texts = [torch.randint(3, 64, (2, n), generator=torch.Generator().manual_seed(n)) for n in range(1, 33)]

    def read(tokens: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return fast.encode(tokens).states

    alone = [read(tokens) for tokens in texts]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(read, texts * 5), alone * 5, strict=True):
            assert torch.equal(found, expected)
    with torch.inference_mode():
        assert fast.encode(torch.zeros(2, 0, dtype=torch.int64)).states.shape == (2, 0, 64)
        tokens, documents = sample(6, 24)[0], torch.tensor([[0] * 10 + [1] * 10 + [-1] * 4])
        assert torch.equal(
            fast.encode(tokens, documents=documents).states,
            fast.encode(tokens, documents=documents.expand(6, 24)).states,
        )


def test_what_native_code_cannot_read() -> None:
    model = case("bert").tiny()
    fast = foundling.native_encoder(model)
    with pytest.raises(GenerationError, match="no gradients"):
        fast.encode(torch.tensor([[5, 6, 7]]))
    with pytest.raises(GenerationError, match="expected one of float32"):
        foundling.native_encoder(model, "int3")  # pyright: ignore
    with pytest.raises(GenerationError, match="Llama is not a plain stack"):
        foundling.native_encoder(case("llama").tiny())
    with pytest.raises(GenerationError, match="ModernBERT is not a plain stack"):
        foundling.native_encoder(case("modernbert").tiny())
    narrow = build("bert", **family("bert").module.sized(64, 2 * ROWS, 64, 1))
    positions = torch.arange(3 * ROWS)[None] % ROWS
    with (
        torch.inference_mode(),
        pytest.raises(GenerationError, match=f"has {3 * ROWS} tokens; the limit is {2 * ROWS}"),
    ):
        foundling.native_encoder(narrow).encode(torch.zeros(1, 3 * ROWS, dtype=torch.int64), positions=positions)
    foundling.quantize(model)
    with pytest.raises(GenerationError, match="is a Int8Linear"):
        foundling.native_encoder(model)
    watched = case("bert").tiny()
    watched.layers[0].register_forward_hook(lambda *_: None)
    with pytest.raises(GenerationError, match="has hooks"):
        foundling.native_encoder(watched)
