# SPDX-License-Identifier: Apache-2.0
"""The engine against plain decoding, token for token, whoever comes, goes, is cancelled or put back."""

import random
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundling.decode.answer import Request
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.native.program import FORMS
from foundling.decode.plain import generate
from foundling.decode.sampling import Sampling
from foundling.errors import GenerationError
from foundling.models import FAMILIES
from tests.contract.cases import case
from tests.contract.matrix import UNLIKE, covers

WRITERS = tuple(name for name, entry in FAMILIES.items() if entry.kind in ("decoder", "seq2seq"))


def plain(model, request: Request):
    (answer,) = generate(
        model, [request.prompt], max_tokens=request.max_tokens, sampling=request.sampling, seed=request.seed,
        stop=request.stop, logprobs=request.logprobs, prompt_logprobs=request.prompt_logprobs,
    )  # fmt: skip
    return answer


NATIVE = shutil.which("g++") is not None
RUNNERS = [False, True] if NATIVE else [False]


def requests(count: int, seed: int = 0, longest: int = 33) -> list[Request]:
    draw = random.Random(seed)
    beginning = [draw.randrange(3, 64) for _ in range(20)]
    made = []
    for row in range(count):
        prompt = beginning[: draw.choice([0, 0, 18, 20])] + [
            draw.randrange(3, 64) for _ in range(draw.randrange(1, 12))
        ]
        sampling = draw.choice([Sampling(0), Sampling(0, repetition_penalty=1.3), Sampling(0, logit_bias={5: 2.0})])
        made.append(
            Request(prompt, draw.randrange(1, longest), sampling, seed=row, stop=draw.choice([(), (7, 9)]),
                    logprobs=draw.choice([None, 2]), prompt_logprobs=draw.choice([None, None, 1]))
        )  # fmt: skip
    return made


def compare(answer, expected) -> None:
    assert answer.tokens == expected.tokens and answer.finish == expected.finish
    assert (answer.logprobs is None) == (expected.logprobs is None)
    if expected.logprobs is not None:
        assert answer.logprobs == pytest.approx(expected.logprobs, abs=2e-4)
        assert [list(a) for a in answer.alternatives] == [list(a) for a in expected.alternatives]
    if expected.prompt_logprobs is not None:
        assert answer.prompt_logprobs[1:] == pytest.approx(expected.prompt_logprobs[1:], abs=2e-4)


@covers("engine", only=list(WRITERS), quick=(*UNLIKE, "gpt2", "opt", "gemma2", "bloom", "rwkv", "jamba"))
def test_the_engine_says_what_plain_decoding_says(name: str) -> None:
    engine_equals_plain(name, 0)


@covers("engine", only=list(WRITERS), quick=UNLIKE)
def test_the_engine_with_lookup_says_what_plain_decoding_says(name: str) -> None:
    engine_equals_plain(name, 3)


def engine_equals_plain(name: str, lookup: int) -> None:
    """Random arrival and cancellation, memory so small that sequences are put back."""
    model = case(name).tiny()
    asked = requests(16, seed=lookup)
    if hasattr(model, "encode"):
        asked = [Request(r.prompt, r.max_tokens, r.sampling, r.seed, r.stop, logprobs=r.logprobs) for r in asked]
    for native in RUNNERS:
        kept = [slot for slots in model.cache_spec() for slot in slots if hasattr(slot, "n_kv_heads")]
        page = 2 * 16 * 4 * sum(s.n_kv_heads * s.head_dim for s in kept if type(s).__name__ == "KV") or 1
        options = EngineOptions(
            native=False if not native else None, max_rows=5, max_step_tokens=16, memory=5 * page, lookup=lookup
        )
        engine, draw = Engine(model, options), random.Random(lookup)
        waiting, numbers, found, cancelled = list(enumerate(asked)), {}, {}, set()
        while waiting or engine.busy:
            while waiting and draw.random() < 0.4:
                index, request = waiting.pop(0)
                numbers[engine.add(request)] = index
            if engine.busy and draw.random() < 0.03:
                gone = draw.choice(list(engine.under_way))
                answer = engine.cancel(gone)
                expected = plain(model, asked[numbers[gone]]).tokens
                assert answer is not None and answer.finish == "cancelled"
                assert answer.tokens == expected[: len(answer.tokens)]
                cancelled.add(numbers[gone])
            for event in engine.step():
                if event.answer:
                    found[numbers[event.number]] = event.answer
        assert len(found) + len(cancelled) == 16 and len(found) > 10
        for index, answer in found.items():
            compare(answer, plain(model, asked[index]))
        assert engine.pages.held == 0 and not engine.scheduler.waiting
        assert engine.native == (native and name in ("gpt2", "llama", "opt"))
        if lookup and engine.lookup:
            assert 0 < engine.accepted <= engine.proposed
        if name == "llama" and not lookup:
            assert engine.scheduler.preemptions > 0


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_order_of_events_gives_the_same_answers(data) -> None:
    model = MODEL
    draw = data.draw
    options = EngineOptions(
        native=(NATIVE and draw(st.booleans())) or False,
        max_rows=draw(st.integers(1, 4)),
        max_step_tokens=draw(st.integers(4, 20)),
        memory=draw(st.integers(6, 20)) * 2 * 16 * 4 * 2 * 2 * 32,
        lookup=draw(st.integers(0, 3)),
        share_prefixes=draw(st.booleans()),
    )
    engine, found, numbers = Engine(model, options), {}, {}
    todo = list(range(len(ASKED)))
    while todo or engine.busy:
        action = draw(st.sampled_from(["add", "step", "step", "cancel"]))
        if action == "add" and todo:
            index = todo.pop(0)
            numbers[engine.add(ASKED[index])] = index
        elif action == "cancel" and engine.busy and draw(st.integers(0, 9)) == 0:
            engine.cancel(draw(st.sampled_from(sorted(engine.under_way))))
        else:
            for event in engine.step():
                if event.answer:
                    found[numbers[event.number]] = event.answer
    for index, answer in found.items():
        compare(answer, EXPECTED[index])
    assert engine.pages.held == 0


MODEL = case("llama").tiny()
ASKED = requests(6, seed=3)
EXPECTED = [plain(MODEL, request) for request in ASKED]


@pytest.mark.parametrize("weights", [None, *(FORMS if NATIVE else ())])
def test_a_seed_says_the_same_whatever_is_beside_it(weights: str | None) -> None:
    """Sampled, and to the last bit of its log-probabilities; by torch and with every form of native weights."""
    asked = [Request([3 + i, 8], 12, Sampling(1.1, top_p=0.9), seed=i, logprobs=0) for i in range(6)]
    options = dict(native=weights is not None, weights=weights, deterministic=True, max_step_tokens=16, max_rows=8)
    together = Engine(MODEL, EngineOptions(**options)).answer([*asked, *requests(6, seed=1)])[:6]
    for request, answer in zip(asked, together, strict=True):
        (alone,) = Engine(MODEL, EngineOptions(**options)).answer([request])
        assert alone.tokens == answer.tokens and alone.logprobs == answer.logprobs


@pytest.mark.skipif(not NATIVE, reason="no C++ compiler here")
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.inference_mode()
def test_native_products_are_those_of_the_rounded_weights(name: str, weights: str) -> None:
    """Logits of a prompt read in pieces against the modules' own with the same rounding of their weights."""
    model = case(name).tiny(
        d_model=96, n_heads=3, **({"n_kv_heads": 3, "d_ff": 200} if name == "llama" else {"d_ff": 200})
    )
    engine = Engine(model, EngineOptions(weights=weights, native=True, max_step_tokens=16, max_rows=2))
    request = Request(list(range(3, 53)), 1, prompt_logprobs=0)
    (answer,) = engine.answer([request])
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and weights != "float32":
            kind = "int8" if module is model.head and weights == "int4" else weights
            module.weight = torch.nn.Parameter(rounded(module.weight, kind), requires_grad=False)
    expected = plain(model, request)
    # activations are rounded to 8 bits too where weights are integers, and keys to bfloat16
    tolerance = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.25, "int4": 0.25}[weights]
    assert answer.prompt_logprobs[1:] == pytest.approx(expected.prompt_logprobs[1:], abs=tolerance)


def rounded(weight: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "bfloat16":
        return weight.bfloat16().float()
    in_ = weight.shape[1]
    groups = torch.nn.functional.pad(weight.detach(), (0, -in_ % 32)).unflatten(1, (-1, 32))
    if kind == "int8":
        scale = (groups.abs().amax(-1, keepdim=True) / 127).half().float()
        whole = (groups / scale).round().clamp(-127, 127)
    else:
        peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
        scale = (peak / -8).half().float()
        whole = (groups / scale).round().clamp(-8, 7)
    return torch.where(scale == 0, 0, whole * scale).flatten(1)[:, :in_].contiguous()


def test_stop_strings_and_events_stream() -> None:
    table = "".join(chr(97 + i % 26) for i in range(64))
    decode = lambda ids: "".join(table[i] for i in ids)  # noqa: E731
    (free,) = Engine(MODEL).answer([Request([5], 30, Sampling(1.0))])
    stop = decode(free.tokens[4:6])
    engine = Engine(MODEL)
    engine.add(Request([5], 30, Sampling(1.0), stop_strings=[stop], decode=decode))
    said, last = [], None
    while engine.busy:
        for event in engine.step():
            said += event.tokens
            last = event.answer
    assert last is not None and last.finish == "stop" and said == last.tokens
    assert last.text == decode(free.tokens)[: decode(free.tokens).find(stop)]


def test_a_recurrent_state_is_taken_up_where_another_left_it() -> None:
    """Beginnings are shared by families whose memory cannot be cut as well: at the ends of pieces."""
    model = case("mamba2").tiny()
    engine = Engine(model, EngineOptions(max_rows=4, max_step_tokens=20))
    beginning, read = list(range(3, 45)), []
    original = engine.runner.read
    engine.runner.read = lambda works, wants: read.extend(w.count for w in works) or original(works, wants)  # type: ignore[method-assign]
    asked = [Request([*beginning, tail], 6, Sampling(0), seed=tail) for tail in (50, 51, 52)]
    for request, answer in zip(asked, engine.answer(asked), strict=True):
        assert answer.tokens == plain(model, request).tokens
    assert sum(read) == 43 + 2 * (43 - 32) + 3 * 5
    again = engine.answer([Request([*beginning[:20], 9], 4, Sampling(0))])[0]
    assert again.tokens == plain(model, Request([*beginning[:20], 9], 4, Sampling(0))).tokens
    assert read[-4:] == [5, 1, 1, 1], "the state after 16 tokens was kept too"


def test_a_request_whose_own_code_fails_ends_alone() -> None:
    class Failing:
        def start(self, prompt):
            return self

        def copy(self):
            return self

        def apply(self, logits):
            if self.said == 3:
                raise KeyError("mine")
            return logits

        said = 0

        def accept(self, token):
            self.said += 1

    def decode(ids):
        raise ValueError("no text")

    whole = Request([5, 6], 9, Sampling(0))
    nothing = {i: float("-inf") for i in range(64) if i != 7}
    asked = [
        whole,
        Request([5, 6], 9, processors=[Failing()]),
        Request([5, 6], 9, Sampling(0, bad_words=[[6, 7]], logit_bias=nothing)),
        Request([5, 6], 9, stop_strings=["x"], decode=decode),
    ]
    engine = Engine(MODEL)
    fine, failing, forbidden, wordless = engine.answer(asked)
    compare(fine, plain(MODEL, whole))
    assert failing.finish == "error" and failing.error == "'mine'" and len(failing.tokens) == 3
    assert forbidden.finish == "error" and "every token is forbidden" in (forbidden.error or "")
    assert wordless.finish == "error" and wordless.error == "no text" and engine.pages.held == 0


@pytest.mark.parametrize(
    ("options", "request_", "message"),
    [
        (dict(weights="int3"), {}, "int8, int4"),
        (dict(max_rows=0), {}, "at least one row"),
        (dict(max_step_tokens=4), {}, "a token a step for each"),
        (dict(lookup=-1), {}, "lookup"),
        (dict(native=False, weights="int8"), {}, "need native code: it was turned off"),
        (dict(memory=1), dict(max_tokens=60), "more memory"),
        ({}, dict(prompt=[]), "empty"),
        ({}, dict(prompt=[64]), "outside the vocabulary"),
        ({}, dict(max_tokens=64), "at most 63"),
        ({}, dict(max_tokens=2.5), "whole number"),
        ({}, dict(stop=["</s>"]), "expected ids"),
        ({}, dict(logprobs=1.5), "alternatives"),
        ({}, dict(sampling=dict(logit_bias={3: "much"})), "logit_bias of 3"),
    ],
)
def test_what_an_engine_cannot_do_is_one_line(options: dict, request_: dict, message: str) -> None:
    with pytest.raises(GenerationError, match=message) as caught:
        if "sampling" in request_:
            request_ = request_ | {"sampling": Sampling(**request_["sampling"])}
        Engine(MODEL, EngineOptions(**options)).add(Request(**({"prompt": [1], "max_tokens": 3} | request_)))
    assert "\n" not in str(caught.value)
    with pytest.raises(GenerationError, match="native code cannot be had"):
        Engine(case("mamba2").tiny(), EngineOptions(native=True))


def test_two_who_run_one_engine_both_hear_all_of_theirs() -> None:
    engine, apart = Engine(MODEL, EngineOptions(max_rows=4)), requests(3, seed=5)
    added = engine.add(apart[2])
    mine, others, ended = engine.run(apart[:1]), engine.run(apart[1:2]), []
    heard: list[list[int]] = [[], []]
    for event in mine:
        heard[0] += event.tokens
        for event in others:
            heard[1] += event.tokens
    while engine.busy:
        ended += [event.answer for event in engine.step() if event.number == added and event.answer]
    assert heard == [plain(MODEL, request).tokens for request in apart[:2]]
    compare(ended[0], plain(MODEL, apart[2]))
    assert engine.pages.held == 0 and not engine.unheard


def test_who_cannot_be_added_or_ended_leaves_nothing_behind() -> None:
    class Wrong:
        def start(self, prompt):
            raise KeyError("mine")

    def decode(ids):
        raise ValueError("no text")

    engine = Engine(MODEL)
    with pytest.raises(GenerationError, match="empty"):
        engine.answer([Request([5], 9), Request([], 9)])
    with pytest.raises(KeyError):
        engine.add(Request([5], 9, processors=[Wrong()]))
    answer = engine.cancel(engine.add(Request([5], 9, decode=decode)))
    assert answer is not None and answer.finish == "error" and answer.error == "no text"
    assert not engine.busy and engine.pages.held == 0 and not engine.step()


def test_a_type_that_native_code_has_not_is_left_to_torch() -> None:
    model = case("llama").tiny().double()
    engine = Engine(model)
    assert not engine.native and "float64" in engine.reason
    (answer,) = engine.answer([Request([5, 6], 5, Sampling(0))])
    assert answer.tokens == plain(model, Request([5, 6], 5, Sampling(0))).tokens
