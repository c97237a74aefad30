# SPDX-License-Identifier: Apache-2.0
"""Fill in the blanks, by a model that reads both ways: what stands on either side of a gap tells what fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from foundling.errors import GenerationError, WeightsError
from foundling.models import family_of
from foundling.text import Tokenizer
from foundling.weights.directory import load

GAP = "___"


class Filled(NamedTuple):
    tokens: list[int]
    """with every gap filled"""
    gaps: list[list[tuple[int, float]]]
    """of each gap, in the order of the text, the likeliest tokens and their probabilities, given all that was filled
    before it"""


@torch.inference_mode()
def fill(model: Any, tokens: Sequence[int], mask: int, *, n: int = 5, without: Sequence[int] = ()) -> Filled:
    """`mask` stands where a token is to be found. The gap of which the model is surest is filled first, and the rest is
    read again with it there (as Ghazvininejad et al. 2019, Mask-Predict, one at a time); one pass a gap. `without`:
    tokens that are no answers. GenerationError for a text without gap, or one longer than the model reads."""
    most = model.config.max_seq_len
    if len(tokens) > most:
        raise GenerationError(f"the text is {len(tokens)} tokens, at most {most} are read; shorten it")
    if n < 1:
        raise GenerationError(f"n is {n}, expected at least 1")
    device = next(model.parameters()).device
    ids = torch.tensor([list(tokens)], device=device)
    left = (ids[0] == mask).nonzero()[:, 0]
    if not len(left):
        raise GenerationError("the text has no gap to fill")
    answers = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=device)
    answers[[mask, *without]] = True
    if answers.all():
        raise GenerationError("no token is left that could be an answer")
    found: dict[int, list[tuple[int, float]]] = {}
    while len(left):
        logits = model.logits(model(ids).hidden[0, left]).float()
        if not logits.isfinite().all():
            raise GenerationError("the model's scores are no numbers; is the model damaged?")
        chances = logits.softmax(-1).masked_fill(answers, 0.0)
        surest = int(chances.amax(-1).argmax())
        best = chances[surest].topk(min(n, int((~answers).sum())))
        place = int(left[surest])
        found[place] = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        ids[0, place] = best.indices[0]
        left = left[left != place]
    return Filled(ids[0].tolist(), [found[place] for place in sorted(found)])


@dataclass
class Filler:
    model: Any
    tokenizer: Tokenizer

    @classmethod
    def load(cls, directory: str | Path) -> Filler:
        """From a model directory of ours or transformers'; WeightsError where it cannot fill gaps, and why."""
        model = load(directory)
        found = family_of(model)
        if found.kind != "encoder":
            way = "; `foundling generate --suffix` fills a gap" if found.kind == "decoder" else ""
            raise WeightsError(f"{directory}: {found.name} does not read both ways{way}")
        if model.head is None:
            raise WeightsError(f"{directory}: this {found.name} has no head over its vocabulary, so it fills no gaps")
        tokenizer = Tokenizer.load(directory)
        if tokenizer.mask is None:
            name = tokenizer.names.get("mask_token")
            why = f"'{name}' is not in the vocabulary" if name else "it names none"
            raise WeightsError(f"{directory}: tokenizer_config.json has no mask_token ({why})")
        if tokenizer.vocab_size > model.config.vocab_size:
            raise WeightsError(
                f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
            )
        return cls(model, tokenizer)

    def fill(self, text: str, *, gap: str = GAP, n: int = 5) -> dict[str, Any]:
        """{'text': with each `gap` filled by one token, 'gaps': [[{'token', 'probability'}]], the likeliest first}.
        The tokenizer's own mask token in the text is a gap too."""
        mask = self.tokenizer.mask
        assert mask is not None
        own = self.tokenizer.names["mask_token"]
        parts = text.replace(own, gap).split(gap) if gap else text.split(own)
        if len(parts) < 2:
            raise GenerationError(f"the text has no gap; write {gap or own} where a word is missing")
        first, last = self.tokenizer.frame
        ids = list(first)
        for number, part in enumerate(parts):
            # a word brings the space before it
            ids += self.tokenizer.encode(part.rstrip(" ") if number < len(parts) - 1 else part)
            ids += [mask] if number < len(parts) - 1 else []
        nameless = {*range(self.model.config.vocab_size)} - self.tokenizer.ids
        filled = fill(self.model, [*ids, *last], mask, n=n, without=[*self.tokenizer.special, *nameless])
        words = [self.tokenizer.piece(best[0][0]).strip() for best in filled.gaps]
        whole = "".join(a + b for a, b in zip(parts, [*words, ""], strict=True))
        return {
            "text": whole,
            "gaps": [
                [{"token": self.tokenizer.piece(token), "probability": chance} for token, chance in best]
                for best in filled.gaps
            ],
        }
