# SPDX-License-Identifier: Apache-2.0
"""Files and folders as they come: nested, damaged, in the wrong encoding, too large, and not files at all."""

import gzip
import json
import os
import socket
import subprocess
import tracemalloc
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foundling.data.datasets import DATASETS, load_dataset, open_data
from foundling.data.sources import Document, Source
from foundling.data.streams import LINE_BYTES, PIECE_BYTES
from foundling.errors import DataError

MIB = 2**20


def error_of(path: Path, field: str = "text") -> str:
    with pytest.raises(DataError) as caught:
        list(Source(path, field))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_mixed_nested_folder(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "b" / "deep" / "story.txt").write_bytes("one\r\ntwo ü\r".encode())
    (tmp_path / "b" / "a.py").write_text("print()\n")
    (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbftitle")
    (tmp_path / ".hidden").write_text("hidden")
    (tmp_path / ".git" / "config").write_text("hidden")
    (tmp_path / "__pycache__" / "a.txt").write_text("hidden")
    (tmp_path / "cat.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    (tmp_path / "blank.txt").write_text(" \n\t\n")
    (tmp_path / "nothing.txt").touch()
    write_rows(tmp_path / "z.jsonl", {"text": "row one"}, {"other": 1}, [1], {"text": 7}, {"text": "row five"})
    write_parquet(tmp_path / "y.parquet", text=["cell one", None, "cell three"])
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(b"unpacked\n"))
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))

    source = Source(tmp_path)
    expected = [
        Document("a.md", "title"),
        Document("b/a.py", "print()\n"),
        Document("b/deep/story.txt", "one\r\ntwo ü\r"),
        Document("x.txt.gz", "unpacked\n"),
        Document("y.parquet#1", "cell one"),
        Document("y.parquet#3", "cell three"),
        Document("z.jsonl#1", "row one"),
        Document("z.jsonl#5", "row five"),
    ]
    skipped = {
        "binary": 1,
        "not UTF-8": 1,
        "empty": 2,
        "no field 'text'": 2,
        "row is not an object": 1,
        "field 'text' is not text": 1,
        "symlinked folder": 1,
        "unreadable": 1,
        "special file": 2,
    }
    for _ in range(2):  # it can be read again, and counts afresh
        assert list(source) == expected
        assert source.skipped == Counter(skipped)
    assert not source.single_file


def test_a_folder_nested_deeper_than_the_stack(tmp_path):
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1_100):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    with os.fdopen(os.open("leaf.txt", os.O_CREAT | os.O_WRONLY, dir_fd=here), "w") as leaf:
        leaf.write("found")
    os.close(here)
    try:
        assert [document.text for document in Source(tmp_path)] == ["found"]
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # pytest's own clean-up recurses


def test_file_names_need_not_be_utf8(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("text")
    assert list(Source(tmp_path)) == [Document("\ufffd.txt", "text")]


def test_folders_without_text(tmp_path):
    assert "holds no files" in error_of(tmp_path)
    (tmp_path / ".hidden").write_text("text")
    assert "holds no files" in error_of(tmp_path)
    for i in range(3):
        (tmp_path / f"{i}.bin").write_bytes(b"\0")
    (tmp_path / "blank.txt").write_text("\n")
    message = error_of(tmp_path)
    assert "binary: 3, empty: 1" in message and "UTF-8" in message


# --- plain files -----------------------------------------------------------------------------------------------------


def test_one_plain_file(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("a book")
    source = Source(path)
    assert source.single_file and list(source) == [Document("book.txt", "a book")] == list(Source(str(path)))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"text\0text", "NUL"),
        ("text".encode("utf-16"), "iconv -f UTF-16"),
        (b"good\n" * 3 + b"b\xe4d", "byte 16 is not UTF-8"),
        (b"\xed\xa0\x80", "byte 0 is not UTF-8"),
    ],
)
def test_a_plain_file_that_is_no_text(tmp_path, content, says):
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    assert says in error_of(path)


def test_paths_that_are_nothing_to_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, says in [
        (tmp_path / "missing", "No such file"),
        ("nul\0byte", "null byte"),
        (tmp_path / ("x" * 300), "too long"),
        (tmp_path / "pipe", "pipe"),
        (Path("/dev/null"), "device"),
    ]:
        with pytest.raises(DataError, match=says):
            Source(path)


def test_pieces_join_to_the_file(tmp_path):
    path = tmp_path / "large.txt"
    lines = "".join(f"{i} äöü\r\n" for i in range(PIECE_BYTES // 10))
    text = "\ufeff" + lines + "é" * PIECE_BYTES + "\n" + lines  # in the middle a line of two pieces' bytes
    path.write_bytes(text.encode())
    pieces = list(Source(path))
    assert "".join(piece.text for piece in pieces) == text[1:]
    assert [piece.name for piece in pieces] == [f"large.txt@{i + 1}" for i in range(len(pieces))]
    assert all(len(piece.text.encode()) <= PIECE_BYTES for piece in pieces)
    assert pieces[0].text.endswith("\r\n")


@pytest.mark.parametrize("extra", [0, 1])
def test_a_file_of_exactly_one_piece_is_whole(tmp_path, extra):
    path = tmp_path / "file.txt"
    path.write_bytes(b"x" * (PIECE_BYTES + extra))
    assert [document.name for document in Source(path)] == [["file.txt"], ["file.txt@1", "file.txt@2"]][extra]


def test_a_large_file_that_goes_bad_late(tmp_path):
    path = tmp_path / "large.txt"
    path.write_bytes(b"line\n" * (PIECE_BYTES // 4) + b"\xff\n")
    assert f"byte {PIECE_BYTES // 4 * 5:,} is not UTF-8" in error_of(path)
    source = Source(tmp_path)
    assert [document.name for document in source] == ["large.txt@1"] and source.skipped == {"not UTF-8": 1}


def test_memory_is_bound_by_a_piece(tmp_path):
    path = tmp_path / "large.txt"
    with path.open("w") as file:
        for i in range(20):
            file.write(f"line {i:07d}\n" * (MIB // 13))
    tracemalloc.start()
    try:
        n = sum(len(document.text) for document in Source(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n == path.stat().st_size
    assert peak < 5 * PIECE_BYTES


# --- gzip ------------------------------------------------------------------------------------------------------------


def test_gzipped_rows(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n') + gzip.compress(b'{"text": "two"}\n'))  # two members
    assert list(Source(path)) == [Document("rows.jsonl.gz#1", "one"), Document("rows.jsonl.gz#2", "two")]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"\x1f\x8b" + data[3:]])
def test_damaged_gzip(tmp_path, damage):
    path = tmp_path / "file.txt.gz"
    path.write_bytes(damage(gzip.compress(os.urandom(1000).hex().encode())))
    assert "unreadable" in error_of(path)


def test_a_gzip_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.txt.gz"
    path.write_bytes(gzip.compress((b"a" * (MIB - 1) + b"\n") * 100))
    assert "200 times" in error_of(path)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_that_are_not_usable_are_counted(tmp_path):
    path = tmp_path / "rows.ndjson"
    rows = [
        b'\xef\xbb\xbf{"text": "one", "id": 1}',
        b"",
        b"{broken",
        b"[" * 100_000,
        b'{"text": "\xff"}',
        rb'{"text": "\ud800"}',
        rb'{"text": "\u0000"}',
        b'{"text": " "}',
        b'{"text": null}',
        b'{"text": "zw\xc3\xb6lf\\n"}\r',
        b"3",
    ]
    path.write_bytes(b"\n".join(rows))
    source = Source(path)
    assert list(source) == [Document("rows.ndjson#1", "one"), Document("rows.ndjson#10", "zwölf\n")]
    assert source.skipped == {
        "not JSON": 2,
        "not UTF-8": 2,
        "binary": 1,
        "empty": 1,
        "no field 'text'": 1,
        "row is not an object": 1,
    }
    assert not source.single_file


def test_rows_errors_say_what_there_is(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", {"body": "hello", "id": 3}, {"title": "x"})
    message = error_of(path)
    assert "no field 'text': 2" in message and "'body', 'id'" in message and "--field" in message
    assert [document.text for document in Source(path, field="body")] == ["hello"]
    path.write_text("not json\n" * 3)
    assert "not JSON: 3" in error_of(path) and "line 1 is not JSON" in error_of(path)
    path.write_text('[{"text": "a whole array"}]')
    assert "row is not an object" in error_of(path)
    path.write_text("\n\n")
    assert "no rows" in error_of(path)
    write_rows(path, {f"key {i}" * 50: 1 for i in range(1000)})
    assert len(error_of(path)) < 2500


def test_a_line_over_the_limit_is_not_read_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        file.write('{"text": "before"}\n{"text": "')
        for _ in range(LINE_BYTES // MIB + 20):
            file.write("x" * MIB)
        file.write('"}\n{"text": "after"}\n')
    source = Source(path)
    tracemalloc.start()
    try:
        assert [document.name for document in source] == ["rows.jsonl#1", "rows.jsonl#3"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert source.skipped == {"line over 64 MiB": 1}
    assert peak < 2.5 * LINE_BYTES


# --- Parquet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_column_types(tmp_path, kind):
    path = tmp_path / "data.parquet"
    texts = pa.array(["eins", "zwölf", None, "  "] * 100)
    texts = texts.dictionary_encode() if pa.types.is_dictionary(kind) else texts.cast(kind)
    pq.write_table(pa.table({"id": list(range(400)), "text": texts}), path, row_group_size=70)
    source = Source(path)
    assert [document.text for document in source] == ["eins", "zwölf"] * 100
    assert [document.name for document in source][:3] == ["data.parquet#1", "data.parquet#2", "data.parquet#5"]
    assert source.skipped == {"no field 'text'": 100, "empty": 100} and not source.single_file


def test_parquet_strings_that_are_not_utf8(tmp_path):
    path = write_parquet(tmp_path / "data.parquet", text=pa.array([b"good", b"b\xe4d", b"nul\0"]))
    source = Source(path)
    assert [document.text for document in source] == ["good"]
    assert source.skipped == {"not UTF-8": 1, "binary": 1}


def test_parquet_errors(tmp_path):
    path = write_parquet(tmp_path / "data.parquet", body=["hello"] * 1000, id=list(range(1000)))
    assert "'body', 'id'" in error_of(path) and "--field" in error_of(path)
    assert "of type int" in error_of(path, field="id")
    whole = path.read_bytes()
    for damaged in [b"", b"PAR1", b"not parquet at all", whole[:-20], whole[:40] + b"\xff" * 60 + whole[100:]]:
        path.write_bytes(damaged)
        assert "damaged Parquet" in error_of(path, field="body")
    write_parquet(path, text=pa.array([], pa.string()))
    assert "no rows" in error_of(path)
    path.write_bytes(b"")
    (tmp_path / "story.txt").write_text("beside a damaged one")
    source = Source(tmp_path)
    assert [document.name for document in source] == ["story.txt"] and source.skipped == {"damaged Parquet": 1}


# --- built-in data ---------------------------------------------------------------------------------------------------


def test_the_standard_library_is_a_corpus():
    stdlib = load_dataset("stdlib")
    documents = list(open_data("builtin:stdlib"))
    names = [document.name for document in documents]
    assert DATASETS["stdlib"].licence == "PSF-2.0" and not stdlib.single_file
    assert {"json/decoder.py", "os.py", "asyncio/events.py"} <= set(names)
    assert names == [document.name for document in stdlib] and len(set(names)) == len(names)
    assert len(names) > 300 and sum(len(document.text) for document in documents) > 5_000_000
    here = Path(json.__file__).parent
    assert next(d.text for d in documents if d.name == "json/decoder.py").encode() == (here / "decoder.py").read_bytes()
    for name in names:
        folders = name.split("/")[:-1]
        assert not {"test", "tests", "idle_test", "site-packages", "__pycache__"} & set(folders), name
        assert name.endswith(".py") and not any(folder.startswith("config-") for folder in folders)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("builtin:wikipedia", "'wikipedia'.*stdlib"),
        ("builtin:digits", "not text but images.*stdlib"),
        ("nowhere", "No such"),
    ],
)
def test_data_that_cannot_be_opened(data, says):
    with pytest.raises(DataError, match=says):
        open_data(data)


def test_every_data_set_loads_with_its_splits():
    for name, entry in DATASETS.items():
        assert entry.licence and entry.origin and entry.kind in ("text", "images", "image-text", "task")
        with pytest.raises(DataError, match="has no split 'dev'"):
            load_dataset(name, "dev")
        if entry.splits:
            with pytest.raises(DataError, match=", ".join(entry.splits)):
                load_dataset(name)
        if entry.splits and not entry.parts:  # of tasks test_tasks.py loads every part
            train, test = (load_dataset(name, split) for split in entry.splits)
            assert len(train) and len(test)


# --- what a source leaves out and counts -----------------------------------------------------------------------------


def test_an_output_inside_the_data_is_excluded(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("data")
    for folder in ("out/run", "sub/out"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "b.txt").write_text("output")
    everything = ["a.txt", "out/run/b.txt", "sub/out/b.txt"]

    def names(path, exclude) -> list[str]:
        return [document.name for document in open_data(str(path), exclude=exclude)]

    assert names(tmp_path, None) == everything
    assert names(tmp_path, tmp_path / "out") == ["a.txt", "sub/out/b.txt"]
    assert names(tmp_path, tmp_path / "sub" / "out") == ["a.txt", "out/run/b.txt"]
    for elsewhere in (tmp_path, tmp_path.parent, tmp_path / "missing", tmp_path.parent / "out"):
        assert names(tmp_path, elsewhere) == everything
    monkeypatch.chdir(tmp_path)
    assert names(".", Path("out")) == names(tmp_path, Path("out")) == ["a.txt", "sub/out/b.txt"]
    (tmp_path.parent / "link").symlink_to(tmp_path, target_is_directory=True)
    assert names(tmp_path.parent / "link", tmp_path / "out") == ["a.txt", "sub/out/b.txt"]


def test_bytes_read_are_those_of_the_files(tmp_path):
    (tmp_path / "a.txt").write_text("text " * 100_000)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n' * 1000))
    source = Source(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert source.bytes_read == 0 and source.file_bytes() == size
    for n in (1, 2):
        list(source)
        assert source.bytes_read == n * size
    write_parquet(tmp_path / "c.parquet", text=["some text"] * 1000)
    once = source.bytes_read
    list(source)
    assert 0 < source.bytes_read - once - size <= 2 * (tmp_path / "c.parquet").stat().st_size


ROWS = [{"body": f'text {i}, naïve 数 \\ " ]', "id": {"a": [i, 1.5, None]}} for i in range(300)]
TEXTS = [row["body"] for row in ROWS]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_json_array_of_objects_is_rows(tmp_path, indent, pack):
    path = tmp_path / ("rows.json.gz" if pack is gzip.compress else "rows.json")
    for text in (json.dumps(ROWS, indent=indent), "\ufeff \n" + json.dumps(ROWS, indent=indent, ensure_ascii=False)):
        path.write_bytes(pack(text.encode()))
        found = list(Source(path, "body"))
        assert [d.text for d in found] == TEXTS and found[2].name == f"{path.name}#3"
        assert [d.text for d in Source(tmp_path, "body")] == TEXTS
        message = error_of(path, "nosuch")
        assert "no field 'nosuch': 300" in message and "element 1 has the keys 'body', 'id'" in message
    path.write_bytes(pack("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    assert [d.text for d in Source(path, "body")] == TEXTS
    assert "line 1 has the keys 'body', 'id'" in error_of(path, "nosuch")


def test_json_that_is_settings_stays_text(tmp_path):
    """A folder of code: only where a field is asked for by name is an array of objects read as rows."""
    for content in ('[{"name": "a"}, {"name": "b"}]', '{"name": "a"}', '["a", {"text": "b"}]', "[]", "[[1, 2]]", "{"):
        (tmp_path / "a.json").write_text(content)
        assert [d.text for d in Source(tmp_path / "a.json")] == [content]
    (tmp_path / "a.json").write_text('[{"text": "row 1"}, {"text": "row 2"}]')
    assert [d.text for d in Source(tmp_path / "a.json")] == ["row 1", "row 2"]


def test_a_field_of_plain_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "b.json").write_text('["a"]')
    for path in (tmp_path / "a.txt", tmp_path / "b.json"):
        assert "has no field 'body': it is plain text" in error_of(path, "body")
    assert "has no field 'body': all files are plain text" in error_of(tmp_path, "body")
    with pytest.raises(DataError, match="'stdlib' has no field 'body'"):
        open_data("builtin:stdlib", "body")
    write_rows(tmp_path / "c.jsonl", {"body": "row"})
    assert [d.text for d in Source(tmp_path, "body")] == ["some text", '["a"]', "row"]


@pytest.mark.parametrize(
    ("tail", "reason"),
    [(b'{"body": 1}]', "is not text"), (b"{", "not JSON"), (b'"a" "b"]', "not JSON"), (b'"\xff"]', "not UTF-8"),
     (b"3]", "row is not an object"), (b"", "not JSON"), (b"[" * 100_000, "not JSON"), (b"12", "not JSON")],
)  # fmt: skip
def test_what_is_wrong_in_an_array_is_counted(tmp_path, tail, reason):
    (tmp_path / "a.json").write_bytes(b'[{"body": "first"},' + b" " * 200_000 + tail)
    source = Source(tmp_path, "body")
    assert [d.text for d in source] == ["first"]
    assert any(reason in key for key in source.skipped)


def test_files_without_an_end(tmp_path):
    """A sparse terabyte, a pipe and a device are skipped without being read."""
    write_rows(tmp_path / "a.jsonl", {"text": "row"})
    for name in ("b.jsonl", "c.txt", "d.json"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(1 << 40)
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    source = Source(tmp_path)
    assert [d.text for d in source] == ["row"] and source.skipped == {"binary": 3, "special file": 2}
