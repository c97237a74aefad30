# SPDX-License-Identifier: Apache-2.0
"""Examples: what columns hold is detected, said or refused; what is read is complete, distinct, split and verified."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foundling.data import formats
from foundling.data.example_rows import ExampleRows
from foundling.data.examples import INDEX, Examples, ingest_examples
from foundling.data.kinds import Columns, Kind
from foundling.data.layouts import detect
from foundling.errors import ConfigError, DataError
from foundling.limits import EXAMPLE_CHARS

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
TURN = {"messages": [USER, ANSWER]}


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(n: int, labels: int = 2) -> list[dict]:
    return [{"text": f"text {i}", "label": f"class {i % labels}"} for i in range(n)]


def everything(examples: Examples) -> list[dict]:
    return [example.fields for example in [*examples.train, *examples.held_out]]


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "kind", "fields"),
    [
        ({"messages": [USER, ANSWER, USER], "id": 3}, "chat", TURN),
        ({"messages": [USER, ANSWER], "tools": [{"name": "f"}]}, "chat", TURN | {"tools": [{"name": "f"}]}),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, ANSWER]}, "chat", TURN),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}, "chat", TURN),
        ({"instruction": "hi", "input": "", "output": "ho", "text": "hi: ho"}, "chat", TURN),
        (
            {"instruction": "add", "input": "1 2", "output": "3", "system": "sum"}, "chat",
            {"messages": [
                {"role": "system", "content": "sum"}, {"role": "user", "content": "add\n\n1 2"},
                {"role": "assistant", "content": "3"},
            ]},
        ),
        ({"prompt": "hi", "completion": "ho"}, "chat", TURN),
        ({"question": "hi", "answer": "ho", "level": 1}, "chat", TURN),
        ({"source": "hi", "target": "ho"}, "seq2seq", {"source": "hi", "target": "ho"}),
        ({"translation": {"en": "hi", "de": "ho"}}, "seq2seq", {"source": "hi", "target": "ho"}),
        ({"text": "hi", "label": 1}, "classify", {"text": "hi", "label": "1"}),
        ({"text": "hi", "label": True}, "classify", {"text": "hi", "label": "true"}),
        ({"body": "hi", "section": " web "}, "classify", {"text": "hi", "label": "web"}),
        ({"sentence1": "hi", "sentence2": "ho", "label": 0.0}, "classify", {"text": "hi", "pair": "ho", "label": "0"}),
        ({"tokens": ["a", "b"], "ner_tags": [0, 3]}, "tag", {"words": ["a", "b"], "tags": ["0", "3"]}),
        ({"text": "hi", "url": "x"}, "text", {"text": "hi"}),
    ],
)  # fmt: skip
def test_layouts_in_use_are_recognised_and_said(row, kind, fields):
    layout = detect([row] * 10)
    assert layout.kind == kind and layout.convert(row) == fields
    assert "10 of the first 10 rows" in layout.sentence and all(
        repr(c) in layout.sentence for c in layout.columns.values()
    )


def test_numbers_with_many_values_are_measured_and_with_few_are_classes():
    def kind(values: list) -> Kind:
        return detect([{"text": "x", "label": value} for value in values]).kind

    assert kind([i / 7 for i in range(100)]) == kind([str(i / 7) for i in range(100)]) == "regress"
    assert kind([i * i for i in range(100)]) == "regress"
    assert kind([i % 5 for i in range(100)]) == kind([i % 30 for i in range(500)]) == "classify"
    assert kind([(i % 9) / 2 for i in range(100)]) == "classify", "half stars"
    row = {"text": "x", "label": 1.5}
    layout = detect([row], "regress")
    assert layout.kind == "regress" and layout.convert(row) == {"text": "x", "value": 1.5}


def test_two_columns_of_any_name_are_a_text_and_a_label_where_that_is_plain():
    rows = [{"v1": ("ham", "spam")[i % 2], "v2": f"a longer text, number {i}"} for i in range(20)]
    assert detect(rows).columns == {"text": "v2", "label": "v1"}
    assert detect([row | {"n": 3} for row in rows], columns=Columns(field="v2", label="v1")).kind == "classify"


def test_flags_that_name_all_columns_leave_no_choice_but_of_the_kind():
    row, columns = {"text": "a", "other": "b"}, Columns(field="text", target="other")
    layout = detect([row] * 3, "seq2seq", columns)
    assert layout.convert(row) == {"source": "a", "target": "b"}
    assert detect([row] * 3, "chat", columns).kind == "chat"
    with pytest.raises(ConfigError, match=r"as chat \('text', 'other'\) or seq2seq \('text', 'other'\): .*--as$"):
        detect([row] * 3, None, columns)


@pytest.mark.parametrize(
    ("row", "kind", "columns", "says"),
    [
        ({"text": "a", "lable": "b"}, None, Columns(label="label"), "--label 'label'.*is 'lable'.*'text', 'lable'"),
        ({"source": "a", "target": "b", "text": "c", "label": "d"}, None, None, "seq2seq.*or classify.*--as"),
        ({"tokens": ["a"], "ner_tags": [1], "pos_tags": [2]}, None, None, "'ner_tags', 'pos_tags'.*--label"),
        ({"text": "a", "category": "b", "topic": "c"}, "classify", None, "'category', 'topic'.*--label"),
        ({"foo": "a", "bar": "b", "baz": "c"}, None, None, "'foo', 'bar', 'baz'.*--as chat.*--field"),
        ({"text": "a"}, "chat", None, "'text'.*--as chat.*--field"),
        ({"text": ["a"], "label": "b"}, "classify", None, "'text', 'label'.*--as classify"),
    ],
)  # fmt: skip
def test_what_is_unclear_names_the_columns_and_the_flag(row, kind, columns, says):
    with pytest.raises(ConfigError, match=says) as error:
        detect([row] * 3, kind, columns)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [USER]}, "a chat without an answer"),
        ({"messages": []}, "a chat without an answer"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "a chat with an empty answer"),
        ({"messages": [{"role": "narrator", "content": "x"}, ANSWER]}, "a message of an unknown role"),
        ({"messages": ["x"]}, "a message is not an object"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "a message that is not text"),
    ],
)
def test_chats_that_teach_nothing_are_skipped_by_reason(row, reason):
    layout = detect([TURN] * 3)
    assert getattr(layout.convert(row), "reason", None) == reason


# --- ingesting -------------------------------------------------------------------------------------------------------


def test_everything_is_read_once_and_nothing_is_lost(tmp_path):
    rows = labelled(100)
    bad = [{"text": "", "label": "x"}, {"text": "no label"}, {"text": 3.5, "label": ["a"]}, [1]]
    path = write(tmp_path / "data.jsonl", [*rows, *bad, *rows[:7]])
    examples = ingest_examples(path, tmp_path / "out")
    expected = [{"text": row["text"], "label": row["label"]} for row in rows]
    assert sorted(map(str, everything(examples))) == sorted(str(dict(sorted(row.items()))) for row in expected)
    assert len(examples.held_out) == 20 and len(examples.train) == 80
    assert examples.skipped == {"empty text": 1, "no label": 2, "row is not an object": 1}
    assert examples.removed == {"exact duplicate": 7}
    assert examples.source_bytes == path.stat().st_size
    assert examples.labels == ["class 0", "class 1"]
    assert examples.label_counts == Counter(example.fields["label"] for example in examples.train)
    assert "'text' and 'label'" in examples.note and "20 of 100 examples are held out" in examples.note
    ids = {example.id: example.fields for example in examples.train}
    assert all(rows[int(name.partition("#")[2]) - 1] == fields for name, fields in ids.items())


def test_the_split_depends_on_contents_and_seed_alone(tmp_path):
    def held_out(name: str, rows: list, **more) -> set[str]:
        examples = ingest_examples(write(tmp_path / f"{name}.jsonl", rows), tmp_path / name, **more)
        return {example.fields["text"] for example in examples.held_out}

    rows = labelled(100)
    assert held_out("a", rows) == held_out("b", rows[::-1]) != held_out("c", rows, seed=1)
    assert len(held_out("d", labelled(300), max_held_out=10)) == 10
    hashes = {Examples.load(tmp_path / name).data_hash for name in "abcd"}
    assert len(hashes) == 4, "the order of training examples counts"


def test_what_was_written_is_verified_when_it_is_opened_again(tmp_path):
    made = ingest_examples(write(tmp_path / "data.jsonl", labelled(50)), tmp_path / "out")
    again = Examples.load(tmp_path / "out")
    assert everything(again) == everything(made) and again.note == made.note and again.data_hash == made.data_hash
    assert list(again.train)[3] == again.train[3] == again.train[-len(again.train) + 3]
    shard = tmp_path / "out" / "text-00000.arrow"
    data = shard.read_bytes()
    shard.write_bytes(data[:-9] + b"x" + data[-8:])
    with pytest.raises(DataError, match=r"text-00000.arrow: damaged.*SHA-256"):
        Examples.load(tmp_path / "out")
    (tmp_path / "out" / INDEX).write_text("{}")
    with pytest.raises(DataError, match=r"index.json"):
        Examples.load(tmp_path / "out")


def test_no_class_is_held_out_whole(tmp_path):
    rows = [*labelled(40), {"text": "alone", "label": "rare"}]
    for seed in range(5):
        examples = ingest_examples(write(tmp_path / f"{seed}.jsonl", rows), tmp_path / str(seed), seed=seed, share=0.5)
        assert examples.labels == ["class 0", "class 1", "rare"] and min(examples.label_counts.values()) > 0
        assert "alone" not in {example.fields["text"] for example in examples.held_out}


def test_labels_that_are_numbers_are_in_their_order(tmp_path):
    rows = [{"text": f"text {i}", "label": i % 12} for i in range(120)]
    assert ingest_examples(write(tmp_path / "a.jsonl", rows), tmp_path / "a").labels == [str(i) for i in range(12)]


def test_held_out_examples_may_be_given_and_training_does_not_see_them(tmp_path):
    test = [*labelled(10), {"text": "new", "label": "class 1"}, {"text": "other", "label": "unknown"}]
    examples = ingest_examples(
        write(tmp_path / "train.jsonl", labelled(40)), tmp_path / "out",
        held_out_source=write(tmp_path / "test.jsonl", test),
    )  # fmt: skip
    assert [example.fields["text"] for example in examples.held_out] == [*(f"text {i}" for i in range(10)), "new"]
    assert len(examples.train) == 30 and examples.removed["exact duplicate"] == 10
    assert examples.removed["held-out label that training does not have"] == 1
    train = {example.fields["text"] for example in examples.train}
    assert not train & {example.fields["text"] for example in examples.held_out}


@pytest.mark.parametrize(
    ("rows", "more", "says"),
    [
        (labelled(3), {}, "has 3 examples, too few"),
        (labelled(50, labels=1), {}, "all 50 examples have the label 'class 0'"),
        ([{"text": f"t {i}", "label": 2.5} for i in range(50)], {"kind": "regress"}, "50 examples have the value 2.5"),
        ([{"text": f"t {i}", "label": f"l {i}"} for i in range(50)], {}, "50 labels for 50 examples"),
        ([{"messages": [USER]}] * 9, {}, r"no row that can be used \(a chat without an answer: 9\)"),
        ([], {}, "no row that can be used"),
        ([[1]], {}, "row is not an object: 1"),
    ],
)  # fmt: skip
def test_data_that_teaches_nothing_is_refused_in_one_line(tmp_path, rows, more, says):
    with pytest.raises(DataError, match=says) as error:
        ingest_examples(write(tmp_path / "data.jsonl", rows), tmp_path / "out", **more)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_an_example_that_is_too_long_is_skipped_and_a_text_is_cut(tmp_path, monkeypatch):
    long = {"messages": [USER, {"role": "assistant", "content": "word " * (EXAMPLE_CHARS.high // 5)}]}
    rows = [{"messages": [{"role": "user", "content": f"{i}"}, ANSWER]} for i in range(10)]
    examples = ingest_examples(write(tmp_path / "data.jsonl", [*rows, long]), tmp_path / "out")
    assert len(everything(examples)) == 10 and examples.skipped == {"over 1,048,576 characters": 1}
    book = "".join(f"line {i} of a book\n" for i in range(4000))
    (tmp_path / "book.txt").write_text(book)
    examples = ingest_examples(tmp_path / "book.txt", tmp_path / "book")
    pieces = sorted([*examples.train, *examples.held_out], key=lambda one: int(one.id.partition("@")[2]))
    assert examples.kind == "text" and "".join(piece.fields["text"] for piece in pieces) == book
    assert [piece.fields.get("continues", False) for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    monkeypatch.setattr(formats, "PIECE_BYTES", 20_000)  # a file that is read in several parts
    again = [json.loads(document.text) for document in ExampleRows(tmp_path / "book.txt")]
    assert "".join(piece["text"] for piece in again) == book and len(again) > len(book) // 20_000 > 1
    assert [piece.get("continues", False) for piece in again] == [True] * (len(again) - 1) + [False]


def test_every_format_gives_the_same_examples(tmp_path):
    rows = labelled(20)
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    with gzip.open(tmp_path / "c.csv.gz", "wt") as file:
        file.write("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    first = None
    for name in ("a.jsonl", "b.json", "c.csv.gz", "d.parquet"):
        made = ingest_examples(tmp_path / name, tmp_path / f"out-{name}")
        first = first or made
        assert made.data_hash == first.data_hash and everything(made) == everything(first)
    (tmp_path / "all").mkdir()
    for name in ("a.jsonl", "d.parquet"):
        (tmp_path / name).rename(tmp_path / "all" / name)
    (tmp_path / "all" / "README.md").write_text("read me")
    made = ingest_examples(tmp_path / "all", tmp_path / "out")
    assert made.removed == {"exact duplicate": 20} and made.skipped == {"not a file of rows": 1}


def test_sentences_in_columns_are_tagged_and_plain_text_is_no_chat(tmp_path):
    (tmp_path / "a.conll").write_text("".join(f"word{i} N\nruns V\n\n" for i in range(20)))
    examples = ingest_examples(tmp_path / "a.conll", tmp_path / "out")
    assert examples.kind == "tag" and examples.labels == ["N", "V"] and examples.label_counts == {"N": 16, "V": 16}
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(DataError, match="plain text, which is read --as text"):
        ingest_examples(tmp_path / "a.txt", tmp_path / "none", kind="chat")
