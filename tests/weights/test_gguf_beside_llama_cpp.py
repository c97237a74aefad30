# SPDX-License-Identifier: Apache-2.0
"""GGUF beside what llama.cpp computed: `llama_cpp.json` holds blocks of every type with its numbers, and its ids of
texts for every name of a pre-tokenizer (written by `python -m benchmarks.gguf_parity --record`)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from foundling.errors import WeightsError
from foundling.text import Tokenizer
from foundling.weights.convert.gguf_file import DEQUANTIZED, open_gguf
from foundling.weights.convert.gguf_tokenizer import read_tokenizer, unwritable, write_tokenizer
from foundling.weights.convert.gguf_words import ADDS_BOS, NAMES, OWN, WHOLE_WORDS
from tests.text.kinds import tokenizer

ROWS, COLUMNS = 2, 256
ADAPTED = ("gpt-4o", "tekken")
"""where llama.cpp leaves out the marks that the published pattern keeps with their letter"""


@cache
def recorded() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "llama_cpp.json").read_text(encoding="utf-8"))


def closed(writer: Any, file: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_every_type_is_dequantized_as_llama_cpp_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundling.weights.convert.gguf_file.CHUNK", COLUMNS)  # a row at a time
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    for kind, block in recorded()["blocks"].items():
        packed = np.frombuffer(bytes.fromhex(block["packed"]), np.uint8).reshape(ROWS, -1)
        writer.add_tensor(kind, packed, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.add_tensor("F16", np.full((2, 4), 1.5, np.float16))
    file = open_gguf(closed(writer, tmp_path / "t.gguf"))
    assert {*recorded()["blocks"]} == {*DEQUANTIZED} == {*file.dequantized} and file.kinds["F16"] == 1
    for kind, block in recorded()["blocks"].items():
        numbers = file.read(kind, torch.float32)
        assert numbers.shape == (ROWS, COLUMNS) and torch.equal(numbers[1, ::16], torch.tensor(block["numbers"])), kind
        assert float(numbers.double().abs().sum()) == pytest.approx(block["sum"], rel=1e-12), kind
    assert torch.equal(file.read("F16", torch.bfloat16), torch.full((2, 4), 1.5, dtype=torch.bfloat16))


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    for kind, name in ((gguf.GGMLQuantizationType.I32, "I32"), (gguf.GGMLQuantizationType.Q8_K, "Q8_K")):
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        size = gguf.GGML_QUANT_SIZES[kind][1]
        writer.add_tensor("a", np.zeros((1, size), np.uint8), raw_dtype=kind)
        with pytest.raises(WeightsError, match=rf"tensor 'a' is of type {name}; F32, F16, BF16, Q4_0") as caught:
            open_gguf(closed(writer, tmp_path / f"{name}.gguf"))
        assert "\n" not in str(caught.value)


def test_words_are_cut_as_llama_cpp_does(tmp_path: Path) -> None:
    """The merges cross words, so the ids show where each pre-tokenizer cuts; a text is framed with bos where llama.cpp
    does that without being told."""
    merges, groups = recorded()["merges"], recorded()["words"]
    assert sorted(name for group in groups for name in group["names"]) == sorted({*NAMES} - {OWN})
    alphabet = sorted(tokenizer("gpt2").backend.pre_tokenizer.alphabet())
    tokens = list(dict.fromkeys([*alphabet, *(merge.replace(" ", "", 1) for merge in merges), "<|end|>"]))
    alike = {(at, NAMES[n], n in WHOLE_WORDS, n in ADDS_BOS): n for at, g in enumerate(groups) for n in g["names"]}
    for (at, *_), name in alike.items():
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        writer.add_token_list(tokens)
        writer.add_token_types([1] * (len(tokens) - 1) + [3])
        writer.add_token_merges(merges)
        writer.add_eos_token_id(len(tokens) - 1)
        writer.add_bos_token_id(len(tokens) - 1)
        found = read_tokenizer(closed(writer, tmp_path / f"{name}.gguf"))
        assert isinstance(found, tuple)
        for text, ids in zip(recorded()["texts"], groups[at]["ids"], strict=True):
            if not (NAMES[name] in ADAPTED and "\u0301" in text):
                assert found[0].encode_framed(text) == ids, (name, text)
                assert found[0].decode(ids) == text
    assert len(groups) > 15, "the texts tell the patterns apart"


def sentencepiece(file: Path, **changes: Any) -> Path:
    pieces = recorded()["sentencepiece"]
    n = len(pieces["tokens"])
    keys = {"scores": [0.0] * 259 + [float(-i) for i in range(n - 259)], "prefix": True, "kinds": pieces["kinds"]}
    keys |= changes
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces["tokens"])
    writer.add_token_scores(keys["scores"])
    writer.add_token_types(keys["kinds"])
    writer.add_add_space_prefix(keys["prefix"])
    for name, value in keys.get("more", {}).items():
        writer.add_bool(name, value)
    return closed(writer, file)


def test_sentencepiece_is_read_and_written_as_llama_cpp_does(tmp_path: Path) -> None:
    """bos, eos and unknown are at llama.cpp's places, since the file names none."""
    found = read_tokenizer(sentencepiece(tmp_path / "s.gguf"))
    assert isinstance(found, tuple)
    one, generation = found
    assert (one.frame, one.eos, generation) == (([1], []), 2, {"bos_token_id": 1, "eos_token_id": 2})
    for text, ids in zip(recorded()["texts"], recorded()["sentencepiece"]["ids"], strict=True):
        assert one.encode_framed(text) == ids, text
    for text in ("the cat", "  two before", "漢字🙂, x"):
        assert one.decode(one.encode(text)) == text
    again = tmp_path / "again.gguf"
    writer = gguf.GGUFWriter(again, "llama")
    assert unwritable(one, one.vocab_size) is None and "tokens, the model" in str(unwritable(one, 5))
    write_tokenizer(writer, one, one.vocab_size + 3)
    back = read_tokenizer(closed(writer, again))
    assert isinstance(back, tuple) and back[0].frame == one.frame and back[1] == generation
    for text in recorded()["texts"]:
        assert back[0].encode(text) == one.encode(text), text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scores": [0.0]}, "equal scores"),
        ({"more": {"tokenizer.ggml.add_sep_token": True}}, "'tokenizer.ggml.add_sep_token', which is not known"),
    ],
)
def test_sentencepiece_that_is_left_out(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    n = len(recorded()["sentencepiece"]["tokens"])
    changes = {key: value * n if key == "scores" else value for key, value in changes.items()}
    assert says in read_tokenizer(sentencepiece(tmp_path / "s.gguf", **changes))


@pytest.mark.parametrize("changes", [{"scores": [0.0] * 3}, {"kinds": [1] * 3}, {"scores": [float("nan")] * 5000}])
def test_sentencepiece_that_contradicts_itself(changes: dict[str, Any], tmp_path: Path) -> None:
    n = len(recorded()["sentencepiece"]["tokens"])
    with pytest.raises(WeightsError, match=r"s\.gguf: the tokenizer's tokens and"):
        read_tokenizer(sentencepiece(tmp_path / "s.gguf", **{key: value[:n] for key, value in changes.items()}))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("t5", "its model is Unigram"),
        ("bert", "its model is WordPiece"),
        ("prefix space", "no name for how it cuts words"),
        ("llama 2", "no scores of its tokens"),  # learnt merges: each token is joined from one pair only
        ("metaspace always", "treats spaces otherwise"),
        ("gpt2", None),
        ("llama 3", None),
        ("ours", None),
    ],
)
def test_what_llama_cpp_would_encode_otherwise_is_not_written(kind: str, says: str | None) -> None:
    one: Tokenizer = tokenizer(kind)
    reason = unwritable(one, one.vocab_size)
    assert reason is None if says is None else says in str(reason)
