# SPDX-License-Identifier: Apache-2.0
"""Several completions of one request: the best, the majority, the first valid one; and the response cache."""

import math
from collections import Counter

import pytest
import torch

from foundling.decode.best_of import best_of, first_valid, majority_vote
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.plain import generate
from foundling.decode.request import Request
from foundling.decode.response_cache import ResponseCache, inconsistency
from foundling.decode.sampling import Sampling
from foundling.errors import GenerationError
from tests.contract.cases import case

MODEL = case("llama").tiny()
PROMPT = list(range(3, 40))


def decode(ids: list[int]) -> str:
    return " ".join(map(str, ids))


def engine() -> Engine:
    return Engine(MODEL, EngineOptions(native=False, max_num_seqs=8, max_step_tokens=64))


REQUEST = Request(PROMPT, 4, Sampling(1.5, top_k=3), seed=5, decode=decode)


def test_the_best_is_the_most_likely_completion_of_plain_decoding() -> None:
    plain = generate(MODEL, [PROMPT], n=6, max_tokens=4, sampling=REQUEST.sampling, seed=5, logprobs=0)
    found = best_of(engine(), REQUEST, 6)
    assert [a.tokens for a in found.completions] == [a.tokens for a in plain]
    assert found.scores == pytest.approx([sum(a.logprobs or []) / 4 for a in plain], abs=1e-4)
    assert found.score == max(found.scores) and found.completions[found.scores.index(found.score)] is found.completion
    chosen = best_of(
        engine(), REQUEST, 6, score=lambda a: math.nan if a.tokens == found.completion.tokens else sum(a.tokens)
    )
    assert chosen.completion.tokens != found.completion.tokens and sum(chosen.completion.tokens) == chosen.score


def test_a_prompt_is_computed_once_for_all_completions() -> None:
    used = engine()
    computed = []
    original = used.runner.forward

    def forward(chunks, n_logits):
        computed.extend(chunk.n_tokens for chunk in chunks)
        return original(chunks, n_logits)

    used.runner.forward = forward  # type: ignore[method-assign]
    best_of(used, REQUEST, 6)
    whole = len(PROMPT) // 16 * 16
    assert sum(computed) == len(PROMPT) + 5 * (len(PROMPT) - whole) + 6 * 3, (
        "the others compute only what fills no block"
    )


def test_the_majority_is_counted() -> None:
    request = Request([5], 1, Sampling(2.0, top_k=3), seed=1, decode=decode)
    texts = Counter(
        decode(a.tokens) for a in generate(MODEL, [[5]], n=30, max_tokens=1, sampling=request.sampling, seed=1)
    )
    found = majority_vote(engine(), request, 30)
    assert found is not None and found.counts == dict(texts) and found.votes == max(texts.values())
    assert found.completion.text == texts.most_common(1)[0][0] and len(texts) == 3
    odd = majority_vote(engine(), request, 30, normalise=lambda text: str(int(text) % 2))
    assert odd is not None and sum(odd.counts.values()) == 30 and len(odd.counts) <= 2
    assert majority_vote(engine(), request, 3, normalise=lambda text: None) is None


def test_the_first_valid_completion_cancels_the_others() -> None:
    plain = generate(MODEL, [PROMPT], n=6, max_tokens=4, sampling=REQUEST.sampling, seed=5)
    wanted = decode(plain[3].tokens)
    used = engine()
    found = first_valid(used, REQUEST, 6, lambda text: text == wanted)
    assert found is not None and found.text == wanted and not used.busy and used.blocks.n_used == 0
    mended = first_valid(used, REQUEST, 2, lambda text: text == "mended", repair=lambda text: "mended")
    assert mended is not None and mended.text == "mended" and mended.n_tried == 1
    assert first_valid(used, REQUEST, 3, lambda text: False) is None and not used.busy


def test_errors_are_one_line() -> None:
    with pytest.raises(GenerationError, match="the same completion 3 times"):
        best_of(engine(), Request([5], 1, Sampling(0)), 3)
    with pytest.raises(GenerationError, match="at least 1"):
        best_of(engine(), REQUEST, 0)
    for ask in (
        lambda: majority_vote(engine(), Request([5], 1), 2),
        lambda: first_valid(engine(), Request([5], 1), 2, bool),
    ):
        with pytest.raises(GenerationError, match="decode"):
            ask()


# --- response cache -------------------------------------------------------------------------------------------------


def test_the_oldest_response_is_evicted_and_kinds_do_not_mix() -> None:
    cache: ResponseCache[int] = ResponseCache(size=2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1 and cache.get("a", kind="other user") is None
    cache.put("c", 3)
    assert cache.get("b") is None and cache.get("a") == 1 and cache.get("c") == 3
    assert (cache.hits, cache.misses, len(cache.responses)) == (3, 2, 2)


def test_a_similar_query_is_found_by_its_embedding() -> None:
    places = {"how old": [1.0, 0.0], "what age": [0.98, 0.199], "where": [0.0, 1.0]}
    cache: ResponseCache[str] = ResponseCache(embed=lambda q: torch.tensor(places[q]), threshold=0.95)
    asked: list[str] = []
    for query in ("how old", "what age", "where", "how old"):
        cache.get_or_compute(query, lambda q: asked.append(q) or q)
    assert asked == ["how old", "where"] and (cache.hits, cache.similar_hits, cache.misses) == (1, 1, 2)
    with pytest.raises(GenerationError, match="embedding"):
        ResponseCache(embed=lambda q: [0.0, 0.0]).get_or_compute("x", str)
    with pytest.raises(GenerationError, match="threshold"):
        ResponseCache(threshold=0.0)


def test_a_cache_removes_inconsistency() -> None:
    """The same queries three times, each with a new seed: completions differ, cached ones do not."""
    used, seeds = engine(), iter(range(1000))
    queries = [[5, n] for n in range(3, 11)]

    def ask(query: str) -> tuple[int, ...]:
        prompt = [int(i) for i in query.split()]
        return tuple(used.generate([Request(prompt, 3, Sampling(1.2), seed=next(seeds))])[0].tokens)

    fresh = [[ask(decode(q)) for _ in range(3)] for q in queries]
    cache: ResponseCache[tuple[int, ...]] = ResponseCache()
    again = [[cache.get_or_compute(decode(q), ask) for _ in range(3)] for q in queries]
    assert inconsistency(fresh) > 0.5 and inconsistency(again) == 0.0
    assert inconsistency([["a", "a", "b"]]) == pytest.approx(2 / 3)
    with pytest.raises(GenerationError, match="twice"):
        inconsistency([["a"]])
