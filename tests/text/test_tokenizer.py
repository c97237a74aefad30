# SPDX-License-Identifier: Apache-2.0
"""Byte-level BPE: every text comes back, and what is special cannot be smuggled in."""

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundling.errors import ConfigError, DataError, WeightsError
from foundling.text import Tokenizer
from foundling.text.tokenizer import LONGEST_WORD, SPECIAL

TEXTS = ["def f(x):\n    return x + 1\n" * 20, "naïve café — 東京 🎉\r\n\ttabs" * 5, "the cat sat on the mat. " * 30]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 384)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_all_unicode_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert "".join(piece for piece, _ in tokenizer.pieces(text)) == text


def test_special_tokens_are_not_read_out_of_text(tokenizer: Tokenizer) -> None:
    for special in SPECIAL:
        ids = tokenizer.encode(f"a {special} b")
        assert tokenizer.decode(ids) == f"a {special} b"
        assert not set(ids) & {tokenizer.backend.token_to_id(s) for s in SPECIAL}


@pytest.mark.parametrize("size", [320, 384, 4096])
def test_every_id_has_a_token_and_the_vocabulary_is_a_multiple_of_64(size: int) -> None:
    tokenizer = Tokenizer.train(TEXTS, size)
    assert tokenizer.vocab_size % 64 == 0 and tokenizer.vocab_size <= size
    assert sorted(tokenizer.backend.get_vocab().values()) == list(range(tokenizer.vocab_size))
    spare = [t for t in tokenizer.backend.get_vocab() if t.startswith("<|spare_")]
    assert len(spare) >= 16


def test_a_word_of_any_length_is_trained_on_in_pieces() -> None:
    """DNA, base64 or Chinese without a space: one word of 400 kB took minutes."""
    dna = "".join(Random(0).choices("ACGT", k=100_000)) + "A" * 100_000
    tokenizer = Tokenizer.train([dna], 1024)
    assert max(map(len, tokenizer.backend.get_vocab())) <= LONGEST_WORD
    assert tokenizer.decode(tokenizer.encode(dna)) == dna
    rows = [dna[i : i + LONGEST_WORD] for i in range(0, len(dna), LONGEST_WORD)]
    assert Tokenizer.train(rows, 1024).backend.get_vocab() == tokenizer.backend.get_vocab()


def test_training_again_gives_the_same_file(tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Tokenizer.train(TEXTS, 448).save(tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


def test_transformers_reads_it_the_same(tokenizer: Tokenizer, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "  two  spaces\n\n\n", "1234567", "日本語", ""]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    chat = theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert Tokenizer.load(tmp_path).encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])


def test_the_files_say_which_token_plays_which_part(tokenizer: Tokenizer, tmp_path) -> None:
    """As transformers writes them: a name, or a mapping with the name as content; the newer file has the last word."""
    assert (tokenizer.bos, tokenizer.eos, tokenizer.mask) == (
        *[tokenizer.backend.token_to_id("<|endoftext|>")] * 2,
        None,
    )
    tokenizer.save(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|pad|>", "mask_token": "<|spare_1|>"}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<|im_end|>"}, "bos_token": None})
    )
    loaded, ids = Tokenizer.load(tmp_path), tokenizer.backend.token_to_id
    assert (loaded.bos, loaded.eos, loaded.mask) == (None, ids("<|im_end|>"), ids("<|spare_1|>"))
    for damaged in ("[]", "{", "\xff"):
        (tmp_path / "tokenizer_config.json").write_text(damaged)
        with pytest.raises(WeightsError, match=r"tokenizer_config\.json: damaged"):
            Tokenizer.load(tmp_path)


def test_what_others_say_of_their_tokens_is_kept(tokenizer: Tokenizer, tmp_path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    tokenizer.save(tmp_path / "a")
    said = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "model_max_length": 77, "auto_map": {"x": "evil.py"}}
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(said))
    Tokenizer.load(tmp_path / "a").save(tmp_path / "b")
    kept = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())
    assert kept == {key: value for key, value in said.items() if key != "auto_map"}


def test_tokenizers_that_lack_what_they_need(tmp_path) -> None:
    """Bare exceptions and panics of the library end in one line."""
    for model in (
        {"type": "WordLevel", "vocab": {"[SEP]": 0, "zebra": (1 << 32) - 1}, "unk_token": "[UNK]"},
        {"type": "BPE", "vocab": {"[SEP]": 0, "x": 1}, "merges": []},
    ):
        backend = {"version": "1.0", "added_tokens": [], "model": model}
        (tmp_path / "tokenizer.json").write_text(json.dumps(backend))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"sep_token": "[SEP]"}))
        loaded = Tokenizer.load(tmp_path)
        assert loaded.vocab_size == max(model["vocab"].values()) + 1
        if model["type"] == "BPE":
            assert loaded.frame == ([], []) and loaded.encode("a") == []
        else:
            assert loaded.ids == {0, (1 << 32) - 1}
            with pytest.raises(WeightsError, match="cannot read this text"):
                loaded.encode("horse")


def test_bad_input(tokenizer: Tokenizer, tmp_path) -> None:
    with pytest.raises(ConfigError, match="multiple of 64"):
        Tokenizer.train(TEXTS, 1000)
    with pytest.raises(DataError, match="surrogate"):
        tokenizer.encode("\ud800")
    with pytest.raises(WeightsError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    for damaged in ("", "{}", "[1", json.dumps({"model": {"type": "BPE"}})):
        (tmp_path / "tokenizer.json").write_text(damaged)
        with pytest.raises(WeightsError, match="damaged"):
            Tokenizer.load(tmp_path)
