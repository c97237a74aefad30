# SPDX-License-Identifier: Apache-2.0
"""The engine against plain decoding, token for token, whoever comes, goes, is cancelled or put back; its pages and its
schedule without a tensor."""

import random
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundling.decode.answer import Request
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.engine.pages import Pages, keys_of
from foundling.decode.engine.scheduler import Running, Scheduler
from foundling.decode.plain import generate
from foundling.decode.sampling import Sampling
from foundling.errors import GenerationError
from foundling.models import FAMILIES
from foundling.runtime import compiler_missing
from tests.contract.cases import case
from tests.contract.matrix import covers

WRITERS = tuple(name for name, entry in FAMILIES.items() if entry.kind in ("decoder", "seq2seq"))


def plain(model, request: Request):
    (answer,) = generate(
        model, [request.prompt], max_tokens=request.max_tokens, sampling=request.sampling, seed=request.seed,
        stop=request.stop, logprobs=request.logprobs, prompt_logprobs=request.prompt_logprobs,
    )  # fmt: skip
    return answer


# --- pages and schedule, no tensors ----------------------------------------------------------------------------------


def test_the_schedule_needs_no_torch() -> None:
    code = "import sys, foundling.decode.engine.scheduler; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_key_says_what_stands_before_a_page_too() -> None:
    a, b = keys_of([1, 2, 3, 4, 5], 2), keys_of([9, 2, 3, 4], 2)
    assert len(a) == 2 and not set(a) & set(b)
    assert keys_of([1, 2, 3, 4], 2) == a and keys_of([3, 4], 2, a[0]) == a[1:]
    assert keys_of([1, 2], 2, b"other") != a[:1]


def test_ten_thousand_random_requests_leak_no_page() -> None:
    """Sequences that join, grow, share beginnings, guess, are put back and cancelled; who holds what is counted apart
    after every step."""
    draw = random.Random(0)
    pages = Pages(40, 4)
    schedule = Scheduler(pages, most_rows=6, most_tokens=24)
    number, alive, goals, content = 0, dict[int, Running](), dict[int, int](), dict[int, tuple[int, ...]]()
    ended = steps = 0
    while ended < 10_000:
        steps += 1
        while number < 10_000 and len(alive) < 12 and draw.random() < 0.7:
            beginning = [draw.randrange(3)] * draw.choice([0, 4, 9, 17])
            tokens = beginning + [draw.randrange(50) for _ in range(draw.randrange(1, 20))]
            alive[number] = Running(number, tokens)
            goals[number] = min(len(tokens) + draw.randrange(1, 30), 150)
            schedule.add(alive[number])
            number += 1
        if alive and draw.random() < 0.1:
            gone = draw.choice(list(alive))
            schedule.finish(alive.pop(gone))
            ended += 1
        left = 24 - len(schedule.running)
        for s in schedule.running:
            if s.unread == 1 and draw.random() < 0.3 and left >= 3 and goals[s.number] - len(s.tokens) > 3:
                s.tokens += [draw.randrange(50) for _ in range(3)]
                s.guesses, left = 3, left - 3
        plan = schedule.plan()
        assert plan or not alive, "somebody waits and nothing is done"
        assert sum(work.count for work in plan) <= 24 and len(schedule.running) <= 6
        for work in plan:
            s = work.sequence
            assert len(s.pages) * 4 >= work.start + work.count and work.start == s.read and work.count > 0
            for at in range(work.start, work.start + work.count):  # what is read is written, into pages of one's own
                page = s.pages[at // 4]
                assert pages.holders[page] == 1 or page in content
                held = content.get(page, ())[: at % 4]
                content[page] = (*held, s.tokens[at])
        for work in plan:
            s = work.sequence
            kept = draw.randrange(s.guesses + 1)
            guesses, count = s.guesses, work.count
            if work.last:
                if guesses:
                    del s.tokens[len(s.tokens) - guesses + kept :]
                    s.guesses = 0
                    count -= guesses - kept
                s.tokens.append(draw.randrange(50))
            schedule.has_read(s, count)
        for s in schedule.running:  # every place that counts as read holds its own token
            for at in range(s.read):
                assert content[s.pages[at // 4]][at % 4] == s.tokens[at]
        for s in list(schedule.running):
            if len(s.tokens) >= goals[s.number]:
                schedule.finish(alive.pop(s.number))
                ended += 1
        held = [page for s in schedule.running for page in s.pages]
        assert all(pages.holders[page] == held.count(page) for page in range(40))
        assert sorted([*pages.free, *pages.idle, *set(held)]) == list(range(40))
        assert set(pages.idle) <= set(pages.key_of) and len(pages.key_of) == len(pages.page_of)
    assert schedule.preemptions > 100 and steps > 1000


def test_who_begins_as_another_reads_it_once() -> None:
    pages = Pages(100, 4)
    schedule = Scheduler(pages, 8, 64)
    text = list(range(17))
    for number in range(3):
        schedule.add(Running(number, [*text, 50 + number]))
    (first,) = schedule.plan()
    assert first.count == 18 and len(schedule.waiting) == 2, "the others wait for what the first is reading"
    schedule.has_read(first.sequence, 18)
    first.sequence.tokens.append(7)
    plan = schedule.plan()
    assert [work.count for work in plan] == [1, 2, 2] and [w.sequence.found for w in plan[1:]] == [16, 16]
    assert len({page for s in schedule.running for page in s.pages}) == 4 + 3
    assert schedule.utilisation == pytest.approx((16 + 2 + 0 + 0) / 28)


def test_a_long_prompt_does_not_hold_up_those_who_answer() -> None:
    schedule = Scheduler(Pages(100, 4), 8, 10)
    schedule.add(Running(0, [1]))
    (work,) = schedule.plan()
    schedule.has_read(work.sequence, 1)
    work.sequence.tokens.append(2)
    schedule.add(Running(1, list(range(25))))
    pieces = []
    while len(pieces) < 3:
        plan = schedule.plan()
        assert plan[0].sequence.number == 0 and plan[0].count == 1
        pieces.append(plan[1].count)
        for work in plan:
            schedule.has_read(work.sequence, work.count)
            if work.last:
                work.sequence.tokens.append(3)
    assert pieces == [9, 9, 7]


# --- the engine ------------------------------------------------------------------------------------------------------

NATIVE = compiler_missing() is None
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


@covers("engine", only=list(WRITERS))
@pytest.mark.parametrize("lookup", [0, 3])
def test_the_engine_says_what_plain_decoding_says(name: str, lookup: int) -> None:
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
        assert engine.native == (native and name in ("gpt2", "llama"))
        if lookup and engine.lookup:
            assert 0 < engine.accepted < engine.proposed
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


@pytest.mark.parametrize("native", RUNNERS)
def test_a_seed_says_the_same_whatever_is_beside_it(native: bool) -> None:
    """Sampled, and to the last bit of its log-probabilities."""
    asked = [Request([3 + i, 8], 12, Sampling(1.1, top_p=0.9), seed=i, logprobs=0) for i in range(6)]
    options = dict(native=native, deterministic=True, max_step_tokens=16, max_rows=8)
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
    ],
)
def test_what_an_engine_cannot_do_is_one_line(options: dict, request_: dict, message: str) -> None:
    with pytest.raises(GenerationError, match=message) as caught:
        Engine(MODEL, EngineOptions(**options)).add(Request(**({"prompt": [1], "max_tokens": 3} | request_)))
    assert "\n" not in str(caught.value)
    with pytest.raises(GenerationError, match="native code cannot be had"):
        Engine(case("mamba2").tiny(), EngineOptions(native=True))
