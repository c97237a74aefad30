# SPDX-License-Identifier: Apache-2.0
"""Answers of a model directory: the same for the same seed, whatever else is asked, and not computed twice."""

from pathlib import Path

import pytest

from foundling.decode.text import TextGenerator
from foundling.errors import GenerationError
from foundling.evaluate.answers import PromptRow, Sampler, answer_all
from tests.serve.servers import save_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("answers") / "tiny", max_seq_len=64)


def sampler(directory: Path, batch_size: int = 32, **sampling: float) -> Sampler:
    generator = TextGenerator.load(directory, **({"temperature": 1.3} | sampling))
    return Sampler(generator, name="tiny", batch_size=batch_size)


def rows(*texts: str) -> list[PromptRow]:
    return [PromptRow([{"role": "user", "content": text}], {"prompt": text}) for text in texts]


def test_an_answer_depends_on_its_own_request_alone(directory: Path, tmp_path: Path) -> None:
    prompts, steps = rows("the cat", "a dog", "a mat"), list[int]()
    whole, skipped = answer_all(sampler(directory), prompts, tmp_path / "a.jsonl", n=3, max_tokens=6,
                                on_answer=lambda: steps.append(1))  # fmt: skip
    assert not skipped and len(steps) == 9 and len({a.text for one in whole for a in one.answers}) > 4
    for batch_size, path, some, n in ((1, "b", prompts, 3), (2, "c", prompts[::-1], 2)):
        others, _ = answer_all(sampler(directory, batch_size), some, tmp_path / path, n=n, max_tokens=6)
        expected = {one.prompt.text: one.answers[:n] for one in whole}
        assert {one.prompt.text: one.answers for one in others} == expected
    framing = sampler(directory).framing
    generator = TextGenerator.load(directory, temperature=1.3)
    own = generator.chat(prompts[0].messages, max_tokens=6, seed=int(prompts[0].digest(0, 1)[:15], 16))
    assert own[0]["text"] == whole[0].answers[1].text and framing.tokenizer.chat_template
    other_seed, _ = answer_all(sampler(directory), prompts, tmp_path / "d.jsonl", n=3, seed=1, max_tokens=6)
    assert [one.answers for one in other_seed] != [one.answers for one in whole]


def test_recorded_answers_are_not_computed_again(directory: Path, tmp_path: Path) -> None:
    path, one = tmp_path / "a.jsonl", sampler(directory)
    first, _ = answer_all(one, rows("the cat"), path, n=2, max_tokens=4)
    size = path.stat().st_size
    more, _ = answer_all(sampler(directory), rows("the cat", "a dog"), path, n=3, max_tokens=4)
    assert more[0].answers[:2] == first[0].answers and len(path.read_text().splitlines()) == 6 > 2
    answer_all(sampler(directory), rows("the cat"), path, n=2, max_tokens=4)
    assert len(path.read_text().splitlines()) == 6 and size < path.stat().st_size
    other, _ = answer_all(sampler(directory, top_k=2), rows("the cat"), path, n=2, max_tokens=4)
    assert len(path.read_text().splitlines()) == 8, other  # other sampling, other answers


def test_what_leaves_no_place_is_skipped_and_what_cannot_vary_is_refused(directory: Path, tmp_path: Path) -> None:
    prompts = rows("the cat " * 30, "a")
    samples, skipped = answer_all(sampler(directory), prompts, tmp_path / "a.jsonl", n=2)
    assert [one.prompt.text for one in samples] == ["a"]
    assert skipped == {"a prompt that leaves no place for an answer": 1}
    place = sampler(directory).place(prompts[1].messages)  # pyright: ignore[reportArgumentType]
    assert [answer.n_tokens for answer in samples[0].answers] == [place, place] and 0 < place < 64
    with pytest.raises(GenerationError, match="all 1 prompts are too long: the model reads 64 tokens"):
        answer_all(sampler(directory), prompts[:1], tmp_path / "a.jsonl", n=2)
    with pytest.raises(GenerationError, match="temperature 0 gives the same answer 2 times"):
        answer_all(sampler(directory, temperature=0.0), prompts, tmp_path / "a.jsonl", n=2)
