# SPDX-License-Identifier: Apache-2.0
"""How texts begin, end and are decoded: transformers on the same files is the oracle, for every kind of tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import foundling
from foundling.cli import parse
from foundling.cli.chat import talk
from foundling.decode.fill import MaskFiller, fill
from foundling.decode.text import TextGenerator, TextStreamer
from foundling.errors import DataError, GenerationError, WeightsError
from foundling.models import build, family
from foundling.text import Tokenizer
from foundling.text.chat import CHAT_TEMPLATE, render_chat
from foundling.text.framing import Framing, TextSpec
from tests.text.kinds import KINDS, TEXTS, tokenizer

ALL = ("ours", *KINDS)
PROMPTS = ("the cat sat", "the", " and", "", "  two spaces", "café 🙂", "世界 x\n")
every = pytest.mark.parametrize("kind", ALL)


def theirs(kind: str, directory: Path) -> Any:
    tokenizer(kind).save(directory)
    return transformers.AutoTokenizer.from_pretrained(directory)


@every
def test_a_text_is_framed_as_transformers_frames_it(kind: str, tmp_path: Path) -> None:
    other, framing = theirs(kind, tmp_path), Framing(tokenizer(kind))
    again = Framing(Tokenizer.load(tmp_path))
    for text in (*PROMPTS, *TEXTS[:4]):
        expected = other(text)["input_ids"]
        if expected:
            assert framing.prompt(text) == again.prompt(text) == expected, text
        else:  # nothing to begin with: a document's beginning
            assert framing.prompt(text) == [framing.tokenizer.eos]


@every
def test_special_tokens_in_a_text_are_text(kind: str) -> None:
    """Who writes <|im_end|> into a prompt ends nothing; a chat template does."""
    one = tokenizer(kind)
    name = one.names.get("eos_token") or "<|endoftext|>" if kind != "bert" else "[SEP]"
    mark, text = one.backend.token_to_id(name), f"a {name} b"
    assert mark not in one.encode(text) and mark in one.encode_marked(text)
    assert one.encode_batch([text, "a"]) == [one.encode(text), one.encode("a")]
    assert [i for _, i in one.pieces(text)] == one.encode(text) and mark not in one.encode_framed(text)[1:-1]


@pytest.mark.parametrize("kind", ["t5 cleaned", "bert", "gpt2"])
def test_spaces_are_cleaned_as_transformers_cleans_them(kind: str, tmp_path: Path) -> None:
    one = tokenizer(kind)
    Tokenizer(one.backend, {**one.described, "clean_up_tokenization_spaces": True}).save(tmp_path)
    ours, other = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = ours.encode("the cat , the dog . the ' log ' is 't ; do n't 's ! we 've , 're")
    assert ours.decode(ids) == other.decode(ids, skip_special_tokens=True) and ours.cleans == (kind != "gpt2")


WORDS = [
    "the",
    " cat",
    " sat",
    "\n",
    "  ",
    "é",
    "世",
    "🙂",
    "👍🏽",
    " .",
    "1",
    "\t",
    " don't",
    "\ufffd",
    " '",
    " n",
    "s",
]
STOPS = ["the", "at", " s", "sat", "🙂", "\n", " "]
texts = st.lists(st.sampled_from(WORDS), min_size=0, max_size=8).map("".join)


def check_streams(kind: str, prompt: str, answer: str, noise: list[int], stops: list[str]) -> None:
    """The streamed text is the text of the whole, cut before the first stop string, in pieces that are never taken
    back."""
    one = tokenizer(kind)
    ids = [*one.encode(answer), *(one_id % one.vocab_size for one_id in noise), *one.encode(answer)]
    before = Framing(one, TextSpec()).prompt(prompt)
    decode = Framing(one, TextSpec()).answer(before)
    whole = decode(ids)
    assert one.decode([*before, *ids]).endswith(whole)
    cuts = [at for stop in stops if (at := whole.find(stop)) >= 0]
    final = whole[: min(cuts)] if cuts else whole
    sent = list[str]()
    streamer = TextStreamer(decode, sent.append, stops)
    for token in ids:
        streamer.append(token)
        assert final.startswith("".join(sent)), (ids, sent)
    streamer.finish(final)
    assert "".join(sent) == final, (prompt, ids, stops)


@every
def test_streamed_is_the_whole(kind: str) -> None:
    """5,500 cases, drawn without hypothesis, which takes ten times as long as what is tested."""
    random = Random(kind)
    for _ in range(500):
        prompt, answer = ("".join(random.choices(WORDS, k=random.randrange(9))) for _ in range(2))
        noise = random.choices(range(10_000), k=random.randrange(7))
        check_streams(kind, prompt, answer, noise, random.sample(STOPS, random.randrange(3)))


@pytest.mark.slow
@every
@settings(max_examples=2000, deadline=None)
@given(texts, texts, st.lists(st.integers(0, 10_000), max_size=6), st.lists(st.sampled_from(STOPS), max_size=2))
def test_streamed_is_the_whole_of_many(kind: str, prompt: str, answer: str, noise: list[int], stops: list[str]) -> None:
    check_streams(kind, prompt, answer, noise, stops)


def model_directory(kind: str, directory: Path, name: str, **config: Any) -> Any:
    """A random model of the family over this tokenizer; what transformers loads of it."""
    one = tokenizer(kind)
    fields = family(name).module.sized(one.vocab_size + 3, 64, 32, 2)  # padded: three rows have no token
    torch.manual_seed(1)
    foundling.save(build(name, **fields), directory)
    one.save(directory)
    if config:
        (directory / "generation_config.json").write_text(json.dumps(config))
    auto = transformers.AutoModelForSeq2SeqLM if name in ("t5", "bart") else transformers.AutoModelForCausalLM
    return auto.from_pretrained(directory).eval()


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, "llama") for kind in ALL if kind != "bert"] + [("gpt2", "gpt2"), ("llama 2", "mistral"), ("t5", "t5"),
     ("llama 3", "qwen3"), ("gpt2", "bart")],
)  # fmt: skip
@torch.inference_mode()
def test_greedy_texts_are_those_of_transformers(kind: str, name: str, tmp_path: Path) -> None:
    one = tokenizer(kind)
    ends = [one.eos, 40]
    start = {"decoder_start_token_id": 0} if name in ("t5", "bart") else {}
    other = model_directory(kind, tmp_path, name, eos_token_id=ends, pad_token_id=0, **start)
    ours = TextGenerator.load(tmp_path)
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path)
    never = list(range(one.vocab_size, one.vocab_size + 3))
    for prompt in PROMPTS:
        ids = reader(prompt, return_tensors="pt")["input_ids"]
        if not ids.numel():
            continue
        everything = torch.ones_like(ids)  # or what equals the padding is taken for it
        out = other.generate(ids, attention_mask=everything, max_new_tokens=12, do_sample=False, suppress_tokens=never)[
            0
        ].tolist()
        if name in ("t5", "bart"):
            expected = reader.decode(out, skip_special_tokens=True)
        else:
            before = reader.decode(ids[0], skip_special_tokens=True)
            expected = reader.decode(out, skip_special_tokens=True)[len(before) :]
        (answer,) = ours.generate(prompt, max_tokens=12)
        assert answer["text"] == expected, prompt


def test_what_generation_config_asks_for_is_done_or_named(tmp_path: Path) -> None:
    model_directory("gpt2", tmp_path, "gpt2", do_sample=True, temperature=0.5, num_beams=4, eos_token_id=[1, 2],
                    top_k=None, max_new_tokens=7, no_repeat_ngram_size=0)  # fmt: skip
    writer = TextGenerator.load(tmp_path)
    assert writer.sampling.temperature == 0.5 and writer.sampling.top_k == 0 and writer.max_tokens == 7
    assert writer.framing.ends == (1, 2, writer.tokenizer.eos)
    assert [note for note in writer.notes if "num_beams 4" in note] and len(writer.notes) == 1
    assert TextGenerator.load(tmp_path, temperature=0.0).sampling.temperature == 0
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.5}))
    assert TextGenerator.load(tmp_path).sampling.temperature == 0
    assert TextGenerator.load(tmp_path, top_p=0.5).sampling.temperature == 1
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "eos_token_id": -1, "max_length": 9, "suppress_tokens": [3, -1, 10**6]})
    )
    writer = TextGenerator.load(tmp_path)
    assert writer.framing.ends == (writer.tokenizer.eos,) and writer.sampling.logit_bias[3] == float("-inf")
    assert writer.answer([5, 6, 7])[0]["tokens"] <= 6
    for wrong in (
        {"bad_words_ids": 5},
        {"eos_token_id": "x"},
        {"eos_token_id": [True]},
        {"do_sample": True, "temperature": "hot"},
        *({"max_new_tokens": wrong} for wrong in ("50", 50.0, -1, 0, True)),
        {"max_length": "20"},
        {"do_sample": "false"},
        {"decoder_start_token_id": "x"},
    ):
        (tmp_path / "generation_config.json").write_text(json.dumps(wrong))
        with pytest.raises(WeightsError, match=r"generation_config\.json"):
            TextGenerator.load(tmp_path)


def test_another_start_of_the_decoder_is_named(tmp_path: Path) -> None:
    model_directory("gpt2", tmp_path, "t5")
    start = TextGenerator.load(tmp_path).model.config.start_id
    for value, notes in ((start, 0), (None, 0), (start + 1, 1)):
        config = {"decoder_start_token_id": value, "max_new_tokens": None}
        (tmp_path / "generation_config.json").write_text(json.dumps(config))
        found = TextGenerator.load(tmp_path).notes
        assert len(found) == notes and all(f"decoder_start_token_id {start + 1} " in note for note in found)


def test_an_engine_says_where_longrope_ends_its_answers(tmp_path: Path) -> None:
    model_directory("gpt2", tmp_path, "llama")
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    factors = [1.5] * (values["head_dim"] // 2)
    scaling = {
        "rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 16, "short_factor": factors,
        "long_factor": factors,
    }  # fmt: skip
    values.pop("rope_parameters")
    file.write_text(json.dumps(values | {"rope_scaling": scaling}))
    ids = [5 + i for i in range(16)]
    assert TextGenerator.load(tmp_path, temperature=0.0).answer(ids, max_tokens=4)[0]["tokens"] == 4
    writer = TextGenerator.load(tmp_path, weights="int8", temperature=0.0)
    assert ["have 16 tokens (longrope scaling)" in note for note in writer.notes] == [True]
    assert writer.answer(ids[:13])[0]["tokens"] == 3
    with pytest.raises(GenerationError, match="the prompt is 16 tokens, and longrope scaling"):
        writer.answer(ids)


def test_a_special_token_stops_an_answer(tmp_path: Path) -> None:
    model_directory("gpt2", tmp_path, "gpt2")
    writer = TextGenerator.load(tmp_path, temperature=0.0)
    (whole,) = writer.answer([5, 6, 7], max_tokens=8)
    mark = writer.tokenizer.backend.token_to_id("<|im_end|>")
    assert writer.framing.stops(["<|im_end|>", "the"]) == [mark]
    with torch.no_grad():  # a model that says nothing else
        writer.model.head.weight.zero_()
        writer.model.head.weight[mark] = 1000 * writer.model(torch.tensor([[5, 6, 7]])).hidden[0, -1]
    (said,) = writer.answer([5, 6, 7], max_tokens=8, stop_strings=["<|im_end|>"])
    assert (said["text"], said["tokens"], said["finish_reason"]) == ("", 0, "stop") and whole["tokens"] > 0


def test_a_token_without_a_row_is_refused_where_it_is_used(tmp_path: Path) -> None:
    """Gemma 3 is published with more tokens than rows."""
    one = tokenizer("gpt2")
    foundling.save(build("gpt2", **family("gpt2").module.sized(one.vocab_size - 1, 64, 32, 1)), tmp_path)
    one.save(tmp_path)
    writer = TextGenerator.load(tmp_path)
    assert writer.generate("the", max_tokens=2)
    with pytest.raises(GenerationError, match="no row for"):
        writer.answer([one.vocab_size - 1], max_tokens=2)


def test_a_suffix_for_a_model_that_was_not_taught_to_fill_is_named(tmp_path: Path, capsys) -> None:
    one = tokenizer("ours")
    model = build("gpt2", **family("gpt2").module.sized(one.vocab_size, 64, 32, 1))
    for recipe, told in (({"data": {"fim_rate": 0.0}}, True), ({"data": {"fim_rate": 0.5}}, False), (None, False)):
        foundling.save(model, tmp_path / str(recipe), tokenizer=one)
        manifest = tmp_path / str(recipe) / "foundling.json"
        if recipe:
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"recipe": recipe}))
        args = parse(
            ["generate", str(tmp_path / str(recipe)), "--prompt", "the", "--suffix", "sat", "--max-tokens", "2"]
        )
        args.run(args)
        assert ("never taught to fill" in capsys.readouterr().err) == told


def test_an_encoder_with_fewer_rows_fills_too(tmp_path: Path) -> None:
    one = tokenizer("bert")
    foundling.save(build("bert", **family("bert").module.sized(one.vocab_size - 1, 64, 32, 1)), tmp_path)
    one.save(tmp_path)
    filler = MaskFiller.load(tmp_path)
    assert len(filler.fill("the ___ sat")["gaps"]) == 1
    with pytest.raises(GenerationError, match="no row for"):
        fill(filler.model, [one.vocab_size - 1, one.mask], one.mask)  # pyright: ignore[reportArgumentType]


CONVERSATION = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "Say <|im_end|>!"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Again"},
]
LLAMA_2 = (
    "{% set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}"
    "{% for message in turns %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{% generation %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
)  # fmt: skip


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LLAMA_2])
@pytest.mark.parametrize("kind", ["ours", "llama 2", "llama 3", "metaspace first"])
def test_a_conversation_is_that_of_transformers(kind: str, template: str, tmp_path: Path) -> None:
    one = tokenizer(kind)
    named = Tokenizer(
        one.backend,
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", **one.described, "chat_template": template},
    )
    named.save(tmp_path)
    other, framing = transformers.AutoTokenizer.from_pretrained(tmp_path), Framing(Tokenizer.load(tmp_path))
    tools = [{"type": "function", "function": {"name": "f", "description": "é <b>"}}]
    for messages in (CONVERSATION, CONVERSATION[:2]):
        for add in (True, False):
            expected = other.apply_chat_template(messages, tools=tools, add_generation_prompt=add, return_dict=False)
            assert framing.chat(messages, tools=tools, add_generation_prompt=add) == expected
    if template == LLAMA_2:
        with pytest.raises(DataError, match="roles must alternate"):
            framing.chat(CONVERSATION[2:])


def test_our_own_template_takes_parts_and_empty_turns() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
             {"role": "assistant", "content": None}]  # fmt: skip
    expected = "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
    assert render_chat(CHAT_TEMPLATE, parts, add_generation_prompt=False) == expected


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ messages.__class__.__mro__ }}", WeightsError),
        ("{% for a in 'x' * 99999 %}{% for b in 'x' * 99999 %}{% endfor %}{% endfor %}", WeightsError),
        ("{% for a in range(200000) %}{% endfor %}", DataError),
        ("{{ '%9999999999d' % 1 }}", WeightsError),
        ("{{ 'x' | center(9999999999) }}", WeightsError),
        ("{{ 'x\ny' | indent(9999999999) }}", WeightsError),
        ("{{ messages | tojson(indent=9999999999) }}", WeightsError),
        ("{{ 'xx'.ljust(9999999999) }}", WeightsError),
        ("{{ ('x' * 100000) | replace('x', 'y' * 100000) }}", WeightsError),
        (
            "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            WeightsError,
        ),
        ("{{ 'x' * 17000000 }}", WeightsError),
        ("{{ ('a' * 300000000) | length }}", WeightsError),
        ("{{ '{1}'.format(0) }}", DataError),
        ("{{ 1 // 0 }}", DataError),
        ("{% for x in y %}" * 30 + "{% endfor %}" * 30, WeightsError),
        ("{% for", WeightsError),
        ("{{ messages[9].content }}", DataError),
        ("{{ raise_exception('no\nway') }}", DataError),
    ],
)
def test_templates_are_untrusted(template: str, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        render_chat(template, CONVERSATION)
    assert "\n" not in str(caught.value)


def test_messages_that_are_no_json_are_refused_by_name() -> None:
    for content in (b"bytes", {1, 2}, object()):
        with pytest.raises(DataError, match="messages and tools must be of texts"):
            render_chat(CHAT_TEMPLATE, [{"role": "user", "content": content}])


def test_templates_may_count_and_format() -> None:
    template = "{% for i in range(3) %}{{ '%02d' % i }}{{ '-' * 2 }}{% endfor %}{{ messages | length }}"
    assert render_chat(template, CONVERSATION) == "00--01--02--4"


def test_a_conversation_that_grows_too_long_loses_its_oldest_turns(tmp_path: Path, capsys) -> None:
    model_directory("gpt2", tmp_path, "gpt2")  # reads 64 tokens
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": CHAT_TEMPLATE}))
    writer = TextGenerator.load(tmp_path)
    messages: list[dict[str, str]] = [{"role": "system", "content": "x"}]
    for _ in range(4):
        messages.append({"role": "user", "content": "the cat"})
        (answer,) = talk(writer, messages, {"max_tokens": 4})
        messages.append({"role": "assistant", "content": answer["text"]})
    assert messages[0]["role"] == "system" and messages[1]["role"] == "user" and len(messages) < 9
    assert "the oldest turn is left out" in capsys.readouterr().err
    messages = messages[:1]
    while len(writer.framing.chat(messages)) < 60:  # of 64: an answer of whatever length needs more space
        messages += [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    asked = [*messages, {"role": "user", "content": "the cat"}]
    talk(writer, asked, {"max_tokens": None})
    assert len(writer.framing.chat(asked)) <= 32 and len(asked) >= 2
