# SPDX-License-Identifier: Apache-2.0
"""The Transformer against torch.nn.Transformer with the same weights, which has its layers and nothing around them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foundling.blocks.position import sinusoids
from tests.contract.cases import case, close, tokens

PARTS = {"self_attn": "mixer", "multihead_attn": "cross"}


def post_norm(model: Any) -> nn.Transformer:
    """torch's encoder and decoder with no norm behind them, as the paper draws it."""
    c = model.config
    make: dict[str, Any] = dict(
        d_model=c.d_model, nhead=c.n_heads, dim_feedforward=c.d_ff, dropout=0.0, batch_first=True
    )
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**make), c.n_layers, enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**make), c.n_decoder_layers)
    theirs = nn.Transformer(c.d_model, c.n_heads, custom_encoder=encoder, custom_decoder=decoder, batch_first=True)
    ours, weights = dict(model.named_parameters()), {}
    for name, parameter in theirs.named_parameters():
        side, _, number, *rest = name.split(".")
        base = f"{'encoder.' if side == 'encoder' else ''}layers.{number}."
        part, kind = rest[0], rest[-1].removeprefix("in_proj_")
        if "norm" in part:
            norms = ["mixer", "ffn"] if side == "encoder" else ["mixer", "cross", "ffn"]
            value = ours[f"{base}{norms[int(part[-1]) - 1]}_norm.{kind}"]
        elif part in PARTS and rest[-1].startswith("in_proj"):
            value = torch.cat([ours[f"{base}{PARTS[part]}.{letter}.{kind}"] for letter in "qkv"])
        elif part in PARTS:
            value = ours[f"{base}{PARTS[part]}.o.{kind}"]
        else:
            value = ours[f"{base}ffn.{'up' if part == 'linear1' else 'down'}.{kind}"]
        assert value.shape == parameter.shape
        weights[name] = value
    theirs.load_state_dict(weights)
    return theirs.eval()


@pytest.mark.parametrize(
    "shape", [{}, {"n_decoder_layers": 3, "n_heads": 1}, {"d_model": 48, "n_layers": 1, "n_heads": 6, "d_ff": 50}]
)
@torch.no_grad()
def test_the_transformer_is_that_of_torch(shape: dict[str, int]) -> None:
    model = case("transformer").tiny(**shape)
    theirs, x, y = post_norm(model), tokens(3, 17), tokens(3, 11, seed=2)
    documents = torch.zeros_like(x)
    documents[1, 12:] = documents[2, 5:] = -1

    def placed(ids: Tensor) -> Tensor:
        return model.embedding(ids) * model.config.d_model**0.5 + sinusoids(
            torch.arange(ids.shape[1])[None], model.config.d_model
        )

    causal, padding = nn.Transformer.generate_square_subsequent_mask(11), documents < 0
    expected = theirs(
        placed(x), placed(y), tgt_mask=causal, src_key_padding_mask=padding, memory_key_padding_mask=padding,
        tgt_is_causal=True,
    )  # fmt: skip
    close(model(y, memory=model.encode(x, documents=documents)).hidden, expected)


def test_sinusoids_by_hand() -> None:
    """Section 3.5 at position 3 of width 4: sin 3, cos 3, sin 3/100, cos 3/100."""
    expected = torch.tensor([0.14112001, -0.98999250, 0.02999550, 0.99955003])
    assert torch.allclose(sinusoids(torch.tensor([[0, 3]]), 4)[0, 1], expected, atol=1e-7)
    assert sinusoids(torch.tensor([[0]]), 4).tolist() == [[[0.0, 1.0, 0.0, 1.0]]]
