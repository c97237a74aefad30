# SPDX-License-Identifier: Apache-2.0
"""Where the answers of a chat are: beside transformers where a template marks them, and the tokens that inference has
where it does not."""

import json

import pytest
import transformers

from foundling.errors import DataError
from foundling.text import answers
from foundling.text.answers import Answered, Unusable
from foundling.text.chat import CHAT_TEMPLATE
from foundling.text.framing import Framing
from foundling.text.tokenizer import Tokenizer
from tests.text.kinds import TEXTS, tokenizer

MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
FORGETS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('</think>')[-1] }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""strips the thoughts of earlier answers, as Qwen 3 and DeepSeek R1 do"""


def chat(*texts: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


CHAT = chat("Hello, déjà vu?", "The cat sat 🙂", "and the dog", "on the log.\n12345")


@pytest.fixture(scope="module")
def framing() -> Framing:
    return Framing(Tokenizer.train(TEXTS, 384))


def said(framing: Framing, example) -> list[str]:
    """The texts under the mask, with special tokens, one for each answer."""
    assert isinstance(example, Answered) and len(example.ids) == len(example.mask)
    spans, last = list[list[int]](), False
    for token, on in zip(example.ids, example.mask, strict=True):
        if on and not last:
            spans.append([])
        if on:
            spans[-1].append(token)
        last = on
    return [framing.tokenizer.backend.decode(span, skip_special_tokens=False) for span in spans]


@pytest.mark.parametrize("kind", ["ours", "gpt2", "llama 3", "prefix space"])
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, MARKED, SMOLLM2])
def test_answers_with_the_token_that_ends_them_are_learnt_and_nothing_else(kind, template):
    framing = Framing(tokenizer(kind).with_chat_template(template))
    example = Answered(*framing.chat_example(CHAT))
    assert said(framing, example) == ["The cat sat 🙂<|im_end|>", "on the log.\n12345<|im_end|>"]
    assert example.ids == framing.chat(CHAT, add_generation_prompt=False)
    for answer in (1, 3):  # what is learnt follows from the ids that a model continues at inference
        prompt = framing.chat(CHAT[:answer])
        assert example.ids[: len(prompt)] == prompt and example.mask[len(prompt)] and not example.mask[len(prompt) - 1]


def test_marks_of_a_template_are_those_that_transformers_reads(framing, tmp_path):
    marked = framing.tokenizer.with_chat_template(MARKED)
    marked.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for messages in (CHAT, chat("a", "b"), [{"role": "system", "content": "be brief"}, *CHAT]):
        want = theirs.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
        ids, mask = Framing(marked).chat_example(messages)
        assert ids == want["input_ids"] and mask == [bool(on) for on in want["assistant_masks"]]


@pytest.mark.parametrize("kind", ["llama 2", "metaspace always", "metaspace first", "metaspace never"])
def test_a_template_with_spaces_around_answers(kind):
    framing = Framing(tokenizer(kind).with_chat_template(LLAMA_2))
    messages = chat("the cat", "sat on the mat", "and", "the dog")
    example = Answered(*framing.chat_example(messages))
    assert [text.replace("▁", " ").strip() for text in said(framing, example)] == [
        "sat on the mat </s>",
        "the dog </s>",
    ]
    prompt = framing.chat(messages[:3])
    assert example.ids[: len(prompt)] == prompt and example.mask[len(prompt)]


def test_an_answer_that_joins_its_prompt_is_encoded_apart(framing):
    """A line break at the beginning of an answer and the one before it are one token of the whole text."""
    messages = chat("hi", "\n  indented")
    ids, mask = framing.chat_example(messages)
    prompt = framing.chat(messages[:1])
    assert ids != framing.chat(messages, add_generation_prompt=False)
    assert ids[: len(prompt)] == prompt and mask == [at >= len(prompt) for at in range(len(ids) - 1)] + [False]
    assert said(framing, Answered(ids, mask)) == ["\n  indented<|im_end|>"]


def test_a_template_that_changes_what_stands_before_is_refused_with_the_way_out(framing):
    forgets = Framing(framing.tokenizer.with_chat_template(FORGETS))
    thoughts = chat("a", "<think>hm</think>b", "c", "<think>so</think>d")
    assert said(forgets, Answered(*forgets.chat_example(thoughts[:2]))) == ["<think>hm</think>b<|im_end|>"]
    with pytest.raises(DataError, match=r"does not say where the answers.*answer 1 of 2.*generation.*--as seq2seq"):
        forgets.chat_example(thoughts)


def test_a_template_whose_answers_do_not_end_is_refused(framing):
    endless = Framing(framing.tokenizer.with_chat_template("{% for m in messages %}{{ m['content'] }}\n{% endfor %}"))
    with pytest.raises(DataError, match="no special token ends an answer"):
        endless.chat_example(chat("a", "b"))


def test_each_chat_is_judged_alone(framing):
    refuses = CHAT_TEMPLATE + "{% if messages[0]['content'] == 'bad' %}{{ raise_exception('no ' + 'good') }}{% endif %}"
    framing = Framing(framing.tokenizer.with_chat_template(refuses))
    chats = [chat("a", "b"), chat("bad", "b"), chat("a"), chat("a", "long " * 99), chat("a", "b")]
    first, bad, none, long, last = framing.chat_examples([{"messages": messages} for messages in chats], longest=60)
    assert first == last and isinstance(first, Answered)
    assert isinstance(bad, Unusable) and "no good" in bad.detail
    assert isinstance(none, Unusable) and none.reason == "a chat without an answer"
    assert isinstance(long, Unusable) and long.reason == "a chat over 60 tokens"


def test_a_message_of_weight_0_is_read_and_not_learnt(framing):
    messages = [CHAT[0], CHAT[1] | {"weight": 0}, *CHAT[2:]]
    ids, mask = framing.chat_example(messages)
    assert ids == framing.chat_example(CHAT)[0] and said(framing, Answered(ids, mask)) == [
        "on the log.\n12345<|im_end|>"
    ]


def test_a_chat_that_writes_the_marks_itself_is_not_used(framing):
    marked = Framing(framing.tokenizer.with_chat_template(MARKED))
    with pytest.raises(DataError, match="private characters"):
        marked.chat_example(chat(answers.MARKS[0], "b"))


@pytest.mark.slow
def test_a_template_that_does_not_end_takes_no_other_chat_with_it(framing):
    slow = "{% if messages[0]['content'] == 'slow' %}{% for i in range(99999) %}{% for j in range(9999) %}{% endfor %}"
    slow += "{% endfor %}{% endif %}" + CHAT_TEMPLATE
    framing = Framing(framing.tokenizer.with_chat_template(slow))
    chats = [chat("a", "b"), chat("slow", "b"), chat("c", "d")]
    first, second, third = framing.chat_examples([{"messages": messages} for messages in chats])
    assert isinstance(first, Answered) and isinstance(third, Answered)
    assert isinstance(second, Unusable) and "takes too long" in second.reason


def test_a_tokenizer_without_a_template(tmp_path):
    plain = Framing(Tokenizer(tokenizer("gpt2").backend, {"eos_token": "<|endoftext|>"}))
    with pytest.raises(DataError, match=r"no chat template.*--chat-template plain.*--as text or --as seq2seq"):
        plain.chat_example(CHAT)
    ids, _ = Framing(plain.tokenizer.with_chat_template()).chat_example(CHAT)
    assert ids == Framing(tokenizer("gpt2").with_chat_template()).chat_example(CHAT)[0]
    with pytest.raises(DataError, match=r"no special token <\|im_start\|>"):
        tokenizer("bert").with_chat_template()
    given = tokenizer("gpt2").with_chat_template()
    given.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"] == CHAT_TEMPLATE
