# SPDX-License-Identifier: Apache-2.0
"""A special token that a user names as a stop string cuts the answer; it does not end it."""

from typing import Any

import pytest

import foundling
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.request import Request
from foundling.decode.sampling import Sampling
from foundling.decode.text import TextGenerator
from foundling.errors import GenerationError
from tests.contract.cases import case
from tests.text.kinds import tokenizer


@pytest.mark.parametrize("engine", [False, True])
def test_a_special_token_named_as_a_stop(engine: bool, tmp_path: Any) -> None:
    words = tokenizer("gpt2").with_tokens(["<mark>"])
    model = case("llama").tiny(vocab_size=words.vocab_size, max_seq_len=64)
    foundling.save(model, tmp_path / "m", tokenizer=words)
    generator = TextGenerator.of(model, tmp_path / "m", Engine(model, EngineOptions(native=False)) if engine else None)
    for token, reason in (("<mark>", "stop"), ("<|endoftext|>", "end")):
        generator.sampling = Sampling(logit_bias={words.backend.token_to_id(token): 60.0})
        sent = list[str]()
        (answer,) = generator.generate("the", stop_strings=["<mark>"], max_tokens=8, on_text=sent.append)
        assert (answer["finish_reason"], answer["text"], answer["tokens"], sent) == (reason, "", 0, [])


@pytest.mark.parametrize("engine", [False, True])
def test_stop_tokens_of_a_request(engine: bool) -> None:
    model = case("llama").tiny(max_seq_len=64)
    source: Any = Engine(model, EngineOptions(native=False)) if engine else model
    (free,) = foundling.generate(source, [[5, 6]], max_tokens=8, seed=1)
    last = next(token for token in free.tokens[::-1])
    before = free.tokens[: free.tokens.index(last)]
    decode = str
    (cut,) = foundling.generate(source, [[5, 6]], max_tokens=8, seed=1, stop_tokens=[last], decode=decode)
    assert (cut.tokens, cut.finish_reason, cut.text) == (before, "stop", str(before))
    (ended,) = foundling.generate(source, [[5, 6]], max_tokens=8, seed=1, stop=[last], stop_tokens=[last])
    assert (ended.tokens, ended.finish_reason) == (before, "end")


def test_stop_tokens_are_checked() -> None:
    with pytest.raises(GenerationError, match="stop_tokens contains"):
        Request([1], 4, stop_tokens=["a"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(GenerationError, match="omit sampling options, processors, stop_strings, stop_tokens"):
        foundling.decode.plain.generate(case("llama").tiny(), [[5]], max_tokens=4, beams=2, stop_tokens=[1])
