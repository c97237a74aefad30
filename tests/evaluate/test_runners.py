# SPDX-License-Identifier: Apache-2.0
"""Runners against transformers' logits of the same weights, and against answers known beforehand."""

import importlib.util
from typing import Any

import pytest
import torch

import foundling
from foundling.decode.engine.engine import EngineOptions
from foundling.decode.likelihood import continuation_scores
from foundling.errors import ConfigError, DataError, GenerationError
from foundling.evaluate import task as task_module
from foundling.evaluate.local import LocalModel, encode_pair
from foundling.evaluate.runners import judge, run
from foundling.evaluate.subject import Decoding, GeneratedText, GenerateRequest
from foundling.evaluate.task import Task, choice, choice_per_byte, exact_match
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


def torch_engine(rows: int) -> EngineOptions:
    return EngineOptions(native=False, max_num_seqs=rows)


def complete(model: Any, text: Any, prompts: list[str], *, rows: int = 8, **decoding: Any) -> list[GeneratedText]:
    requests = [GenerateRequest(prompt, Decoding(**decoding)) for prompt in prompts]
    return [text for _, text in sorted(LocalModel(model, text, engine=torch_engine(rows)).generate(requests))]


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
    prefix = [int(i) for i in torch.randint(30, (24,), generator=torch.Generator().manual_seed(0))]
    # options of one context, contexts with a common beginning, a context that is another's beginning, an empty option
    tree = [(prefix + [k] * k, after) for k in range(1, 5) for after in ([k, 5], [7], [9, 1, 2], [])]
    for pairs in (PAIRS, PAIRS + tree + [(prefix[:20], [3, 4])]):
        for batch_tokens in (1, 64, 2048):
            results = dict(continuation_scores(ours, pairs, batch_tokens=batch_tokens))
            assert sorted(results) == list(range(len(pairs)))
            for index, (before, after) in enumerate(pairs):
                expected = torch.log_softmax(theirs(torch.tensor([[*before, *after]])).logits[0].double(), -1)
                rows = expected[len(before) - 1 : len(before) - 1 + len(after)]
                logprobs = [float(rows[i, token]) for i, token in enumerate(after)]
                assert results[index].logprobs == pytest.approx(logprobs, abs=1e-5)
                assert results[index].greedy == (rows.argmax(-1).tolist() == after)


@torch.no_grad()
def test_loglikelihood_of_an_encoder_decoder_is_that_of_transformers_logits(tmp_path) -> None:
    transformers = references.transformers()
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    pairs = [*PAIRS, (PAIRS[0][0], [11, 12, 13])]
    results = dict(continuation_scores(ours, pairs))
    for index, (source, after) in enumerate(pairs):
        start = torch.tensor([[0, *after[:-1]]])
        expected = theirs(input_ids=torch.tensor([source]), decoder_input_ids=start).logits[0].double().log_softmax(-1)
        logprobs = [float(expected[i, t]) for i, t in enumerate(after)]
        assert results[index].logprobs == pytest.approx(logprobs, abs=1e-5)
        assert results[index].greedy == (expected.argmax(-1).tolist() == after)


@torch.no_grad()
def test_the_runner_scores_the_likeliest_option(model, tokenizer) -> None:
    def logprob(prompt: str, text: str) -> float:
        ids = torch.tensor([[tokenizer.bos, *tokenizer.encode(prompt + text)]])
        n = len(tokenizer.encode(prompt)) + 1  # no token of these texts spans the border
        logprobs = torch.log_softmax(model.logits(model(ids).hidden)[0].double(), -1)
        return sum(float(logprobs[i - 1, ids[0, i]]) for i in range(n, ids.shape[1]))

    for scored, length in ((choice, lambda text: 1), (choice_per_byte, lambda text: len(text.encode()))):
        task = Task("questions", QUESTIONS, question, scored(answer), options)
        found, items, _ = run(task, LocalModel(model, tokenizer))
        expected = []
        for q in QUESTIONS:
            values = [logprob(q["question"], text) / length(text) for text in q["options"]]
            expected.append(float(values.index(max(values)) == q["answer"]))
        assert found.scores == expected and found.value == sum(expected) / 2 and found.n == 2
        assert [len(item["choices"]) for item in items] == [3, 2]
    seen = []
    task = Task("t", QUESTIONS, question, lambda _, options: seen.extend(options) or 0.0, options, metric="nats")
    run(task, LocalModel(model, tokenizer))
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
    texts = complete(model, tokenizer, prompts, max_tokens=6)
    by_twos = complete(model, tokenizer, prompts, max_tokens=6, rows=2)
    assert texts == by_twos and all(text.cut or text.text for text in texts)
    examples = [[p, t.text] for p, t in zip(prompts, texts, strict=True)]
    examples[1][1] = "something that it does not say"
    task = Task(
        "echo", examples, lambda e: e[0], exact_match(lambda e: e[1]), decoding=Decoding(6), target=lambda e: e[1]
    )
    found, items, _ = run(task, LocalModel(model, tokenizer, engine=EngineOptions(native=False)))
    assert [(item["id"], item["prompt"], item["target"]) for item in items] == [
        (str(i), prompt, target) for i, (prompt, target) in enumerate(examples)
    ]
    assert found.cost["new_tokens"] == sum(text.n_tokens for text in texts) and found.cost["seconds"] > 0
    assert found.scores == [1.0, 0.0, 1.0] and found.metric == "accuracy" and found.low < 2 / 3 < found.high
    drawn = []
    for seed, rows in ((0, 3), (0, 3), (1, 3), (0, 1)):
        task = Task("t", prompts, str, lambda e, a: 0.0, decoding=Decoding(9, temperature=1.0, seed=seed))
        drawn.append(run(task, LocalModel(model, tokenizer, engine=torch_engine(rows))).answers)
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[3] == drawn[0]  # a prompt draws by its number, whatever the batch


def test_answers_end_and_are_decoded_as_the_directory_says(model, tokenizer) -> None:
    """Every declared end, stop strings that are special tokens, no row without a token: as `foundling generate`."""
    (plain,) = complete(model, tokenizer, ["the cat"], max_tokens=6)
    prompt = Framing(tokenizer).prompt("the cat")
    (answer,) = foundling.generate(model, [prompt], max_tokens=6, temperature=0.0)
    text = tokenizer.decode([*prompt, *answer.tokens]).removeprefix("the cat")
    assert plain == GeneratedText(text, True, len(prompt), 6)
    end = answer.tokens[3]
    first = answer.tokens.index(end)
    framing = Framing(tokenizer, TextSpec(ends=(end,), n_rows=model.config.vocab_size))
    (ended,) = complete(model, framing, ["the cat"], max_tokens=6)
    assert not ended.cut and ended.text == framing.answer(prompt)(answer.tokens[:first])
    stop = plain.text[2:4]
    (stopped,) = complete(model, tokenizer, ["the cat"], max_tokens=6, stop=(stop,))
    assert stopped.text == plain.text[: plain.text.index(stop)] and not stopped.cut
    wide = build("llama", **family("llama").module.sized(tokenizer.vocab_size + 64, 128, 32, 2))
    with torch.no_grad():
        wide.head.weight[tokenizer.vocab_size :] *= 1000  # rows without a token are the likeliest by far
    drawn = Task("t", ["the cat"] * 4, str, lambda e, a: 0.0, decoding=Decoding(6, temperature=1.0))
    assert len({text.text for text in run(drawn, LocalModel(wide, tokenizer)).answers}) == 4


def test_what_a_tokenizer_puts_after_a_text_does_not_stand_before_its_continuation() -> None:
    before, after = encode_pair(Framing(kinds.tokenizer("t5")), "the cat", " sat")
    assert kinds.tokenizer("t5").eos not in before + after and kinds.tokenizer("t5").decode(before) == "the cat"
    framing = Framing(kinds.tokenizer("t5"), TextSpec(reads_source=True))
    assert encode_pair(framing, "the cat", " sat")[0][-1] == framing.tokenizer.eos


def test_hashes_tell_model_task_prompt_and_code_apart(model, tokenizer, tmp_path) -> None:
    task = Task("questions", QUESTIONS, question, choice(answer), options)
    base = run(task, LocalModel(model, tokenizer)).result.hashes
    assert set(base) == {"model", "template", "backend", "task", "prompt", "code"}
    assert base["model"] == weights_hash(model) and "float32 on cpu" in base["backend"]
    assert base == run(task, LocalModel(model, tokenizer)).result.hashes
    another = Tokenizer.train(["other words of another text, many of them"], 320)
    template = tokenizer.with_chat_template("{{ messages[0].content }}")  # asked or not, a conversation would be
    for other in (LocalModel(model, another), LocalModel(model, tokenizer, chat=True), LocalModel(model, template)):
        hashes = run(task, other).result.hashes
        assert {name for name in hashes if hashes[name] != base[name]} == {"template"}

    def changed(other: Task) -> set[str]:
        return {name for name, value in other.hashes().items() if value != base[name]}

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
    with pytest.raises(DataError, match="'t' has no examples"):
        run(Task("t", [], str, lambda e, a: 0.0), LocalModel(model, tokenizer))
    with pytest.raises(DataError, match=r"takes 2\d\d tokens, the model reads at most 128"):
        list(continuation_scores(model, [([1] * 200, [2] * 20)]))
    long = Task("long", ["the cat sat " * 200], str, lambda e, a: a[0].n_tokens, lambda e: [" mat"])
    with pytest.raises(GenerationError, match=r"1 of 1 prompts .* longer than the 128 tokens .* --truncate"):
        run(long, LocalModel(model, tokenizer))
    assert run(long, LocalModel(model, tokenizer, truncate=True)).result.value
    written = Task("long", ["the cat sat " * 200], str, lambda e, a: 0.0, decoding=Decoding(5))
    with pytest.raises(GenerationError, match=r"of an answer are more than the 128 .* --truncate"):
        run(written, LocalModel(model, tokenizer))
    assert run(written, LocalModel(model, tokenizer, truncate=True)).answers[0].n_prompt == 123
    with pytest.raises(ConfigError, match="no chat template"):
        LocalModel(model, kinds.tokenizer("t5"), chat=True)
    with pytest.raises(ConfigError, match="the stride is 64, the window 32"):
        LocalModel(model, tokenizer, window=32, stride=64)
    with pytest.raises(DataError, match="has 2 examples and got 1 answers"):
        judge(Task("t", [1, 2], str, lambda e, a: 0.0), [GeneratedText("")])
    bert = build("bert", **family("bert").module.sized(320, 64, 32, 1))
    with pytest.raises(GenerationError, match="does not generate text; see `foundling fill`"):
        list(continuation_scores(bert, PAIRS))


@pytest.mark.parametrize(("window", "stride"), [(128, 128), (16, 16), (16, 5), (7, 1)])
@torch.no_grad()
def test_a_long_text_is_scored_in_windows_and_every_token_once(model, tokenizer, window, stride) -> None:
    """Each token given at least window − stride tokens before it; by hand, one token at a time."""
    text = " ".join(TEXTS)
    ids = [tokenizer.bos, *tokenizer.encode(text)]
    subject = LocalModel(model, tokenizer, window=window, stride=stride)
    ((_, score),) = subject.rolling([text])
    total, at = 0.0, 1
    while at < len(ids):
        end = min(len(ids), at + (window if at == 1 else stride))
        for i in range(at, end):
            before = ids[max(0, end - window - 1) : i]
            logits = model.logits(model(torch.tensor([before])).hidden)[0, -1]
            total += float(logits.double().log_softmax(-1)[ids[i]])
        at = end
    assert score.logprob == pytest.approx(total, abs=1e-3) and score.n_tokens == len(ids) - 1
    documents = [text, TEXTS[0], ""]
    task = Task(
        "bits", documents, str, lambda e, a: -a.logprob, rolling=True, weight=lambda e: max(1.0, len(e.encode()))
    )
    answers = run(task, subject).answers
    assert [a.n_tokens for a in answers] == [len(tokenizer.encode(t)) for t in documents]
    assert answers[2].logprob == 0.0
