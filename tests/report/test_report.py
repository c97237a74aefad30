# SPDX-License-Identifier: Apache-2.0
"""The report: what it says of a run, that hostile text stays text, and that it needs nothing but itself."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from html.parser import HTMLParser
from math import inf, nan
from pathlib import Path

import pytest

from foundling.contracts.records import RunRecord, Stage
from foundling.errors import OutputError
from foundling.report import charts, findings, model_card, report_html, summary_png, units, write_report
from tests.report.runs import HOSTILE, bare, hostile, realistic

SECTIONS = "learning prediction scores samples results time tokenizer data settings compute again".split()  # noqa: SIM905
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """A page taken apart: every element with its attributes, the ids in order, the words, and whether tags nest."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in {"td", "th", "text"}:
            self.words += " "  # what the eye sees as a gap

    def handle_data(self, data):
        self.words += data.replace(units.SPACE, " ")

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]


def page_of(run: RunRecord, directory) -> Page:
    write_report(run, directory / "report.html")
    return Page((directory / "report.html").read_text("utf-8"))


@pytest.mark.parametrize("run", [realistic(), hostile()], ids=["realistic", "hostile"])
def test_page_has_every_section_in_order_and_reaches_for_nothing(run, tmp_path):
    page = page_of(run, tmp_path)
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert len(page.ids) == len(set(page.ids))
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "img", "base", "form"}
        assert not any(name.startswith("on") for name in attributes)
        assert all(attributes[name].startswith("#") for name in ("href", "src") if name in attributes)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "://" not in text and "@import" not in text and set(re.findall(r"url\((.)", text)) <= {"#"}


def test_page_says_what_happened(tmp_path):
    words = " ".join(page_of(realistic(), tmp_path).words.replace("\u2011", "-").split())
    for phrase in [
        "0.912 M parameters, 1.71 bits per byte on held-out data; predicted 1.75.",
        "Better than gzip, xz and the n-gram model; not better than xz over one stream.",
        "time 3 min 00 s 2 min 56 s -2.1 %",
        "bits per byte 1.750 1.709 -2.3 %",
        "energy, actual 4.89 kJ (1.36 Wh) — measured by RAPL, package domain",
        "passes Python's tokenize 84 % (71–92) 10 % (4–21) 50",
        "training 2 min 20 s · 79.2 %",
        "removed: near-duplicate 118 documents",
        "d_model 128 chosen",
        "seed 0 given",
        "foundling reproduce 'models/stdlib 3min'",
        "7.2 × 10¹³ floating-point operations",
        "foundling serve stdlib-3min",
    ]:
        assert phrase in words


def test_hostile_text_is_shown_as_text(tmp_path):
    page = page_of(hostile(), tmp_path)
    text = (tmp_path / "report.html").read_text("utf-8")
    block = HOSTILE.replace("\x00", "\u2400").replace("\ud83d", "\\ud83d")
    line = block.replace("\n", "\u240a")
    assert page.words.count(line) > 15 and page.words.count(block) >= 2
    assert not {c for c in text if ord(c) < 32 and c not in "\n\t"}
    assert "nan" not in re.findall(r"\w+", page.words)
    assert {"alert", "7*7"} <= set(re.findall(r"alert|7\*7|49", page.words)) and "49" not in page.words


def test_stages_are_shown_with_their_plan_and_nothing_of_them_is_markup(tmp_path):
    one: Stage = {
        "name": "sft", "kind": "chat model", "examples": "3,000 demonstrations", "planned_seconds": 72.0,
        "seconds": 90.0, "metric": "nats per answer token", "value": 3.25,
    }  # fmt: skip
    other: Stage = {**one, "name": HOSTILE, "kind": HOSTILE, "examples": HOSTILE, "seconds": nan, "value": None}
    run = replace(realistic(), stages=[one, other])
    page = page_of(run, tmp_path)
    assert "sft: chat model 3,000 demonstrations 1 min 12 s 1 min 30 s 3.250 nats per answer token" in page.words
    assert "stages" in page.ids and "stages" not in page_of(realistic(), tmp_path).ids
    assert not {tag for tag, _ in page.elements} & {"script", "svg:script"}
    assert "- stage sft, chat model: 3,000 demonstrations" in model_card(run)
    assert "<script" not in model_card(run)


def test_escape_sequences_and_sheer_length_change_no_page(tmp_path):
    run = replace(
        realistic(),
        samples=[{"prompt": "", "text": "a\x1b[2J\u202eb" + "c" * 10_000_000, "note": "\x1b]0;t\x07"}],
        machine={"n" * 5_000_000: "v" * 5_000_000},
    )
    page = page_of(run, tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 200_000
    assert "a\u241b[2J\\u202eb" in page.words and "more characters" not in page.words
    assert "characters more)" in page.words


def test_long_samples_fold_and_short_ones_do_not(tmp_path):
    long = "".join(f"line {i}\n" for i in range(40))
    samples = [{"prompt": "line", "text": long[4:], "note": ""}, {"prompt": "", "text": "short", "note": ""}]
    text = (tmp_path / "report.html", page_of(replace(realistic(), samples=[*samples, *samples * 3]), tmp_path))[0]
    html = text.read_text("utf-8")
    assert html.count("<details") == 3 and html.count('class="sample"') == 5  # no more than five are shown
    summary = re.search(r"<summary>(.*?)</summary>", html, re.DOTALL)[1]
    assert "line 4" in summary.replace("</span>", "") and "line 5" not in summary and "show all 40 lines" in summary


@pytest.mark.parametrize("cut", [(0, 10), (3, 700), (500, 3), (900, 0)])
def test_a_fold_loses_nothing(cut):
    prompt, text = "p\n" * cut[0], "t" * cut[1]
    part = findings.fold({"prompt": prompt, "text": text, "note": ""})
    assert (part.prompt + part.more_prompt, part.text + part.more_text) == (prompt, text)
    assert not (part.more_prompt and part.text)


def test_a_run_without_prediction_and_baselines_has_a_page(tmp_path):
    page = page_of(bare(), tmp_path)
    assert [name for name in page.ids if name in SECTIONS] == [name for name in SECTIONS if name != "results"]
    words = " ".join(page.words.replace("\u2011", "-").split())
    for phrase in [
        "0.912 M parameters, 3.21 nats per masked token on held-out data; no loss prediction for this objective.",
        "bert-1min · masked language model · trained",
        "nats per masked token — 3.210 —",
        "time 1 min 01 s 59 s -3.3 %",
        "There is no loss prediction for this objective.",
        "No baseline was measured.",
        "this model 3.210",
        "held-out, measured 3.21",
    ]:
        assert phrase in words, phrase
    assert "held-out, predicted" not in words and "bits per byte" not in words


def test_report_is_the_same_in_every_writing_and_from_json(tmp_path):
    run = realistic()
    write_report(run, tmp_path / "a.html")
    again = RunRecord.from_dict(json.loads(json.dumps(asdict(run))))
    write_report(again, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_charts_are_text_in_the_colours_of_the_page():
    svg = charts.loss_svg(realistic())
    assert svg.startswith("<svg viewBox=")
    words = Page(svg).words
    assert all(label in words for label in ("training", "held-out, predicted 4.14", "held-out, measured 4.05"))
    for drawn in (svg, charts.throughput_svg(realistic())):
        assert "var(--accent)" in drawn and not re.findall(r"#[0-9a-f]{6}\b", drawn)


def test_charts_of_nothing_are_empty():
    run = replace(realistic(), history=[])
    assert charts.loss_svg(run) == charts.throughput_svg(run) == ""
    assert charts.series_svgs(run) == []
    assert charts.loss_svg(hostile()) == charts.throughput_svg(hostile()) == ""


def test_the_smooth_curve_starts_at_the_first_loss_and_ends_in_a_mean():
    smooth = charts._smoothed([8.0, 4.0, *[3.0, 5.0] * 24])
    assert smooth[:2] == [8.0, 4.0] and len(smooth) == 50
    assert all(3.7 < value < 4.3 for value in smooth[-10:])


def test_summary_is_one_picture(tmp_path):
    for run in (realistic(), hostile()):
        summary_png(run, tmp_path / "summary.png")
        data = (tmp_path / "summary.png").read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (1200, 480)


def test_without_matplotlib_the_report_has_tables(tmp_path):
    script = f"""
import sys
sys.modules["matplotlib"] = None
from foundling.errors import OutputError
from foundling.report import summary_png, write_report
from tests.report.runs import realistic
write_report(realistic(), {str(tmp_path / "report.html")!r})
assert "torch" not in sys.modules
try:
    summary_png(realistic(), {str(tmp_path / "summary.png")!r})
except OutputError as error:
    print(error)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "pip install 'foundling[report]'" in done.stdout
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert page.words.count("pip install 'foundling[report]'") == 1
    assert "svg" not in {tag for tag, _ in page.elements}
    assert "800" in page.words.split() and "13.1 M" in page.words  # the last step, in the table instead of the curve


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    for write in (write_report, summary_png):
        with pytest.raises(OutputError, match=re.escape(repr(str(tmp_path)))):
            write(realistic(), tmp_path)


def test_standing_takes_sides_only_where_there_are_numbers():
    run = realistic()
    assert findings.standing(replace(run, baselines={"gzip": 2.0})) == "Better than gzip."
    assert findings.standing(replace(run, baselines={"xz": 1.0, "ppm": 1.709})) == "Not better than xz and ppm."
    assert findings.standing(replace(run, baselines={"gzip": "no text", "xz": nan})) == ""
    assert findings.standing(hostile()) == ""


def test_score_bars_are_sorted_and_scaled_and_keep_reasons():
    run = replace(realistic(), baselines={"gzip": 3.418, "ngram": "less than 1 kB of text"})
    ours, gzip, ngram = findings.score_bars(run)
    assert ours == (findings.MODEL, 0.5, "1.709", True)
    assert gzip == ("gzip -9, each document alone", 1.0, "3.418", False)
    assert ngram.share is None and ngram.value == "less than 1 kB of text"


def test_a_metric_that_is_better_higher_is_sorted_the_other_way():
    metric = replace(realistic().metric, key="accuracy", name="accuracy", lower_is_better=False)
    run = replace(
        realistic(), metric=metric, actual=realistic().actual | {"accuracy": 0.5}, baselines={"a": 0.9, "b": 0.1}
    )
    assert [bar.name for bar in findings.score_bars(run)] == ["a", findings.MODEL, "b"]
    assert findings.standing(run) == "Better than b; not better than a."


def test_curve_and_throughput_worked_by_hand():
    record = {"step": 0, "bits_per_byte": None, "lr": 0.0, "grad_norm": None}
    history = [record | {"tokens": 10 * i, "seconds": 2.0 * i, "loss": float(i)} for i in range(1, 5)]
    assert findings.curve(history, 2) == [(0, 20, 4.0, 1.5), (0, 40, 8.0, 3.5)]
    assert findings.curve([*history, history[0] | {"loss": nan}], 9) == findings.curve(history, 4)
    assert [point.loss for point in findings.curve(history, 4)] == [1.0, 2.0, 3.0, 4.0]
    assert findings.throughput(history, 3) == [(4.0, 5.0), (6.0, 5.0), (8.0, 5.0)]
    assert findings.throughput(history, 1) == [(8.0, 5.0)]
    assert findings.throughput(history[:1], 3) == findings.throughput([history[0], history[0]], 3) == []


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.count(99_999), "99,999"),
        (units.count(912_384), "0.912 M"),
        (units.count(999_700_000), "1 B"),
        (units.count(1e11), "100 B"),
        (units.size(0), "0 B"),
        (units.size(999_600), "1 MB"),
        (units.size(5e15), "5,000 TB"),
        (units.energy(7200), "7.2 kJ (2 Wh)"),
        (units.duration(0.0421), "0.0421 s"),
        (units.duration(59.7), "1 min 00 s"),
        (units.duration(3725), "1 h 02 min"),
        (units.percent(-0.0312, signed=True), "-3.1 %"),
        (units.power(9.99e22), "1.0 × 10²³"),
        (units.power(3.14e23), "3.1 × 10²³"),
        (units.number(None) + units.count(nan) + units.size(inf) + units.power(0), "————"),
    ],
)
def test_figures_read_well(shown, expected):
    assert shown.replace(units.SPACE, " ") == expected


def test_a_run_that_learns_from_rewards_shows_them() -> None:
    run = realistic()
    run = replace(
        run, history=[{**record, "reward": 0.1 * i, "kl_per_token": 0.01 * i} for i, record in enumerate(run.history)]
    )
    reward, kl = charts.series_svgs(run)
    assert "reward of an answer: 0 at first" in reward and "KL divergence to the reference" in kl
    assert reward in report_html(run)
    broken = replace(run, history=[{**record, "reward": None, "kl_per_token": float("nan")} for record in run.history])
    assert charts.series_svgs(broken) == []
