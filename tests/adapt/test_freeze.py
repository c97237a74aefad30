# SPDX-License-Identifier: Apache-2.0
"""Which parameters are trained, by name and by depth."""

import pytest
import torch
from torch import nn

from foundling.adapt.added import Added
from foundling.adapt.freeze import depth_of, freeze, is_tied, train_biases, train_top, unfreeze
from foundling.errors import AdaptError
from foundling.models import build, family


def llama(n_layers: int = 3, **fields):
    return build("llama", **family("llama").module.sized(64, 32, 64, n_layers) | fields)


def test_freeze_and_unfreeze_by_the_name_of_a_parameter_or_of_a_module() -> None:
    model = llama()
    left = freeze(model, "embedding,layers.0,*ffn.up.weight")
    assert left == [n for n, p in model.named_parameters() if p.requires_grad]
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    layer = {n for n, _ in model.named_parameters() if n.startswith("layers.0.")}
    assert frozen == layer | {"embedding.weight", "layers.1.ffn.up.weight", "layers.2.ffn.up.weight"}
    assert "layers.0.mixer.q.weight" in unfreeze(model, "*.mixer.q") and "layers.0.mixer.k.weight" not in left


@pytest.mark.parametrize("pattern", ["*", "layer.0", "head,embedding,norm,layers.*"])
def test_nothing_trainable_and_nothing_matched_change_nothing(pattern: str) -> None:
    model = llama()
    with pytest.raises(AdaptError, match=r"nothing of Llama would be trained|matches no parameter; did you mean"):
        freeze(model, pattern)
    assert all(p.requires_grad for p in model.parameters())


def test_the_top_with_a_tied_head() -> None:
    model = llama(tie_embeddings=True)
    trained = train_top(model, 1)
    assert is_tied(model) and trained and not model.embedding.weight.requires_grad
    assert all(n.startswith("layers.2.") or n == "norm.weight" for n in trained) and "norm.weight" in trained
    assert not is_tied(llama()) and "head.weight" in train_top(llama(), 0)
    with pytest.raises(AdaptError, match="expected 0 to 3"):
        train_top(model, 4)


def test_an_encoder_is_below_its_decoder_and_towers_stand_side_by_side() -> None:
    t5, clip, unet = (build(n, **fields) for n, fields in (
        ("t5", family("t5").module.sized(64, 32, 64, 2)),
        ("clip", family("clip").module.sized(64, 16, 8, 4, 1, 64, 2) | {"text_n_layers": 1}),
        ("unet", family("unet").module.sized(8, 1, 10, 32)),
    ))  # fmt: skip
    depths = depth_of(t5)
    assert [depths[f"{s}layers.{i}.ffn.down.weight"] for s in ("encoder.", "") for i in (0, 1)] == [1, 2, 3, 4]
    assert (depths["embedding.weight"], depths["encoder.norm.weight"], depths["norm.weight"]) == (0, 2, 5)
    depths = depth_of(clip)
    assert [depths[f"{s}.ffn.up.weight"] for s in ("image.layers.0", "image.layers.1", "text.layers.0")] == [1, 2, 2]
    assert (depths["image.patches.weight"], depths["text.proj.weight"]) == (0, 3)
    depths = depth_of(unet)
    order = [
        "conv_in",
        "down.layers.0.blocks.0.conv1",
        "down.layers.1.blocks.0.conv1",
        "middle.layers.0.blocks.0.conv1",
    ]
    order += ["up.layers.0.blocks.0.conv1", "up.layers.1.blocks.0.conv1", "conv_out"]
    assert [depths[f"{name}.weight"] for name in order] == list(range(7))


class Score(Added):
    own, base = ("weight",), None

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 64))


def test_biases_are_norms_where_there_are_none_and_heads_that_were_added() -> None:
    model = llama()
    assert all("norm" in name for name in train_biases(model)) and train_biases(model)
    model.score = Score()
    assert "score.weight" in train_biases(model) and depth_of(model)["score.weight"] == 4
    gpt2 = build("gpt2", **family("gpt2").module.sized(64, 32, 64, 2))
    trained = train_biases(gpt2)
    assert "layers.0.mixer.qkv.bias" in trained or "layers.0.mixer.q.bias" in trained
    share = sum(p.numel() for p in gpt2.parameters() if p.requires_grad) / sum(p.numel() for p in gpt2.parameters())
    assert share < 0.02
    with pytest.raises(AdaptError, match="biases and norms: nothing"):
        train_biases(nn.Linear(2, 2, bias=False))
