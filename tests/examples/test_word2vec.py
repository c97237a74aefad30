# SPDX-License-Identifier: Apache-2.0
"""Word vectors: what is drawn, a step against autograd over the pairs one by one, scores by hand, bad input."""

import json
import math

import pytest
import torch
from scipy import stats
from torch.nn.functional import logsigmoid

from examples import word_vectors
from examples.generated_relations import known_questions, sentences
from examples.word2vec import Model, Options, Positions, Text, draw_positions, train
from examples.word_scores import Vectors, analogies, credit, questions, ratings, similarity, spearman
from examples.word_training import gensim_models, read_sentences
from foundling.errors import ConfigError, DataError
from foundling.objectives.skipgram import keep_probability, noise_distribution


def drawn(text: Text, o: Options, seed: int = 0) -> Positions:
    noise = noise_distribution(text.counts).cumsum(0).float()
    return draw_positions(text, o, noise, torch.Generator().manual_seed(seed))


def test_words_are_numbered_by_frequency_and_rare_ones_left_out() -> None:
    text = Text([["b", "a", "b"], ["c"], ["a", "b"]], min_count=2)
    assert (text.words, text.counts.tolist(), text.n_words) == (["b", "a"], [3, 2], 6)
    assert (text.ids.tolist(), text.lengths.tolist()) == ([0, 1, 0, 1, 0], [3, 0, 2])
    with pytest.raises(ConfigError, match="1 words occur 3 times or more"):
        Text([["a", "a", "a", "b"]], min_count=3)


def test_the_reach_of_windows_is_uniform() -> None:
    text = Text([["a", "b"] * 10_000], min_count=1)
    o = Options(sample=0)
    pairs = drawn(text, o).pairs.flatten()[o.window : len(text.ids) - o.window]  # both sides whole
    assert set((pairs % 2).tolist()) == {0}
    counts = torch.bincount((pairs / 2).long(), minlength=o.window + 1)
    assert counts[0] == 0 and stats.chisquare(counts[1:].numpy()).pvalue > 0.01


def test_words_are_kept_as_often_as_they_should_be() -> None:
    text = Text([["a"] * 900 + ["b"] * 90 + ["c"] * 10] * 20, min_count=1)
    o = Options(sample=0.05)
    p = drawn(text, o)
    drawn_words = torch.bincount(p.ids.flatten()[p.pairs.flatten() > 0], minlength=3)
    keep = keep_probability(text.counts, o.sample).double()
    assert keep[2] == 1 and 0.1 < keep[0] < 0.5
    for word in (0, 1):
        n, share = int(text.counts[word]), float(keep[word])
        assert stats.binomtest(int(drawn_words[word]), n, share).pvalue > 0.01
    assert drawn_words[2] == text.counts[2]


def test_negatives_follow_the_noise_distribution() -> None:
    text = Text([["a"] * 800 + ["b"] * 150 + ["c"] * 50] * 10, min_count=1)
    negatives = drawn(text, Options(sample=0, shared=64)).negatives.flatten()
    expected = noise_distribution(text.counts).numpy() * len(negatives)
    assert stats.chisquare(torch.bincount(negatives, minlength=3).numpy(), expected).pvalue > 0.01


def pairs_of(p: Positions, o: Options) -> list[tuple[int, int, int, int]]:
    """(block, position, word, word reached) of all positions, by the masks that a step uses."""
    masks = Model(9, o, torch.Generator()).masks
    result = []
    for block in range(len(p.ids)):
        for at in range(o.block):
            reached = masks[p.reach[block, at]].nonzero().flatten()
            result += [(block, at, int(p.ids[block, at]), int(p.context[block, j])) for j in reached]
    return result


def test_windows_end_with_their_sentence() -> None:
    rows = [[f"s{n}.{at}" for at in range(7)] for n in range(9)]
    text, o = Text(rows, min_count=1), Options(sample=0, window=3, block=4, blocks=2)
    p = drawn(text, o)
    pairs = [(text.words[a], text.words[b]) for _, _, a, b in pairs_of(p, o)]
    assert len(pairs) == int(p.pairs.sum()) > 200
    for a, b in pairs:
        (sentence, at), (other, place) = a.split("."), b.split(".")
        assert sentence == other and 1 <= abs(int(at) - int(place)) <= 3


OPTIONS = Options(sample=0, window=2, block=4, blocks=2, shared=3, negatives=5, width=6)


def stepped(o: Options) -> tuple[Positions, Model, torch.Tensor, torch.Tensor]:
    """A step with rate 1 in float64, and the tables before it."""
    text = Text([list("abcaadcb")], min_count=1)
    p = drawn(text, o)
    model = Model(len(text.words), o, torch.Generator().manual_seed(1))
    draw = torch.Generator().manual_seed(2)
    for name in ("inputs", "outputs"):
        setattr(model, name, torch.randn(len(text.words), o.width, generator=draw, dtype=torch.double))
    for name in ("masks", "weights", "cbow_weights", "own"):
        setattr(model, name, getattr(model, name).double())
    p.pairs = p.pairs.double()
    before = model.inputs.clone().requires_grad_(), model.outputs.clone().requires_grad_()
    model.step(p, slice(0, o.blocks), 1.0)
    return p, model, *before


def test_a_step_is_the_gradient_over_all_pairs() -> None:
    o = OPTIONS
    p, model, inputs, outputs = stepped(o)
    loss = torch.zeros((), dtype=torch.double)
    for block, _, word, other in pairs_of(p, o):
        loss = loss - logsigmoid(inputs[word] @ outputs[other])
        for negative in p.negatives[block]:
            loss = loss - o.negatives / o.shared * logsigmoid(-inputs[word] @ outputs[negative])
    loss.backward()
    torch.testing.assert_close(model.inputs, inputs.detach() - inputs.grad)
    torch.testing.assert_close(model.outputs, outputs.detach() - outputs.grad)


def test_a_step_of_cbow_gives_each_word_the_gradient_of_the_mean() -> None:
    o = Options(**{**vars(OPTIONS), "cbow": True})
    p, model, inputs, outputs = stepped(o)
    around: dict[tuple[int, int, int], list[int]] = {}
    for block, at, word, other in pairs_of(p, o):
        around.setdefault((block, at, word), []).append(other)
    loss, means = torch.zeros((), dtype=torch.double), []
    for (block, _, word), others in around.items():
        mean = inputs[others].mean(0).detach().requires_grad_()
        means.append((mean, others))
        loss = loss - logsigmoid(mean @ outputs[word])
        for negative in p.negatives[block]:
            loss = loss - o.negatives / o.shared * logsigmoid(-mean @ outputs[negative])
    loss.backward()
    expected = inputs.detach().clone()
    for mean, others in means:
        for other in others:
            expected[other] -= mean.grad
    torch.testing.assert_close(model.inputs, expected)
    torch.testing.assert_close(model.outputs, outputs.detach() - outputs.grad)


def test_the_same_seed_gives_the_same_vectors() -> None:
    text = Text(sentences(200))
    first, again = (train(text, Options(epochs=1, width=8, seed=3)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, train(text, Options(epochs=1, width=8, seed=4)))
    assert train(text, Options(epochs=1, width=8, threads=2)).isfinite().all()


# --- scores ----------------------------------------------------------------------------------------------------------

PLANE = Vectors.of(["man", "woman", "king", "queen", "tree"], torch.tensor([[1, 1], [1, -1], [3, 1], [3, -1], [-1, 0]]))


def test_an_analogy_by_hand() -> None:
    sections = {"family": [("man", "woman", "king", "queen"), ("man", "woman", "king", "tree"), ("man", "a", "b", "c")]}
    assert analogies(PLANE, sections) == {"accuracy": 0.5, "questions": 2}
    # nearest to woman − man + king would be woman, which is in the question
    assert [word for word, _ in PLANE.nearest(["woman", "king"], ["man"], 1)] == ["queen"]
    assert [PLANE.rank(word, ["woman", "king"], ["man"]) for word in ("queen", "tree")] == [1, 2]
    assert analogies(PLANE, sections, n_words=4) == {"accuracy": 1.0, "questions": 1}


def test_one_hot_vectors_guess() -> None:
    words = PLANE.words
    sections = {"family": [("man", "woman", "king", "queen"), ("tree", "woman", "king", "queen")]}
    assert analogies(Vectors(words, None), sections)["accuracy"] == 0.5  # one of the two words that are left
    eye = torch.eye(5)
    a, b, c = torch.tensor([0, 4]), torch.tensor([1, 1]), torch.tensor([2, 1])
    expected = Vectors(words, eye).analogy_scores(a, b, c)
    assert torch.equal(Vectors(words, None).analogy_scores(a, b, c), expected)


def test_equal_scores_share_the_credit() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    assert credit(scores, torch.tensor([0, 2, 1])).tolist() == [0.5, 0, 1]


def test_spearman_is_that_of_scipy() -> None:
    x, y = [3.0, 1, 4, 1, 5, 9, 2, 6], [2.0, 7, 1, 8, 2, 8, 1, 8]
    assert spearman(x, y) == pytest.approx(float(stats.spearmanr(x, y).statistic))
    assert spearman([1.0, 1, 1], [1.0, 2, 3]) == 0


def test_similarity_leaves_out_what_it_does_not_know() -> None:
    rows = [("man", "woman", 5.0), ("king", "queen", 8.0), ("king", "tree", 1.0), ("king", "house", 9.0)]
    assert similarity(PLANE, rows) == {"spearman": pytest.approx(1.0), "pairs": 3}


# --- the program -----------------------------------------------------------------------------------------------------


def test_a_missing_peer_or_text_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gensim", None)
    with pytest.raises(ConfigError, match="pip install --no-deps --target DIR gensim"):
        gensim_models(None)
    with pytest.raises(DataError, match="give a text file"):
        read_sentences(tmp_path / "nothing.txt")


@pytest.mark.parametrize("wrong", [{"width": 0}, {"epochs": 0}, {"sample": 1.0}, {"rate": math.nan}, {"last_rate": 1}])
def test_bad_options_are_named(wrong) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Options(**wrong)


@pytest.mark.slow
def test_analogies_of_known_relations_are_right_and_one_hot_vectors_guess(tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "words.json"
    monkeypatch.setattr("sys.argv", ["word_vectors", "--small", "--out", str(out)])
    word_vectors.main()
    measured = json.loads(out.read_text())["generated"]
    assert measured["skip-gram"] >= 90 and measured["CBOW"] >= 90
    assert measured["one-hot"] == pytest.approx(measured["chance"], abs=0.001)
    assert measured["chance"] < 1
    printed = capsys.readouterr().out
    assert (
        f"| skip-gram | {measured['skip-gram']} % |" in printed and f"| one-hot | {measured['one-hot']} % |" in printed
    )


def test_known_questions_differ_in_one_thing_at_a_time() -> None:
    for a, b, c, d in known_questions(50)["generated"]:
        (i, f), (j, g), (k, h), (m, n) = (word.removeprefix("word").split(".") for word in (a, b, c, d))
        assert i == j != k == m and f == h != g == n


@pytest.mark.slow
def test_the_published_questions_and_ratings_are_all_there() -> None:
    sections = questions()
    assert len(sections) == 14 and sum(map(len, sections.values())) == 19_544
    assert sections["family"][0] == ("boy", "girl", "brother", "sister")
    assert (len(ratings("wordsim353.tsv")), len(ratings("simlex999.txt"))) == (353, 999)
