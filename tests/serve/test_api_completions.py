# SPDX-License-Identifier: Apache-2.0
"""Completions by the official client: texts and ids, echo, log-probabilities, best_of, a suffix."""

from pathlib import Path
from typing import Any

import openai
import pytest
import torch

import foundling
from foundling.adapt.heads import HeadOptions, add_head
from foundling.decode.classify import Classifier
from foundling.decode.text import TextGenerator
from foundling.models import build, family
from foundling.serve.models import Price
from foundling.text import Tokenizer
from foundling.weights.loading import load
from tests.serve.servers import TEXTS, Live, save_model, serving

PROMPT = "the cat sat on"


def ask(live: Live, model: str = "tiny", prompt: Any = PROMPT, **options: Any) -> Any:
    return live.client().completions.create(model=model, prompt=prompt, **({"max_tokens": 12} | options))


def refused(live: Live, **options: Any) -> Any:
    with pytest.raises(openai.BadRequestError) as error:
        ask(live, **options)
    return error.value.body


@pytest.mark.parametrize("name", ["tiny", "recurrent", "translator"])
def test_texts_are_those_of_the_library(live: Live, directories, name: str) -> None:
    generator = TextGenerator.load(directories[name], temperature=0)
    prompts = [PROMPT, "a small text", ""]
    own = [generator.generate(prompt, max_tokens=12)[0] for prompt in prompts]
    expected = [one["text"] for one in own]
    reply = ask(live, name, prompts, temperature=0)
    assert [c.text for c in reply.choices] == expected and [c.index for c in reply.choices] == [0, 1, 2]
    assert reply.object == "text_completion" and reply.usage.completion_tokens == sum(one["tokens"] for one in own)
    ids = [generator.framing.prompt(prompt) for prompt in prompts]
    assert [c.text for c in ask(live, name, ids, temperature=0).choices] == expected
    assert ask(live, name, ids[0], temperature=0).choices[0].text == expected[0]
    assert reply.usage.prompt_tokens == sum(map(len, ids))
    sampled = TextGenerator.load(directories[name], temperature=1.4)
    twice = ask(live, name, PROMPT, n=2, seed=11, temperature=1.4)
    assert [c.text for c in twice.choices] == [o["text"] for o in sampled.generate(PROMPT, n=2, seed=11, max_tokens=12)]
    parts = {0: "", 1: ""}
    for chunk in ask(live, name, PROMPT, n=2, seed=11, temperature=1.4, stream=True):
        for choice in chunk.choices:
            parts[choice.index] += choice.text
    assert list(parts.values()) == [c.text for c in twice.choices]


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_have_the_token_that_ends_an_answer(live: Live, directories, stream: bool) -> None:
    """As OpenAI's: lm-evaluation-harness asks for one token and leaves out the last log-probability."""
    served, model = live.model("tiny"), load(directories["tiny"])
    ids, (end, *_) = served.framing.prompt("the cat sat"), served.framing.ends
    (expected,) = foundling.generate(model, [[*ids, end]], max_tokens=1, prompt_logprobs=0)
    asked = ask(live, prompt=ids, logprobs=2, max_tokens=5, logit_bias={str(end): 100}, temperature=0, stream=stream)
    choices = [choice for chunk in asked for choice in chunk.choices] if stream else asked.choices
    (logprobs,) = (choice.logprobs for choice in choices if choice.logprobs)
    assert "".join(choice.text for choice in choices) == "" and choices[-1].finish_reason == "stop"
    assert logprobs.token_ids == [end] and logprobs.text_offset == [0]
    assert expected.prompt_logprobs and logprobs.token_logprobs == pytest.approx(
        expected.prompt_logprobs[-1:], abs=1e-4
    )
    if not stream:
        assert asked.usage.completion_tokens == 0
        (echoed,) = ask(live, prompt=ids, echo=True, logprobs=0, max_tokens=5, logit_bias={str(end): 100}).choices
        assert echoed.logprobs.token_ids == [*ids, end] and echoed.text == "the cat sat"


def test_echo_scores_the_prompt_as_the_library_does(live: Live, directories) -> None:
    served, model = live.model("tiny"), load(directories["tiny"])
    ids = served.framing.prompt("the cat sat, and a dog")
    (expected,) = foundling.generate(
        model, [ids], max_tokens=4, temperature=0, logprobs=3, prompt_logprobs=3, logit_bias=dict(served.no_rows)
    )
    (choice,) = ask(live, prompt=ids, echo=True, logprobs=3, max_tokens=4, temperature=0).choices
    got = choice.logprobs
    assert got.token_ids == [*ids, *expected.tokens]
    assert expected.prompt_logprobs and expected.logprobs and expected.prompt_top_logprobs and expected.top_logprobs
    assert got.token_logprobs[0] is None and got.top_logprobs[0] is None
    logprobs = [*expected.prompt_logprobs, *expected.logprobs][1:]
    assert got.token_logprobs[1:] == pytest.approx(logprobs, abs=1e-4)
    for top, theirs in zip(got.top_logprobs[1:], [*expected.prompt_top_logprobs, *expected.top_logprobs][1:]):
        assert max(top.values()) == pytest.approx(max(theirs.values()), abs=1e-4)
    assert got.text_offset == [sum(map(len, got.tokens[:i])) for i in range(len(got.tokens))]
    text = choice.text
    assert text.startswith("the cat sat, and a dog")
    (scored,) = ask(live, prompt=ids, echo=True, logprobs=1, max_tokens=0).choices
    assert (scored.text, scored.finish_reason) == ("the cat sat, and a dog", "length")
    assert scored.logprobs.token_logprobs == got.token_logprobs[: len(ids)] and scored.logprobs.token_ids == ids
    rows = [ids, ids[:5], ids[2:]]
    several = ask(live, prompt=rows, echo=True, logprobs=0, max_tokens=0)
    assert [c.logprobs.token_ids for c in several.choices] == rows


def test_best_of_returns_the_likeliest(live: Live) -> None:
    options = dict(seed=9, temperature=1.5, max_tokens=8, logprobs=0)
    every = ask(live, n=6, **options).choices
    mean = [sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs) for c in every]
    order = sorted(range(6), key=lambda i: -mean[i])
    best = ask(live, n=2, best_of=6, **options)
    assert [c.text for c in best.choices] == [every[i].text for i in order[:2]]
    assert best.usage.completion_tokens == 48  # all that was computed
    quiet = ask(live, best_of=6, **(options | {"logprobs": None}))
    assert quiet.choices[0].text == every[order[0]].text and quiet.choices[0].logprobs is None
    assert refused(live, n=3, best_of=2)["param"] == "best_of"
    assert refused(live, best_of=2, stream=True)["param"] == "best_of"


def judge(path: Path) -> Path:
    """A random classifier of texts."""
    tokenizer = Tokenizer.train(TEXTS, 320)
    torch.manual_seed(3)
    model: Any = build("bert", **family("bert").module.sized(tokenizer.vocab_size, 256, 32, 2))
    add_head(model, HeadOptions("classify", labels=("bad", "good")), torch.Generator().manual_seed(3))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    foundling.save(model, path, tokenizer=tokenizer)
    return path


def test_best_of_asks_the_reward_model(directories, tmp_path: Path) -> None:
    reward = judge(tmp_path / "judge")
    with serving({"tiny": directories["tiny"]}, reward=reward) as live:
        options = dict(seed=9, temperature=1.5, max_tokens=8)
        texts = [c.text for c in ask(live, n=6, **options).choices]
        classifier = Classifier.load(reward)
        scores = [a["scores"]["good"] for a in classifier.classify([PROMPT + text for text in texts])]
        assert scores[0] < max(scores)
        best = ask(live, n=1, best_of=6, **options).choices[0].text
        assert best == texts[max(range(6), key=scores.__getitem__)]


def test_a_suffix_fills_in_the_middle(live: Live, directories) -> None:
    generator = TextGenerator.load(directories["tiny"], temperature=0)
    expected = generator.generate("the cat", suffix=" on the mat", max_tokens=8)[0]["text"]
    assert ask(live, prompt="the cat", suffix=" on the mat", temperature=0, max_tokens=8).choices[0].text == expected
    assert expected != generator.generate("the cat", max_tokens=8)[0]["text"]
    assert refused(live, prompt=[5, 6], suffix="a")["param"] == "suffix"
    assert refused(live, suffix="a", echo=True)["param"] == "echo"


@pytest.mark.parametrize(
    "options, param",
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [320]}, "prompt"),
        ({"prompt": [1 << 70]}, "prompt"),
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1 << 40}, "max_tokens"),
        ({"prompt": "a " * 300}, "prompt"),
        ({"echo": True, "stream": True}, "echo"),
        ({"best_of": 17}, "best_of"),
    ],
    ids=lambda o: str(o)[:40],
)
def test_what_is_wrong_is_refused_by_name(live: Live, options: dict[str, Any], param: str) -> None:
    error = refused(live, **options)
    assert str(error["param"]).startswith(param) and "\n" not in error["message"] and len(error["message"]) < 400


def test_streams_carry_log_probabilities_and_usage(live: Live) -> None:
    options = dict(temperature=0, max_tokens=10, logprobs=2)
    whole = ask(live, **options)
    tokens, offsets, values, usage = [], [], [], None
    for chunk in ask(live, stream=True, stream_options={"include_usage": True}, **options):
        usage = chunk.usage
        for choice in chunk.choices:
            if choice.logprobs:
                tokens += choice.logprobs.tokens
                offsets += choice.logprobs.text_offset
                values += choice.logprobs.token_logprobs
    logprobs = whole.choices[0].logprobs
    assert (tokens, offsets, values) == (logprobs.tokens, logprobs.text_offset, logprobs.token_logprobs)
    assert usage and usage.total_tokens == whole.usage.total_tokens


def test_an_adapter_by_name_is_the_merged_model(directories, tmp_path: Path) -> None:
    base = load(directories["tiny"])
    draw = torch.Generator().manual_seed(1)
    foundling.lora(base, foundling.LoRAOptions("*layers.*", rank=4, alpha=16.0), draw)
    for name, p in base.named_parameters():
        if name.endswith(".b"):
            p.data.copy_(torch.randn(p.shape, generator=draw) * 0.3)
    adapter = foundling.save_adapter(base, tmp_path / "polite")
    merged = TextGenerator.load(adapter, base=directories["tiny"], temperature=0)
    plain = TextGenerator.load(directories["tiny"], temperature=0)
    models, adapters = {"tiny": directories["tiny"]}, {"tiny": {"polite": adapter}}
    with serving(models, adapters=adapters, prices={"tiny": Price(1, 2)}) as live:
        expected = merged.generate(PROMPT, max_tokens=16)[0]["text"]
        assert ask(live, "polite", max_tokens=16, temperature=0).choices[0].text == expected
        assert ask(live, "tiny", max_tokens=16, temperature=0).choices[0].text != expected
        assert (
            ask(live, "tiny", max_tokens=16, temperature=0).choices[0].text
            == (plain.generate(PROMPT, max_tokens=16)[0]["text"])
        )
        about = {m.id: m.foundling for m in live.client().models.list().data}  # pyright: ignore
        assert about["polite"]["adapter_of"] == "tiny" and about["tiny"]["adapter_of"] is None
        assert about["polite"]["price"] == about["tiny"]["price"] == {"prompt": 1, "completion": 2}


def test_models_are_listed_loaded_and_unloaded(directories, tmp_path: Path) -> None:
    broken = save_model(tmp_path / "broken")
    with serving({"tiny": directories["tiny"], "broken": broken}) as live:
        client = live.client()
        assert [m.id for m in client.models.list()] == ["tiny", "broken"]
        about: Any = client.models.retrieve("tiny").model_extra
        about = about["foundling"]
        assert (about["kind"], about["family"], about["max_seq_len"], about["chats"], about["fills_middle"]) == (
            "generate", "llama", 256, live.model("tiny").generator.chats, True,
        )  # fmt: skip
        with pytest.raises(openai.NotFoundError) as error:
            client.models.retrieve("tin")
        assert "tiny" in error.value.message and error.value.code == "model_not_found"
        assert ask(live, "broken").choices
        for _ in range(2):
            reply = live.http("POST", "/v1/models/broken/unload")
            assert reply.json() == {"id": "broken", "object": "model.state", "state": "unloaded"}
            assert [m.id for m in client.models.list()] == ["tiny"]
        with pytest.raises(openai.InternalServerError) as gone:
            ask(live, "broken")
        assert gone.value.status_code == 503 and gone.value.response.headers["retry-after"]
        for file in broken.glob("*.safetensors"):
            file.rename(file.with_suffix(".gone"))
        reply = live.http("POST", "/v1/models/broken/load")
        assert reply.status == 503 and str(tmp_path) not in reply.body.decode()
        for file in broken.glob("*.gone"):
            file.rename(file.with_suffix(".safetensors"))
        assert live.http("POST", "/v1/models/broken/load").json()["state"] == "loaded"
        assert ask(live, "broken").choices
        assert live.http("POST", "/v1/models/nobody/load").status == 404
        body = dict(prompt=PROMPT, max_tokens=3)  # without a name: the first model
        assert live.post("/v1/completions", **body).json()["model"] == "tiny"


def test_text_becomes_ids_and_ids_become_text(live: Live) -> None:
    framing = live.model("tiny").framing
    text = "the cat, né — 猫\n"
    reply = live.post("/tokenize", model="tiny", prompt=text).json()
    ids = [token["id"] for token in reply["tokens"]]
    assert ids == framing.prompt(text) and reply["count"] == len(ids) and reply["max_model_len"] == 256
    plain = live.post("/tokenize", model="tiny", prompt=text, add_special_tokens=False).json()
    assert [t["id"] for t in plain["tokens"]] == framing.tokenizer.encode(text)
    back = live.post("/detokenize", model="tiny", tokens=[t["id"] for t in plain["tokens"]])
    assert back.json() == {"prompt": text}
    messages = [{"role": "user", "content": "the cat"}]
    chat = live.post("/tokenize", model="tiny", messages=messages).json()
    assert [t["id"] for t in chat["tokens"]] == framing.chat(messages)
    assert chat["tokens"][0]["text"] == "<|im_start|>"
    shorter = live.post("/tokenize", model="tiny", messages=messages, add_generation_prompt=False).json()
    assert shorter["count"] < chat["count"]
    for body in ({}, {"prompt": "a", "messages": messages}):
        assert live.post("/tokenize", model="tiny", **body).status == 400
    assert live.post("/detokenize", model="tiny", tokens=[320]).status == 400
    assert live.post("/detokenize", model="tiny", tokens=[]).json() == {"prompt": ""}


def test_prices_are_in_usage_and_in_the_log(directories) -> None:
    with serving({"tiny": directories["tiny"]}, prices={"tiny": Price(1.0, 3.0)}) as live:
        usage = ask(live, max_tokens=10).usage
        assert usage.cost == pytest.approx((usage.prompt_tokens + 3 * 10) / 1e6)
        line = live.line()
        assert line["dollars"] == pytest.approx(usage.cost) and line["model"] == "tiny"
        assert (line["prompt_tokens"], line["completion_tokens"]) == (usage.prompt_tokens, 10)
        metrics = live.http("GET", "/metrics").body.decode()
        assert 'foundling_tokens_total{kind="completion",model="tiny"} 10.0' in metrics
        assert 'foundling_time_to_first_token_seconds_count{model="tiny"} 1.0' in metrics
        assert 'foundling_time_between_tokens_seconds_count{model="tiny"} 9.0' in metrics
        assert 'foundling_requests_total{route="/v1/completions",status="200"} 1.0' in metrics
