# SPDX-License-Identifier: Apache-2.0
"""/v1/moderations: the official client, over real HTTP, gets what the classifier says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from foundling.decode.classify import Classifier
from foundling.errors import ConfigError
from tests.decode.test_fill import sentences
from tests.serve.servers import Live, save_encoder, serving

LABELS = ("spam", "ham", "threat")
TEXTS = sentences()[:8]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("moderate") / "bert", LABELS)


@pytest.fixture(scope="module")
def threshold(directory: Path) -> float:
    """Between the texts, so that some are flagged and some are not."""
    harmful = sorted(1 - answer["scores"]["ham"] for answer in Classifier.load(directory).classify(TEXTS))
    return (harmful[3] + harmful[4]) / 2


@pytest.fixture(scope="module")
def live(directory: Path, threshold: float) -> Iterator[Live]:
    with serving({"filter": directory}, flag_threshold=threshold) as server:
        yield server


def test_labels_are_categories_and_scores_their_probabilities(live: Live, directory: Path, threshold: float) -> None:
    answer = live.client().moderations.create(input=TEXTS)
    assert answer.model == "filter" and answer.id.startswith("modr-") and len(answer.results) == len(TEXTS)
    judged = Classifier.load(directory).classify(TEXTS)
    for result, one in zip(answer.results, judged, strict=True):
        scores: Any = result.category_scores.model_dump(exclude_unset=True)
        assert scores == pytest.approx({k: v for k, v in one["scores"].items() if k != "ham"}, rel=1e-4)
        assert result.flagged == (1 - one["scores"]["ham"] >= threshold)
        categories: Any = result.categories.model_dump(exclude_unset=True)
        assert result.flagged == any(categories.values()) and categories.keys() == {"spam", "threat"}
        if result.flagged:
            assert categories[max(scores, key=scores.__getitem__)]
    assert {result.flagged for result in answer.results} == {True, False}


def test_one_text_and_parts_of_text(live: Live) -> None:
    client = live.client()
    (alone,) = client.moderations.create(input=TEXTS[0], model="filter").results
    (part,) = client.moderations.create(input=[{"type": "text", "text": TEXTS[0]}]).results
    assert alone.category_scores == part.category_scores


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (["fine", "the cat " * 40], "input[1] has more than 32 tokens, which is what filter reads"),
        (["a"] * 257, "input has 257 texts"),
        ([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}], "input"),
        ([], "input"),
    ],
)
def test_what_cannot_be_judged_is_refused(live: Live, text: Any, part: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        live.client().moderations.create(input=text)
    assert part in refused.value.message


def test_a_server_starts_only_where_one_label_means_harmless(tmp_path: Path) -> None:
    directory = save_encoder(tmp_path / "bert", ("toxic", "fine"))
    message = r"of .'toxic', 'fine'. none is called any of ok, .* --harmless LABEL"
    with pytest.raises(ConfigError, match=message), serving({"filter": directory}):
        pass
    with pytest.raises(ConfigError, match="is called nice"), serving({"filter": directory}, harmless=("nice",)):
        pass
    with serving({"filter": directory}, harmless=("fine",)) as live:
        (result,) = live.client().moderations.create(input="the cat").results
        scores: Any = result.category_scores.model_dump(exclude_unset=True)
        assert scores.keys() == {"toxic"}
