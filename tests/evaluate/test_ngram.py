# SPDX-License-Identifier: Apache-2.0
"""The n-gram model against formulas worked by hand, a slow dictionary-based reference, and real text."""

import sysconfig
from collections import Counter
from functools import cache
from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from foundling.errors import ConfigError, DataError
from foundling.evaluate.baselines import ngram
from foundling.evaluate.baselines.ngram import ByteNGram

END = 256
FEW_LETTERS = st.lists(st.sampled_from(b"abc\x00\xff"), max_size=30).map(bytes)
CORPORA = st.lists(FEW_LETTERS, min_size=1, max_size=6)


class Reference:
    """Modified Kneser-Ney from dictionaries of tuples; "^" begins a document and 256 ends it."""

    def __init__(self, documents, order):
        self.order = order
        occurrences = Counter()
        for document in documents:
            sequence = ("^", *document, END)
            for k in range(1, order + 1):
                occurrences.update(sequence[i : i + k] for i in range(len(sequence) - k + 1))
        del occurrences[("^",)]  # never predicted
        distinct_before = Counter(gram[1:] for gram in occurrences)
        self.count = {
            gram: n if len(gram) == order or gram[0] == "^" else distinct_before[gram]
            for gram, n in occurrences.items()
        }
        self.discounts = {
            k: self.estimate([a for g, a in self.count.items() if len(g) == k]) for k in range(1, order + 1)
        }
        self.followers = {}
        for gram in self.count:
            self.followers.setdefault(gram[:-1], []).append(gram)

    @staticmethod
    def estimate(counts):
        n = Counter(counts)
        if n[1] and n[2] and n[3]:
            y = n[1] / (n[1] + 2 * n[2])
            d1, d2, d3 = 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]
            if 0 < d1 < 1 and 0 < d2 < 2 and 0 < d3 < 3:
                return d1, d2, d3
        return 0.5, 1.0, 1.5

    def probability(self, symbol, context):
        """P(symbol | context), a tuple of at most order-1 symbols."""
        lower = self.probability(symbol, context[1:]) if context else 1 / 257
        if context not in self.followers:
            return lower
        discounts = self.discounts[len(context) + 1]
        counts = [self.count[gram] for gram in self.followers[context]]
        n1, n2, n3 = counts.count(1), counts.count(2), sum(a >= 3 for a in counts)
        gamma = (discounts[0] * n1 + discounts[1] * n2 + discounts[2] * n3) / sum(counts)
        a = self.count.get((*context, symbol), 0)
        kept = a - discounts[min(a, 3) - 1] if a else 0
        return kept / sum(counts) + gamma * lower

    def distribution(self, prefix):
        context = ("^", *prefix)[-(self.order - 1) :]
        return np.array([self.probability(symbol, context) for symbol in range(257)])

    def nats(self, document):
        sequence = ("^", *document, END)
        return -sum(
            log(self.probability(sequence[i], sequence[max(0, i - self.order + 1) : i]))
            for i in range(1, len(sequence))
        )


@cache
def standard_library():
    """(train, held out): some 80 modules of the running Python, every fifth held out."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[::2]
    documents = [path.read_bytes() for path in paths]
    return [d for i, d in enumerate(documents) if i % 5], documents[::5]


def test_unigrams_worked_by_hand():
    # Counts: a b c and the end 1, d e 2, f 3, g 4, of 15. n1 = 4, n2 = 2, n3 = n4 = 1, Y = 4 / (4 + 2·2) = 1/2,
    # D1 = 1 - 2·½·2/4 = 1/2, D2 = 2 - 3·½·1/2 = 5/4, D3+ = 3 - 4·½·1/1 = 1.
    # Left over: (4·½ + 2·5/4 + 2·1) / 15 = 6.5/15.
    p = ByteNGram.fit([b"abcddeefffgggg"], order=1).distribution(b"")
    unseen = 6.5 / 15 / 257
    assert p[ord("z")] == pytest.approx(unseen, rel=1e-12)
    assert p[END] == p[ord("a")] == pytest.approx(0.5 / 15 + unseen, rel=1e-12)
    assert p[ord("d")] == pytest.approx(0.75 / 15 + unseen, rel=1e-12)
    assert p[ord("f")] == pytest.approx(2 / 15 + unseen, rel=1e-12)
    assert p[ord("g")] == pytest.approx(3 / 15 + unseen, rel=1e-12)


def test_bigrams_worked_by_hand():
    # "ab" and "aa": ^a twice, ab, aa, b$, a$ once; too few for estimates, so discounts are 1/2, 1, 3/2.
    # Distinct symbols before a: {^, a}, b: {a}, $: {a, b}, of 5; unigrams leave (1 + ½ + 1) / 5 = 1/2.
    model = ByteNGram.fit([b"ab", b"aa"], order=2)
    unseen = 0.5 / 257
    a, b, end = 1 / 5 + unseen, 0.5 / 5 + unseen, 1 / 5 + unseen
    assert model.distribution(b"?")[[ord("a"), ord("b"), END, 0]] == pytest.approx([a, b, end, unseen], rel=1e-12)
    a_first = (2 - 1) / 2 + 1 / 2 * a
    b_after_a = (1 - 0.5) / 3 + 1.5 / 3 * b
    end_after_b = (1 - 0.5) / 1 + 0.5 / 1 * end
    assert model.nats(b"ab") == pytest.approx(-log(a_first) - log(b_after_a) - log(end_after_b), rel=1e-12)


@settings(deadline=None, max_examples=150)
@given(documents=CORPORA, prefix=FEW_LETTERS, order=st.integers(1, 7))
def test_probabilities_are_positive_and_sum_to_one_after_any_prefix(documents, prefix, order):
    model = ByteNGram.fit(documents, order)
    for context in (prefix, documents[0], b"unseen" + prefix):
        p = model.distribution(context)
        assert p.shape == (257,) and (p > 0).all() and abs(p.sum() - 1) < 1e-9


@settings(deadline=None, max_examples=100)
@given(documents=CORPORA, document=FEW_LETTERS, order=st.integers(1, 7))
def test_code_length_is_the_sum_over_the_distributions(documents, document, order):
    model = ByteNGram.fit(documents, order)
    by_symbol = [-log(model.distribution(document[:i])[s]) for i, s in enumerate([*document, END])]
    assert model.nats(document) == pytest.approx(sum(by_symbol), abs=1e-9)


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("n_letters, mean_length", [(3, 3), (6, 40), (40, 200)])
def test_agrees_with_the_reference(order, n_letters, mean_length):
    generator = np.random.default_rng([order, n_letters])
    weights = 1 / np.arange(1, n_letters + 1)

    def draw():
        length = generator.poisson(mean_length)
        return generator.choice(n_letters, length, p=weights / weights.sum()).astype(np.uint8).tobytes()

    documents = [draw() for _ in range(12)]
    model, reference = ByteNGram.fit(documents, order), Reference(documents, order)
    if n_letters == 40:  # large enough that the estimated discounts are what is compared
        assert reference.discounts[order] != (0.5, 1.0, 1.5)
    for document in [*documents[:3], draw(), b"", b"\xff\xfe"]:
        assert abs(model.nats(document) - reference.nats(document)) < 1e-10 * (len(document) + 1)
        for cut in range(min(len(document), 8) + 1):
            np.testing.assert_allclose(
                model.distribution(document[:cut]), reference.distribution(document[:cut]), rtol=0, atol=1e-10
            )


@settings(deadline=None, max_examples=60)
@given(documents=CORPORA, prefix=FEW_LETTERS, order=st.integers(2, 4))
def test_agrees_with_the_reference_on_tiny_corpora(documents, prefix, order):
    expected = Reference(documents, order).distribution(prefix)
    np.testing.assert_allclose(ByteNGram.fit(documents, order).distribution(prefix), expected, rtol=0, atol=1e-10)


def test_neither_the_chunks_counted_at_once_nor_the_order_of_documents_matter(monkeypatch):
    train, held_out = standard_library()
    whole = ByteNGram.fit(train[:20], order=5).nats(held_out[0])
    assert ByteNGram.fit(train[:20][::-1], order=5).nats(held_out[0]) == whole
    monkeypatch.setattr(ngram, "_CHUNK", 1009)
    assert ByteNGram.fit(train[:20], order=5).nats(held_out[0]) == whole


def test_higher_orders_do_better_on_real_text():
    train, held_out = standard_library()
    by_order = [ByteNGram.fit(train, order).bits_per_byte(held_out) for order in range(1, 7)]
    assert all(higher < lower for lower, higher in pairwise(by_order)), by_order
    assert by_order[0] < 5 and by_order[-1] < 2.2


def test_bits_per_byte_pools_the_code_lengths():
    model = ByteNGram.fit([b"abracadabra"], order=3)
    documents = [b"abra", b"", b"cadabra"]
    assert model.bits_per_byte(documents) == pytest.approx(sum(map(model.nats, documents)) / log(2) / 11, rel=1e-12)


def test_a_sample_is_reproducible_and_the_model_finds_it_likely():
    train, held_out = standard_library()
    model = ByteNGram.fit(train)
    text = model.sample(seed=3, max_bytes=1000)
    assert 0 < len(text) <= 1000
    assert text == model.sample(seed=3, max_bytes=1000) != model.sample(seed=4, max_bytes=1000)
    assert text[:100] == model.sample(seed=3, max_bytes=100)
    assert 0 < model.bits_per_byte([text]) < 1.3 * model.bits_per_byte(held_out)  # finite, and not of another kind


def test_sampled_bytes_have_the_frequencies_of_the_model():
    model = ByteNGram.fit([b"abcaabbbb" * 500], order=1)
    drawn = Counter(b"".join(model.sample(seed, max_bytes=1000) for seed in range(8)))
    p = model.distribution(b"")
    observed = [drawn[ord(c)] for c in "abc"]
    expected = p[list(b"abc")] / p[list(b"abc")].sum() * sum(observed)
    assert sum(observed) > 0.99 * drawn.total() and chisquare(observed, expected).pvalue > 1e-3


def test_documents_begin_and_end_as_the_model_says():
    model = ByteNGram.fit([b"a", b"a", b"ab", b"abc", b"b", b""], order=3)
    drawn = Counter(model.sample(seed, max_bytes=1) for seed in range(3000))
    expected = {bytes([s]): model.distribution(b"")[s] for s in b"ab"} | {b"": model.distribution(b"")[END]}
    observed = np.array([drawn[text] for text in expected] + [sum(n for t, n in drawn.items() if t not in expected)])
    likely = np.array(list(expected.values()))
    assert chisquare(observed, 3000 * np.append(likely, 1 - likely.sum())).pvalue > 1e-3


def test_a_low_temperature_takes_the_likeliest_symbol():
    model = ByteNGram.fit(standard_library()[0][:20], order=4)
    text = model.sample(seed=0, max_bytes=60, temperature=1e-4)
    assert text and all(model.distribution(text[:i]).argmax() == symbol for i, symbol in enumerate(text))


@pytest.mark.parametrize("order", [0, 8, -1])
def test_an_impossible_order_is_refused(order):
    with pytest.raises(ConfigError, match=f"order {order} .* 1 to 7"):
        ByteNGram.fit([b"abc"], order)


def test_nothing_to_count_or_to_measure_is_refused():
    with pytest.raises(DataError, match="no documents"):
        ByteNGram.fit([])
    model = ByteNGram.fit([b""])
    with pytest.raises(DataError, match="0 bytes"):
        model.bits_per_byte([b""])
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="temperature"):
            model.sample(seed=0, max_bytes=5, temperature=temperature)
