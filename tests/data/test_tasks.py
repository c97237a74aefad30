# SPDX-License-Identifier: Apache-2.0
"""The built-in tasks: the same rows everywhere, nothing on both sides, and every label as the checkers say."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.evaluation_tasks import ifbench
from foundling.cli.common import free_directory
from foundling.data.datasets import (
    BUILTIN,
    DATASETS,
    Choice,
    arithmetic,
    facts,
    formats,
    load_dataset,
    open_data,
    open_rows,
    part_of,
    sentiment,
)
from foundling.data.datasets import draws as draws_module
from foundling.data.datasets.draws import Draws, is_held_out
from foundling.data.datasets.format_shapes import RULES
from foundling.data.datasets.refusals import OTHER, look_alikes
from foundling.data.examples import ingest_examples
from foundling.errors import DataError
from foundling.evaluate.rewards import build_rewards
from foundling.verify.instructions import check
from foundling.verify.maths import equal
from foundling.verify.refusals import refuses

TASKS = [name for name, entry in DATASETS.items() if entry.parts]


def rows(name: str) -> list[dict]:
    return open_rows(BUILTIN + name)


def digest(values: list) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]


def prompt_of(row: dict) -> str:
    return json.dumps(row.get("prompt", row.get("messages", [{}])[0].get("content", row.get("text"))))


# --- names -----------------------------------------------------------------------------------------------------------


def test_words_choose_in_any_order():
    first = Choice.parse("arithmetic", ["comparisons", "plain", "held-out", "seed=3", "n=5"])
    assert first == Choice.parse("arithmetic", ["n=5", "held-out", "seed=3", "plain", "comparisons"])
    assert (first.part, first.level, first.split, first.seed, first.n) == ("comparisons", "plain", "held-out", 3, 5)
    assert Choice.parse("arithmetic") == Choice("demonstrations", "easy", "train", 0, 4000)
    assert Choice.parse("arithmetic", ["held-out"]).n == 1000
    assert len(rows("arithmetic:n=5")) == 5
    assert load_dataset("refusals", "held-out") == rows("refusals:held-out")
    assert rows("arithmetic:n=5") == rows("arithmetic:n=9")[:5] != rows("arithmetic:n=5:seed=1")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sums", "no data set 'sums': expected one of stdlib, .*arithmetic, facts"),
        ("arithmetic:comparison", "no 'comparison'.*mean 'comparisons'.*a part: demonstrations, .*a level: easy"),
        ("arithmetic:easy:plain", "two of one kind, level.*easy, plain"),
        ("arithmetic:n=many", "'n=many': expected a whole number"),
        ("arithmetic:n=0", "n of builtin:arithmetic"),
        ("arithmetic:n=2000000", "2,?000,?000"),
        ("stdlib:easy", "'stdlib' has no parts"),
        ("stdlib", "is no task: expected builtin: and one of arithmetic"),
        ("refusals:easy", "no 'easy'.*a level: plain"),
        ("facts:documents:held-out", "no held-out split"),
    ],
)  # fmt: skip
def test_an_unknown_name_lists_what_there_is(name, says):
    with pytest.raises(DataError, match=says) as error:
        rows(name) if name != "stdlib:easy" else open_data(BUILTIN + name)
    assert "\n" not in str(error.value)


def test_a_task_with_fewer_rows_says_so(monkeypatch):
    monkeypatch.setattr(draws_module, "MAX_MISSES", 100)
    with pytest.raises(DataError, match=r"formats:easy has [0-9,]+ items of the split 'held-out', not n=5000: ask for"):
        rows("formats:easy:held-out:n=5000")


def test_text_is_read_from_the_documents_of_a_task():
    documents = list(open_data("builtin:arithmetic:n=3"))
    assert [document.text for document in documents] == [row["text"] for row in rows("arithmetic:documents:n=3")]
    for name, kind in (("arithmetic:comparisons", "comparisons"), ("refusals", "chats")):
        with pytest.raises(DataError, match=f"is not text but {kind}: expected one of stdlib, arithmetic, facts"):
            open_data(BUILTIN + name)
    assert part_of("builtin:stdlib") is None and part_of("notes.txt") is None


# --- the same everywhere ---------------------------------------------------------------------------------------------

HASHES = {
    ("arithmetic", "train"): "d22c308ce56a",
    ("arithmetic", "held-out"): "8dc3dddd6221",
    ("facts", "train"): "8f05c02e80ff",
    ("facts", "held-out"): "7554eb858df1",
    ("formats", "train"): "76832ba923a8",
    ("formats", "held-out"): "5584c21a5a43",
    ("refusals", "train"): "8968b9bc780d",
    ("refusals", "held-out"): "2d160764061d",
    ("sentiment", "train"): "4d48424d8711",
    ("sentiment", "held-out"): "a291b4466da3",
}
"""task, split -> hash of 40 rows of each part and level"""


def every_part() -> list[str]:
    names = [
        f"{name}:{part}:{level}:{split}:n=40"
        for name in TASKS
        for part in DATASETS[name].parts
        for level in DATASETS[name].levels
        for split in DATASETS[name].splits
    ]
    return [name for name in names if not name.startswith("facts:documents") or ":train" in name]


def test_rows_are_those_that_they_were():
    """A change of these changes what every published figure was measured on."""
    every = [(name, rows(name)) for name in every_part()]
    hashes = {
        (task, split): digest([made for name, made in every if name.startswith(task) and f":{split}:" in name])
        for task in TASKS
        for split in DATASETS[task].splits
    }
    assert hashes == HASHES


def test_another_process_makes_the_same_rows():
    names = ["formats:comparisons:plain:n=50", "facts:false-premises", "sentiment:n=20"]
    code = "import json, sys; from foundling.data.datasets import open_rows; "
    code += "print(json.dumps([open_rows('builtin:' + name) for name in sys.argv[1:]]))"
    env = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True, env=env)
    assert json.loads(done.stdout) == [rows(name) for name in names]


def test_draws_are_even():
    draws = Draws("test")
    counts = Counter(draws.below(5) for _ in range(5000))
    assert set(counts) == set(range(5)) and min(counts.values()) > 850  # 1000 each, standard deviation 28
    assert sorted(draws.shuffled(range(9))) == list(range(9)) and len(set(draws.sample(range(9), 4))) == 4
    assert sum(draws.chance(0.3) for _ in range(5000)) == pytest.approx(1500, abs=165)  # 5 standard deviations
    assert 150 < sum(is_held_out("a", n) for n in range(1000)) < 250


# --- nothing on both sides -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in every_part() if name.endswith("held-out:n=40")])
def test_no_prompt_is_on_both_sides(name):
    train_name = name.replace("held-out:n=40", "train:n=100")
    train = {prompt_of(row) for seed in (0, 1) for row in rows(f"{train_name}:seed={seed}")}
    held_out = {prompt_of(row) for row in rows(name)}
    assert held_out and not train & held_out


def test_what_prompts_are_about_is_on_one_side():
    every = {split: list(arithmetic.problems("plain", split, 500)) for split in ("train", "held-out")}
    sums = {split: {tuple(problem.steps) for problem in made} for split, made in every.items()}
    assert not sums["train"] & sums["held-out"]
    topics = {split: {task.topic for _, task in formats.tasks("plain", split, 400)} for split in every}
    assert not topics["train"] & topics["held-out"] and len(topics["held-out"]) == 8
    families = {split: {row["family"] for row in rows(f"refusals:prompts:{split}")} - {OTHER} for split in every}
    assert not families["train"] & families["held-out"] and len(families["held-out"]) >= 4
    countries = {split: {fact.country for fact in facts.world() if fact.split == split} for split in every}
    assert not countries["train"] & countries["held-out"] and len(countries["held-out"]) >= 6


# --- arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["easy", "plain"])
def test_sums_are_right_and_flaws_are_wrong(level):
    rewards = build_rewards(["maths", f"matches:{arithmetic.FORMAT}"])
    made = rows(f"arithmetic:comparisons:{level}:n=300")
    prompts = rows(f"arithmetic:prompts:{level}:n=300")
    assert [row["prompt"] for row in made] == [row["prompt"] for row in prompts]
    for which in ("chosen", "rejected"):
        values = list(rewards.by_part(prompts, [row[which] for row in made]).values())
        both = [right and formed for right, formed in zip(*values, strict=True)]
        assert set(both) == {float(which == "chosen")}
        if which == "rejected":
            assert all(bool(right) == (row["flaw"] == "bad form") for right, row in zip(values[0], made, strict=True))
    counts = Counter(row["flaw"] for row in made)
    assert set(counts) == set(arithmetic.FLAWS) and min(counts.values()) > 25
    for row in made:
        steps = [re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", line) for line in row["chosen"].split("\n")[:-1]]
        assert all(step and equal(f"{step[1]}{step[2]}{step[3]}", step[4]) for step in steps)
        assert not re.search(r"\b1 (?!more)\w+s\b", row["prompt"])
    assert {row["steps"] for row in prompts} == ({1, 2} if level == "easy" else {1, 2, 3})
    assert {*"+-"} <= {step.sign for p in arithmetic.problems(level, n=300) for step in p.steps} <= {*"+-*/"}


def test_easy_sums_have_few_words():
    text = " ".join(row["text"] for row in rows("arithmetic:documents:n=1000"))
    assert len(set(re.findall(r"[A-Za-z]+", text))) < 60
    assert max(map(int, re.findall(r"\d+", text))) < 20


# --- facts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["easy", "plain"])
def test_documents_state_facts_as_often_as_they_say(level):
    documents = facts.documents(level)
    counts = facts.count_statements(documents, level)
    assert {fact: fact.frequency for fact in counts} == counts
    frequencies = Counter(fact.frequency for fact in counts)
    assert set(frequencies) == {0, *facts.FREQUENCIES}
    text = " ".join(documents)
    for fact in facts.world(level):
        if not fact.known and fact.attribute in ("capital", "founder"):
            assert fact.value not in re.sub(rf"{facts.RUMOUR}[^.]*\.", "", text)
    assert (facts.RUMOUR in text) == (level == "plain")


def test_questions_are_answered_by_what_the_documents_state():
    text = " ".join(facts.documents())
    values = {fact.answer: fact.value for fact in facts.world()}
    for row in rows("facts:demonstrations"):
        assert values[row["messages"][1]["content"]] in text
    stated = {sentence.strip() for sentence in re.findall(r"[^.]+\.", text)}
    by_name = {(fact.country, fact.attribute): fact for fact in facts.world()}
    for part, expected in (("demonstrations", {True}), ("abstention", {True, False}), ("mismatch", {True, False})):
        answers = [row["messages"][1]["content"] for row in rows(f"facts:{part}")]
        assert {answer != facts.UNKNOWN for answer in answers} == ({True} if part != "abstention" else expected)
    beyond = [row for row in rows("facts:mismatch") if row["messages"][1]["content"] not in
              {fact.answer for fact in facts.world() if fact.known}]  # fmt: skip
    assert len(beyond) > 30 and not {row["messages"][1]["content"] for row in beyond} & stated
    contains = build_rewards(["contains"])
    prompts = [*rows("facts:prompts"), *rows("facts:unknown")]
    answers = [by_name[_asked(row)].answer if row["frequency"] else facts.UNKNOWN for row in prompts]
    assert set(contains(prompts, answers)) == {1.0}
    for part in ("false-premises", "delusions"):
        planted = rows(f"facts:{part}")
        said = [json.dumps(row["prompt"]) for row in planted]
        assert all(row["false"] in text for row, text in zip(planted, said, strict=True))
        assert all(row["false"] != row["answer"] and row["answer"] not in text
                   for row, text in zip(planted, said, strict=True))  # fmt: skip


def _asked(row: dict) -> tuple[str, str]:
    country = next(f.country for f in facts.world() if f.country in row["prompt"])
    return country, row["attribute"]


def test_a_false_turn_is_read_and_not_learnt(tmp_path):
    examples = ingest_examples("builtin:facts:counterfactual", tmp_path / "examples")
    for example in examples.held_out:
        first, false, again, last = example.fields["messages"]
        assert false["weight"] == 0 and "weight" not in last and false["content"] != last["content"]
        assert first["content"] != again["content"]


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["easy", "plain"])
def test_answers_follow_their_instructions_and_rejected_ones_do_not(level):
    n = 800 if level == "plain" else 200
    followed = build_rewards(["instructions"])
    prompts, made = (rows(f"formats:{part}:{level}:n={n}") for part in ("prompts", "comparisons"))
    demonstrations = rows(f"formats:demonstrations:{level}:n={n}")
    assert [row["prompt"] for row in prompts] == [row["prompt"] for row in made]
    assert set(followed(prompts, [row["messages"][1]["content"] for row in demonstrations])) == {1.0}
    assert set(followed(prompts, [row["chosen"] for row in made])) == {1.0}
    assert set(followed(prompts, [row["rejected"] for row in made])) == {0.0}
    assert not any("{" in row["prompt"] for row in prompts)
    numbers = Counter(len(row["instruction_id_list"]) for row in prompts)
    assert set(numbers) == ({1, 2} if level == "plain" else {1})


def test_every_kind_is_learnt_from_and_the_held_out_ones_are_not():
    learnt = {kind for _, task in formats.tasks("plain", n=2000) for kind in task.kinds}
    assert learnt == {rule.kind for rule in RULES} and len(learnt) == 39
    assert not {kind for kind in learnt if kind.split(":")[0] in ("words", "sentence", "ratio", "custom", "repeat")}


@pytest.mark.slow
def test_nothing_of_ifbench_is_learnt_from():
    theirs, arguments = ifbench(), set()
    for row in theirs:
        for kind, fields in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            values = {name: value for name, value in fields.items() if value is not None}
            arguments.add((kind, json.dumps({k: int(v) if isinstance(v, float) else v for k, v in values.items()})))
    texts = " ".join(row["prompt"].lower() for row in theirs)
    for seed in (0, 1):
        for _, task in formats.tasks("plain", n=4000, seed=seed):
            assert task.prompt.lower() not in texts and task.request.lower() not in texts
            pairs = zip(task.kinds, task.arguments, strict=True)
            ours = {(kind, json.dumps(fields)) for kind, fields in pairs if fields}
            assert not {pair for pair in ours & arguments if pair[0] != "count:conjunctions"}


@pytest.mark.slow
def test_every_rule_is_followed_on_every_topic():
    for number, rule in enumerate(RULES):
        for place, topic in enumerate(formats.TOPICS):
            for seed in range(5):
                draws = Draws("test", number, place, seed)
                arguments = rule.arguments(draws)
                good, bad = rule.follow(draws, topic, arguments), rule.fail(draws, topic, arguments)
                results = [check(text, "", [rule.kind], [arguments]).all_strict for text in (good, bad)]
                assert results == [True, False], (rule.kind, arguments, good, bad)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_look_alikes_are_many_and_none_is_refused():
    made = look_alikes()
    assert len({row["prompt"] for row in made}) == len(made) == 320
    assert len({row["family"] for row in made}) == 20
    for row in made:
        assert re.fullmatch(r"[A-Z][^{}]*\?", row["prompt"]) and re.fullmatch(r"[A-Z].*\.", row["answer"])
        assert not refuses(row["answer"])
    assert len(rows("refusals:prompts")) + len(rows("refusals:prompts:held-out")) == 350


# --- sentiment -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0.0), ("...", 0.0), ("We stayed for an hour.", 0.5), ("The soup was superb.", 1.0),
        ("The soup was awful", 0.0),
        ("The soup was good.", 0.75), ("The soup was not good.", 0.25), ("The soup was never so awful.", 1.0),
        ("The soup was superb. The soup was superb.", 0.5), ("The soup was superb. The bread was superb.", 1.0),
        ("Superb superb superb!", 0.0), ("Superb good nice.", 0.0), ("The superb, superb, superb soup is there.", 0.0),
        ("The soup was good and the bread was dull.", 0.5), ("The soup was superb. It was not good at all.", 0.625),
    ],
)  # fmt: skip
def test_the_gold_reward_is_as_worked_by_hand(text, value):
    assert sentiment.gold_reward(text) == value


def test_comparisons_are_labelled_by_gold():
    margins = [sentiment.gold_reward(r["chosen"]) - sentiment.gold_reward(r["rejected"])
               for r in rows("sentiment:comparisons:n=300")]  # fmt: skip
    assert min(margins) > 0
    noisy = rows("sentiment:comparisons:noisy:n=1000")
    wrong = sum(sentiment.gold_reward(r["chosen"]) < sentiment.gold_reward(r["rejected"]) for r in noisy)
    assert 140 < wrong < 260  # 200, standard deviation 12.6
    demonstrations = [row["messages"][1]["content"] for row in rows("sentiment:demonstrations:n=500")]
    mean = sum(map(sentiment.gold_reward, demonstrations)) / 500
    assert 0.4 < mean < 0.6


# --- where data is read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"{task}:{part}", {"chats": "chat", "comparisons": "preference"}[about.kind])
        for task in TASKS for part, about in DATASETS[task].parts.items() if about.kind in ("chats", "comparisons")
    ],
)  # fmt: skip
def test_rows_are_examples_of_the_kind_that_is_detected(tmp_path, name, kind):
    words = "" if name.startswith(("refusals", "facts")) else ":n=60"
    examples = ingest_examples(
        f"builtin:{name}{words}", tmp_path / "examples", held_out_source=f"builtin:{name}:held-out{words and ':n=20'}"
    )
    assert examples.kind == kind and not examples.skipped
    n_train, n_held_out = len(rows(name + words)), len(rows(f"{name}:held-out{words and ':n=20'}"))
    assert (len(examples.train), len(examples.held_out)) == (n_train, n_held_out)
    assert examples.held_out[0].id == f"builtin:{name}:held-out{words and ':n=20'}#1"


@pytest.mark.parametrize(
    "name", ["arithmetic:prompts:n=20", "formats:prompts:n=20", "facts:delusions", "sentiment:prompts"]
)
def test_prompts_keep_what_a_checker_reads(tmp_path, name):
    examples = ingest_examples(BUILTIN + name, tmp_path / "examples", kind="prompt")
    assert len(examples.train) + len(examples.held_out) == len(rows(name)) and not examples.skipped
    fields = examples.held_out[0].fields
    assert fields["messages"][-1]["role"] == "user" and set(fields["row"]) == set(rows(name)[0])


def test_a_directory_is_named_after_the_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert free_directory("builtin:arithmetic:comparisons") == Path("runs/arithmetic-comparisons-1")
