# SPDX-License-Identifier: Apache-2.0
"""Samples of text: their size, what they depend on, and that one large file serves as well as many small ones."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundling.data.ingest import ingest
from foundling.data.sampling import cut, sample_documents, sample_spans, sample_text, subsample_docs
from foundling.data.sources import Document, Source
from foundling.data.tokens import tokenize_corpus
from foundling.text import Tokenizer


def words(n_chars: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    parts, size = [], 0
    while size < n_chars:
        line = " ".join(str(rng.getrandbits(30)) for _ in range(8)) + "\n"
        parts.append(line)
        size += len(line)
    return "".join(parts)[:n_chars]


def documents_of(*sizes: int) -> list[Document]:
    return [Document(str(i), words(size, i)) for i, size in enumerate(sizes)]


def total(documents) -> int:
    return sum(len(document.text) for document in documents)


@given(st.text(max_size=200), st.integers(1, 50))
def test_pieces_join_to_the_text(text: str, max_chars: int):
    pieces = cut(text, max_chars)
    assert "".join(pieces) == text and all(len(piece) <= max_chars for piece in pieces)
    assert all(pieces) or text == ""
    assert all(piece.endswith("\n") or "\n" not in piece[max_chars // 2 :] for piece in pieces[:-1])


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("sizes", [(5_000_000,), (2_000_000, 1_000_000, 500_000), (300_000,) * 12])
def test_a_few_large_documents_give_their_share(sizes, share):
    documents = documents_of(*sizes)
    sample = list(subsample_docs(documents, share, total(documents)))
    assert 0.5 < total(sample) / (share * total(documents)) < 1.5
    assert all(any(piece.text in document.text for document in documents) for piece in sample)


def test_one_large_file_is_tokenized_by_its_share(tmp_path):
    path = tmp_path / "large.txt"
    path.write_text(words(5_000_000))
    corpus = ingest(Source(path), tmp_path / "corpus")
    tokenizer = Tokenizer.train([words(50_000)], 320)
    tokens = tokenize_corpus(tmp_path / "tokens", corpus, tokenizer, share=0.01)
    assert 0.7 < tokens.train.n_bytes / (0.01 * corpus.train_bytes) < 1.3
    assert tokens.train.n_tokens > 10_000
    for n_bytes in (20_000, 400_000):
        for sample in (sample_documents(corpus, n_bytes), sample_text(corpus, n_bytes)):
            assert 0.5 < sum(map(len, sample)) / n_bytes < 1.6


def test_small_documents_are_chosen_whole_by_their_own_hash():
    import hashlib

    documents = documents_of(*[500 + 10 * i for i in range(400)])
    chosen = list(subsample_docs(documents, 0.25, total(documents)))
    digests = {d.name: int.from_bytes(hashlib.sha256(d.text.encode()).digest()[8:16], "little") for d in documents}
    assert chosen == [d for d in documents if digests[d.name] < 0.25 * 2**64]
    assert 0.8 < total(chosen) / total(documents) / 0.25 < 1.2
    assert list(subsample_docs(documents, 1.0, total(documents))) == documents


@pytest.mark.parametrize("sizes", [(900_000, 500, 2_000), (3_000,) * 30])
def test_the_order_of_documents_does_not_matter(sizes):
    documents = documents_of(*sizes)
    for share in (1e-6, 0.02, 0.4):
        forward = list(subsample_docs(documents, share, total(documents)))
        backward = list(subsample_docs(documents[::-1], share, total(documents)))
        assert forward and sorted(forward, key=str) == sorted(backward, key=str)


def test_many_large_documents_are_each_as_likely():
    """Pieces of equal documents: on average each gives its share, whatever its size."""
    documents = documents_of(*(40_000,) * 300)
    sample = list(subsample_docs(documents, 0.02, total(documents)))
    assert {len(document.text) for document in sample} == {40_000}, "a quarter of the sample is longer than a document"
    assert 2 <= len(sample) <= 14


def test_spans_are_inside_their_documents():
    documents = documents_of(20_000, 900, 5_000)
    spans = list(sample_spans(documents, 0.25))
    assert [len(span) for span in spans] == [5_000, 900, 1_250]
    assert all(span in document.text for span, document in zip(spans, documents, strict=True))
    assert spans == list(sample_spans(documents, 0.25))
