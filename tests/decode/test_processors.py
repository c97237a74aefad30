# SPDX-License-Identifier: Apache-2.0
"""Penalties, biases, forbidden words, stops and log-probabilities against transformers and by hand."""

import math

import pytest
import torch
from scipy.stats import chisquare

import foundling
from foundling.decode.plain import generate
from foundling.decode.processors import BadWords, LogitBias, Penalties, build_processors
from foundling.decode.request import Completion, Request
from foundling.decode.sampling import Sampling, choose_tokens, compute_probs
from foundling.decode.sequence_state import SequenceState, choose_next_tokens, token_logprobs
from foundling.decode.speculative import PromptLookupProposer, speculate
from foundling.decode.text import TextStreamer
from foundling.errors import GenerationError
from foundling.text import Tokenizer
from tests.contract.cases import case

transformers = pytest.importorskip("transformers")
PROMPT = [5, 9, 11, 9, 5, 9]


def through(processors, prompt, answer, logits: torch.Tensor) -> torch.Tensor:
    states = [p.start(prompt) for p in processors]
    for token in answer:
        for state in states:
            state.accept(token)
    for state in [state.copy() for state in states]:
        before = logits.clone()
        changed = state.apply(logits)
        assert torch.equal(before, logits), "the logits are not modified"
        logits = changed
    return logits


@pytest.mark.parametrize("answer", [[], [9], [3, 5, 9]])
def test_penalties_and_forbidden_words_are_those_of_transformers(answer: list[int]) -> None:
    logits = torch.randn(2, 20, generator=torch.Generator().manual_seed(len(answer)))[:1]
    ids = torch.tensor([PROMPT + answer])
    words = [[4], [5, 9, 7], [9, 11], [9, 3], [1, 2, 3, 4, 5, 6, 7, 8]]
    theirs = logits.clone()
    for processor in (
        transformers.SequenceBiasLogitsProcessor({(6,): 1.5, (9,): -4.0}),
        transformers.RepetitionPenaltyLogitsProcessor(1.7),
        transformers.NoBadWordsLogitsProcessor(words),
    ):
        theirs = processor(ids, theirs)
    sampling = Sampling(repetition_penalty=1.7, logit_bias={6: 1.5, 9: -4.0}, bad_words=words)
    torch.testing.assert_close(through(build_processors(sampling), PROMPT, answer, logits[0]), theirs[0])


def test_presence_and_frequency_count_the_answer_alone() -> None:
    logits = torch.zeros(12)
    changed = through([Penalties(1, 0.5, 0.25)], PROMPT, [3, 7, 3], logits)
    expected = torch.zeros(12)
    expected[3], expected[7] = -0.5 - 2 * 0.25, -0.5 - 0.25
    assert torch.equal(changed, expected)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(min_p=0.1),
        Sampling(temperature=0.6, top_k=12, top_p=0.9, min_p=0.05),
        Sampling(temperature=2.0, top_p=0.99),
        Sampling(top_k=1),
        Sampling(top_p=1e-9),
        Sampling(temperature=1e-30),
    ],
)
def test_cuts_are_those_of_transformers(sampling: Sampling) -> None:
    logits = torch.randn(7, 600, generator=torch.Generator().manual_seed(1)) * 3
    s, scores = sampling, logits.double() / sampling.temperature
    if s.top_k:
        scores = transformers.TopKLogitsWarper(s.top_k)(None, scores)
    if s.top_p < 1:
        scores = transformers.TopPLogitsWarper(s.top_p)(None, scores)
    if s.min_p:
        scores = transformers.MinPLogitsWarper(s.min_p)(None, scores)
    torch.testing.assert_close(compute_probs(logits, s.params).double(), scores.softmax(-1), rtol=1e-4, atol=1e-6)


def test_a_flat_nucleus_is_whole_and_counts_ties_once() -> None:
    probs = compute_probs(torch.zeros(1, 1000), Sampling(top_p=0.5).params)
    assert int((probs > 0).sum()) == 500 and float(probs.max()) == pytest.approx(1 / 500)


def test_rows_of_one_batch_are_each_drawn_after_their_own_sampling() -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -4.0])
    kinds = [Sampling(0), Sampling(min_p=0.3), Sampling(0.5, top_k=3), Sampling(2.0, top_p=0.7)]
    n = 3000
    params = [kinds[row % 4].params for row in range(4 * n)]
    drawn = torch.tensor(choose_tokens(logits.expand(4 * n, -1), params, list(range(4 * n)), [3] * (4 * n)))
    for which, sampling in enumerate(kinds):
        exact = compute_probs(logits[None], sampling.params)[0].double()
        counts = torch.bincount(drawn[which::4], minlength=6)
        assert not counts[exact == 0].any()
        expected = exact[exact > 0] / exact.sum() * n
        if len(expected) > 1:
            assert chisquare(counts[exact > 0].numpy(), expected.numpy()).pvalue > 1e-3


def test_a_penalised_completion_equals_recomputing_every_step() -> None:
    model, sampling = case("llama").tiny(), Sampling(0, repetition_penalty=1.5, frequency_penalty=0.4, bad_words=[[7]])
    answers = generate(model, [PROMPT, [3]], max_tokens=12, sampling=sampling)
    assert [a.tokens for a in answers] != [
        a.tokens for a in generate(model, [PROMPT, [3]], max_tokens=12, temperature=0)
    ]
    for prompt, answer in zip([PROMPT, [3]], answers, strict=True):
        for at, token in enumerate(answer.tokens):
            tokens = answer.tokens[:at]
            logits = model.logits(model(torch.tensor([prompt + tokens])).hidden[0, -1]).detach()
            assert int(through(build_processors(sampling), prompt, tokens, logits).argmax()) == token


# --- log-probabilities ------------------------------------------------------------------------------------------------


def test_logprobs_are_the_models_own_of_answer_and_prompt(tmp_path) -> None:
    ours = case("llama").tiny()
    foundling.save(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    (answer,) = generate(
        ours, [PROMPT], max_tokens=8, temperature=0.7, repetition_penalty=1.3, seed=4, logprobs=3, prompt_logprobs=2
    )
    text = PROMPT + answer.tokens
    with torch.no_grad():
        expected = theirs(torch.tensor([text])).logits[0].log_softmax(-1)
    own = [float(expected[i - 1, text[i]]) for i in range(1, len(text))]
    assert answer.prompt_logprobs is not None and answer.logprobs is not None and answer.prompt_top_logprobs is not None
    assert answer.prompt_logprobs[0] is None and answer.prompt_top_logprobs[0] == {}
    assert [*answer.prompt_logprobs[1:], *answer.logprobs] == pytest.approx(own, abs=1e-4)
    assert answer.mean_logprob == pytest.approx(sum(own[-8:]) / 8, abs=1e-4)
    assert answer.top_logprobs is not None
    for at, best in enumerate(answer.top_logprobs):
        values, ids = expected[len(PROMPT) - 1 + at].topk(3)
        assert list(best) == ids.tolist() and list(best.values()) == pytest.approx(values.tolist(), abs=1e-4)
    with pytest.raises(GenerationError, match="logprobs=0"):
        Completion([1]).mean_logprob  # noqa: B018


def test_token_logprobs_by_hand() -> None:
    ((own, best),) = token_logprobs(torch.tensor([[0.0, math.log(3.0)]]), [0], 5)
    assert own == pytest.approx(math.log(0.25)) and best == pytest.approx({1: math.log(0.75), 0: math.log(0.25)})


# --- stops ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the cat sat on the mat, the cat ate the rat — naïve 漢字 🙂\n"] * 20, 384)


def write(tokenizer: Tokenizer, ids: list[int], stops: list[str], max_tokens: int = 99) -> Completion:
    """The completion of a model that generates `ids`."""
    request = Request([1], max_tokens, stop=[tokenizer.eos], stop_strings=stops, decode=tokenizer.decode)
    sequence = SequenceState(request)
    for token in [*ids, tokenizer.eos]:
        if not sequence.finished:
            sequence.append_token(token, torch.zeros(1))
    return sequence.completion


@pytest.mark.parametrize("stops", [["cat"], ["t a"], ["e r", "at on"], ["🙂"], ["字 🙂"], ["ï"], ["nothing"], ["\n"]])
def test_stop_strings_span_tokens_as_in_transformers(tokenizer: Tokenizer, stops: list[str], tmp_path) -> None:
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "the mat on the cat ate the rat — naïve 漢字 🙂\nthe"
    ids = tokenizer.encode(text)
    criterion = transformers.StopStringCriteria(theirs, stops)
    ends = [n for n in range(1, len(ids) + 1) if bool(criterion(torch.tensor([ids[:n]]), None))]
    answer = write(tokenizer, ids, stops)
    assert len(answer.tokens) == (ends[0] if ends else len(ids))
    assert answer.finish_reason == ("stop" if ends else "end")
    assert answer.text == text[: min((text.find(s) for s in stops if s in text), default=len(text))]


@pytest.mark.parametrize("stops", [[], ["the rat"], ["🙂\nthe"], ["the", "rat"], ["zzz"]])
def test_a_stream_sends_the_text_once_and_nothing_that_is_cut(tokenizer: Tokenizer, stops: list[str]) -> None:
    ids, sent = tokenizer.encode("on mat — naïve 漢字 🙂\nthat th at the ra the rat 漢"), []
    stream = TextStreamer(tokenizer.decode, sent.append, stops)
    answer = write(tokenizer, ids, stops)
    for token in answer.tokens:
        stream.append(token)
        assert not any(s in "".join(sent) for s in stops)
    text = tokenizer.decode(answer.tokens) if answer.text is None else answer.text
    stream.finish(text)
    assert "".join(sent) == text and (len(sent) > 3 or answer.finish_reason == "stop")


# --- lookup -----------------------------------------------------------------------------------------------------------


def test_lookup_finds_what_followed_the_previous_occurrence() -> None:
    find = PromptLookupProposer().find
    assert find([1, 2, 3, 4, 9, 1, 2, 3], 2) == [4, 9]
    assert find([1, 2, 3, 4, 7, 2, 3, 5, 1, 2, 3], 3) == [4, 7, 2], "the longest match first"
    assert find([7, 2, 3, 5, 7, 2, 3, 6, 2, 3], 1) == [6], "the latest of its length"
    assert find([1, 2, 3, 4], 2) == [] and find([1], 2) == []


@pytest.mark.parametrize("name", ["llama", "mamba2", "gpt2"])
@torch.inference_mode()
def test_lookup_changes_no_greedy_completion_and_is_accepted_where_text_repeats(name: str) -> None:
    model, prompts = case(name).tiny(), [PROMPT, [3, 4, 3, 4, 3, 4], [8]]
    kw = dict(max_tokens=20, temperature=0, repetition_penalty=1.1)
    plain = generate(model, prompts, **kw, logprobs=1)
    drafted = generate(model, prompts, **kw, draft=PromptLookupProposer(2, 1), logprobs=1)
    assert [a.tokens for a in drafted] == [a.tokens for a in plain]
    for a, b in zip(plain, drafted, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4) and a.finish_reason == b.finish_reason
    sequence = SequenceState(Request([3, 4] * 4, 30, Sampling(0, logit_bias={3: 1e4, 4: 1e4, 5: 1e4})))
    assert speculate(model, PromptLookupProposer(1, 1), [sequence], 4).accepted > 5


@torch.inference_mode()
def test_lookup_preserves_the_distribution() -> None:
    """3,000 completions with every token drafted, against the exact joint distribution."""
    torch.manual_seed(0)
    model = foundling.build("llama", **case("llama").family.module.sized(5, 32, 32, 1)).eval()
    for p in model.parameters():
        p.copy_(torch.randn_like(p) * 0.3 + (p.ndim < 2))
    sampling, rows = Sampling(1.2, top_k=4), 3000
    sequences = [SequenceState(Request([2, 1, 2, 1], 3, sampling, seed)) for seed in range(rows)]
    tally = speculate(model, PromptLookupProposer(1, 1), sequences, 2)
    assert 0.05 < tally.accepted / tally.proposed < 0.95
    drawn = [tuple(w.completion.tokens) for w in sequences]
    exact: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        exact = {
            (*before, token): p * float(q)
            for before, p in exact.items()
            for token, q in enumerate(
                compute_probs(
                    model.logits(model(torch.tensor([[2, 1, 2, 1, *before]])).hidden[:, -1]), sampling.params
                )[0]
            )
            if q > 0
        }
    assert set(drawn) <= set(exact)
    likely = [answer for answer in exact if exact[answer] * rows > 5]
    seen = [drawn.count(answer) for answer in likely]
    rest = rows - sum(seen)
    expected = [exact[answer] * rows for answer in likely]
    assert chisquare([*seen, rest], [*expected, rows - sum(expected)]).pvalue > 1e-3


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(min_p=1.5), "min_p"),
        (dict(min_p=-0.1), "min_p"),
        (dict(top_k=2.5), "top_k"),
        (dict(top_k=True), "top_k"),
        (dict(temperature=True), "temperature"),
        (dict(temperature=float("inf")), "temperature"),
        (dict(repetition_penalty=0.0), "repetition_penalty"),
        (dict(presence_penalty=float("nan")), "presence_penalty"),
        (dict(logit_bias={64: 1.0}), "logit_bias contains 64; the vocabulary is 0 to 63"),
        (dict(logit_bias={"3": 1.0}), "logit_bias contains '3'"),
        (dict(logit_bias={3: float("nan")}), "logit_bias of 3"),
        (dict(logit_bias=dict.fromkeys(range(64), -math.inf)), "forbid every token"),
        (dict(bad_words=[[]]), "empty word"),
        (dict(bad_words=[[3, 99]]), "bad_words contains 99"),
        (dict(temprature=1.0), "did you mean 'temperature'"),
        (dict(temperature=1.0, sampling=Sampling()), "not both"),
        (dict(stop_strings=["x"]), "decode"),
        (dict(stop_strings=[""], decode=str), "empty string"),
        (dict(stop_strings="ab", decode=str), "list"),
        (dict(logprobs=-1), "logprobs"),
        (dict(beams=2, logprobs=1), "scores whole completions"),
        (dict(beams=2, repetition_penalty=1.2), "does not sample"),
        (dict(n=True), "n is True"),
    ],
)
def test_errors_are_one_line(call: dict, message: str) -> None:
    with pytest.raises(GenerationError, match=message) as caught:
        generate(case("llama").tiny(), **(dict(tokens=[[1]], max_tokens=3) | call))
    assert "\n" not in str(caught.value)


def test_constraints_that_forbid_every_token_are_an_error() -> None:
    class Nothing:
        def start(self, prompt):
            return LogitBias(dict.fromkeys(range(8), -math.inf))

    sequence = SequenceState(Request([1], 3, processors=[Nothing()]))
    with pytest.raises(GenerationError, match="every token is forbidden"):
        choose_next_tokens([sequence], torch.zeros(1, 8))
    with pytest.raises(GenerationError, match="encoder-decoder"):
        generate(case("t5").tiny(), [[1]], max_tokens=2, prompt_logprobs=0)
    assert BadWords([[1], [2]]).start([3]).tail == ()
