# SPDX-License-Identifier: Apache-2.0
"""What log-probabilities tell of a model (Carlini et al. 2024, "Stealing part of a production language model"): logits
are the product of a V × D matrix and a hidden vector, so vectors of all logits span D dimensions."""

from typing import Any

import numpy as np
import pytest

from tests.serve.servers import Live, serving

CHAT: list[Any] = [{"role": "user", "content": "the cat sat on"}]
N = 96
"""vectors, more than the model's width"""


def log_probabilities(live: Live, n_top: int) -> Any:
    """N rows of the whole vocabulary, from one request: what the server does not tell is not a number."""
    vocab_size = live.model("tiny").model.config.vocab_size
    reply = live.client().chat.completions.create(
        model="tiny", messages=CHAT, max_tokens=N, temperature=1.5, seed=1, logprobs=True, top_logprobs=n_top
    )
    rows = np.full((N, vocab_size), np.nan)
    for row, entry in zip(rows, reply.choices[0].logprobs.content, strict=True):  # pyright: ignore
        for top in (entry, *entry.top_logprobs):
            row[top.token_id] = top.logprob
    return rows


def width(rows: Any) -> int:
    """The number of singular values above rounding. Each row's mean is taken off, and with it what makes logits
    log-probabilities."""
    values = np.linalg.svd(rows - rows.mean(1, keepdims=True), compute_uv=False)
    return int((values > values[0] * 1e-5).sum())


def test_all_log_probabilities_give_the_width_away(live: Live) -> None:
    config = live.model("tiny").model.config
    assert config.d_model < N < config.vocab_size
    assert width(log_probabilities(live, config.vocab_size)) == config.d_model


def test_capped_ones_do_not(directories) -> None:
    with serving({"tiny": directories["tiny"]}, max_logprobs=5) as live:
        config = live.model("tiny").model.config
        for fields in ({"top_logprobs": 6}, {"top_logprobs": config.vocab_size}):
            reply = live.post("/v1/chat/completions", messages=CHAT, logprobs=True, **fields)
            assert reply.status == 400 and "at most 5 (--max-logprobs)" in reply.json()["error"]["message"]
        assert live.post("/v1/completions", prompt="a", logprobs=6).status == 400
        rows = log_probabilities(live, 5)
        assert 5 <= (~np.isnan(rows)).sum(1).max() <= 6
        floor = np.nanmin(rows, 1, keepdims=True)  # a guess for what is hidden
        assert width(np.where(np.isnan(rows), floor, rows)) > 2 * config.d_model
        # the paper's way around a cap (section 5): a bias brings each token to the top in its turn
        # so does a form of one answer, and an echo of a text that ends with the token
        common: Any = {"logit_bias": {"7": 100}, "response_format": {"type": "choice", "choice": ["cat"]}}
        tools = [{"type": "function", "function": {"name": "cat"}}]
        for path, body, fields in (
            ("/v1/chat/completions", {"messages": CHAT, "logprobs": True, "top_logprobs": 0}, {"tools": tools}),
            ("/v1/completions", {"prompt": "a", "logprobs": 0}, {"echo": True}),
        ):
            for field, value in (common | fields).items():
                error = live.post(path, **body, **{field: value}, max_tokens=1).json()["error"]
                assert error["param"] == field and "--max-logprobs 1000" in error["message"]
        plain = live.post("/v1/completions", prompt="a", logprobs=0, response_format={"type": "text"}, max_tokens=1)
        assert plain.status == 200 and live.post("/v1/completions", prompt="a", echo=True, max_tokens=1).status == 200
    with serving({"tiny": directories["tiny"]}, max_logprobs=1000) as live:  # as many as there are without a cap
        assert live.post("/v1/completions", prompt="a", logprobs=0, echo=True, max_tokens=1).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_none_are_given_where_none_are_allowed(directories, stream: bool) -> None:
    with serving({"tiny": directories["tiny"]}, max_logprobs=0) as live:
        for fields in ({"logprobs": True}, {"logprobs": True, "top_logprobs": 0}):
            reply = live.post("/v1/chat/completions", messages=CHAT, max_tokens=2, stream=stream, **fields)
            assert reply.status == 400 and "--max-logprobs 0" in reply.json()["error"]["message"]
        for fields in ({"logprobs": 0}, {"logprobs": 1, "echo": not stream}):
            assert live.post("/v1/completions", prompt="a", max_tokens=2, stream=stream, **fields).status == 400
        best = live.post("/v1/completions", prompt="a", max_tokens=2, best_of=3, n=1)  # it uses them, and shows none
        assert best.status == 200 and best.json()["choices"][0]["logprobs"] is None
