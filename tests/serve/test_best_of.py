# SPDX-License-Identifier: Apache-2.0
"""best_of by a reward model of conversations: of the messages of a chat, of a chat that the client rendered itself, and
of texts; what is too long for it ranks last."""

from pathlib import Path
from typing import Any

import pytest
import torch

import foundling
from foundling.adapt.heads import REWARD, HeadOptions, add_head
from foundling.decode.classify import Classifier
from foundling.models import build, family
from foundling.text import Tokenizer
from foundling.text.chat import TEMPLATES
from tests.serve.servers import TEXTS, Live, serving

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the cat sat"}]
OPTIONS: dict[str, Any] = {"seed": 9, "temperature": 1.5, "max_tokens": 8}


def reward_model(path: Path, longest: int = 256, template: str | None = None) -> Path:
    """Random, of conversations."""
    tokenizer = Tokenizer.train(TEXTS, 320)
    tokenizer = tokenizer if template is None else tokenizer.with_chat_template(TEMPLATES[template])
    torch.manual_seed(5)
    model: Any = build("llama", **family("llama").module.sized(tokenizer.vocab_size, longest, 32, 2))
    add_head(model, HeadOptions("regress", (REWARD,)), torch.Generator().manual_seed(3))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    foundling.save(model, path, tokenizer=tokenizer)
    return path


def chats(live: Live, **options: Any) -> list[str]:
    body: Any = {"model": "tiny", "messages": MESSAGES, **OPTIONS, **options}
    reply = live.post("/v1/chat/completions", **body)
    assert reply.status == 200, reply.body
    return [choice["message"]["content"] for choice in reply.json()["choices"]]


def completions(live: Live, prompt: Any, **options: Any) -> list[str]:
    reply = live.post("/v1/completions", model="tiny", prompt=prompt, **OPTIONS | options)
    assert reply.status == 200, reply.body
    return [choice["text"] for choice in reply.json()["choices"]]


def ranked(classifier: Classifier, messages: list[Any], texts: list[str]) -> list[str]:
    values = classifier.score_chats([[*messages, {"role": "assistant", "content": text}] for text in texts])
    scores = [value for value in values if value is not None]
    assert len(set(scores)) > 2
    return [text for _, text in sorted(zip(scores, texts, strict=True), key=lambda one: -one[0])]


@pytest.mark.parametrize("template", [None, "plain"])
def test_answers_are_scored_with_their_messages(directories, tmp_path: Path, template: str | None) -> None:
    reward = reward_model(tmp_path / "reward", template=template)
    with serving({"tiny": directories["tiny"]}, reward=reward) as live:
        texts = chats(live, n=8)
        expected = ranked(Classifier.load(reward), MESSAGES, texts)
        assert texts != expected[: len(texts)] and len(set(texts)) > 3
        assert chats(live, n=2, best_of=8) == expected[:2]
        if template is None:  # the client renders the same conversation: its special tokens are read as such
            tokens = live.post("/tokenize", model="tiny", messages=MESSAGES).json()["tokens"]
            ids = [token["id"] for token in tokens]
            assert completions(live, ids, n=8) == texts
            assert completions(live, ids, n=2, best_of=8) == expected[:2]
        plain = completions(live, "the cat sat", n=8)
        expected = ranked(Classifier.load(reward), [{"role": "user", "content": "the cat sat"}], plain)
        assert completions(live, "the cat sat", n=1, best_of=8) == expected[:1]


def test_what_is_too_long_for_the_reward_model_ranks_last(directories, tmp_path: Path) -> None:
    classifier = Classifier.load(reward := reward_model(tmp_path / "reward", longest=64))
    with serving({"tiny": directories["tiny"]}, reward=reward) as live:
        texts = chats(live, n=8, max_tokens=16, stop=["a"])
        scored = [
            (classifier.score_chats([[*MESSAGES, {"role": "assistant", "content": t}]])[0], t) for t in texts if t
        ]
        fitting = [(value, text) for value, text in scored if value is not None]
        assert 0 < len(fitting) < len(scored), scored
        assert chats(live, n=1, best_of=8, max_tokens=16, stop=["a"]) == [max(fitting)[1]]
        none = chats(live, n=2, best_of=4, messages=[{"role": "user", "content": "the cat " * 30}])
        assert len(none) == 2  # none can be scored: the first ones
        assert none == chats(live, n=4, messages=[{"role": "user", "content": "the cat " * 30}])[:2]
        assert len(completions(live, "the cat " * 30, n=1, best_of=4)) == 1


def test_without_a_reward_model_the_likeliest_answer_is_chosen(live: Live) -> None:
    body: Any = {"model": "tiny", "messages": MESSAGES, **OPTIONS}
    every = live.post("/v1/chat/completions", n=6, logprobs=True, **body).json()["choices"]
    mean = [sum(t["logprob"] for t in c["logprobs"]["content"]) / len(c["logprobs"]["content"]) for c in every]
    best = live.post("/v1/chat/completions", n=1, best_of=6, **body).json()
    assert best["choices"][0]["message"]["content"] == every[mean.index(max(mean))]["message"]["content"]
    assert best["choices"][0]["logprobs"] is None and best["usage"]["completion_tokens"] == 48
    for wrong in ({"best_of": 2, "n": 3}, {"best_of": 2, "stream": True}, {"best_of": 17}):
        reply = live.post("/v1/chat/completions", **body | wrong)
        assert reply.status == 400 and reply.json()["error"]["param"] == "best_of"
