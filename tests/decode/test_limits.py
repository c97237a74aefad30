# SPDX-License-Identifier: Apache-2.0
"""A model with a table of positions refuses what is longer, by name of the limit; one without reads on."""

from __future__ import annotations

import pytest
import tokenizers
import torch
from tokenizers import Regex, decoders, models, pre_tokenizers

import foundling
from foundling.blocks.position import position_limit
from foundling.contracts.denoise import Condition
from foundling.decode import likelihood
from foundling.decode.engine.engine import Engine
from foundling.decode.prompts import pad_prompts
from foundling.decode.sampling import Sampling
from foundling.decode.text import TextGenerator
from foundling.errors import ConfigError, GenerationError
from foundling.evaluate import perplexity
from foundling.recipes.seq2seq import restored
from foundling.text import Tokenizer
from foundling.text.framing import Framing, TextSpec
from tests.contract.cases import case, tokens

TABLES = ("gpt", "gpt2", "opt", "bart", "bert", "roberta", "distilbert", "albert", "clip")


def test_which_families_have_a_table() -> None:
    limits = {name: position_limit(case(name).tiny()) for name in ("t5", "transformer", "llama", *TABLES)}
    assert limits == {"t5": None, "transformer": None, "llama": None} | dict.fromkeys(TABLES, 64) | {"clip": 16}


@pytest.mark.parametrize("name", [name for name in TABLES if name != "clip"])
def test_a_text_beyond_the_table_is_refused_and_packed_ones_are_read(name: str) -> None:
    of = case(name)
    model, x = of.tiny(max_seq_len=18), tokens(1, 26)
    documents = (torch.arange(26) > 12).long()[None]
    read = {"memory_documents": torch.zeros(1, 26, dtype=torch.int64)} if name == "bart" else {}
    assert of.hidden(model, x[:, :18]).isfinite().all()
    assert of.hidden(model, x, documents=documents, **read).isfinite().all()
    for wrong, more in ((x[:, :19], {}), (x[:, :8], {"positions": torch.arange(11, 19)[None]})):
        with pytest.raises(GenerationError, match="longer than the 18 tokens"):
            of.hidden(model, wrong, **more)


def test_a_source_beyond_the_table_is_refused() -> None:
    model = case("bart").tiny(max_seq_len=12)
    with pytest.raises(GenerationError, match="longer than the 12 tokens"):
        model.encode(tokens(1, 13))


def test_a_text_that_outgrows_the_table_in_a_cache_is_refused() -> None:
    for name in ("gpt2", "bart"):
        of = case(name)
        model, x = of.tiny(max_seq_len=12), tokens(1, 13)
        memory = model.encode(tokens(1, 5)) if name == "bart" else None
        cache = model.new_cache(1, 20, memory)
        for n in range(12):
            model(x[:, n : n + 1], cache=cache)
        with pytest.raises(GenerationError, match="longer than the 12 tokens"):
            model(x[:, 12:], cache=cache)


def test_a_text_of_clip_beyond_the_table_is_refused() -> None:
    with pytest.raises(GenerationError, match="longer than the 16 tokens"):
        case("clip").tiny().embed("text", {"tokens": tokens(1, 17)})


@pytest.mark.parametrize("shape", [(2, 1, 8, 9), (2, 1, 12, 12), (2, 3, 8, 8), (2, 1, 4, 16), (1, 8, 8), (2, 1, 9, 8)])
def test_images_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    """Convolutions would drop the last rows of 9, and 4 by 16 has as many patches as 8 by 8."""
    model = case("clip").tiny()
    for encode in (lambda x: model.embed("image", {"pixels": x}), model.embed_image, model.image.encode):
        with pytest.raises(ConfigError, match=r"this CLIP reads \(batch, 1, 8, 8\)"):
            encode(torch.zeros(shape))


def test_images_that_cannot_be_halved_are_refused_and_other_sizes_are_read() -> None:
    model, t = case("unet").tiny(), torch.tensor([3])
    unit = 2 ** (len(model.config.widths) - 1)
    assert unit > 1 and model(torch.zeros(1, 1, 2 * unit, 4 * unit), t, Condition()).shape[2:] == (2 * unit, 4 * unit)
    for shape in ((1, 1, 8, 2 * unit + 1), (1, 3, 8, 8), (1, 8, 8)):
        with pytest.raises(ConfigError, match=r"this UNet reads \(batch, 1, height, width\), multiples of"):
            model(torch.zeros(shape), t, Condition())


@pytest.mark.parametrize("engine", [False, True])
def test_an_encoder_decoder_with_tables_limits_source_and_answer_apart(engine: bool) -> None:
    model = case("bart").tiny(max_seq_len=32)
    writer = Engine(model) if engine else model
    for prompt, max_tokens, message in (([3] * 40, 4, "source is 40 tokens"), ([3], 33, "request at most 32")):
        with pytest.raises(GenerationError, match=message):
            foundling.generate(writer, [prompt], max_tokens=max_tokens)
    assert len(foundling.generate(writer, [[3] * 32], max_tokens=32, temperature=0)[0].tokens) == 32


def test_beams_are_limited_as_plain_decoding_is() -> None:
    bart, gpt2 = case("bart").tiny(max_seq_len=12), case("gpt2").tiny(max_seq_len=12)
    for model, prompt, max_tokens, most in ((bart, [3] * 13, 4, 12), (bart, [3], 13, 12), (gpt2, [3] * 5, 8, 7)):
        with pytest.raises(GenerationError, match=f"at most {most}"):
            foundling.generate(model, [prompt], max_tokens=max_tokens, beams=2)
    assert len(foundling.generate(bart, [[3] * 12], max_tokens=12, beams=2)[0].tokens) == 12


@pytest.mark.parametrize("name", ["t5", "transformer"])
def test_an_encoder_decoder_without_tables_reads_on(name: str) -> None:
    model = case(name).tiny(max_seq_len=16)
    answers = foundling.generate(model, [[3] * 20], max_tokens=40, temperature=0)
    assert len(answers[0].tokens) == 40


def letters(size: int) -> Tokenizer:
    """One id a character, as many as the model has rows."""
    names = ["<|endoftext|>", *(chr(97 + i) for i in range(size - 1))]
    backend = tokenizers.Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    backend.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(backend)


def test_text_of_an_encoder_decoder_is_as_long_as_its_table_by_default() -> None:
    model = case("bart").tiny(max_seq_len=24)
    tokenizer = letters(model.config.vocab_size)
    framing = Framing(tokenizer, TextSpec(reads_source=True))
    answer = TextGenerator(model, framing, Sampling()).generate("abc" * 8)[0]
    assert 0 < answer["tokens"] <= 24
    samples = restored(model, tokenizer, {"source": tokens(1, 9), "source_documents": torch.zeros(1, 9)})
    assert len(samples) == 1 and len(samples[0]["text"]) <= 24


def test_rows_of_ids_are_padded_in_one_place() -> None:
    """Decoding and evaluation pad by the same function, an empty row and no row at all included."""
    ids, documents = pad_prompts([[5, 6], (), [7]], "cpu")
    assert ids.tolist() == [[5, 6], [0, 0], [7, 0]] and documents.tolist() == [[0, 0], [-1, -1], [0, -1]]
    assert pad_prompts([[]], "cpu")[0].shape == (1, 1) and pad_prompts([], "cpu")[0].shape == (0, 1)
    assert likelihood.pad_prompts is perplexity.pad_prompts is pad_prompts
