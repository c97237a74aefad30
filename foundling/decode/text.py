# SPDX-License-Identifier: Apache-2.0
"""Text in, text out: a model directory's model, tokenizer and sampling defaults together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundling.decode.plain import generate
from foundling.decode.sampling import Sampling
from foundling.errors import GenerationError, WeightsError
from foundling.text import Tokenizer
from foundling.weights.directory import load
from foundling.weights.files import read_json

DEFAULT_MAX_TOKENS = 100


@dataclass
class Writer:
    model: Any
    tokenizer: Tokenizer
    sampling: Sampling

    @classmethod
    def load(cls, directory: str | Path, **chosen: Any) -> Writer:
        """What is None in `chosen` (temperature, top_k, top_p) comes from generation_config.json, if there is one."""
        file = Path(directory) / "generation_config.json"
        stored = read_json(file) if file.exists() else {}
        known = ("temperature", "top_k", "top_p")
        values = {k: chosen[k] if chosen.get(k) is not None else stored.get(k) for k in known}
        for name, value in values.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise WeightsError(f"{file}: {name} is {value!r}, expected a number")
        sampling = Sampling(**{k: v for k, v in values.items() if v is not None})
        model, tokenizer = load(directory), Tokenizer.load(directory)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise WeightsError(
                f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
            )
        return cls(model, tokenizer, sampling)

    def write(
        self,
        prompt: str,
        *,
        n: int = 1,
        max_tokens: int | None = None,
        seed: int = 0,
        stream: Callable[[str], None] | None = None,
    ) -> list[dict[str, Any]]:
        """`n` continuations: {'text', 'tokens' (how many), 'finish': 'end' of the document or 'length'}."""
        ids = [self.tokenizer.eos, *self.tokenizer.encode(prompt)]
        room = self.model.config.max_seq_len - len(ids)
        if room < 1:
            raise GenerationError(
                f"the prompt is {len(ids) - 1} tokens, at most {self.model.config.max_seq_len - 2} are read; shorten it"
            )
        wanted = min(DEFAULT_MAX_TOKENS, room) if max_tokens is None else max_tokens
        said, done = list[int](), 0

        def tell(new: list[int]) -> None:
            nonlocal done
            if stream is None or new[0] in (-1, self.tokenizer.eos):
                return
            said.append(new[0])
            text = self.tokenizer.decode(said)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # the bytes of a character may come apart
                stream(text[done:])
                done = len(text)

        rows = generate(
            self.model,
            [ids] * n,
            max_tokens=wanted,
            temperature=self.sampling.temperature,
            top_k=self.sampling.top_k,
            top_p=self.sampling.top_p,
            seed=seed,
            stop=[self.tokenizer.eos],
            tell=tell,
        )
        return [
            {
                "text": self.tokenizer.decode(row),
                "tokens": len(row),
                "finish": "length" if len(row) == wanted else "end",
            }
            for row in rows
        ]
