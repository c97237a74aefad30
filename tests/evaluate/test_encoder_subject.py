# SPDX-License-Identifier: Apache-2.0
"""Texts that a masked encoder scores, against transformers' logits with each token masked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from foundling.errors import ConfigError, GenerationError
from foundling.evaluate.encoder import EncoderSubject
from foundling.evaluate.evaluation import evaluate
from foundling.evaluate.recorded import replay
from foundling.evaluate.runners import run
from foundling.evaluate.subject import LikelihoodRequest
from foundling.evaluate.subjects import load_subject
from foundling.evaluate.task_file import texts_of
from foundling.text import Tokenizer
from tests.evaluate.encoders import TEXTS, bert
from tests.evaluate.test_retrieval import no_bar

LONG = " ".join(TEXTS * 3)


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("masked")


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Any:
    return bert(directory, "ForMaskedLM")


@torch.no_grad()
def nats(theirs: Any, tokenizer: Tokenizer, text: str) -> list[float]:
    """−ln p of each token in its window of 22, by one forward pass each."""
    ids, values = tokenizer.encode(text), []
    (first,), (last,) = tokenizer.frame
    for at, token in enumerate(ids):
        window = [first, *ids[at // 22 * 22 : at // 22 * 22 + 22], last]
        window[1 + at % 22] = tokenizer.mask
        values.append(-float(theirs(torch.tensor([window])).logits[0, 1 + at % 22].double().log_softmax(-1)[token]))
    return values


def test_every_token_is_masked_once(directory: Path, theirs: Any) -> None:
    tokenizer, subject = Tokenizer.load(directory), load_subject(directory, positions=200)
    assert isinstance(subject, EncoderSubject) and subject.serves == ("perplexity", "retrieve")
    answers = dict(subject.rolling([*TEXTS, LONG, ""]))
    for index, text in enumerate([*TEXTS, LONG]):
        expected = nats(theirs, tokenizer, text)
        assert answers[index].logprob == pytest.approx(-sum(expected), abs=1e-3)
        assert answers[index].n_masked == answers[index].n_tokens == len(expected)
    assert (answers[5].logprob, answers[5].n_tokens, answers[5].n_masked) == (0.0, 0, 0)
    assert len(tokenizer.encode(LONG)) > 44, "three windows"


def test_a_stated_number_of_positions_is_a_sample(directory: Path, theirs: Any) -> None:
    tokenizer = Tokenizer.load(directory)
    every = nats(theirs, tokenizer, LONG)
    estimates = list[float]()
    for seed in range(40):
        loaded = load_subject(directory)
        subject = EncoderSubject(loaded.model, loaded.tokenizer, positions=10, seed=seed)
        ((_, answer),) = subject.rolling([LONG])
        assert answer.n_masked == 10 and answer.n_tokens == len(every)
        estimates.append(-answer.logprob / len(every))
    assert len(set(estimates)) > 30
    mean, spread = sum(every) / len(every), torch.tensor(every).std() / math.sqrt(10 * 40)
    assert abs(sum(estimates) / 40 - mean) < 4 * float(spread)
    again = [dict(load_subject(directory, positions=10).rolling(texts)) for texts in ([LONG], [TEXTS[0], LONG])]
    assert again[0][0].logprob == pytest.approx(again[1][1].logprob), "what is drawn depends on the text alone"


def test_the_figures_have_names_of_their_own(directory: Path, theirs: Any, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for i, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{i}.txt").write_text(text)
    task, tokenizer = texts_of(tmp_path / "texts"), Tokenizer.load(directory)
    result = run(task, load_subject(directory)).result
    every = [value for text in TEXTS for value in nats(theirs, tokenizer, text)]
    n_bytes = sum(len(text.encode()) for text in TEXTS)
    assert result.metric == "pseudo bits per byte" and result.value == pytest.approx(sum(every) / math.log(2) / n_bytes)
    assert result.figures["pseudo-perplexity"][0] == pytest.approx(math.exp(sum(every) / len(every)))
    assert result.figures["masked positions"][0] == result.figures["tokens of the texts"][0] == len(every)
    assert result.hashes["task"] != task.hashes()["task"], "no likelihood is compared with it"
    answers = tmp_path / "answers.jsonl"
    first = evaluate(load_subject(directory), [task], answers, bar=no_bar).results[0]
    again = run(task, replay(answers)).result
    assert again.metric == first.metric and again.value == first.value == result.value


def test_what_an_encoder_cannot_do_is_refused_by_name(directory: Path, theirs: Any, tmp_path: Path) -> None:
    subject = load_subject(directory, name="tiny")
    with pytest.raises(
        GenerationError, match=r"tiny is an encoder: .*choice.*it does tasks of kind perplexity, retrie"
    ):
        list(subject.loglikelihood([LikelihoodRequest("a", " b")]))
    with pytest.raises(GenerationError, match="reads no pictures"):
        list(subject.match([]))
    bert(tmp_path, "Model")
    headless = load_subject(tmp_path)
    assert headless.serves == ("retrieve",)
    with pytest.raises(GenerationError, match="predicts no masked tokens"):
        list(headless.rolling(TEXTS))
    with pytest.raises(ConfigError, match="positions is 0"):
        load_subject(directory, positions=0)
