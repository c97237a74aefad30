# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of texts that a server echoes."""

from typing import Any

import pytest

from foundling.errors import GenerationError
from foundling.evaluate.subject import Continuation, LikelihoodRequest
from foundling.evaluate.upstream import Upstream
from tests.evaluate.servers import chat, echo, serving


def score(reply: Any, prompt: str, continuation: str, **options: Any) -> Any:
    with serving(lambda seen, n: reply) as server:
        subject = Upstream(server.url, "m", chat=False, **options)
        ((_, answer),) = subject.loglikelihood([LikelihoodRequest(prompt, continuation)])
        sent = server.requests[0]
        assert sent.path == "/v1/completions" and sent.body["echo"] is True and sent.body["max_tokens"] == 1
        assert sent.body["prompt"] == (prompt or options.get("start", "")) + continuation
        return answer


def test_log_probabilities_are_those_of_the_tokens_that_hold_the_continuation() -> None:
    tops = [None, {" cat": -0.5}, {" sat": -0.75}, {" in": -0.1}, {".": -0.2}]
    reply = echo(["The", " cat", " sat", " on", "."], [None, -0.5, -0.75, -2.0, -0.2], tops, [0, 3, 7, 11, 14])
    assert score(reply, "The cat", " sat on") == Continuation(" sat on", -2.75, 2, False, 2)
    assert score(reply, "The", " cat sat on")[1:4] == (-3.25, 3, False)
    # " cat" holds the last character of the prompt and two of the continuation: it counts
    assert score(reply, "The c", "at sat on")[1:3] == (-3.25, 3)
    greedy = echo(["a", "b", "c"], [None, -0.5, -1.0], [None, {"b": -0.5, "x": -3.0}, {"c": -1.0}])
    assert score(greedy, "a", "b") == Continuation("b", -0.5, 1, True, 1)


def test_a_token_before_the_text_and_parts_of_characters() -> None:
    bos = echo(["<s>", "Ab", "c", "!"], [None, -1.0, -0.5, -0.1])
    assert score(bos, "", "Abc")[1:3] == (-1.5, 2)
    halves = echo(
        ["a", "bytes:\\xc3", "bytes:\\xa9", "bytes: \\xe2\\x82", "bytes:\\xac", "."], [None, -1, -2, -3, -4, -9]
    )
    assert score(halves, "a", "é €")[1:3] == (-10, 4)
    assert score(halves, "aé", " €")[1:3] == (-7, 2)
    replaced = echo(["a", "\ufffd", "\ufffd", "b", "."], [None, -1, -2, -3, -9], None, [0, 1, 1, 2, 3])
    assert score(replaced, "a", "éb")[1:3] == (-6, 3)
    assert score(replaced, "aé", "b")[1:3] == (-3, 1)


def test_whole_texts_need_what_begins_a_text() -> None:
    reply = echo(["a", "b", "."], [None, -1.0, -2.0])
    with serving(lambda seen, n: reply) as server, pytest.raises(GenerationError, match=r"give `start`"):
        list(Upstream(server.url, "m", chat=False).rolling(["ab"]))
    reply = echo(["<|e|>", "a", "b", "."], [None, -1.0, -2.0, -3.0])
    with serving(lambda seen, n: reply) as server:
        ((_, answer),) = Upstream(server.url, "m", chat=False, start="<|e|>").rolling(["ab"])
        assert answer[:3] == ("ab", -3.0, 2)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (chat("x", choices=[{"text": "ab", "logprobs": None}]), "no log-probabilities of the prompt"),
        (echo([], []), "no log-probabilities of the prompt"),
        (echo(["a"], [None, -1]), "1 tokens with 2"),
        (echo(["a", "b"], [None, 0.5]), "is 0.5; expected"),
        (echo(["a", "b"], [None, float("nan")]), "is nan"),
        (echo(["a", "b"], [None, True]), "is True"),
        (echo(["x", "y"], [None, -1]), "not those of the text"),
        (echo(["x", "b", "."], [None, -1, -1], None, [0, 1, 2]), "do not fit"),
        (echo(["a", "\ufffd", "."], [None, -1, -1], None, [0, 5, 6]), "do not fit"),
    ],
)
def test_log_probabilities_that_are_of_another_text_are_refused(reply: Any, reason: str) -> None:
    with pytest.raises(GenerationError, match=reason):
        score(reply, "a", "b")
