# SPDX-License-Identifier: Apache-2.0
"""The model card: front matter that parses, tables that hold, and verdicts that follow the figures."""

import re
from dataclasses import replace

import pytest
import yaml

from foundling.contracts.records import Result
from foundling.report import units
from foundling.report.card import model_card, with_results
from foundling.report.definitions import definitions
from tests.report.runs import HOSTILE, bare, hostile, realistic


def card_of(run=None, **changes) -> str:
    run = run or realistic()
    return model_card(run, **{"model_id": "stdlib-3min"} | changes).replace(units.SPACE, " ")


def front_matter(card: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


def table_rows(card: str) -> list[list[str]]:
    """Cells of every table row, cut at the bars that are not escaped; text inside code blocks is no table."""
    prose = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", card, flags=re.DOTALL | re.MULTILINE)
    rows = [line for line in prose.split("\n") if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def verdicts(card: str) -> list[str]:
    return [re.match(r"\*\*(yes|no)\*\*", row[3])[1] for row in table_rows(card) if row[0] in {"US", "EU", "UK"}]


def test_front_matter_is_what_the_hub_reads():
    facts = front_matter(card_of())
    assert facts == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["foundling", "base-model", "llama"],
        "license": "other",
        "license_name": "PSF-2.0",
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("CC-BY-SA-4.0", {"license": "cc-by-sa-4.0"}),
        ("PSF-2.0", {"license": "other", "license_name": "PSF-2.0"}),
        ("a: b\n---\n# <x>", {"license": "other", "license_name": "a: b --- # <x>"}),
    ],
)
def test_licence_is_repeated_as_given(given, expected):
    facts = front_matter(card_of(data_licence=given))
    assert {name: facts[name] for name in facts if name.startswith("license")} == expected
    assert "as given by whoever trained the model" in card_of(data_licence=given)


def test_licence_is_not_guessed():
    run = replace(realistic(), data=realistic().data | {"licence": None})
    assert ["licence", "not stated"] in table_rows(card_of(run)) and "license" not in front_matter(card_of(run))


def test_card_says_what_a_stranger_needs():
    card = card_of()
    headings = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert headings == [
        "What it is",
        "Intended use",
        "How to use it",
        "Data",
        "Compute and energy",
        "Scores",
        "Limits",
        "Is this a foundation model?",
        "Lineage",
    ]
    rows = table_rows(card)
    assert ["n-gram model, same training text", "1.964"] in rows
    assert ["energy", "4.89 kJ (1.36 Wh) — measured by RAPL, package domain"] in rows
    assert 'pipeline("text-generation", model="stdlib-3min")' in card
    assert "foundling reproduce stdlib-3min" in card
    assert "trained from random weights" in card


def test_results_stand_beside_the_scores():
    rows = table_rows(card_of())
    assert ["task", "this model", "n-gram model", "n"] in rows
    assert ["passes Python's tokenize", "84 % (71–92)", "10 % (4–21)", "50"] in rows


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("text-generation", ["It continues text.", "foundling.generate(", 'pipeline("text-generation"']),
        ("fill-mask", ["It fills gaps in text.", "MaskFiller.load(", "does not write text from left to right"]),
        ("text2text-generation", ["reads a source text", "AutoModelForSeq2SeqLM"]),
        ("something-new", ["foundling.load(", "does what it was trained for"]),
    ],
)
def test_what_depends_on_the_kind_follows_the_pipeline_tag(tag, words):
    card = card_of(replace(bare(), pipeline_tag=tag, limits=["A sentence of its own."]))
    assert all(
        word in card for word in [*words, "A masked language model of the bert family", "A sentence of its own."]
    )
    assert front_matter(card)["pipeline_tag"] == tag
    for block in re.findall(r"^```+python\n(.*?)^```+$", card, re.DOTALL | re.MULTILINE):
        compile(block, "card", "exec")


def test_a_run_without_prediction_and_baselines_says_so():
    card = card_of(bare())
    assert "3.21 nats per masked token on held-out data; no loss prediction for this objective." in card
    assert ["this model", "3.210"] in table_rows(card)
    assert "There is no loss prediction for this objective. The mean" in card
    assert "it generates neither text nor images" in card


def test_lineage_and_its_compute_are_apart_from_this_run():
    card = card_of(replace(realistic(), parents=["sha256:abc"]), lineage_flops=1e15)
    assert "- sha256:abc" in card and "trained from random weights" not in card
    rows = table_rows(card)
    assert ["training", "7.2 × 10¹³ FLOPs"] in rows
    assert ["with everything it descends from", "1.0 × 10¹⁵ FLOPs"] in rows


def test_code_in_the_card_is_code():
    for model_id in ("plain/name", 'it\'s "odd"\\`', "new\nline"):
        blocks = re.findall(r"^```+python\n(.*?)^```+$", card_of(model_id=model_id), re.DOTALL | re.MULTILINE)
        assert len(blocks) == 2
        for block in blocks:
            compile(block, "card", "exec")
            assert any(name in block for name in (f'"{model_id}"', repr(model_id)))


def test_hostile_text_changes_no_structure():
    calm, card = card_of(replace(realistic(), parents=["x"])), card_of(hostile(), model_id=HOSTILE)
    assert front_matter(card)["license"] == "other"
    headings = [re.findall(r"^## .*$", text, re.MULTILINE) for text in (calm, card)]
    assert headings[0] == headings[1]
    assert {len(row) for row in table_rows(card)} == {2, 3, 4}
    prose = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", card.split("---\n", 2)[2], flags=re.DOTALL | re.MULTILINE)
    assert "<" not in prose and "&lt;script&gt;" in prose
    card.encode()  # no unpaired surrogate is left for whoever writes the file
    assert "\x00" not in card and "://" not in prose


def test_small_model_is_a_foundation_model_nowhere():
    assert verdicts(card_of()) == ["no"] * 5


def test_giant_is_a_foundation_model_everywhere():
    giant = replace(realistic(), params=100_000_000_000, data=realistic().data | {"bytes": 50_000_000_000_000})
    assert verdicts(card_of(giant, lineage_flops=1e26)) == ["yes"] * 5
    # The same model, its compute counted without the base it was made from, is no systemic risk but still general.
    assert verdicts(card_of(giant, lineage_flops=2e23)) == ["yes", "yes", "yes", "no", "yes"]


@pytest.mark.parametrize(
    ("params", "flops", "data_bytes", "met"),
    [
        (10**10, 1e23, 16 * 10**9, [True, True, False, False, True]),  # at least; but over 10²³ and over 10²⁵
        (10**10 - 1, 1.01e23, 16 * 10**9 - 1, [False, True, True, False, False]),
        (10**9 - 1, 1e25, 1, [False, False, True, False, False]),
        (1, 1.01e25, 1, [False, False, True, True, False]),
    ],
)
def test_verdicts_turn_at_the_thresholds(params, flops, data_bytes, met):
    assert [row.met for row in definitions(params=params, flops=flops, data_bytes=data_bytes)] == met


def test_definitions_name_their_sources_and_dates():
    text = {where: "" for where in ("US", "EU", "UK")}
    for row in definitions(params=1, flops=1.0, data_bytes=1):
        text[row.where] += row.text
    for where, facts in {
        "US": ["14110", "30 October 2023", "revoked on 20 January 2025", "14148", "H.R. 6881", "22 December 2023"],
        "EU": ["2024/1689", "13 June 2024", "Art. 3(63)", "Art. 51(2)", "18 July 2025"],
        "UK": ["no statute", "Competition and Markets Authority", "18 September 2023"],
    }.items():
        assert all(fact in text[where] for fact in facts)


def test_the_command_that_trains_it_again_is_quoted():
    for name, shown in (
        ("a b", "'a b'"),
        ("-rf", "./-rf"),
        ("$(x)\n```\x1b", "$'\\044\\050x\\051\\012\\140\\140\\140\\033'"),
    ):
        assert f"\nfoundling reproduce {shown}\n" in card_of(model_id=name)


def test_intended_use_and_carbon_are_not_guessed():
    card = card_of()
    assert "Whoever trained the model stated none. It continues text." in card and "Out of scope:" in card
    assert ["carbon", "not stated: it depends on where and when the energy was made"] in table_rows(card)
    run = replace(
        realistic(),
        intended_use=["Completes Python | `code`."],
        out_of_scope=["Secrets."],
        carbon="2 g, grid of FR 2025",
    )
    card = card_of(run)
    assert "- Completes Python \\| \\`code\\`.\n" in card and "- Secrets.\n" in card and "stated none" not in card
    assert ["carbon", "2 g, grid of FR 2025"] in table_rows(card)


def test_results_of_evaluations_are_merged():
    hashes = {"template": "t" * 64, "backend": "b" * 64, "prompt": "p"}
    first = Result("arc easy", "accuracy", 0.5, 200, "runs/x", 0.43, 0.57, "Wilson", hashes=hashes, scores=[1.0],
                   figures={"ECE": (0.04, 0.03, 0.06), "none": (None, None, None)})  # fmt: skip
    again = replace(first, value=0.6, low=0.53, high=0.67)
    other = replace(first, hashes={**hashes, "prompt": "q"}, value=0.7)
    run = with_results(with_results(realistic(), [first]), [again, other])
    assert [r.value for r in run.results if r.task == "arc easy"] == [0.6, 0.7]
    assert all(r.subject == "model" and not r.scores for r in run.results if r.task == "arc easy")
    card = card_of(run)
    assert "60 % (53–67)" in card or "70 % (43–57)" in card
    assert "backend bbbbbbbbbbbb, template tttttttttttt" in card and "- arc easy: ECE 0.040 (0.030–0.060)" in card
    assert "More figures" not in card_of() and "template" not in card_of()
