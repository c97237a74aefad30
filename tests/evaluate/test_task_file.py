# SPDX-License-Identifier: Apache-2.0
"""Tasks in files: prompts and right answers by hand, and one line for what is wrong in a file or its rows."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from foundling.errors import ConfigError, DataError
from foundling.evaluate.subject import Continuation, GeneratedText
from foundling.evaluate.task_file import load_task, texts_of

ROWS = [
    {"id": "a", "question": "2 + 2?", "options": ["3", "4"], "answer": 1},
    {"id": "b", "question": "1 + 1?", "options": ["2", "5", "7"], "answer": "A"},
    {"id": "c", "question": "3 + 3?", "options": ["6", "1"], "answer": "6"},
]
CHOICE = {
    "name": "sums", "kind": "choice", "prompt": "Q: {question}\nA:", "options": "{options}", "answer": "{answer}",
}  # fmt: skip


def task_file(folder: Path, spec: dict[str, Any], rows: list[Any] = ROWS, name: str = "t") -> Path:
    lines = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(lines)
    (folder / f"{name}.yaml").write_text(json.dumps({"data": f"{name}.jsonl", **spec}))  # JSON is YAML
    return folder / f"{name}.yaml"


def options(*logprobs: float) -> list[Continuation]:
    return [Continuation(" x" * (i + 1), value, 1) for i, value in enumerate(logprobs)]


def test_a_choice_is_answered_by_text_letter_or_number(tmp_path) -> None:
    task = load_task(task_file(tmp_path, CHOICE))
    assert task.prompt(task.examples[0]) == "Q: 2 + 2?\nA:"
    assert task.continuations and task.target
    assert [task.continuations(row) for row in task.examples] == [[" 3", " 4"], [" 2", " 5", " 7"], [" 6", " 1"]]
    assert [task.target(row) for row in task.examples] == [" 4", " 2", " 6"]
    scores = [task.score(row, options(-1.0, -2.0, -3.0)[: len(row["options"])]) for row in task.examples]
    assert scores == [0.0, 1.0, 1.0]
    letters = load_task(task_file(tmp_path, {**CHOICE, "prompt": "{question}\n{options}\nAnswer:", "letters": True}))
    assert letters.prompt(ROWS[1]) == "1 + 1?\nA. 2\nB. 5\nC. 7\nAnswer:"
    assert letters.continuations and letters.continuations(ROWS[1]) == [" A", " B", " C"]
    per_byte = load_task(task_file(tmp_path, {**CHOICE, "score": "accuracy_per_byte"}))
    assert per_byte.score(ROWS[0], options(-2.0, -3.0)) == 1.0  # −1 a byte against −0.75


def test_a_calibrated_figure_comes_with_choices(tmp_path) -> None:
    task = load_task(task_file(tmp_path, CHOICE))
    assert task.figures
    figures = task.figures(task.examples, [options(-9.0, 0.0), options(0.0, -9.0, -9.0), options(0.0, -9.0)])
    assert figures["ECE"].value == pytest.approx(0.0, abs=1e-3) and figures["NLL"].value == pytest.approx(0, abs=1e-3)


def test_solved_examples_are_no_items_and_depend_on_the_seed(tmp_path) -> None:
    rows = [{"question": f"{i} + 0?", "options": [str(i), "x"], "answer": 0} for i in range(20)]
    path = task_file(tmp_path, {**CHOICE, "few_shot": {"n": 2}}, rows)
    task, same, other = load_task(path), load_task(path), load_task(path, seed=1)
    prompts = [str(task.prompt(row)) for row in task.examples]
    assert len(prompts) == 18 and prompts == [same.prompt(row) for row in same.examples]
    assert len({prompt.rpartition("\n\n")[0] for prompt in prompts}) == 1, "one beginning for all items"
    head = prompts[0].rpartition("\n\n")[0]
    shown = [part for part in head.split("\n\n")]
    assert len(shown) == 2 and all(part.startswith("Q: ") and part.endswith(part[3:].split(" ")[0]) for part in shown)
    assert not any(prompt.rpartition("\n\n")[2].removesuffix("\nA:") in head for prompt in prompts)
    assert head != str(other.prompt(other.examples[0])).rpartition("\n\n")[0]
    assert load_task(path, shots=0).prompt(task.examples[0]) == prompts[0].rpartition("\n\n")[2]
    each = load_task(task_file(tmp_path, {**CHOICE, "few_shot": {"n": 2, "chosen": "each"}}, rows))
    own = [str(each.prompt(row)).split("\n\n") for row in each.examples]
    assert len(own) == 20 and len({"".join(parts[:2]) for parts in own}) > 10
    assert all(parts[2].removesuffix("\nA:") not in "".join(parts[:2]) for parts in own), "none shows its own answer"


def test_examples_of_another_file_leave_all_items(tmp_path) -> None:
    (tmp_path / "shots.jsonl").write_text(json.dumps({"question": "9?", "options": ["9"], "answer": 0}) + "\n")
    few = {"n": 1, "data": "shots.jsonl", "separator": "\n---\n", "chosen": "first"}
    task = load_task(task_file(tmp_path, {**CHOICE, "few_shot": few}))
    assert [task.prompt(row) for row in task.examples][2] == "Q: 9?\nA: 9\n---\nQ: 3 + 3?\nA:"


def test_a_system_message_makes_a_conversation(tmp_path) -> None:
    spec = {"name": "s", "prompt": "{question}", "answer": "{answer}", "system": "Be brief.", "few_shot": {"n": 1}}
    rows = [{"id": str(i), "question": f"q{i}", "answer": f"a{i}"} for i in range(2)]
    task = load_task(task_file(tmp_path, spec, rows))
    (item,) = task.examples
    shown = 1 - int(item["id"])
    assert task.prompt(item) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"q{shown}"},
        {"role": "assistant", "content": f"a{shown}"},
        {"role": "user", "content": f"q{item['id']}"},
    ]
    choice = load_task(task_file(tmp_path, {**CHOICE, "system": "Be brief."}))
    assert choice.continuations and choice.continuations(ROWS[0]) == ["3", "4"], "an answer is a turn of its own"


def test_no_item_is_shown_with_its_answer(tmp_path) -> None:
    rows = [{"question": f"{i} + 0?", "options": [str(i), "x"], "answer": 0} for i in range(6)]
    again = [{"id": f"copy {i}", **row} for i, row in enumerate(rows)]
    task_file(tmp_path, CHOICE, again, "copy")
    for data in ("t.jsonl", "copy.jsonl"):
        for chosen in ("same", "first", "each"):
            few = {"n": 3, "data": data, "chosen": chosen}
            task = load_task(task_file(tmp_path, {**CHOICE, "few_shot": few}, rows))
            for row in task.examples:
                head, _, question = str(task.prompt(row)).rpartition("\n\n")
                assert question.removesuffix("\nA:") not in head, (data, chosen)
            assert len(task.examples) == (6 if chosen == "each" else 3)


def test_what_decides_a_score_is_in_the_hash_of_the_task(tmp_path) -> None:
    rows = [{"question": "q", "options": ["a", "b"], "answer": 0, "other": 1, "right": "a", "wrong": "b"}]
    written = {"name": "w", "prompt": "{question}"}
    specs = [
        CHOICE, {**CHOICE, "answer": "{other}"}, {**CHOICE, "score": "accuracy_per_byte"},
        {**written, "answer": "{right}"}, {**written, "answer": "{wrong}"},
        *({**written, "answer": "{right}", "score": score} for score in ("normalised", "contains", "maths")),
    ]  # fmt: skip
    hashes = [load_task(task_file(tmp_path, spec, rows)).hashes() for spec in specs]
    assert len({h["task"] for h in hashes}) == len(specs)
    assert hashes[3]["code"] != hashes[7]["code"], "the files of the verifiers are code of `maths`"
    greedy = [load_task(task_file(tmp_path, {**written, "answer": "{right}", "seed": n}, rows)) for n in (0, 1)]
    assert greedy[0].hashes() == greedy[1].hashes(), "a greedy answer has no seed"
    drawn = [load_task(task_file(tmp_path, {**written, "answer": "{right}", "seed": n, "temperature": 1.0}, rows))
             for n in (0, 1)]  # fmt: skip
    assert drawn[0].hashes()["prompt"] != drawn[1].hashes()["prompt"]


def test_the_content_of_a_database_is_in_the_hash_of_the_task(tmp_path) -> None:
    spec = {"name": "q", "prompt": "{question}", "answer": "{query}", "score": "sql"}
    row, hashes = {"question": "n?", "query": "SELECT n FROM t", "database": "d.db"}, []
    for n in (1, 2):
        (tmp_path / "d.db").unlink(missing_ok=True)
        with sqlite3.connect(tmp_path / "d.db") as connection:
            connection.execute("CREATE TABLE t (n)")
            connection.execute("INSERT INTO t VALUES (?)", (n,))
        connection.close()
        hashes.append(load_task(task_file(tmp_path, spec, [row])).hashes()["task"])
    assert hashes[0] != hashes[1]


def test_examples_need_no_fields_of_the_scorer_and_are_never_too_few(tmp_path) -> None:
    (tmp_path / "solved.jsonl").write_text(json.dumps({"prompt": "Say no.", "right": "no"}) + "\n")
    rule = {"prompt": "Say it.", "right": "", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    few = {"n": 1, "data": "solved.jsonl"}
    spec = {"name": "i", "answer": "{right}", "score": "instructions", "few_shot": few}
    assert str(load_task(task_file(tmp_path, spec, [rule])).prompt(rule | {"id": "0"})).startswith("Say no. no")
    rows = [{**ROWS[0], "id": name} for name in "ab"] + [{**ROWS[1], "id": "c"}]
    task = load_task(task_file(tmp_path, {**CHOICE, "few_shot": {"n": 2, "chosen": "each"}}, rows))
    with pytest.raises(DataError, match="2 examples of 1 other rows"):
        task.hashes()


def test_an_answer_with_solved_examples_ends_where_the_next_would_begin(tmp_path) -> None:
    spec = {"name": "w", "prompt": "{question}", "answer": "{answer}", "few_shot": {"n": 1, "separator": "\n##\n"}}
    assert load_task(task_file(tmp_path, spec)).decoding.stop == ("\n##\n",)
    assert load_task(task_file(tmp_path, {**spec, "stop": ["."]})).decoding.stop == (".",)


@pytest.mark.parametrize(
    ("score", "right", "text", "expected"),
    [
        ("exact", "Paris", " Paris\n", 1), ("exact", "Paris", "paris", 0),
        ("normalised", "the Eiffel Tower", "Eiffel tower!", 1), ("contains", "Paris", "It is Paris, of course", 1),
        ("contains", "", "anything", 0), ("f1", "a red fish", "red dog fish", 0.8), ("f1", "", "", 1),
        ("maths", "#### 1,000", "So we get $1000.00. The answer is $1000", 1), ("maths", "4", "I do not know", 0),
        ("maths", "1/2", r"so \boxed{\frac{2}{4}}", 1),
        ("json", "", '```json\n{"a": 1}\n```', 1), ("json", "", '{"a": 1', 0),
    ],
)  # fmt: skip
def test_scores_of_texts(tmp_path, score, right, text, expected) -> None:
    task = load_task(task_file(tmp_path, {"name": "t", "answer": "{right}", "prompt": "p", "score": score},
                               [{"right": right}]))  # fmt: skip
    assert task.score(task.examples[0], GeneratedText(text)) == pytest.approx(expected)


def test_scores_by_verifiers_of_an_item(tmp_path) -> None:
    code = {"prompt": "def double(x):\n", "test": "def check(f):\n    assert f(2) == 4", "entry_point": "double"}
    task = load_task(task_file(tmp_path, {"name": "c", "answer": "", "score": "code"}, [code]))
    assert [task.score(task.examples[0], GeneratedText(f"    return {body}\n")) for body in ("2 * x", "x")] == [1, 0]
    rule = {"prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    task = load_task(task_file(tmp_path, {"name": "i", "answer": "", "score": "instructions"}, [rule]))
    assert [task.score(task.examples[0], GeneratedText(text)) for text in ("It is said", "It, said")] == [1, 0]
    schema = {"prompt": "p", "schema": {"type": "object", "required": ["a"]}}
    task = load_task(task_file(tmp_path, {"name": "j", "answer": "", "score": "json"}, [schema]))
    assert [task.score(task.examples[0], GeneratedText(text)) for text in ('{"a": 1}', "{}")] == [1, 0]


def test_a_query_is_scored_by_what_it_answers(tmp_path) -> None:
    with sqlite3.connect(tmp_path / "d.db") as connection:
        connection.execute("CREATE TABLE t (n)")
        connection.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
    connection.close()
    spec = {"name": "q", "prompt": "{question}", "answer": "{query}", "score": "sql"}
    row = {"question": "sum?", "query": "SELECT SUM(n) FROM t", "database": "d.db"}
    task = load_task(task_file(tmp_path, spec, [row]))
    texts = ("SELECT 1 + MAX(n) FROM t", "SELECT MAX(n) FROM t", "DROP TABLE t", "no query")
    assert [task.score(task.examples[0], GeneratedText(text)) for text in texts] == [1, 0, 0, 0]


def test_texts_are_weighted_by_their_bytes(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("abcd")
    task = texts_of(tmp_path / "a.txt")
    assert task.rolling and task.weight and task.weight(task.examples[0]) == 4
    assert task.score(task.examples[0], Continuation("", -8 * 0.6931471805599453, 1)) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("spec", "rows", "message"),
    [
        ({"kind": "choose"}, ROWS, "kind"),
        ({"promt": "x"}, ROWS, "promt"),
        ({"score": "best"}, ROWS, "score 'best' is unknown; use accuracy, accuracy_per_byte"),
        ({"prompt": "{qestion}"}, ROWS, r"asks for \{qestion\}, which is no field here; there are: answer"),
        ({"prompt": "{"}, ROWS, "alone in the template"),
        ({"options": "{choices}"}, ROWS, "the row has no list 'choices'"),
        ({"options": ""}, ROWS, "kind choice needs options"),
        ({}, [{**ROWS[0], "answer": 2}], "the answer 2 is none of the 2 options"),
        ({}, [{**ROWS[0], "answer": "Z"}], "the answer 'Z' is none"),
        ({}, [ROWS[0], ROWS[0]], "line 2: the id 'a' comes twice"),
        ({}, [ROWS[0], "{'a'}\n"], "line 2 is not JSON"),
        ({}, [], "no rows"),
        ({"few_shot": {"n": 3}}, ROWS, "no items are left beside its 3 examples"),
        ({"few_shot": {"n": 4}}, ROWS, "4 examples of 3 rows are too many"),
        ({"few_shot": {"n": -1}}, ROWS, "few_shot.n is -1"),
        ({"data": "none.jsonl"}, ROWS, "no such file"),
        ({"max_tokens": 0}, ROWS, "max_tokens is 0"),
        ({"data": "../t.jsonl"}, ROWS, "lies outside the task's folder"),
        (
            {},
            [{**ROWS[0], "options": ["1", "2", "3"], "answer": 2}],
            "the text of one option and the number of another",
        ),
        ({"kind": "perplexity", "few_shot": {"n": 1}}, ROWS, "has no solved examples"),
        (
            {"kind": "generate", "score": "instructions"},
            ROWS,
            "row 'a': expected prompt, instruction_id_list",
        ),
        ({"kind": "generate", "score": "sql"}, ROWS, "row 'a': expected database"),
        ({"kind": "generate", "score": "json"}, [{**ROWS[0], "schema": 5}], "schema is 5; expected a JSON Schema"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, spec, rows, message) -> None:
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        load_task(task_file(tmp_path, {**CHOICE, **spec}, rows))
    assert "\n" not in str(caught.value)
