# SPDX-License-Identifier: Apache-2.0
"""From a corpus to tokens: what the files hold, what they were made from, and damage refused by name."""

import json
from pathlib import Path

import pytest

from foundling.data import shards as shards_module
from foundling.data.ingest import Corpus, ingest
from foundling.data.shards import TokenArray, TokenShards, write_shards
from foundling.data.sources import Document
from foundling.data.tokens import bytes_per_token, scale_sample, tokenize_corpus, train_tokenizer
from foundling.errors import DataError, MismatchError
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from tests.text import kinds

DOCUMENTS = [
    Document(f"{i}", "".join(f"def f{i}_{k}(x):\n    return x * {i * k}\n" for k in range(20))) for i in range(80)
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return ingest(DOCUMENTS, tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def tokenizer(corpus) -> Tokenizer:
    return train_tokenizer(corpus, 384)


def text_of(shards: TokenShards, tokenizer: Tokenizer) -> list[str]:
    documents: list[list[int]] = []
    for token in shards.read(0, shards.n_tokens).tolist():
        documents.append([]) if token == shards.eos else documents[-1].append(token)
    return [tokenizer.decode(ids) for ids in documents[:-1]]


def test_tokens_are_those_of_the_corpus(corpus, tokenizer, tmp_path):
    tokens = tokenize_corpus(tmp_path, corpus, tokenizer)
    assert text_of(tokens.train, tokenizer) == [document.text for document in corpus.train()]
    assert text_of(tokens.held_out, tokenizer) == [document.text for document in corpus.held_out]
    assert (tokens.train.n_bytes, tokens.held_out.n_bytes) == (corpus.train_bytes, corpus.held_out_bytes)
    ratio = tokens.held_out.n_bytes / (tokens.held_out.n_tokens - 1)
    assert bytes_per_token(corpus, tokenizer) == pytest.approx(ratio)
    assert scale_sample(corpus) == "".join(document.text for document in corpus.train()).encode()


@pytest.mark.parametrize("kind", ["ours", "gpt2", "llama 2", "llama 3", "t5", "bert"])
def test_a_document_is_framed_as_a_prompt_is(kind, tmp_path):
    """What a model continues is what it was trained on: the eos of the document before aside."""
    tokenizer, texts = kinds.tokenizer(kind), ["the cat sat", "", "on the log"]
    shards = write_shards(tmp_path, texts, tokenizer)
    stream = shards.read(0, shards.n_tokens).tolist()
    assert stream == TokenArray(texts, tokenizer).tokens.tolist()
    for text in texts:
        framed = Framing(tokenizer).beginning(text)
        document = [*([] if framed[:1] == [tokenizer.eos] else [tokenizer.eos]), *framed]
        assert stream[: len(document)] == document
        stream = stream[len(document) :]
    assert stream == [tokenizer.eos]


def test_what_exists_is_used_and_what_is_missing_is_made(corpus, tokenizer, tmp_path):
    first = tokenize_corpus(tmp_path, corpus, tokenizer, share=0.5)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "train").iterdir()}
    for path in (tmp_path / "held_out").iterdir():
        path.unlink()
    (tmp_path / "held_out").rmdir()
    again = tokenize_corpus(tmp_path, corpus, tokenizer, share=0.5)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "train").iterdir()} == before
    assert (again.train.hash, again.held_out.hash) == (first.train.hash, first.held_out.hash)


def test_tokens_made_from_something_else_are_refused(corpus, tokenizer, tmp_path):
    tokenize_corpus(tmp_path / "tokens", corpus, tokenizer)
    other = ingest(DOCUMENTS, tmp_path / "other", seed=1)
    for wrong, says in (
        ((corpus, tokenizer, {"share": 0.5}), "share 1.0, not 0.5"),
        ((corpus, tokenizer, {"fim_rate": 0.5, "seq_len": 32}), "fim_rate"),
        ((other, tokenizer, {}), "data_hash"),
        ((corpus, train_tokenizer(corpus, 320), {}), "tokenizer"),
    ):
        with pytest.raises(MismatchError, match=says) as caught:
            tokenize_corpus(tmp_path / "tokens", *wrong[:2], **wrong[2])
        assert "\n" not in str(caught.value) and "remove the directory" in str(caught.value)


@pytest.fixture
def written(corpus, tokenizer, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 2000)
    shards = write_shards(tmp_path, (document.text for document in corpus.train()), tokenizer)
    assert len(shards.arrays) > 3
    return tmp_path


def test_a_damaged_token_file_is_refused_by_name(written):
    path = written / "00001.tokens"
    content = path.read_bytes()
    TokenShards(written, verify=True)
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(DataError, match=r"00001.tokens: damaged, its SHA-256"):
        TokenShards(written, verify=True)
    for damaged in (content[:-2], content[:-1], b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged"):
            TokenShards(written)
    path.unlink()
    with pytest.raises(DataError, match=r"00001.tokens: damaged \(No such file"):
        TokenShards(written)


def test_a_damaged_index_is_refused(written):
    path = written / "index.json"
    index = json.loads(path.read_text())
    for change in ({"dtype": "<f8"}, {"dtype": "|O"}, {"shards": [{"file": "00000.tokens"}]}, {"n_tokens": "many"}):
        path.write_text(json.dumps(index | change))
        with pytest.raises(DataError, match="start again"):
            TokenShards(written)
    for text in ("", "[]", "{}"):
        path.write_text(text)
        with pytest.raises(DataError, match="start again"):
            TokenShards(written)
