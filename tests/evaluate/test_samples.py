# SPDX-License-Identifier: Apache-2.0
"""Samples of a run and what tasks make of them: same seeds, same texts; shares counted by hand."""

import ast
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from foundling.decode.plain import generate
from foundling.evaluate.baselines import compression, measure_baselines
from foundling.evaluate.baselines.ngram import ByteNGram
from foundling.evaluate.intervals import wilson
from foundling.evaluate.samples import held_out_texts, judge_samples, ngram_texts, sample_texts
from foundling.evaluate.subject import GeneratedText
from foundling.evaluate.tasks import tasks_for
from foundling.evaluate.tasks.python_source import NOTHING_OPEN, UP_TO_THE_CUT
from foundling.models import build, family
from foundling.text import Tokenizer

SOURCE = [(Path(sysconfig.get_path("stdlib")) / f"{name}.py").read_text() for name in ("textwrap", "bisect", "queue")]


@pytest.mark.parametrize(
    ("data", "names", "judged"),
    [
        ("stdlib", [], True),
        ("builtin:stdlib", ["x.txt"], True),
        ("python", [], True),
        ("my/folder", ["a.py", "b.py", "README"], True),
        ("my/folder", ["a.py", "b.txt"], True),
        ("my/folder", ["a.py", "b.txt", "c.txt"], False),
        ("my/folder", [], False),
        (None, [], False),
        ("digits", [], False),
    ],
)
def test_the_data_decides_which_tasks_judge_a_run(data, names, judged) -> None:
    assert [task.name for task in tasks_for(data, names)] == ([UP_TO_THE_CUT, NOTHING_OPEN] if judged else [])


def test_samples_are_those_of_decode_for_the_same_seed() -> None:
    tokenizer = Tokenizer.train(SOURCE, 384)
    model: Any = build("llama", **family("llama").module.sized(tokenizer.vocab_size, 64, 32, 1))
    found = sample_texts(model, tokenizer, max_tokens=20, n=4, temperature=0.7, top_p=0.95, seed=5)
    rows = generate(
        model.eval(), [[tokenizer.eos]] * 4, max_tokens=20, temperature=0.7, top_p=0.95, seed=5, stop=[tokenizer.eos]
    )
    assert found == [(tokenizer.decode(r.tokens), r.finish_reason == "length", 1, len(r.tokens)) for r in rows]


def test_shares_are_counted_at_equal_lengths_for_all_subjects() -> None:
    samples = [
        GeneratedText("x = 1\n", False),
        GeneratedText("def f(a,\n      b", True),  # open at its cut
        GeneratedText("if x:\n        y\n    z\n", True),  # no Python
        GeneratedText("", False),
    ]
    ngram = ByteNGram.fit([text.encode() for text in SOURCE])
    found = judge_samples(tasks_for("python", n=4), samples, ngram=ngram, held_out=SOURCE, temperature=0.7)
    by = {(result.task, result.subject): result for result in found}
    assert len(by) == 6 and all(result.n == 4 and result.metric == "share" for result in found)
    assert by[UP_TO_THE_CUT, "model"].scores == [1, 1, 0, 1] and by[NOTHING_OPEN, "model"].scores == [1, 0, 0, 1]
    share = by[UP_TO_THE_CUT, "model"]
    assert (share.value, share.low, share.high) == (0.75, *wilson(0.75, 4))
    assert by[UP_TO_THE_CUT, "held_out"].value == 1.0  # real programs, cut anywhere

    lengths = [max(1, len(text.encode())) for text, *_ in samples]
    theirs = ngram_texts(ngram, samples, 0.7)
    assert [text for text, *_ in theirs] == [
        ngram.sample(i, n, 0.7).decode(errors="replace") for i, n in enumerate(lengths)
    ]
    assert all(cut == (len(ngram.sample(i, n, 0.7)) == n) for i, (n, (_, cut, *_)) in enumerate(zip(lengths, theirs)))
    assert [len(text.encode()) for text, *_ in held_out_texts(SOURCE, samples)] == lengths
    assert judge_samples([], samples) == [] and len(judge_samples(tasks_for("python", n=4), samples)) == 2


def test_what_passes_with_nothing_open_is_what_python_parses() -> None:
    """Of whole files of the standard library and of the same files with a bracket taken out."""
    whole = [GeneratedText(text, False) for text in SOURCE]
    broken = [GeneratedText(text[: text.rfind(")")] + text[text.rfind(")") + 1 :], False) for text in SOURCE]
    for texts, passes in ((whole, True), (broken, False)):
        (strict,) = [r for r in judge_samples(tasks_for("python", n=3), texts) if r.task == NOTHING_OPEN]
        for text, score in zip(texts, strict.scores, strict=True):
            try:
                ast.parse(text.text)
                parses = True
            except SyntaxError:
                parses = False
            assert parses == bool(score) == passes


def test_baselines_are_measured_on_the_held_out_text_alone() -> None:
    *training, held_out = SOURCE
    figures, _ = measure_baselines(iter(training), [held_out], max_ngram_bytes=10**6)
    expected = ByteNGram.fit([text.encode() for text in training])
    assert figures["ngram"] == round(expected.bits_per_byte([held_out.encode()]), 5)
    assert {k: v for k, v in figures.items() if k != "ngram"} == {
        k: round(v, 5) for k, v in compression.bits_per_byte([held_out.encode()]).items()
    }
    few, small = measure_baselines(iter(training), [held_out], max_ngram_bytes=1000)
    assert few["ngram"] > figures["ngram"]
    assert small.sample(0, 50) == ByteNGram.fit([training[0].encode()[:1000]]).sample(0, 50)
