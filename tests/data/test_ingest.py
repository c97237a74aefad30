# SPDX-License-Identifier: Apache-2.0
"""A corpus on disk: the source is read once, what was written is read back, and damage is refused by name."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from foundling.data import text_shards
from foundling.data.ingest import INDEX, Corpus, ingest
from foundling.data.sources import Document, Source
from foundling.data.text_shards import TextShards, write_text_shards
from foundling.data.tokens import bytes_per_token, scale_sample, tokenize_corpus, train_tokenizer
from foundling.errors import DataError, OutputError

MIB = 2**20


def write_folder(folder: Path, n: int = 60) -> Path:
    folder.mkdir(parents=True)
    for i in range(n):
        lines = "".join(f"line {k} of document {i} ü says {i * k * 7919 % 1000}\n" for k in range(30))
        (folder / f"{i:02d}.txt").write_text(lines)
    (folder / "copy.txt").write_text((folder / "07.txt").read_text())
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    return folder


class Counting(Source):
    """A source that counts how often it is read."""

    times = 0

    def __iter__(self):
        self.times += 1
        return super().__iter__()


def test_everything_a_run_needs_reads_the_source_once(tmp_path):
    folder = write_folder(tmp_path / "data")
    source = Counting(folder)
    corpus = ingest(source, tmp_path / "corpus")
    tokenizer = train_tokenizer(corpus, 320)
    tokenize_corpus(tmp_path / "tokens", corpus, tokenizer)
    assert bytes_per_token(corpus, tokenizer) > 1 and scale_sample(corpus)
    assert len(list(corpus.train())) == corpus.train_documents
    assert source.times == 1
    assert corpus.source_bytes == source.bytes_read == sum(path.stat().st_size for path in folder.iterdir())


def test_what_was_written_is_read_back_without_the_source(tmp_path):
    folder = write_folder(tmp_path / "data")
    documents = list(Source(folder))
    made = ingest(Source(folder), tmp_path / "corpus", seed=3, share=0.1)
    shutil.rmtree(folder)
    loaded = Corpus.load(tmp_path / "corpus")
    assert loaded.held_out == made.held_out and list(loaded.train()) == list(made.train())
    distinct = [document for document in documents if document.name != "copy.txt"]
    assert list(loaded.train()) == [document for document in distinct if document not in loaded.held_out]
    for name in ("train_bytes", "held_out_bytes", "removed_bytes", "train_documents", "removed", "skipped", "data_hash",
                 "source_bytes", "note"):  # fmt: skip
        assert getattr(loaded, name) == getattr(made, name), name
    assert loaded.skipped == Counter(binary=1) and loaded.removed == {"exact duplicate": 1}


def test_a_cut_file_is_read_back(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("".join(f"sentence {i} of the book says {i * 7919 % 10_007}.\n" for i in range(2000)))
    made = ingest(Source(book), tmp_path / "corpus")
    loaded = Corpus.load(tmp_path / "corpus")
    assert "".join(d.text for d in [*loaded.train(), *loaded.held_out]) == book.read_text()
    assert loaded.held_out == made.held_out


@pytest.mark.parametrize("stem", ["text", "held_out"])
@pytest.mark.parametrize("damage", ["flip", "shorten", "remove"])
def test_a_damaged_shard_is_refused_by_name(tmp_path, stem, damage):
    ingest(Source(write_folder(tmp_path / "data")), tmp_path / "corpus")
    path = tmp_path / "corpus" / f"{stem}-00000.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-100])
    with pytest.raises(DataError, match=rf"{stem}-00000.arrow: damaged .*remove the directory") as caught:
        Corpus.load(tmp_path / "corpus")
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_damaged_later_is_refused_by_name(tmp_path):
    corpus = ingest(Source(write_folder(tmp_path / "data")), tmp_path / "corpus")
    path = tmp_path / "corpus" / "text-00000.arrow"
    content = path.read_bytes()
    for damaged in (content[:1000] + bytes(200) + content[1200:], content[:-50], b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"text-00000.arrow: damaged .*remove the directory") as caught:
            list(corpus.train())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda index: "not json", "not JSON"),
        (lambda index: "[]", "not a JSON object"),
        (lambda index: json.dumps({**index, "format_version": 99}), "format_version 99, expected 1"),
        (lambda index: json.dumps({**index, "train_bytes": "many"}), "'train_bytes' is 'many'"),
        (lambda index: json.dumps({k: v for k, v in index.items() if k != "text"}), "missing key 'text'"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, change, says):
    ingest(Source(write_folder(tmp_path / "data")), tmp_path / "corpus")
    path = tmp_path / "corpus" / INDEX
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(DataError, match=says) as caught:
        Corpus.load(tmp_path / "corpus")
    assert "ingest the data again" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_corpus_and_a_taken_directory(tmp_path):
    with pytest.raises(DataError, match=r"index.json: cannot be read"):
        Corpus.load(tmp_path / "nowhere")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        ingest(Source(write_folder(tmp_path / "data")), tmp_path / "taken")
    assert os.listdir(tmp_path / "taken") == ["mine.txt"]


def test_nothing_is_left_where_the_data_is_refused(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("too little")
    with pytest.raises(DataError, match="too little"):
        ingest(Source(book), tmp_path / "corpus")
    assert os.listdir(tmp_path) == ["book.txt"]


def test_data_larger_than_the_disk_is_refused_before_it_is_read(tmp_path):
    source = Source(write_folder(tmp_path / "data"))
    with (tmp_path / "data" / "sparse.txt").open("wb") as file:
        file.truncate(shutil.disk_usage(tmp_path).free + 2**30)
    with pytest.raises(OutputError, match=r"the disk has .* left; free some space"):
        ingest(source, tmp_path / "corpus")
    assert source.bytes_read == 0


def test_a_killed_ingestion_leaves_no_corpus(tmp_path):
    folder = write_folder(tmp_path / "data")
    code = (
        "import os, sys\nfrom foundling.data.ingest import ingest\nfrom foundling.data.sources import Source\n"
        "class Dies(Source):\n    def __iter__(self):\n        for n, document in enumerate(super().__iter__()):\n"
        "            if n == 40: os._exit(9)\n            yield document\n"
        "ingest(Dies(sys.argv[1]), sys.argv[2])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "corpus")], check=False)
    assert ended.returncode == 9 and not (tmp_path / "corpus").exists()
    assert ingest(Source(folder), tmp_path / "corpus").train_documents


# --- shards ----------------------------------------------------------------------------------------------------------


def test_documents_come_back_from_many_files_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(text_shards, "BATCH_BYTES", 200)
    monkeypatch.setattr(text_shards, "BATCH_DOCUMENTS", 5)
    monkeypatch.setattr(text_shards, "SHARD_BYTES", 1000)
    documents = [Document(f"{i}.txt", f"ä𝄞 {i} " * (i % 30 + 1)) for i in range(200)]
    files = write_text_shards(tmp_path, "text", documents)
    shards = TextShards(tmp_path, files)
    assert len(files) > 5 and any(len(file.batches) > 1 for file in files)
    assert max(count for file in files for count in file.batches) == 5
    assert list(shards) == documents == list(shards) and len(shards) == 200
    assert shards.take([199, 0, 77]) == {place: documents[place] for place in (0, 77, 199)}
    assert shards.take([]) == {}
    shards.verify()


def test_no_documents_make_no_file(tmp_path):
    assert write_text_shards(tmp_path, "text", []) == [] and list(TextShards(tmp_path, [])) == []


def test_reading_is_bounded_by_a_batch(tmp_path):
    documents = (Document(str(i), f"{i} " * (MIB // 8)) for i in range(120))
    shards = TextShards(tmp_path, write_text_shards(tmp_path, "text", documents))
    tracemalloc.start()
    try:
        total = sum(len(document.text) for document in shards)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total > 30 * MIB and peak < 3 * text_shards.BATCH_BYTES
