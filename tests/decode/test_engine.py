# SPDX-License-Identifier: Apache-2.0
"""The engine against plain decoding, token for token, whatever arrives, finishes, is cancelled or preempted."""

import random
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.native.build import load_library
from foundling.decode.native.program import FORMS
from foundling.decode.plain import generate
from foundling.decode.request import Request
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


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    """With native=None an engine uses native code only where it is built."""
    if NATIVE:
        load_library()


def requests(count: int, seed: int = 0, longest: int = 33) -> list[Request]:
    draw = random.Random(seed)
    prefix = [draw.randrange(3, 64) for _ in range(20)]
    made = []
    for row in range(count):
        prompt = prefix[: draw.choice([0, 0, 18, 20])] + [draw.randrange(3, 64) for _ in range(draw.randrange(1, 12))]
        sampling = draw.choice([Sampling(0), Sampling(0, repetition_penalty=1.3), Sampling(0, logit_bias={5: 2.0})])
        made.append(
            Request(prompt, draw.randrange(1, longest), sampling, seed=row, stop=draw.choice([(), (7, 9)]),
                    logprobs=draw.choice([None, 2]), prompt_logprobs=draw.choice([None, None, 1]))
        )  # fmt: skip
    return made


def compare(answer, expected) -> None:
    assert answer.tokens == expected.tokens and answer.finish_reason == expected.finish_reason
    assert (answer.logprobs is None) == (expected.logprobs is None)
    if expected.logprobs is not None:
        assert answer.logprobs == pytest.approx(expected.logprobs, abs=2e-4)
        assert [list(a) for a in answer.top_logprobs] == [list(a) for a in expected.top_logprobs]
    if expected.prompt_logprobs is not None:
        assert answer.prompt_logprobs[1:] == pytest.approx(expected.prompt_logprobs[1:], abs=2e-4)


@covers("engine", only=list(WRITERS), quick=(*UNLIKE, "gpt2", "gemma2", "bloom", "rwkv"))
def test_the_engine_equals_plain_decoding(name: str) -> None:
    engine_equals_plain(name, 0)


@covers("engine", only=list(WRITERS), quick=("llama", "mamba2", "t5"))
def test_the_engine_with_lookup_equals_plain_decoding(name: str) -> None:
    engine_equals_plain(name, 3)


def engine_equals_plain(name: str, lookup: int) -> None:
    """Random arrival and cancellation, memory so small that sequences are preempted."""
    model = case(name).tiny()
    asked = requests(16, seed=lookup)
    if model.capabilities.reads_source:
        asked = [Request(r.prompt, r.max_tokens, r.sampling, r.seed, r.stop, logprobs=r.logprobs) for r in asked]
    for native in RUNNERS:
        kept = [slot for slots in model.cache_spec() for slot in slots if hasattr(slot, "n_kv_heads")]
        page = 2 * 16 * 4 * sum(s.n_kv_heads * s.head_dim for s in kept if type(s).__name__ == "KV") or 1
        options = EngineOptions(
            native=False if not native else None, max_num_seqs=5, max_step_tokens=16, memory=5 * page, lookup=lookup
        )
        engine, draw = Engine(model, options), random.Random(lookup)
        waiting, numbers, found, cancelled = list(enumerate(asked)), {}, {}, set()
        while waiting or engine.busy:
            while waiting and draw.random() < 0.4:
                index, request = waiting.pop(0)
                numbers[engine.add(request)] = index
            if engine.busy and draw.random() < 0.03:
                gone = draw.choice(list(engine.active))
                answer = engine.cancel(gone)
                expected = plain(model, asked[numbers[gone]]).tokens
                assert answer is not None and answer.finish_reason == "cancelled"
                assert answer.tokens == expected[: len(answer.tokens)]
                cancelled.add(numbers[gone])
            for output in engine.step():
                if output.completion:
                    found[numbers[output.request_id]] = output.completion
        assert len(found) + len(cancelled) == 16 and len(found) > 10
        for index, answer in found.items():
            compare(answer, plain(model, asked[index]))
        assert engine.blocks.n_used == 0 and not engine.scheduler.waiting
        assert engine.native == (native and name in ("gpt2", "llama", "opt", "phi3", "qwen2"))
        if lookup and engine.lookup:
            assert 0 < engine.n_accepted <= engine.n_proposed
        if name == "llama" and not lookup:
            assert engine.scheduler.n_preemptions > 0


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_order_of_events_gives_the_same_completions(data) -> None:
    model = MODEL
    draw = data.draw
    options = EngineOptions(
        native=(NATIVE and draw(st.booleans())) or False,
        max_num_seqs=draw(st.integers(1, 4)),
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
            engine.cancel(draw(st.sampled_from(sorted(engine.active))))
        else:
            for output in engine.step():
                if output.completion:
                    found[numbers[output.request_id]] = output.completion
    for index, answer in found.items():
        compare(answer, EXPECTED[index])
    assert engine.blocks.n_used == 0


MODEL = case("llama").tiny()
ASKED = requests(6, seed=3)
EXPECTED = [plain(MODEL, request) for request in ASKED]


@pytest.mark.parametrize("weights", [None, *(FORMS if NATIVE else ())])
def test_a_seed_gives_the_same_tokens_whatever_else_is_in_the_batch(weights: str | None) -> None:
    """Sampled, and to the last bit of its log-probabilities; by torch and with every form of native weights."""
    asked = [Request([3 + i, 8], 12, Sampling(1.1, top_p=0.9), seed=i, logprobs=0) for i in range(6)]
    options = dict(native=weights is not None, weights=weights, deterministic=True, max_step_tokens=16, max_num_seqs=8)
    together = Engine(MODEL, EngineOptions(**options)).generate([*asked, *requests(6, seed=1)])[:6]
    for request, answer in zip(asked, together, strict=True):
        (alone,) = Engine(MODEL, EngineOptions(**options)).generate([request])
        assert alone.tokens == answer.tokens and alone.logprobs == answer.logprobs


@pytest.mark.skipif(not NATIVE, reason="no C++ compiler here")
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.inference_mode()
def test_native_products_are_those_of_the_rounded_weights(name: str, weights: str) -> None:
    """Logits of a prompt prefilled in chunks against those of the modules with the same rounding of their weights."""
    model = case(name).tiny(
        d_model=96, n_heads=3, **({"n_kv_heads": 3, "d_ff": 200} if name == "llama" else {"d_ff": 200})
    )
    engine = Engine(model, EngineOptions(weights=weights, native=True, max_step_tokens=16, max_num_seqs=2))
    request = Request(list(range(3, 53)), 1, prompt_logprobs=0)
    (answer,) = engine.generate([request])
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and weights != "float32":
            kind = "int8" if module is model.head and weights == "int4" else weights
            module.weight = torch.nn.Parameter(rounded(module.weight, kind), requires_grad=False)
    expected = plain(model, request)
    # activations are rounded to 8 bits too where weights are integers, and keys to bfloat16
    tolerance = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.25, "int4": 0.25}[weights]
    assert answer.prompt_logprobs[1:] == pytest.approx(expected.prompt_logprobs[1:], abs=tolerance)


@pytest.mark.skipif(not NATIVE, reason="no C++ compiler here")
def test_native_code_adds_the_biases_of_some_projections_and_rotates_whole_heads_only() -> None:
    """Qwen 2 has biases on q, k and v. Where a part of each head is rotated, native code would rotate the rest by what
    lies behind the angles."""
    model, asked = case("qwen2").tiny(), requests(4, seed=7)
    answers = Engine(model, EngineOptions(native=True)).generate(asked)
    assert [answer.tokens for answer in answers] == [plain(model, request).tokens for request in asked]
    for partial in (case("gpt_neox").tiny(parallel=False), case("phi3").tiny(rope_fraction=0.5)):
        with pytest.raises(GenerationError, match="rotates only a part of each head"):
            Engine(partial, EngineOptions(native=True))


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
    (free,) = Engine(MODEL).generate([Request([5], 30, Sampling(1.0))])
    stop = decode(free.tokens[4:6])
    engine = Engine(MODEL)
    engine.add(Request([5], 30, Sampling(1.0), stop_strings=[stop], decode=decode))
    tokens, last = [], None
    while engine.busy:
        for output in engine.step():
            tokens += output.new_tokens
            last = output.completion
    assert last is not None and last.finish_reason == "stop" and tokens == last.tokens
    assert last.text == decode(free.tokens)[: decode(free.tokens).find(stop)]


def test_a_recurrent_state_is_reused_at_the_end_of_a_common_prefix() -> None:
    """Families whose cache cannot be truncated share prefixes too: at the ends of chunks."""
    model = case("mamba2").tiny()
    engine = Engine(model, EngineOptions(max_num_seqs=4, max_step_tokens=20))
    prefix, computed = list(range(3, 45)), []
    original = engine.runner.forward

    def forward(chunks, n_logits):
        computed.extend(chunk.n_tokens for chunk in chunks)
        return original(chunks, n_logits)

    engine.runner.forward = forward  # type: ignore[method-assign]
    asked = [Request([*prefix, tail], 6, Sampling(0), seed=tail) for tail in (50, 51, 52)]
    for request, answer in zip(asked, engine.generate(asked), strict=True):
        assert answer.tokens == plain(model, request).tokens
    assert sum(computed) == 43 + 2 * (43 - 32) + 3 * 5
    again = engine.generate([Request([*prefix[:20], 9], 4, Sampling(0))])[0]
    assert again.tokens == plain(model, Request([*prefix[:20], 9], 4, Sampling(0))).tokens
    assert computed[-4:] == [5, 1, 1, 1], "the state after 16 tokens was saved too"


def test_a_request_whose_own_code_raises_ends_alone() -> None:
    class Failing:
        def start(self, prompt):
            return self

        def copy(self):
            return self

        def apply(self, logits):
            if self.count == 3:
                raise KeyError("mine")
            return logits

        count = 0

        def accept(self, token):
            self.count += 1

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
    fine, failing, forbidden, wordless = engine.generate(asked)
    compare(fine, plain(MODEL, whole))
    assert failing.finish_reason == "error" and failing.error == "'mine'" and len(failing.tokens) == 3
    assert forbidden.finish_reason == "error" and "every token is forbidden" in (forbidden.error or "")
    assert wordless.finish_reason == "error" and wordless.error == "no text" and engine.blocks.n_used == 0


@pytest.mark.parametrize(
    ("options", "request_", "message"),
    [
        (dict(weights="int3"), {}, "int8, int4"),
        (dict(max_num_seqs=0), {}, "max_num_seqs is 0"),
        (dict(max_step_tokens=4), {}, "one token per step for each"),
        (dict(lookup=-1), {}, "lookup"),
        (dict(native=False, weights="int8"), {}, "need native code: it is turned off"),
        (dict(memory=1), dict(max_tokens=60), "more memory"),
        ({}, dict(prompt=[]), "empty"),
        ({}, dict(prompt=[64]), "outside the vocabulary"),
        ({}, dict(max_tokens=64), "at most 63"),
        ({}, dict(max_tokens=2.5), "whole number"),
        ({}, dict(stop=["</s>"]), "expected ids of tokens"),
        ({}, dict(logprobs=1.5), "at most 1,000"),
        ({}, dict(sampling=dict(logit_bias={3: "much"})), "logit_bias of 3"),
    ],
)
def test_errors_are_one_line(options: dict, request_: dict, message: str) -> None:
    with pytest.raises(GenerationError, match=message) as caught:
        if "sampling" in request_:
            request_ = request_ | {"sampling": Sampling(**request_["sampling"])}
        Engine(MODEL, EngineOptions(**options)).add(Request(**({"prompt": [1], "max_tokens": 3} | request_)))
    assert "\n" not in str(caught.value)
    with pytest.raises(GenerationError, match="native code is not available"):
        Engine(case("mamba2").tiny(), EngineOptions(native=True))
    with pytest.raises(GenerationError, match=r"layer 0 \(SinkAttention and BiasedMoE\) is not plain attention"):
        Engine(case("gpt_oss").tiny(), EngineOptions(native=True))


def test_two_streams_of_one_engine_both_receive_all_of_their_outputs() -> None:
    engine, apart = Engine(MODEL, EngineOptions(max_num_seqs=4)), requests(3, seed=5)
    added = engine.add(apart[2])
    mine, others, ended = engine.stream(apart[:1]), engine.stream(apart[1:2]), []
    received: list[list[int]] = [[], []]
    for output in mine:
        received[0] += output.new_tokens
        for output in others:
            received[1] += output.new_tokens
    while engine.busy:
        ended += [output.completion for output in engine.step() if output.request_id == added and output.completion]
    assert received == [plain(MODEL, request).tokens for request in apart[:2]]
    compare(ended[0], plain(MODEL, apart[2]))
    assert engine.blocks.n_used == 0 and not engine.pending_outputs


def test_a_request_that_fails_on_add_or_cancel_leaves_nothing_behind() -> None:
    class Wrong:
        def start(self, prompt):
            raise KeyError("mine")

    def decode(ids):
        raise ValueError("no text")

    engine = Engine(MODEL)
    with pytest.raises(GenerationError, match="empty"):
        engine.generate([Request([5], 9), Request([], 9)])
    with pytest.raises(KeyError):
        engine.add(Request([5], 9, processors=[Wrong()]))
    answer = engine.cancel(engine.add(Request([5], 9, decode=decode)))
    assert answer is not None and answer.finish_reason == "error" and answer.error == "no text"
    assert not engine.busy and engine.blocks.n_used == 0 and not engine.step()


def test_torch_serves_a_type_that_native_code_does_not_support() -> None:
    model = case("llama").tiny().double()
    engine = Engine(model)
    assert not engine.native and "float64" in engine.reason
    (answer,) = engine.generate([Request([5, 6], 5, Sampling(0))])
    assert answer.tokens == plain(model, Request([5, 6], 5, Sampling(0))).tokens
