# SPDX-License-Identifier: Apache-2.0
"""Pairs are read, split and batched as stated, metrics are right by hand, and an LSTM without attention falls with
length."""

import datetime
import json

import pytest
import torch

from benchmarks.datasets import is_test
from examples import translation
from examples.pairs import END, START, Calendar, Dates, PairBatches, aligned, group_of, pair_batch
from examples.translation import (
    ATTENTION,
    LSTM,
    MODELS,
    TRANSFORMER,
    config_of,
    cost_columns,
    dates_right,
    measure_dates,
)
from foundling.errors import DataError
from foundling.models import build
from foundling.runtime.rng import generator

MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October"]
MONTHS += ["November", "December"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


@pytest.fixture
def calendars(tmp_path):
    """A folder of calendars in CLDR's layout: English, and a language that quotes a word in its patterns."""
    patterns = {
        "en": ["EEEE, MMMM d, y", "MMMM d, y", "MMM d, y", "EEE, MMM d, y"],
        "xx": ["EEEE, d 'de' MMMM y", "dd MMMM y", "d MMM y", "E d MMM y"],
    }
    for locale, (full, long, short, weekday) in patterns.items():
        wide = {str(n): name for n, name in enumerate(MONTHS, 1)}, {name[:3].lower(): name for name in DAYS}
        brief = [{key: name[:3] for key, name in names.items()} for names in wide]
        gregorian = {
            "months": {"format": {"wide": wide[0], "abbreviated": brief[0]}},
            "days": {"format": {"wide": wide[1], "abbreviated": brief[1]}},
            "dateFormats": {"full": full, "long": long},
            "dateTimeFormats": {"availableFormats": {"yMMMd": short, "yMMMEd": weekday}},
        }
        (tmp_path / locale).mkdir()
        content = {"main": {locale: {"dates": {"calendars": {"gregorian": gregorian}}}}}
        (tmp_path / locale / "ca-gregorian.json").write_text(json.dumps(content))
    return tmp_path


def test_a_calendar_writes_a_day_by_its_patterns(calendars) -> None:
    day = datetime.date(2022, 3, 3)
    texts = {
        locale: [c.write(day, p) for p in c.patterns]
        for locale in ("en", "xx")
        for c in [Calendar(calendars / locale / "ca-gregorian.json")]
    }
    assert texts["en"] == ["Thursday, March 3, 2022", "March 3, 2022", "Mar 3, 2022", "Thu, Mar 3, 2022"]
    assert texts["xx"] == ["Thursday, 3 de March 2022", "03 March 2022", "3 Mar 2022", "Thu 3 Mar 2022"]
    with pytest.raises(DataError, match="the field 'QQQ' of a date's pattern is not known; known are y, d"):
        Calendar(calendars / "en" / "ca-gregorian.json").write(day, "QQQ y")


def test_days_of_held_out_lines_are_in_no_training_line(calendars) -> None:
    dates = Dates(calendars, ("en", "xx"))
    train, held_out = ({d.isoformat() for d in part} for part in dates.parts)
    assert not train & held_out and all(map(is_test, held_out)) and 0.18 < len(held_out) / 73049 < 0.22
    source, target = dates.line(3, generator("line", 0), held_out=True)
    assert len(target) == 24 and source.count(";") == 2
    days = [f"{target[at : at + 4]}-{target[at + 4 : at + 6]}-{target[at + 6 : at + 8]}" for at in (0, 8, 16)]
    assert {*days} <= held_out
    ids, digits = dates.encode((source, target))
    assert dates.decode(digits) == target and min(ids) > END and max(ids) < dates.vocab_size


def page(texts: dict[str, str]) -> str:
    return "<html><p>no id</p>" + "".join(f'<p id="{name}">{text}</p>' for name, text in texts.items())


def test_paragraphs_are_paired_by_their_ids_and_split_by_their_words(tmp_path) -> None:
    english = {f"par_{n}": f"Click <b>{word}</b> to close &amp; save {n}." for n, word in enumerate(MONTHS)}
    german = {f"par_{n}": f"Klicken Sie auf {word}." for n, word in enumerate(MONTHS)}
    english |= {"twin": "Click March to close & save 77.", "long": "word " * 30 + ".", "title": "No full stop here"}
    english |= {"alone": "This one has no twin."}
    german |= {"twin": "Zwilling.", "long": "Wort.", "title": "Kein Punkt", "other": "Nur deutsch."}
    for language, texts in (("en", english), ("de", german)):
        (tmp_path / language / "sub").mkdir(parents=True)
        (tmp_path / language / "sub" / "a.html").write_text(page(texts), encoding="utf-8")
    train, held_out = aligned(tmp_path / "en", tmp_path / "de")
    assert len(train) + len(held_out) == 12
    assert ("Click March to close & save 2.", "Klicken Sie auf March.") in train + held_out
    assert all(is_test(group_of(source)) for source, _ in held_out)
    assert not any(is_test(group_of(source)) for source, _ in train)
    with pytest.raises(DataError, match="hold no aligned sentences"):
        aligned(tmp_path / "en", tmp_path)


def test_a_batch_shifts_the_targets_and_counts_no_padding() -> None:
    batch = pair_batch([([5, 6, 7], [8]), ([9], [10, 11])])
    assert batch["source"].tolist() == [[5, 6, 7], [9, 0, 0]]
    assert batch["source_documents"].tolist() == [[0, 0, 0], [0, -1, -1]]
    assert batch["tokens"].tolist() == [[START, 8, 0], [START, 10, 11]]
    assert batch["targets"].tolist() == [[8, END, 0], [10, 11, END]]
    assert batch["loss_mask"].tolist() == [[True, True, False], [True, True, True]]


def test_each_epoch_reads_each_pair_once() -> None:
    pairs = [([10 + n] * (1 + n % 3), [50]) for n in range(12)]
    batches = PairBatches(pairs, 4, seed=0)
    for epoch in range(2):
        seen = [int(row[0]) for n in range(3) for row in batches[3 * epoch + n]["source"]]
        assert sorted(seen) == [10 + n for n in range(12)]
    assert batches.epoch(0) != batches.epoch(1)
    with pytest.raises(DataError, match="12 pairs are less than a batch of 13"):
        PairBatches(pairs, 13, seed=0)


def test_single_dates_are_right_where_they_stand() -> None:
    assert dates_right("2022030319991231", "2022030319991231") == [1, 1]
    assert dates_right("2022030319991231", "2022030420000101") == [0, 0]
    assert dates_right("2022030319991231", "20220303") == [1, 0]
    assert dates_right("2022030319991231", "x2022030319991231") == [0, 0]


@pytest.mark.parametrize("task", translation.TASKS)
def test_the_models_have_within_a_tenth_as_many_parameters(task) -> None:
    vocab_size = {"dates": 230, "help": translation.VOCAB}[task]
    sizes = []
    for model in MODELS:
        family, fields = config_of(model, task, vocab_size)
        with torch.device("meta"):
            sizes.append(sum(p.numel() for p in build(family, **fields).parameters()))
    assert max(sizes) < 1.1 * min(sizes), sizes


def test_cost_is_the_mean_over_seeds() -> None:
    runs = [{"parameters": 9, "target tokens": n, "minutes": n / 100, "peak memory (MB)": n} for n in (100, 400)]
    assert cost_columns(runs) == ["9", "250", "2.5", "400"]


@pytest.mark.slow
def test_without_attention_the_right_dates_fall_with_the_length_of_the_line(calendars, monkeypatch) -> None:
    """With attention, and with the Transformer, they fall less."""
    monkeypatch.setattr(translation, "Dates", lambda: Dates(calendars, ("en", "xx")))
    falls = {}
    for model in MODELS:
        scores = measure_dates(model, 0, most=3, steps=450, rows=32, items=100)["by dates"]
        falls[model] = scores["1"]["dates"]["value"] - scores["3"]["dates"]["value"]
        assert scores["1"]["dates"]["value"] > 0.4, (model, scores)
    assert falls[LSTM] > 0.25, falls
    assert falls[ATTENTION] < falls[LSTM] - 0.15 and falls[TRANSFORMER] < falls[LSTM] - 0.15, falls
