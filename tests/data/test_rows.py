# SPDX-License-Identifier: Apache-2.0
"""Rows of tables as they come: quoted, in other delimiters and encodings, ragged, and CoNLL in its dialects."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundling.data import tables
from foundling.data.rows import read_rows
from foundling.data.streams import Row, Skip


def rows_of(path: Path, data: bytes, **more) -> tuple[list[dict], Counter[str]]:
    """The rows, and the reasons of what was skipped."""
    path.write_bytes(data)
    got = list(read_rows(path, **more))
    rows = [row.fields for row in got if isinstance(row, Row)]
    return rows, Counter(row.reason for row in got if isinstance(row, Skip))


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_a_table_is_read_whatever_its_delimiter(tmp_path, sign):
    text = f'\ufeffname{sign}text\r\na{sign}"x, y; z | ""q""\r\nnext line"\r\n\r\nb{sign}ü\r\n'
    rows, skipped = rows_of(tmp_path / "t.csv", text.encode())
    assert rows == [{"name": "a", "text": 'x, y; z | "q"\r\nnext line'}, {"name": "b", "text": "ü"}] and not skipped


def test_what_is_wrong_in_a_table_is_counted_and_the_rest_is_read(tmp_path):
    data = b'text,label\ngood,1\nshort\nlong,2,3\nb\xe4d,4\n"a"b,5\n"last one",6\n"never closed,7\n'
    rows, skipped = rows_of(tmp_path / "t.csv", data)
    assert rows == [{"text": "good", "label": "1"}, {"text": "last one", "label": "6"}]
    assert skipped == {"row without 2 fields": 2, "not UTF-8": 1, "not CSV": 2}


def test_quotes_are_characters_where_a_file_of_tabs_does_not_quote(tmp_path):
    rows, skipped = rows_of(tmp_path / "t.tsv", b'label\ttext\nham\t"hello\nspam\the said "yes"\nham\t"a" b\n')
    assert [row["text"] for row in rows] == ['"hello', 'he said "yes"', '"a" b'] and not skipped
    rows, skipped = rows_of(tmp_path / "t.tsv", b'label\ttext\nham\t"one\ntwo"\n')
    assert [row["text"] for row in rows] == ["one\ntwo"] and not skipped


def test_a_table_needs_a_header_that_names_every_column_once(tmp_path):
    for data in (b"a,a\n1,2\n", b"a,\n1,2\n"):
        assert rows_of(tmp_path / "t.csv", data) == ([], {"no header": 1})
    assert rows_of(tmp_path / "t.csv", b"a\0b\n") == ([], {"binary": 1})
    assert rows_of(tmp_path / "t.csv", b"text\none, two\n") == ([{"text": "one, two"}], {})


def test_a_row_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LINE_BYTES", 1000)
    data = b"text,label\nfine,1\n" + b"x" * 2000 + b",2\nafter,3\n"
    rows, skipped = rows_of(tmp_path / "t.csv", data)
    assert rows == [{"text": "fine", "label": "1"}] and skipped == {"not CSV": 1}


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=12))
def test_what_the_standard_library_writes_is_read_back(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("csv") / "t.csv.gz"
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("first", "second"), *table])
    got = [row.fields for row in read_rows(path) if isinstance(row, Row)]
    assert got == [{"first": a, "second": b} for a, b in table]


def test_conll_in_columns(tmp_path):
    data = "\ufeff-DOCSTART- -X- O\n\n# a comment\nEU NNP B-ORG\n# NN O\nmade VBD O\n\n\nBad\nx O\n\nlast\tone\tO\n"
    rows, skipped = rows_of(tmp_path / "t.conll", data.encode())
    assert rows == [
        {"tokens": ["EU", "#", "made"], "tags": ["B-ORG", "O", "O"]},
        {"tokens": ["last"], "tags": ["O"]},
    ]
    assert skipped == {"not CoNLL": 1}
    assert rows_of(tmp_path / "t.txt", b"a X\nb Y\n", conll=True)[0] == [{"tokens": ["a", "b"], "tags": ["X", "Y"]}]
    assert rows_of(tmp_path / "t.txt", b"a X\nb Y\n") == ([], {"not a file of rows": 1})


def test_conll_u(tmp_path):
    line = "{}\t{}\tlemma\t{}\t_\t_\t0\troot\t_\t_\n"
    data = "# text = vámonos\n" + line.format("1-2", "vámonos", "_") + line.format(1, "vamos", "VERB")
    data += line.format(2, "nos", "PRON") + line.format("2.1", "gone", "VERB") + "\n"
    rows, skipped = rows_of(tmp_path / "t.conllu", data.encode())
    assert rows == [{"tokens": ["vamos", "nos"], "tags": ["VERB", "PRON"]}] and not skipped


def test_rows_of_parquet_keep_their_values(tmp_path):
    path = tmp_path / "t.parquet"
    chats = [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "ho"}]]
    pq.write_table(pa.table({"messages": chats, "n": [1, None]}), path)
    got = list(read_rows(path))
    assert got == [Row(f"row {i + 1}", {"messages": chats[i], "n": (1, None)[i]}) for i in range(2)]
    assert [row.label for row in got if isinstance(row, Row)] == ["#1", "#2"]
    assert [row.fields for row in read_rows(path, columns=["n"]) if isinstance(row, Row)] == [{"n": 1}, {"n": None}]


def test_json_in_lines_and_arrays_is_the_same(tmp_path):
    values = [{"a": 1}, {"a": [2, {"b": None}]}]
    lines = "\n".join(map(json.dumps, values)).encode()
    for name, data in (("t.jsonl", lines), ("t.json", lines), ("u.json", json.dumps(values).encode())):
        assert rows_of(tmp_path / name, data) == (values, {})
