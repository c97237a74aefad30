# SPDX-License-Identifier: Apache-2.0
"""Agreement of labellers, groups that contradict each other, and what is exported, on judgements of a planted truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from foundling.data.examples import ingest_examples
from foundling.data.label_export import export_rows, write_rows
from foundling.data.labels import Items, Judgement, LabelFile, read_items, read_judgements, shown_order
from foundling.errors import DataError, OutputError
from foundling.evaluate.labels import (
    Votes,
    agreement,
    cohen,
    find_groups,
    label_report,
    last_judgements,
    raw_agreement,
    votes_of,
)
from tests.serve.labelling import write

NAN = float("nan")


def votes(rows: Sequence[Sequence[float]], items: Sequence[int] | None = None) -> Votes:
    values = np.array(rows, np.float64)
    numbers = np.arange(values.shape[1]) if items is None else np.array(items)
    return Votes([f"labeller {n}" for n in range(len(values))], values, numbers)


def planted(seed: int, sides: Sequence[int], wrong: Sequence[float], n: int = 80) -> Votes:
    """Labellers who follow a truth (1) or its opposite (−1), each with a share of errors; a fifth is not judged."""
    draw = np.random.default_rng(seed)
    values = draw.choice([-1.0, 1.0], n) * np.array(sides)[:, None]
    values = values * np.where(draw.random(values.shape) < np.array(wrong)[:, None], -1, 1)
    values[draw.random(values.shape) < 0.05] = 0
    values[draw.random(values.shape) < 0.2] = NAN
    return votes(values.tolist())


# --- agreement -------------------------------------------------------------------------------------------------------


def test_kappa_is_that_of_scikit_learn() -> None:
    draw = np.random.default_rng(1)
    a = draw.choice([1, 0, -1], 200, p=[0.5, 0.2, 0.3])
    b = np.where(draw.random(200) < 0.7, a, draw.choice([1, 0, -1], 200))
    figure = agreement(votes([a, b]))
    assert figure.value == pytest.approx(cohen_kappa_score(a, b))
    assert figure.low is not None and figure.high is not None and figure.low < figure.value < figure.high
    missing = votes([[*a, NAN], [*b, 1]])
    assert cohen(missing, 0, 1).value == pytest.approx(figure.value)


def test_alpha_is_that_of_an_example_worked_by_hand() -> None:
    """Units 1 1 | 1 0 | 0 0 | 1 1 1 | 1 (alone): n = 9 values; coincidences 11: 2 + 3 = 5, 00: 2, 10 and 01: 1 each.
    Observed disagreement 2 / 9; margins 6 and 3, expected 2 · 6 · 3 / (9 · 8) = 1 / 2; alpha = 1 − 4 / 9."""
    figure = agreement(votes([[1, 1, 0, 1, 1], [1, 0, 0, 1, NAN], [NAN, NAN, NAN, 1, NAN]]))
    assert figure.value == pytest.approx(5 / 9)
    assert agreement(votes([[1, 1, 0], [1, 1, 0], [1, 1, 0]])).value == 1
    assert agreement(votes([[1, NAN], [NAN, 0], [NAN, NAN]])).value is None


def test_intervals_draw_items_and_not_pairs() -> None:
    """Ten pairs of one item say no more than one of them, where they are copies."""
    draw = np.random.default_rng(0)
    a = draw.choice([1.0, -1.0], 40)
    rows = np.stack([a, np.where(draw.random(40) < 0.75, a, -a)])
    alone = agreement(votes(rows.tolist()))
    copied = agreement(votes(np.repeat(rows, 10, 1).tolist(), np.repeat(np.arange(40), 10).tolist()))
    assert copied[:3] == pytest.approx(alone[:3])


def test_ties_are_no_disagreement_of_those_who_decided() -> None:
    """Two who are never wrong, and call some pairs equal: 68 % of all their judgements are the same, and all decided
    ones."""
    chance = np.random.default_rng(0)
    rows = [np.where(chance.random(4000) < 0.2, 0.0, 1.0).tolist() for _ in range(2)]
    equal, _ = raw_agreement(votes(rows))
    assert equal == pytest.approx(0.68, abs=0.03)
    assert raw_agreement(votes(rows), decided=True)[0] == 1.0


def test_raw_agreement_counts_all_two_judgements_of_a_pair() -> None:
    assert raw_agreement(votes([[1, 1, 1], [1, -1, NAN], [1, -1, NAN]])) == (pytest.approx((1 + 1 / 3) / 2), 2)


# --- groups ----------------------------------------------------------------------------------------------------------


def test_two_planted_groups_are_found() -> None:
    for seed, sides in enumerate(([1, 1, 1, -1, -1, -1], [1, -1, 1, 1, -1, 1, 1, 1])):
        groups = find_groups(planted(seed, sides, [0.15] * len(sides)), permutations=199)
        assert groups and groups.groups and groups.contradict
        expected = {frozenset(f"labeller {n}" for n, side in enumerate(sides) if side == s) for s in (1, -1)}
        assert {frozenset(names) for names in groups.groups} == expected
        assert groups.between < -0.3 and min(groups.within) > 0.3


@pytest.mark.parametrize(
    "wrong", [[0.2] * 6, [0.4] * 6, [0.1, 0.1, 0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.1, 0.1, 0.1, 0.9]]
)
def test_noise_careless_labellers_and_one_who_differs_are_no_groups(wrong: list[float]) -> None:
    for seed in range(4):
        groups = find_groups(planted(seed, [1] * 6, wrong), permutations=199)
        assert groups and groups.groups is None and not groups.contradict, (seed, groups)


def test_answers_that_hang_together_make_no_groups() -> None:
    """Orders of four answers: the six pairs of an item follow from one another, and are permuted together."""
    draw = np.random.default_rng(3)
    for _ in range(4):
        tastes = draw.normal(size=(30, 4)) + draw.normal(size=(6, 30, 4)) * 1.5
        pairs = list(combinations(range(4), 2))
        rows = [[np.sign(one[a] - one[b]) for one in person for a, b in pairs] for person in tastes]
        groups = find_groups(votes(rows, np.repeat(np.arange(30), len(pairs)).tolist()), permutations=199)
        assert groups and groups.groups is None


def test_groups_need_labellers_and_items() -> None:
    assert find_groups(planted(0, [1, 1, -1], [0.1] * 3)) is None
    assert find_groups(planted(0, [1, 1, -1, -1], [0.1] * 4, n=10)) is None


# --- judgements ------------------------------------------------------------------------------------------------------


def judgement(items: Items, place: int, labeller: str, texts: Sequence[Any], **more: Any) -> Judgement:
    """The best text first; a tuple of texts is a tie."""
    item = items.items[place]
    groups = [(text,) if isinstance(text, str) else text for text in texts]
    ranking = tuple(tuple(sorted(item.completions.index(text) for text in group)) for group in groups)
    fields: dict[str, Any] = dict(ranking=ranking, order=shown_order(item, labeller, 0)) | more
    return Judgement(
        f"{labeller}-{place}-{len(str(more))}", item.id, labeller, items.task, fields.pop("state", "judged"), **fields
    )


def saved(path: Path, lines: Sequence[Judgement]) -> Path:
    file = LabelFile(path)
    for line in lines:
        with file.locked():
            file.append(line)
    file.close()
    return path


def test_the_majority_is_exported_and_read_by_align(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {i}", "completions": [f"good {i}", f"bad {i}"]} for i in range(20)]
    items = read_items(write(tmp_path / "data.jsonl", rows))
    lines = list[Judgement]()
    for i in range(20):
        good, bad = f"good {i}", f"bad {i}"
        lines += [judgement(items, i, name, [good, bad]) for name in ("anna", "ben")]
        lines.append(judgement(items, i, "carla", [bad, good]))
    lines += [judgement(items, 0, name, [("good 0", "bad 0")], time="later") for name in ("anna", "carla")]
    lines += [judgement(items, 1, "ben", [("good 1", "bad 1")], time="later")]  # one against one
    lines += [judgement(items, 2, name, [], state="flagged", ranking=None) for name in ("anna", "ben", "carla")]
    path = saved(tmp_path / "labels.jsonl", lines)
    export = export_rows(items, last_judgements(read_judgements(path)))
    assert export.rows[0] == {"prompt": "q 0", "chosen": "good 0", "rejected": "bad 0"} and len(export.rows) == 18
    assert export.counts == {
        "items exported": 18, "equal judgements of a pair, which count for neither": 3,
        "pairs without a majority, left out": 1, "items without a judgement": 1,
    }  # fmt: skip
    out = tmp_path / "comparisons.jsonl"
    write_rows(out, export.rows)
    examples = ingest_examples(out, tmp_path / "shards", kind="preference")
    read = [*examples.train, *examples.held_out]
    assert len(read) == 18 and all(one.fields["completions"][0].startswith("good") for one in read)
    with pytest.raises(OutputError, match="exists"):
        write_rows(out, export.rows)


def test_orders_of_several_answers_are_exported(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"q {i}"}], "completions": ["a", "b", "c"]} for i in range(4)]
    items = read_items(write(tmp_path / "data.jsonl", rows))
    orders = [["abc", "abc", "cba"], ["abc", "bca", "cab"], ["a(bc)", "abc", "acb"], ["abc"]]
    lines = [
        judgement(items, i, f"labeller {n}", _groups(text))
        for i, of_item in enumerate(orders) for n, text in enumerate(of_item)
    ]  # fmt: skip
    export = export_rows(items, {(one.item, one.labeller): one for one in lines})
    made = [(row["prompt"], row["ranked"]) for row in export.rows]
    assert sorted(made) == [
        ("q 0", ["a", "b", "c"]),
        ("q 2", ["a", "b"]),
        ("q 2", ["a", "c"]),
        ("q 3", ["a", "b", "c"]),
    ]
    assert export.counts["items whose majorities go round in a circle, left out"] == 1


def _groups(text: str) -> list[Any]:
    """a(bc): a, then b and c, which are equal."""
    head, _, tied = text.partition("(")
    return [*head, *([tuple(tied[:-1])] if tied else [])]


def test_demonstrations_are_exported(tmp_path: Path) -> None:
    items = read_items(write(tmp_path / "data.jsonl", [{"prompt": f"q {i}"} for i in range(8)]))
    assert items.task == "write"
    lines = [
        Judgement(f"{name}-{item.id}", item.id, name, "write", "judged", text=f"{name} {n}")
        for n, item in enumerate(items.items) for name in ("ben", "anna")
    ]  # fmt: skip
    export = export_rows(items, {(one.item, one.labeller): one for one in lines})
    write_rows(tmp_path / "demos.jsonl", export.rows)
    examples = ingest_examples(tmp_path / "demos.jsonl", tmp_path / "shards")
    assert examples.kind == "chat" and len(export.rows) == 16
    assert export.rows[0]["messages"] == [
        {"role": "user", "content": "q 0"},
        {"role": "assistant", "content": "anna 0"},
    ]


def test_what_is_labelled_is_detected(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "chosen": "x", "rejected": "y"}, {"prompt": "a", "completions": ["y", "x"]},
        {"prompt": "a", "ranked": ["x", "x"]}, {"prompt": "b"}, {"prompt": "c", "completions": [*map(str, range(12))]},
        {"prompt": "half a character: \ud800", "completions": ["p", "half: \ud800"]},
        {"prompt": "e: \ud800", "completions": ["p", "q"]},
        {"completions": ["p", "q"]}, {"prompt": "d", "completions": ["p", "q", "p"]},
    ]  # fmt: skip
    file = write(tmp_path / "data.jsonl", rows)
    items = read_items(file)
    assert items.task == "rank"
    assert [(item.messages[0]["content"], sorted(item.completions)) for item in items.items] == [
        ("a", ["x", "y"]), ("e: ?", ["p", "q"]), ("d", ["p", "q"]),
    ]  # fmt: skip
    assert items.skipped == {
        "the same item again": 1, "fewer than two completions": 1, "no two answers": 1, "more than 9 answers": 1,
        "completions without a prompt": 1, "a message that is not text": 1,
    }  # fmt: skip
    assert [item.messages[0]["content"] for item in read_items(file, "write").items][:3] == ["a", "b", "c"]


def test_the_order_on_the_screen_is_drawn(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(400)]
    items = read_items(write(tmp_path / "data.jsonl", rows)).items
    first = [item.completions[shown_order(item, "anna", 0)[0]].startswith("good") for item in items]
    assert 160 < sum(first) < 240
    assert [shown_order(item, "anna", 0) for item in items] != [shown_order(item, "ben", 0) for item in items]
    assert [shown_order(item, "anna", 0) for item in items] != [shown_order(item, "anna", 1) for item in items]


def test_the_report_names_who_follows_the_place(tmp_path: Path) -> None:
    items = read_items(
        write(tmp_path / "d.jsonl", [{"prompt": f"q {i}", "completions": ["a", "b"]} for i in range(60)])
    )
    lines = list[Judgement]()
    for item in items.items:
        order = shown_order(item, "lazy", 0)
        lines.append(
            Judgement(f"lazy-{item.id}", item.id, "lazy", "rank", "judged", tuple((i,) for i in order), order=order)
        )
        good = item.completions.index("a")
        ranking = ((good,), (1 - good,))
        lines.append(
            Judgement(
                f"carla-{item.id}", item.id, "carla", "rank", "judged", ranking, order=shown_order(item, "carla", 0)
            )
        )
    report = label_report(lines)
    assert json.dumps(report) and report["measure"] == "Cohen's kappa" and abs(report["agreement"]["value"]) < 0.4
    assert next(line for line in report["sentences"] if "shown first" in line).startswith("lazy prefers")
    assert sum("shown first" in line for line in report["sentences"]) == 1
    assert votes_of(lines).values.shape == (2, 60)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    items = read_items(write(tmp_path / "d.jsonl", [{"prompt": "q", "completions": ["a", "b"]}]))
    saved(path, [judgement(items, 0, "anna", ["a", "b"])])
    whole = path.read_bytes()
    for line in (b'{"id": 1}\n', b"no json\n", whole.replace(b'"ranking": [[', b'"ranking": [[7,')):
        path.write_bytes(whole + line)
        with pytest.raises(DataError, match=r"labels\.jsonl: line 2 is no judgement"):
            read_judgements(path)
    path.write_bytes(whole + whole[:30])
    assert len(read_judgements(path)) == 1 and path.read_bytes() == whole + whole[:30]
