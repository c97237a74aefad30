# SPDX-License-Identifier: Apache-2.0
"""The pair learns: characters it has never seen find their names."""

import pytest
import torch

from foundling.blocks.init import initialise
from foundling.data.datasets.glyphs import GlyphBatches, draw, glyphs, is_held_out
from foundling.models import build, family
from foundling.objectives.contrastive import Contrastive
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([glyph.caption for glyph in glyphs()], 512)


def test_glyphs_are_drawn_and_named() -> None:
    found = glyphs()
    assert len(found) > 4000 and len({glyph.caption for glyph in found}) == len(found)
    by_name = {glyph.caption: glyph for glyph in found}
    assert by_name["latin capital letter a"].character == "A" and len(by_name["latin capital letter a"].faces) == 7
    assert 0.05 < sum(map(is_held_out, found)) / len(found) < 0.15
    letter, stroke = draw("o", "DejaVuSans", 16), draw("|", "DejaVuSans", 16)
    assert letter.shape == (1, 16, 16) and letter.min() == -1 and letter.max() > 0.5
    assert letter[0, 8, 8] < 0 < letter[0].amax(), "an o is hollow"
    assert (stroke[0] > 0).any(0).sum() <= 4, "a bar is thin"


def test_glyph_batches_depend_on_seed_and_number_alone(tokenizer) -> None:
    batches = GlyphBatches(tokenizer, batch_size=64, seed=1)
    ranks = [GlyphBatches(tokenizer, batch_size=64, seed=1, rank=r, world_size=2) for r in range(2)]
    for n in (0, 85, 86, 200):
        whole, halves = batches[n], [rank[n] for rank in ranks]
        assert len(whole["tokens"].unique(dim=0)) == 64, "no caption twice"
        for column in whole:
            assert torch.equal(torch.cat([half[column] for half in halves]), whole[column])
    seen = {g.character for g, _ in batches.items}
    held = {g.character for g, _ in GlyphBatches(tokenizer, batch_size=64, seed=1, held_out=True).items}
    assert not seen & held


@pytest.mark.slow
def test_unseen_characters_find_their_names(tokenizer) -> None:
    fields = family("clip").module.sized(tokenizer.vocab_size, 32, 16, 4, 1, 128, 3) | {"eos_id": tokenizer.eos}
    model = build("clip", **fields)
    initialise(model, generator("init", 0))
    state = TrainState.build(model, OptimOptions(learning_rate=0.003, matrix_learning_rate=0.01))
    batches = GlyphBatches(tokenizer, batch_size=256, seed=0)
    schedule, options = Schedule(600, warmup_steps=20), TrainOptions(128)
    losses = [step.loss for step in train(state, Contrastive(), batches, schedule, options, Runtime())]
    held = GlyphBatches(tokenizer, batch_size=256, seed=0, held_out=True)
    batch = held.batch(held.items[:256], torch.arange(256))
    with torch.inference_mode():
        model.eval()
        similar = model.embed_image(batch["pixels"]) @ model.embed_text(batch["tokens"], documents=batch["documents"]).T
    ranks = (similar > similar.diagonal()[:, None]).sum(1)
    first, tenth = float((ranks < 1).float().mean()), float((ranks < 10).float().mean())
    print(
        f"loss {losses[0]:.2f} -> {losses[-1]:.2f}; among 256 unseen characters: recall@1 {first:.3f}, @10 {tenth:.3f}"
    )
    assert first > 20 / 256 and tenth > 0.3, "chance is 1/256 and 10/256"
