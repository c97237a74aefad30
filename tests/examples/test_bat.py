# SPDX-License-Identifier: Apache-2.0
"""The bat question: the triples are of its form, bad ones are one line, and what an encoder says."""

import json

import pytest
import torch

from examples import bat
from examples.programs import run
from foundling.errors import DataError


def test_the_marked_word_is_found() -> None:
    text, start, stop = bat.parse("my **bat** is")
    assert (text, text[start:stop]) == ("my bat is", "bat")
    for sentence in ("my bat", "**a** and **b**"):
        with pytest.raises(DataError, match="expected one"):
            bat.parse(sentence)


def test_the_triples_are_of_the_form_of_the_question() -> None:
    triples = bat.read_triples(bat.TRIPLES)
    assert len(triples) >= 50 and bat.check(bat.QUESTION)
    sentences = [triple[key] for triple in triples for key in "abc"]
    assert len(set(sentences)) == len(sentences) and not set(sentences) & set(bat.QUESTION.values())


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON list of triples"),
        ('[{"a": "x"}]', "is no triple"),
        ('[{"a": "1", "b": "2", "c": 3}]', "is no triple"),
        (json.dumps([{"a": "a **bat**", "b": "a **bird**", "c": "a **cat**"}]), "a and b mark one word"),
        (json.dumps([{"a": "a **bat**", "b": "a **bat**", "c": "the **Bat**"}]), "a and b mark one word"),
    ],
)
def test_bad_triples_are_one_line(content, line, tmp_path, capsys, monkeypatch) -> None:
    file = tmp_path / "triples.json"
    file.write_text(content)
    monkeypatch.setattr("sys.argv", ["bat", "--triples", str(file)])
    with pytest.raises(SystemExit) as ended:
        run(bat.main)
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert line in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_a_missing_file_is_one_line(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["bat", "--triples", str(tmp_path / "no.json")])
    with pytest.raises(SystemExit) as ended:
        run(bat.main)
    assert ended.value.code == 2 and "No such file" in capsys.readouterr().err


def test_other_triples_are_not_written_over_the_published_ones(tmp_path, capsys, monkeypatch) -> None:
    file = tmp_path / "triples.json"
    file.write_text(json.dumps([bat.QUESTION]))
    monkeypatch.setattr("sys.argv", ["bat", "--triples", str(file)])
    with pytest.raises(SystemExit) as ended:
        run(bat.main)
    assert ended.value.code == 2 and "bat.json has results of other settings" in capsys.readouterr().err


def test_the_closest_pair_has_the_largest_cosine() -> None:
    vectors = [torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[0, 1.0], [0.6, 0.8]])]
    pairs = bat.cosines(vectors)
    assert pairs[0] == {"A–B": 1, "A–C": 0, "B–C": 0}
    assert [bat.closest(layer) for layer in pairs] == ["A–B", "B–C"]


def test_the_share_has_an_interval() -> None:
    answers = bat.share(["B–C"] * 8 + ["A–B", "A–C"])
    assert (answers["right"], answers["of"], answers["A–B"]) == (0.8, 10, 1)
    assert (answers["low"], answers["high"]) == (0.49, 0.943)  # Wilson 1927


@pytest.mark.slow
def test_what_a_real_encoder_says() -> None:
    result = bat.measure(bat.read_triples(bat.TRIPLES))
    assert tuple(result) == bat.POOLINGS and all(len(layers) == 7 for layers in result.values())
    assert all(layer["question"] == "A–B" for layer in result["word"].values())  # its own state remembers the word
    for pooling in ("context", "sentence"):
        assert all(layer["question"] == "B–C" for layer in result[pooling].values())
    bag, best = result["context"]["0"]["triples"], result["context"]["3"]["triples"]
    assert best["low"] > bag["right"] > 1 / 3 and best["low"] > 0.75
