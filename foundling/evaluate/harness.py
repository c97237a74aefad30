# SPDX-License-Identifier: Apache-2.0
"""A model of ours under EleutherAI's lm-evaluation-harness (`pip install 'foundling[eval]'`): all its tasks run, with
the same scores as its own backends.

    lm_eval.simple_evaluate(model=HarnessModel("runs/notes"), tasks=["arc_easy"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM

from foundling.evaluate.local import LocalModel
from foundling.evaluate.subject import Decoding, GenerateRequest, LikelihoodRequest

MAX_TOKENS = 256
"""of an answer where a task does not say"""


class HarnessModel(LM):
    def __init__(self, model: LocalModel | str, **options: Any) -> None:
        """A LocalModel, or a directory with the options of LocalModel.load. Prompts that are too long for the model
        lose their beginning, as under the harness."""
        super().__init__()
        self.subject = LocalModel.load(model, **options) if isinstance(model, str) else model
        self.subject.truncate = self.subject.as_harness = True

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        pairs = [LikelihoodRequest(*request.args) for request in requests]
        answers = dict(self.subject.loglikelihood(pairs))
        return [(answers[i].logprob, answers[i].greedy) for i in range(len(pairs))]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        answers = dict(self.subject.rolling([request.args[0] for request in requests]))
        return [answers[i].logprob for i in range(len(requests))]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        answers = dict(self.subject.generate([_request(*request.args) for request in requests]))
        return [answers[i].text for i in range(len(requests))]

    @property
    def tokenizer_name(self) -> str:
        return self.subject.hashes["template"]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.subject.framing.tokenizer.chat_template if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        framing = self.subject.framing
        return framing.render_chat(chat_history, add_generation_prompt=add_generation_prompt)


def _request(prompt: str, options: dict[str, Any]) -> GenerateRequest:
    until = options.get("until") or ()
    sampled = options.get("do_sample", False)
    return GenerateRequest(prompt, Decoding(
        max_tokens=int(options.get("max_gen_toks", MAX_TOKENS)),
        stop=(until,) if isinstance(until, str) else tuple(text for text in until if text),
        temperature=float(options.get("temperature", 1.0)) if sampled else 0.0,
        top_p=float(options.get("top_p", 1.0)), seed=int(options.get("seed", 0)),
    ))  # fmt: skip
