# SPDX-License-Identifier: Apache-2.0
"""Runners against transformers' logits of the same weights, and against answers known beforehand."""

import importlib.util
from typing import Any

import pytest
import torch

import foundling
from foundling.errors import ConfigError, DataError, GenerationError
from foundling.evaluate import task as task_module
from foundling.evaluate.runners import complete, continuation_logprobs, encode_pair, generate, judge, loglikelihood
from foundling.evaluate.task import GeneratedText, Task, choice, choice_per_byte, exact_match
from foundling.models import build, family
from foundling.text import Tokenizer
from foundling.text.framing import Framing, TextSpec
from foundling.weights.directory import load, weights_hash
from tests.parity import references
from tests.text import kinds

TEXTS = ["the cat sat on the mat and the dog sat on the log", "a small text about cats and dogs, sat at a table"]
PAIRS = [([5, 6, 7], [8, 9]), ([3], [10, 11, 12, 13, 14]), ([20, 21, 22, 23, 24, 25], [26]), ([4, 4], [5])]
QUESTIONS = [
    {"question": "the cat sat on the", "options": [" mat", " dog", " zzzz"], "answer": 0},
    {"question": "a small text about", "options": [" tables", " cats and dogs"], "answer": 1},
]


def question(example: dict) -> str:
    return example["question"]


def options(example: dict) -> list[str]:
    return example["options"]


def answer(example: dict) -> int:
    return example["answer"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 320)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Any:
    torch.manual_seed(0)
    return build("llama", **family("llama").module.sized(tokenizer.vocab_size, 128, 32, 2))


@pytest.mark.parametrize(
    "reference",
    [
        references.gpt2(n_embd=32, n_layer=2, n_head=4),
        references.like_llama("Llama"),
        references.like_llama("Gemma2", sliding_window=4),
        references.mamba(),
    ],
    ids=["gpt2", "llama", "gemma2", "mamba"],
)
@torch.no_grad()
def test_loglikelihood_is_that_of_transformers_logits(reference, tmp_path) -> None:
    theirs = reference.make().eval()
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    for batch_size in (1, 3):
        found = continuation_logprobs(ours, PAIRS, batch_size=batch_size)
        for (before, after), logprobs in zip(PAIRS, found, strict=True):
            ids = torch.tensor([[*before, *after]])
            expected = torch.log_softmax(theirs(ids).logits[0].double(), -1)
            wanted = [float(expected[len(before) - 1 + i, token]) for i, token in enumerate(after)]
            assert logprobs == pytest.approx(wanted, abs=1e-5)


@torch.no_grad()
def test_loglikelihood_of_an_encoder_decoder_is_that_of_transformers_logits(tmp_path) -> None:
    transformers = references.transformers()
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    found = continuation_logprobs(ours, PAIRS, batch_size=4)
    for (source, after), logprobs in zip(PAIRS, found, strict=True):
        start = torch.tensor([[0, *after[:-1]]])
        expected = theirs(input_ids=torch.tensor([source]), decoder_input_ids=start).logits[0].double().log_softmax(-1)
        assert logprobs == pytest.approx([float(expected[i, t]) for i, t in enumerate(after)], abs=1e-5)


@torch.no_grad()
def test_the_runner_scores_the_likeliest_option(model, tokenizer) -> None:
    def logprob(prompt: str, text: str) -> float:
        ids = torch.tensor([[tokenizer.bos, *tokenizer.encode(prompt + text)]])
        n = len(tokenizer.encode(prompt)) + 1  # no token of these texts spans the border
        logprobs = torch.log_softmax(model.logits(model(ids).hidden)[0].double(), -1)
        return sum(float(logprobs[i - 1, ids[0, i]]) for i in range(n, ids.shape[1]))

    for scored, length in ((choice, lambda text: 1), (choice_per_byte, lambda text: len(text.encode()))):
        task = Task("questions", QUESTIONS, question, scored(answer), options)
        found = loglikelihood(model, tokenizer, task)
        expected = []
        for q in QUESTIONS:
            values = [logprob(q["question"], text) / length(text) for text in q["options"]]
            expected.append(float(values.index(max(values)) == q["answer"]))
        assert found.scores == expected and found.value == sum(expected) / 2 and found.n == 2
    seen = []
    task = Task("t", QUESTIONS, question, lambda _, options: seen.extend(options) or 0.0, options, metric="nats")
    loglikelihood(model, tokenizer, task)
    assert [c.logprob for c in seen] == pytest.approx(
        [logprob(q["question"], text) for q in QUESTIONS for text in q["options"]], abs=1e-4
    )


def test_every_character_of_a_continuation_counts(model, tokenizer) -> None:
    """Where a token spans the border between prompt and continuation, it counts."""
    before, after = encode_pair(Framing(tokenizer), "the c", "at sat")
    whole = [tokenizer.bos, *tokenizer.encode("the cat sat")]
    assert before + after == whole and before == whole[: len(before)]
    assert tokenizer.decode(before) in "the c" and tokenizer.decode(after).endswith("at sat")


def test_generation_scores_what_is_generated(model, tokenizer) -> None:
    prompts = ["the cat", "a small", "the dog"]
    texts = complete(model, tokenizer, prompts, max_tokens=6, temperature=0.0)
    by_twos = complete(model, tokenizer, prompts, max_tokens=6, temperature=0.0, batch_size=2)
    assert texts == by_twos and all(text.cut or text.text for text in texts)
    examples = [[p, t.text] for p, t in zip(prompts, texts, strict=True)]
    examples[1][1] = "something that it does not say"
    task = Task("echo", examples, lambda e: e[0], exact_match(lambda e: e[1]))
    found = generate(model, tokenizer, task, max_tokens=6)
    assert found.scores == [1.0, 0.0, 1.0] and found.metric == "accuracy" and found.low < 2 / 3 < found.high
    drawn = [complete(model, tokenizer, prompts, max_tokens=9, seed=s, temperature=1.0) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    # a prompt draws by its number, whatever the batch
    assert complete(model, tokenizer, prompts, max_tokens=9, temperature=1.0, batch_size=1) == drawn[0]


def test_answers_end_and_are_decoded_as_the_directory_says(model, tokenizer) -> None:
    """Every declared end, stop strings that are special tokens, no row without a token: as `foundling generate`."""
    (plain,) = complete(model, tokenizer, ["the cat"], max_tokens=6, temperature=0.0)
    prompt = Framing(tokenizer).prompt("the cat")
    (answer,) = foundling.generate(model, [prompt], max_tokens=6, temperature=0.0)
    assert plain == GeneratedText(tokenizer.decode([*prompt, *answer.tokens]).removeprefix("the cat"), True)
    end = answer.tokens[3]
    first = answer.tokens.index(end)
    framing = Framing(tokenizer, TextSpec(ends=(end,), n_rows=model.config.vocab_size))
    (ended,) = complete(model, framing, ["the cat"], max_tokens=6, temperature=0.0)
    assert not ended.cut and ended.text == framing.answer(prompt)(answer.tokens[:first])
    stop = plain.text[2:4]
    (stopped,) = complete(model, tokenizer, ["the cat"], max_tokens=6, temperature=0.0, stop_strings=[stop])
    assert stopped.text == plain.text[: plain.text.index(stop)] and not stopped.cut
    wide = build("llama", **family("llama").module.sized(tokenizer.vocab_size + 64, 128, 32, 2))
    with torch.no_grad():
        wide.head.weight[tokenizer.vocab_size :] *= 1000  # rows without a token are the likeliest by far
    texts = complete(wide, tokenizer, ["the cat"] * 4, max_tokens=6, temperature=1.0)
    assert len({text.text for text in texts}) == 4


def test_what_a_tokenizer_puts_after_a_text_does_not_stand_before_its_continuation() -> None:
    before, after = encode_pair(Framing(kinds.tokenizer("t5")), "the cat", " sat")
    assert kinds.tokenizer("t5").eos not in before + after and kinds.tokenizer("t5").decode(before) == "the cat"
    framing = Framing(kinds.tokenizer("t5"), TextSpec(reads_source=True))
    assert encode_pair(framing, "the cat", " sat")[0][-1] == framing.tokenizer.eos


def test_hashes_tell_model_task_prompt_and_code_apart(model, tokenizer, tmp_path) -> None:
    task = Task("questions", QUESTIONS, question, choice(answer), options)
    base = loglikelihood(model, tokenizer, task).hashes
    assert set(base) == {"model", "task", "prompt", "code"} and base["model"] == weights_hash(model)
    assert base == loglikelihood(model, tokenizer, task).hashes

    def changed(other: Task) -> set[str]:
        return {name for name, value in other.hashes(loglikelihood).items() if value != base[name]}

    assert changed(Task("questions", QUESTIONS[:1], question, choice(answer), options)) == {"task", "prompt"}
    assert changed(Task("questions", QUESTIONS, lambda e: "Q: " + question(e), choice(answer), options)) == {"prompt"}
    file = tmp_path / "prompts.py"
    spec = importlib.util.spec_from_file_location("prompts", file)
    assert spec and spec.loader
    codes = []
    for body in ("def ask(e): return e['question']\n", "def ask(e): return e['question']  # the same\n"):
        file.write_text(body)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        task_module._file_digest.cache_clear()
        codes.append(Task("questions", QUESTIONS, module.ask, choice(answer), options).hashes()["code"])
    assert codes[0] != codes[1]
    with pytest.raises(DataError, match="not plain data"):
        Task("questions", [{1, 2}], lambda e: "", lambda e, a: 0.0).hashes()


def test_what_cannot_be_run_is_refused_by_name(model, tokenizer) -> None:
    with pytest.raises(ConfigError, match="'t' has no continuations"):
        loglikelihood(model, tokenizer, Task("t", [1], str, lambda e, a: 0.0))
    with pytest.raises(DataError, match=r"takes 2\d\d tokens, the model reads at most 128"):
        continuation_logprobs(model, [([1] * 200, [2] * 20)])
    with pytest.raises(DataError, match="has 2 examples and got 1 answers"):
        judge(Task("t", [1, 2], str, lambda e, a: 0.0), [GeneratedText("")])
    bert = build("bert", **family("bert").module.sized(320, 64, 32, 1))
    with pytest.raises(GenerationError, match=r"does not predict the next token"):
        continuation_logprobs(bert, PAIRS)
