# SPDX-License-Identifier: Apache-2.0
"""Text to SQL on movies.db (benchmarks.movies_questions) with SmolLM2-135M-Instruct: a prompt with examples,
finetuning, a constraint to the database's tables and columns, and what they do together.

python -m benchmarks.text_to_sql [ROW …] [--each 10] [--minutes 60]              into docs/results/text_to_sql.json

Every second template of movies_questions is for training. Held out are --each questions of every template: those of the
trained templates ask about other films, people or years than the pairs do (no question is in both), those of the other
templates are of a form that no pair has. The database, and with it the films and people that questions name, is one for
both. Right is a query whose rows are those of the reference, executed read-only (verify/sql.py); valid is one that
executes at all.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.chat_task import smollm2
from benchmarks.corpora import WORK
from benchmarks.datasets import write
from benchmarks.movies_questions import EACH, SCHEMA, TEMPLATES, Pick, database, is_telling, questions, read_values
from benchmarks.runs import Results, commit
from benchmarks.structured_output import (
    LORA,
    Answer,
    Generator,
    Item,
    cell,
    cost,
    fill_table,
    finetune,
    messages_of,
    missing_row,
    share,
    table_row,
)
from foundling.decode.constrain.sql import sql_select
from foundling.errors import QueryError
from foundling.verify.sql import SqlTask, check, execute, read_schema

FOLDER = WORK / "text_to_sql"
N_PAIRS, N_SHOWN, MAX_TOKENS = 24, 4, 80
"""pairs of a template to learn from · examples shown · new tokens of an answer"""
TRAINED = list(TEMPLATES)[::2]
SYSTEM = f"Reply with one SQLite query and nothing else. The database: {SCHEMA}."


def held_out(each: int) -> list[dict[str, Any]]:
    """The first questions of every template."""
    return [task for task in questions(database()) if int(task["task_id"].rsplit("/", 1)[1]) <= each]


def pairs() -> list[Item]:
    """N_PAIRS of each trained template, none of which is a question of movies_questions."""
    used, values = {task["question"] for task in questions(database())}, read_values(database())
    result = list[Item]()
    for template in TRAINED:
        chosen = dict[str, str]()
        for n in range(20 * EACH, 40 * EACH):
            question, query = TEMPLATES[template](Pick(values, template, n))
            new = len(chosen) < N_PAIRS and question not in used and question not in chosen
            if new and is_telling(execute(database(), query).rows):
                chosen[question] = query
        result += [{"prompt": question, "answer": query} for question, query in chosen.items()]
    return result


NAMES = {
    "prompt": "a prompt with examples",
    "constrained": "… constrained",
    "finetuned": "finetuned",
    "all three": "finetuned, constrained, with the schema in the prompt",
}


def table(results: dict[str, Any]) -> str:
    """The table of docs/structured_choices.md."""
    columns = ["way", "right", "… of trained templates", "… of others", "executes", "new tokens", "seconds", "training"]
    lines = [table_row(columns), table_row(["---", *["--:"] * (len(columns) - 1)])]
    for name, shown in NAMES.items():
        if name in results:
            row = results[name]
            figures = [cell(row[key]) for key in ("accuracy", "trained templates", "other templates", "valid")]
            paid = row["cost"]
            costs = [f"{paid['tokens']:.1f}", f"{paid['seconds']:.2f}", f"{paid['training seconds']:.0f}"]
            lines.append(table_row([shown, *figures, *costs]))
        else:
            lines.append(missing_row(shown, columns))
    return "\n".join(lines)


class Rows:
    def __init__(self, each: int) -> None:
        self.tasks, self.pairs = held_out(each), pairs()
        self.constraint = sql_select(read_schema(database()))
        step = len(self.pairs) // N_SHOWN
        self.shown = self.pairs[::step][:N_SHOWN]
        self.every = {
            "prompt": lambda: (self.prompted("prompt"), None),
            "constrained": lambda: (self.prompted("constrained", self.constraint), None),
            "finetuned": lambda: self.finetuned("finetuned"),
            "all three": lambda: self.finetuned("all-three", self.constraint),
        }

    def prompted(self, name: str, constraint: Any = None) -> list[Answer]:
        """The schema and examples of four trained templates."""
        chats = [messages_of(SYSTEM, {"prompt": task["question"]}, self.shown) for task in self.tasks]
        model = Generator(smollm2(), FOLDER / "answers")
        return model.answers(name, chats, max_tokens=MAX_TOKENS, constraint=constraint)

    def finetuned(self, name: str, constraint: Any = None) -> tuple[list[Answer], dict[str, float]]:
        """Trained and asked with the schema in the prompt, without examples."""
        chats = [
            {"messages": [*messages_of(SYSTEM, pair), {"role": "assistant", "content": pair["answer"]}]}
            for pair in self.pairs
        ]
        write(FOLDER / "train.jsonl", [chat for i, chat in enumerate(chats) if i % N_PAIRS])
        write(FOLDER / "validation.jsonl", chats[::N_PAIRS])
        training = finetune("chat", "lora", FOLDER / "train.jsonl", FOLDER / "validation.jsonl", FOLDER / "finetuned",
                            *LORA)  # fmt: skip
        chats = [messages_of(SYSTEM, {"prompt": task["question"]}) for task in self.tasks]
        model = Generator(FOLDER / "finetuned", FOLDER / "answers")
        return model.answers(name, chats, max_tokens=MAX_TOKENS, constraint=constraint), training

    def measure(self, name: str) -> dict[str, Any]:
        answers, training = self.every[name]()
        results = list[Any]()
        for task, answer in zip(self.tasks, answers, strict=True):
            reference = SqlTask(task["task_id"], task["question"], task["query"])
            try:
                gold = execute(database(), task["query"])
            except QueryError as error:
                raise SystemExit(f"{task['task_id']}: the reference fails: {error}") from None
            results.append(check(reference, answer["text"], gold, database()))
        trained = [task["template"] in TRAINED for task in self.tasks]
        right = [result.passed for result in results]
        return {
            "accuracy": share(right),
            "trained templates": share([mark for mark, of in zip(right, trained, strict=True) if of]),
            "other templates": share([mark for mark, of in zip(right, trained, strict=True) if not of]),
            "valid": share([result.reason in ("passed", "wrong") for result in results]),
            "cost": cost(answers, training),
            "examples": [answer["text"] for answer in answers[:: len(answers) // 4]],
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--each", type=int, default=10, help="held-out questions of a template")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, help="another file for the results")
    parser.add_argument("--table", action="store_true", help="only put the table into docs/structured_choices.md")
    args = parser.parse_args()
    if args.table:
        fill_table(Results("text_to_sql", args.out), table, NAMES)
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    results, rows = Results("text_to_sql", args.out, minutes=args.minutes), Rows(args.each)
    results.get("data", lambda: {
        "commit": commit(), "pairs": len(rows.pairs), "held out": len(rows.tasks), "trained templates": TRAINED,
        "shown": [pair["prompt"] for pair in rows.shown],
    })  # fmt: skip
    for name in args.rows or rows.every:
        results.get(name, lambda name=name: {**rows.measure(name), "commit": commit()})


if __name__ == "__main__":
    main()
