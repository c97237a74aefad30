# SPDX-License-Identifier: Apache-2.0
"""Constrained decoding: every path gives the tokens of plain decoding under masks, for every kind of tokenizer."""

import gc
import json
import random
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from foundling.decode.constrain import compilation
from foundling.decode.constrain.constrainer import Constrainer
from foundling.decode.constrain.constraint import (
    Constraint,
    after_reasoning,
    choice,
    grammar,
    json_object,
    json_schema,
    regex,
)  # fmt: skip
from foundling.decode.constrain.processor import ConstraintState
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.native.build import load_library
from foundling.decode.plain import complete, generate
from foundling.decode.request import Request
from foundling.decode.sampling import Sampling
from foundling.decode.speculative import PromptLookupProposer
from foundling.errors import GenerationError
from foundling.models import FAMILIES
from foundling.text import Tokenizer
from foundling.verify.structured import matches_constraint
from tests.contract.cases import case
from tests.text.kinds import KINDS, tokenizer

NATIVE = shutil.which("g++") is not None
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
}  # fmt: skip
SUM = 'start: term ("+" term)*\nterm: /[0-9]{1,3}/ | "(" start ")"\n'
CONSTRAINTS = [
    json_schema(PERSON), regex("[a-f]{2,4}-[0-9]{3}"), choice(["yes", "no", "maybe later"]), grammar(SUM),
    json_schema({"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 9}, "maxItems": 3}),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    if NATIVE:
        load_library()


def built(family: str, kind: str = "gpt2", spare: int = 5) -> tuple[Any, Tokenizer, Constrainer]:
    """A model with rows beyond the vocabulary."""
    words = tokenizer(kind)
    n_rows = words.vocab_size + spare
    fields = {"max_seq_len": 256} if family == "llama" else {}
    return case(family).tiny(vocab_size=n_rows, **fields), words, Constrainer(words, n_rows, [words.eos])


def requests_of(constrainer: Constrainer, words: Tokenizer, logprobs: list[int | None]) -> list[Request]:
    closing = {i: 3.0 for i, text in enumerate(words.spellings()) if text in (b'"', b"}", b"]")}
    return [
        Request([5, 6, 7 + n], 48, Sampling(temperature, logit_bias=closing), seed=n, stop=[words.eos],
                logprobs=logprobs[n % len(logprobs)], processors=[constrainer.processor(constraint)])
        for n, (constraint, temperature) in enumerate((c, t) for c in CONSTRAINTS for t in (0.0, 1.0))
    ]  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "mamba2", "t5"])
def test_all_paths_give_the_tokens_of_plain_decoding(family: str) -> None:
    paths_agree(family, [[None, 2]], every=3)


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name, entry in FAMILIES.items() if entry.kind in ("decoder", "seq2seq")])
def test_all_paths_of_every_family_give_the_tokens_of_plain_decoding(family: str) -> None:
    paths_agree(family, [[None], [2]], every=1)


def paths_agree(family: str, logprobs_of: list[list[int | None]], every: int) -> None:
    model, words, constrainer = built(family)
    for logprobs in logprobs_of:
        requests = requests_of(constrainer, words, logprobs)[::every]
        plain = complete(model, requests)
        assert sum(c.finish_reason == "end" for c in plain) >= 0.4 * len(requests)
        for request, answer in zip(requests, plain, strict=True):
            if answer.finish_reason == "end":
                constraint = next(c for c in CONSTRAINTS if constrainer.processor(c) is request.processors[0])
                assert matches_constraint(constrainer.decode(answer.tokens), constraint)
        for native in [False, True] if NATIVE else [False]:
            for lookup in (0, 3):
                engine = Engine(model, EngineOptions(native=None if native else False, max_num_seqs=4, lookup=lookup))
                for request, answer, expected in zip(requests, engine.generate(requests), plain, strict=True):
                    if lookup and request.sampling.temperature:  # accepted by other draws, of the same distribution
                        assert answer.finish_reason in ("end", "length")
                        continue
                    assert (answer.tokens, answer.finish_reason) == (expected.tokens, expected.finish_reason)
                    if expected.logprobs is not None:
                        assert answer.logprobs == pytest.approx(expected.logprobs, abs=2e-4)


@pytest.mark.parametrize("family", ["llama", pytest.param("mamba2", marks=pytest.mark.slow)])
def test_speculation_keeps_to_the_constraint(family: str) -> None:
    """Greedy drafts change nothing; sampled ones change what is drawn and not what is allowed."""
    model, words, constrainer = built(family)
    draft = case("llama").tiny(seed=3, vocab_size=model.config.vocab_size, max_seq_len=256)
    for constraint in CONSTRAINTS[:2]:
        processor = constrainer.processor(constraint)
        options: dict[str, Any] = dict(max_tokens=30, stop=[words.eos], processors=[processor])
        (expected,) = generate(model, [[5, 6, 7]], temperature=0.0, **options)
        for proposer in (draft, PromptLookupProposer()):
            (answer,) = generate(model, [[5, 6, 7]], temperature=0.0, draft=proposer, draft_tokens=3, **options)
            assert (answer.tokens, answer.finish_reason) == (expected.tokens, expected.finish_reason)
            for sampled in generate(model, [[5, 6, 7]] * 3, seed=4, draft=proposer, draft_tokens=3, **options):
                if sampled.finish_reason == "end":
                    assert matches_constraint(constrainer.decode(sampled.tokens), constraint)


def test_the_engine_computes_forced_tokens_together() -> None:
    model, words, constrainer = built("llama")
    schema = {"type": "object", "properties": {"a_rather_long_key": {"const": "a rather long text"}},
              "required": ["a_rather_long_key"]}  # fmt: skip
    processor = constrainer.processor(json_schema(schema))
    engine = Engine(model, EngineOptions(native=False))
    (answer,) = engine.generate([Request([5], 80, stop=[words.eos], processors=[processor])])
    assert constrainer.decode(answer.tokens) == '{"a_rather_long_key": "a rather long text"}'
    assert engine.n_steps <= 4 < len(answer.tokens)


QUICK_KINDS = ("gpt2", "llama 2", "t5", "bert")
EVERY_KIND = [kind if kind in QUICK_KINDS else pytest.param(kind, marks=pytest.mark.slow) for kind in [*KINDS, "ours"]]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_kind_of_tokenizer_can_be_constrained(kind: str) -> None:
    """The text of the ids, as the grammar saw it, is what the tokenizer decodes after a prompt; no special token, no
    row without a token, and no end before the end."""
    model, words, constrainer = built("llama", kind)
    texts = [constrainer.vocabulary.spell([i]) for i in range(words.vocab_size)]
    allowed = [i for i in sorted(words.ids - words.special) if texts[i]]
    draw = random.Random(0)
    for _ in range(30):
        ids = [draw.choice(allowed) for _ in range(8)]
        if not words.cleans and kind != "bert" and not words.byte_ids.intersection(ids):
            before = [i for i in allowed if texts[i].strip().isalpha()][:1]
            whole = words.decode([*before, *ids]).encode()
            if b"\xef\xbf\xbd" not in whole:
                assert whole.endswith(constrainer.decode(ids).encode())
    constraint = regex("[a-z ]{4,30}")
    for seed in range(3):
        request = Request(
            [allowed[0]], 40, Sampling(2.0), seed, [words.eos], processors=[constrainer.processor(constraint)]
        )
        (answer,) = complete(model, [request])
        assert not {*answer.tokens} & words.special and max(answer.tokens) < words.vocab_size
        text = constrainer.decode(answer.tokens)
        assert answer.finish_reason == "length" or matches_constraint(text, constraint), text


@pytest.mark.parametrize("kind", ["gpt2", "llama 2", "t5", "metaspace first", "prefix space", "ours"])
def test_a_forced_text_is_encoded_as_the_tokenizer_encodes_it(kind: str) -> None:
    """After another text; the tokens are those that the model has learnt."""
    _, words, constrainer = built("llama", kind)
    for text in ["the cat sat on the mat", "the dog, isn't it", "12345"]:
        vocabulary = constrainer.vocabulary
        ids = vocabulary(text)
        if vocabulary.spell(ids) != text.encode():
            continue  # a vocabulary without these characters
        before = words.encode("\n")
        whole = words.encode("\n" + text)
        expected = whole[len(before) :] if whole[: len(before)] == before else words.encode(text)
        assert ids == expected or ids == words.encode(text)


def test_several_ends_are_all_allowed_at_the_end_and_only_there() -> None:
    model, words, _ = built("llama")
    ends = [words.eos, words.backend.token_to_id("<|im_end|>")]
    constrainer = Constrainer(words, model.config.vocab_size, [*ends, 10**6])
    state = constrainer.processor(regex("ab?")).start([1])
    logits = torch.zeros(model.config.vocab_size)
    assert torch.isneginf(state.apply(logits)[ends]).all()
    state.accept(words.encode("a")[0])
    masked = state.apply(logits)
    assert not torch.isneginf(masked[ends]).any() and not state.complete()
    assert {constrainer.vocabulary.tokens[i] for i in (masked == 0).nonzero()[:, 0].tolist() if i not in ends} == {b"b"}
    assert (logits == 0).all(), "the input is not modified"
    state.accept(words.encode("b")[0])
    assert state.complete()


def test_a_copy_goes_its_own_way() -> None:
    _, words, constrainer = built("llama")
    state = constrainer.processor(choice(["ab", "ac"])).start([1])
    for token in state.forced() or words.encode("a"):
        state.accept(token)
    other = state.copy()
    other.accept(words.encode("c")[0])
    assert other.complete() and not state.complete()
    state.accept(words.encode("b")[0])
    assert state.complete()


def test_n_samples_and_beams() -> None:
    model, words, constrainer = built("llama")
    processor = constrainer.processor(CONSTRAINTS[1])
    answers = generate(model, [[5, 6]], max_tokens=30, n=4, seed=1, stop=[words.eos], processors=[processor])
    texts = [constrainer.decode(a.tokens) for a in answers]
    assert all(matches_constraint(text, CONSTRAINTS[1]) for text in texts) and len({*texts}) > 1
    with pytest.raises(GenerationError, match="beam search does not sample: omit sampling options, processors"):
        generate(model, [[5, 6]], max_tokens=30, beams=2, processors=[processor])


def test_constrained_and_other_requests_do_not_disturb_each_other() -> None:
    model, words, constrainer = built("llama")
    constrained = [
        Request([5, 6, n], 50, Sampling(1.0), seed=n, stop=[words.eos],
                processors=[constrainer.processor(CONSTRAINTS[n % len(CONSTRAINTS)])]) for n in range(8)
    ]  # fmt: skip
    free = [Request([5, 6, n], 50, Sampling(1.0), seed=n, stop=[words.eos]) for n in range(8)]
    mixed = [request for pair in zip(constrained, free, strict=True) for request in pair]
    options = EngineOptions(native=False, max_num_seqs=16)
    together = Engine(model, options).generate(mixed)
    apart = [*Engine(model, options).generate(constrained), *Engine(model, options).generate(free)]
    assert [c.tokens for c in together[0::2] + together[1::2]] == [c.tokens for c in apart]


def test_states_are_freed() -> None:
    model, words, constrainer = built("llama")
    made: list[weakref.ref[ConstraintState]] = []

    class Watching:
        def start(self, prompt: Any) -> ConstraintState:
            state = constrainer.processor(CONSTRAINTS[0]).start(prompt)
            made.append(weakref.ref(state))
            return state

    engine = Engine(model, EngineOptions(native=False))
    numbers = [engine.add(Request([5, n], 40, seed=n, stop=[words.eos], processors=[Watching()])) for n in range(6)]
    engine.step()
    for number in numbers[:3]:
        engine.cancel(number)
    while engine.busy:
        engine.step()
    gc.collect()
    assert len(made) == 6 and not [ref for ref in made if ref() is not None]


def test_a_step_that_takes_too_much_ends_its_request_alone(monkeypatch: Any) -> None:
    """Each x of an ambiguous grammar takes more than the one before."""
    model, words, constrainer = built("llama")
    other = Request([5, 7], 30, stop=[words.eos], processors=[constrainer.processor(CONSTRAINTS[1])])
    monkeypatch.setattr(compilation, "STEP_ITEMS", 200)
    processor = constrainer.processor(grammar('start: "Q" s | /[a-zA-PR-Z]{1,300}/\ns: s s | s s s | "x"\n'))
    bias = {words.encode("Q")[0]: 60.0, words.eos: -100.0}
    request = Request([5, 6], 150, Sampling(logit_bias=bias), stop=[words.eos], processors=[processor])
    first, second = Engine(model, EngineOptions(native=False)).generate([request, other])
    assert first.finish_reason == "error" and 5 < len(first.tokens) < 100 and second.finish_reason == "end"
    assert first.error and "constraint takes too much" in first.error and "\n" not in first.error


@pytest.mark.parametrize(
    "make",
    [
        lambda: regex("(a{1,1000}){1,1000}"),
        lambda: regex("(a?){5000}a{5000}"),
        lambda: grammar("start: " + "(" * 3000 + '"a"' + ")" * 3000),
        lambda: grammar("start: nothing"),
        lambda: grammar("no grammar at all"),
        lambda: grammar("start: /(/"),
        lambda: regex("(" * 100 + "a" + ")" * 100),
        lambda: regex("a{20000}"),
        lambda: json_schema(json.loads('{"items":' * 60 + "{}" + "}" * 60) | {"minItems": 10**9}),
        lambda: choice(["x" * 70_000]),
        lambda: choice([]),
        lambda: choice("yes"),
        lambda: grammar(""),
        lambda: grammar('start: "\ud800"'),
        lambda: regex("a" * 70_000),
        lambda: after_reasoning(choice(["a"]), closing=""),
    ],
)
def test_what_takes_too_much_or_is_none_is_refused_in_one_line(make: Any) -> None:
    words = tokenizer("gpt2")
    with pytest.raises(GenerationError) as caught:
        Constrainer(words, words.vocab_size, [words.eos]).processor(make())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_errors_name_what_does_not_fit() -> None:
    model, words, constrainer = built("llama")
    with pytest.raises(GenerationError, match="none of the ids that end an answer"):
        Constrainer(words, 10, [300])
    processor = constrainer.processor(choice(["yes"]))
    with pytest.raises(GenerationError, match="logits for 7"):
        processor.start([]).apply(torch.zeros(7))
    with pytest.raises(GenerationError, match="does not follow the constraint"):
        processor.start([]).accept(words.encode("x")[0])
    with pytest.raises(GenerationError, match="every token is forbidden"):
        banned = {words.encode("yes")[0]: float("-inf")}
        generate(model, [[5]], max_tokens=4, logit_bias=banned, processors=[constrainer.processor(choice(["yes"]))])
    t5 = tokenizer("t5")
    with pytest.raises(GenerationError, match="no token that continues"):
        Constrainer(t5, t5.vocab_size, [t5.eos]).processor(choice(["☃"]))


def test_a_constraint_is_compiled_once() -> None:
    _, _, constrainer = built("llama")
    assert constrainer.processor(json_object()) is constrainer.processor(json_object())
    assert constrainer.processor(regex("a")) is not constrainer.processor(regex("b"))


def test_a_constraint_whose_lexer_is_full_is_compiled_anew(monkeypatch: Any) -> None:
    """All answers of a processor share its lexer, whose states are never freed."""
    _, _, constrainer = built("llama")
    monkeypatch.setattr(compilation, "LEXER_STATES", 180)
    constraint, n_full = regex("([ab]{1,9}c|[bc]{1,9}d){1,400}"), 0

    def answer(draw: random.Random) -> None:
        state = constrainer.processor(constraint).start([])
        for _ in range(80):
            masked = state.apply(torch.zeros(constrainer.n_rows))
            state.accept(draw.choice((~torch.isneginf(masked)).nonzero()[:, 0].tolist()))

    for seed in range(10):
        try:
            answer(random.Random(seed))
        except GenerationError as error:
            assert "too many states" in str(error)
            n_full += 1
            answer(random.Random(seed))
    assert n_full


def test_a_constraint_that_is_compiled_delays_no_other(monkeypatch: Any) -> None:
    """The compilation of one is stopped in its middle by a lock of the test."""
    _, _, constrainer = built("llama")
    ready, slow = constrainer.processor(regex("a")), regex("slow")
    begun, go, compile_now = threading.Event(), threading.Event(), constrainer._compile

    def compile_slowly(constraint: Constraint) -> Any:
        if constraint == slow:
            begun.set()
            assert go.wait(60)
        return compile_now(constraint)

    monkeypatch.setattr(constrainer, "_compile", compile_slowly)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(constrainer.processor, slow)
        assert begun.wait(60)
        assert constrainer.processor(regex("a")) is ready and constrainer.compiled(slow) is None
        constrainer.processor(regex("b"))
        assert not first.done()
        go.set()
        assert first.result() is constrainer.compiled(slow)


@pytest.mark.parametrize("special", [True, False])
def test_reasoning_precedes_what_is_constrained(special: bool) -> None:
    """The marks are special tokens, or text."""
    words = tokenizer("gpt2")
    if special:
        words = words.with_tokens(["<think>", "</think>"])
    constrainer = Constrainer(words, words.vocab_size, [words.eos])
    constraint: Constraint = after_reasoning(choice(["yes", "no"]))
    thought = words.encode_marked("<think>any {text}\n at all</think>\n\nyes")
    state = constrainer.processor(constraint).start([])
    logits = torch.zeros(words.vocab_size)
    for token in thought:
        assert not torch.isneginf(state.apply(logits)[token])
        state.accept(token)
    assert state.complete()
    state = constrainer.processor(constraint).start([])
    for token in words.encode_marked("no opening here</think>"):
        state.accept(token)
    masked = state.apply(logits)
    first = {constrainer.vocabulary.tokens[i][:1] for i in (~torch.isneginf(masked)).nonzero()[:, 0].tolist()}
    assert first <= {b"\n", b"y", b"n"}
    text = "a thought</think>\n\nyes"
    assert matches_constraint(text, constraint) and not matches_constraint("yes", constraint)
    assert not matches_constraint("a thought</think> perhaps", constraint)
