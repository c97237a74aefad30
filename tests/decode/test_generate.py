# SPDX-License-Identifier: Apache-2.0
"""`generate`, for every family that generates: against reading all again, beams against transformers and against all
there is, speculation against plain decoding and its distribution."""

import itertools

import pytest
import torch
from scipy.stats import chi2

import foundling
from foundling.contracts.cache import Cross
from foundling.decode.plain import generate
from foundling.decode.request import Request
from foundling.decode.sampling import Sampling, compute_probs
from foundling.decode.sequence_state import SequenceState
from foundling.decode.speculative import DraftModelProposer, SpeculationStats, speculate
from foundling.errors import GenerationError
from foundling.models import FAMILIES, build, family
from tests.contract.cases import UNTIED, case
from tests.contract.matrix import UNLIKE, covers

transformers = pytest.importorskip("transformers")


def written(*args, **options) -> list[list[int]]:
    return [answer.tokens for answer in generate(*args, **options)]


PROMPTS = [[5, 9, 11], [7], [4, 4, 4, 4, 9, 9]]
WRITERS = tuple(name for name, entry in FAMILIES.items() if entry.kind in ("decoder", "seq2seq"))


def follow(model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """(V,) logits of what comes next, everything read again without a cache."""
    if model.capabilities.reads_source:
        memory = model.encode(torch.tensor([prompt]))
        hidden = model(torch.tensor([[model.config.start_id, *answer]]), memory=memory).hidden
    else:
        hidden = model(torch.tensor([prompt + answer])).hidden
    return model.logits(hidden[0, -1])


@covers("generate", only=list(WRITERS))
def test_greedy_generation_equals_reading_everything_again(name: str) -> None:
    model = case(name).tiny()
    answers = written(model, PROMPTS, max_tokens=12, temperature=0)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids: list[int] = []
        for _ in range(12):
            ids.append(int(follow(model, prompt, ids).argmax()))
        assert answer == ids
    stop = answers[0][4]  # rows that end at different times
    stopped = written(model, PROMPTS, max_tokens=12, temperature=0, stop=[stop])
    assert stopped == [a[: a.index(stop)] if stop in a else a for a in answers]


@covers("generate", only=list(WRITERS))
def test_n_answers_are_those_of_n_prompts(name: str) -> None:
    model = case(name).tiny()
    several = written(model, PROMPTS, max_tokens=9, seed=3, n=4)
    assert several == written(model, [p for p in PROMPTS for _ in range(4)], max_tokens=9, seed=3)
    assert len({tuple(answer) for answer in several[:4]}) > 1


def test_no_two_seeds_share_a_sample() -> None:
    model = case("llama").tiny()
    drawn = [tuple(a) for seed in range(4) for a in written(model, PROMPTS[:1], max_tokens=9, seed=seed, n=4)]
    assert len(set(drawn)) == 16
    assert written(model, PROMPTS[:1], max_tokens=9, seed=2) == [list(drawn[8])]  # the first is the seed's own


def test_a_memory_is_projected_once_and_shared() -> None:
    model, calls = case("t5").tiny(), []
    model.layers[0].cross.k.register_forward_hook(lambda *_: calls.append(1))
    written(model, PROMPTS, max_tokens=8, temperature=0, beams=4)
    assert len(calls) == 1
    cache = model.new_cache(1, 4, model.encode(torch.tensor(PROMPTS[:1])))
    several = cache.select(torch.zeros(5, dtype=torch.int64))
    assert isinstance(model.cache_spec()[0][1], Cross) and several.tensors[0][1] is cache.tensors[0][1]


@covers("beams", only=list(WRITERS), quick=("llama", "mamba2", "t5"))
def test_enough_beams_find_the_likeliest_answer_of_all(name: str) -> None:
    fields = family(name).module.sized(8, 32, 32, 1)
    model = build(name, **fields)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    (found,) = written(model.eval(), [[3, 5]], max_tokens=3, beams=64)
    scores = {}
    with torch.inference_mode():
        for answer in itertools.product(range(8), repeat=3):
            logits = [torch.log_softmax(follow(model, [3, 5], list(answer[:i])), -1)[t] for i, t in enumerate(answer)]
            scores[answer] = float(sum(logits))
    best = sorted(scores, key=lambda a: -scores[a])
    assert tuple(found) == best[0]
    three = written(model, [[3, 5]], max_tokens=3, beams=64, n=3)
    assert [tuple(a) for a in three] == best[:3]


@pytest.mark.parametrize("kind", ["t5", "llama"])
@pytest.mark.parametrize(("beams", "penalty"), [(2, 1.0), (4, 1.0), (3, 2.0), (3, 0.0)])
def test_beams_are_those_of_transformers(kind: str, beams: int, penalty: float, tmp_path) -> None:
    torch.manual_seed(4)
    if kind == "t5":
        config = transformers.T5Config(
            vocab_size=40, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        theirs = transformers.T5ForConditionalGeneration(config)
    else:
        config = transformers.LlamaConfig(
            vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64,
        )  # fmt: skip
        theirs = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (p.ndim < 2))
    theirs.eval().save_pretrained(tmp_path)
    ours = foundling.load(tmp_path)
    ended = 0
    for prompt in ([5, 6, 7, 8], [9], [3, 1, 4, 1, 5, 9, 2, 6], [11, 30], [39, 38, 2]):
        settings = dict(num_beams=beams, do_sample=False, length_penalty=penalty, eos_token_id=7, pad_token_id=0)
        expected = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), max_new_tokens=10,
            num_return_sequences=2, **settings,
        )  # fmt: skip
        skip = len(prompt) if kind == "llama" else 1
        wanted = [row[skip:].tolist() for row in expected]
        wanted = [row[: row.index(7)] if 7 in row else row for row in wanted]
        ended += any(len(row) < 10 for row in wanted)
        found = written(ours, [prompt], max_tokens=10, stop=[7], beams=beams, n=2, length_penalty=penalty)
        assert found == wanted, prompt
    assert ended or penalty > 1, "some answers end before the limit"


def speculated(
    model, draft, prompts, max_tokens: int, sampling: Sampling, ahead: int
) -> tuple[list[list[int]], SpeculationStats]:
    sequences = [SequenceState(Request(prompt, max_tokens, sampling, seed)) for seed, prompt in enumerate(prompts)]
    tally = speculate(model, DraftModelProposer(model, draft), sequences, ahead)
    return [w.completion.tokens for w in sequences], tally


@covers("speculate", only=list(WRITERS), quick=(*UNLIKE, "gemma2", "rwkv"))
@torch.inference_mode()
def test_greedy_speculation_changes_nothing(name: str) -> None:
    of = case(name)
    model, draft = of.tiny(), of.tiny(seed=1)
    plain = written(model, PROMPTS, max_tokens=14, temperature=0)
    assert written(model, PROMPTS, max_tokens=14, temperature=0, draft=draft, draft_tokens=3) == plain
    same, tally = speculated(model, model, PROMPTS, 14, Sampling(temperature=0), 3)
    assert same == plain and tally.accepted == tally.proposed > 0, "a model agrees with itself"
    stop = plain[1][5]
    stopped = written(model, PROMPTS, max_tokens=14, temperature=0, stop=[stop])
    assert written(model, PROMPTS, max_tokens=14, temperature=0, stop=[stop], draft=draft) == stopped
    longest = [[3] * (64 - 6)]  # to the model's last position
    assert written(model, longest, max_tokens=6, temperature=0, draft=draft) == written(
        model, longest, max_tokens=6, temperature=0
    )


@covers("speculate", only=list(WRITERS), quick=("llama",))
@torch.inference_mode()
def test_speculation_draws_from_the_models_own_distribution(name: str) -> None:
    """3,000 answers of two tokens, against their exact joint distribution (chi-square, p > 0.001, fixed seeds)."""
    fields = family(name).module.sized(5, 32, 32, 1) | UNTIED.get(name, {})
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = build(name, **fields)
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (p.ndim < 2))
        model.head.weight.mul_(0.3 if name in UNTIED else 1.0)
        models.append(model.eval())
    model, draft = models
    sampling, rows = Sampling(temperature=1.3, top_k=4, top_p=0.95), 3000
    answers, tally = speculated(model, draft, [[2, 1]] * rows, 2, sampling, 2)
    assert 0.02 < tally.accepted / tally.proposed < 0.95
    statistic, cells = 0.0, 0
    first = compute_probs(follow(model, [2, 1], [])[None], sampling.params)[0]
    for a in range(5):
        second = compute_probs(follow(model, [2, 1], [a])[None], sampling.params)[0]
        for b in range(5):
            expected, seen = rows * float(first[a] * second[b]), answers.count([a, b])
            if expected == 0:
                assert seen == 0
            else:
                statistic, cells = statistic + (seen - expected) ** 2 / expected, cells + 1
    assert chi2.sf(statistic, cells - 1) > 0.001, (statistic, cells)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(n=0), "at least 1"),
        (dict(beams=0), "at least 1"),
        (dict(beams=2, temperature=0.7), "does not sample"),
        (dict(beams=2, n=3), "at most 2"),
        (dict(draft_tokens=0, draft="same"), "draft_tokens"),
        (dict(draft="other"), "same tokenizer"),
        (dict(beams=2, draft="same"), "does not sample"),
        (dict(tokens=[[64]]), "outside the vocabulary"),
        (dict(tokens=[[1], []]), "empty"),
    ],
)
def test_bad_requests_are_one_line(call: dict, message: str) -> None:
    model = case("llama").tiny()
    if call.get("draft"):
        other = build("llama", **family("llama").module.sized(32, 64, 32, 1))
        call = call | {"draft": model if call["draft"] == "same" else other}
    with pytest.raises(GenerationError, match=message) as caught:
        written(model, **(dict(tokens=[[1]], max_tokens=3) | call))
    assert "\n" not in str(caught.value)
