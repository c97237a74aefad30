# SPDX-License-Identifier: Apache-2.0
"""Fill-mask: a bidirectional model predicts the masked tokens of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from foundling.adapt.soft import virtual_ids
from foundling.decode.request import check_ids
from foundling.errors import GenerationError, WeightsError
from foundling.limits import PREDICTIONS
from foundling.models import family_of
from foundling.runtime.hub import local_directory
from foundling.runtime.mode import evaluation_mode
from foundling.text import Tokenizer
from foundling.weights.loading import files_of, load

GAP = "___"


class FilledTokens(NamedTuple):
    tokens: list[int]
    """with every mask replaced"""
    gaps: list[list[tuple[int, float]]]
    """for each mask, in the order of the text, the most likely tokens and their probabilities, given the masks that
    were replaced before it"""


@torch.inference_mode()
def fill(model: Any, tokens: Sequence[int], mask: int, *, n: int = 5, exclude: Sequence[int] = ()) -> FilledTokens:
    """Replaces every `mask` token and returns the n most likely tokens for each. The mask with the most confident
    prediction is replaced first, then the text is read again (as Ghazvininejad et al. 2019, Mask-Predict, one at a
    time); one forward pass per mask. Tokens in `exclude` are never predicted. Raises GenerationError for a text without
    a mask, or one longer than the model's max_seq_len, and for a model without a masked head."""
    if not model.capabilities.fills:
        raise GenerationError(f"this {type(model).__name__} does not predict masked tokens, so it fills no gaps")
    PREDICTIONS.check(n, "n", GenerationError)
    check_ids(tokens, "the text")
    check_ids([mask, *exclude], "mask or exclude")
    max_seq_len = model.config.max_seq_len
    if len(tokens) > max_seq_len:
        raise GenerationError(f"the text is {len(tokens)} tokens, the model reads at most {max_seq_len}; shorten it")
    if max(tokens, default=0) >= (rows := model.embedding.num_embeddings):
        raise GenerationError(f"the text holds the token {max(tokens)}, which the model has no row for ({rows:,} rows)")
    device = next(model.parameters()).device
    ids = torch.tensor([list(tokens)], device=device)
    masked = (ids[0] == mask).nonzero()[:, 0]
    if not len(masked):
        raise GenerationError("the text has no gap to fill")
    excluded = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=device)
    excluded[[mask, *exclude]] = True
    if excluded.all():
        raise GenerationError("every token is excluded; leave at least one to predict")
    predictions: dict[int, list[tuple[int, float]]] = {}
    while len(masked):
        with evaluation_mode(model):
            logits = model.logits(model(ids).hidden[0, masked]).float()
        if not logits.isfinite().all():
            raise GenerationError("the model's logits are not finite; is the model damaged?")
        probs = logits.softmax(-1).masked_fill(excluded, 0.0)
        most_confident = int(probs.amax(-1).argmax())
        best = probs[most_confident].topk(min(n, int((~excluded).sum())))
        position = int(masked[most_confident])
        predictions[position] = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        ids[0, position] = best.indices[0]
        masked = masked[masked != position]
    return FilledTokens(ids[0].tolist(), [predictions[position] for position in sorted(predictions)])


@dataclass
class MaskFiller:
    """`fill` on text: a model directory's model and tokenizer together."""

    model: Any
    tokenizer: Tokenizer

    @classmethod
    def load(cls, directory: str | Path, *, base: str | Path | None = None) -> MaskFiller:
        """From a model directory of Foundling or transformers, or an adapter's (see `load`, with its `base`). Raises
        WeightsError, with the reason, where the model or its tokenizer cannot fill gaps."""
        directory = local_directory(directory)
        model = load(directory, base=base, merged=True)
        name, can = family_of(model).name, model.capabilities
        if not type(model).capabilities.fills:
            hint = "; `foundling generate --suffix` fills a gap" if can.generates and not can.reads_source else ""
            raise WeightsError(f"{directory}: {name} is not bidirectional{hint}")
        if not can.fills:
            raise WeightsError(f"{directory}: this {name} has no head over its vocabulary, so it fills no gaps")
        tokenizer = Tokenizer.load(files_of(directory, base))
        if tokenizer.mask is None:
            mask_name = tokenizer.names.get("mask_token")
            why = f"'{mask_name}' is not in the vocabulary" if mask_name else "it names none"
            raise WeightsError(f"{directory}: tokenizer_config.json has no mask_token ({why})")
        return cls(model, tokenizer)

    def fill(self, text: str, *, gap: str = GAP, n: int = 5) -> dict[str, Any]:
        """{'text': with each `gap` replaced by one token, 'gaps': [[{'token', 'probability'}]], the most likely first}.
        The tokenizer's own mask token in the text is a gap too."""
        mask = self.tokenizer.mask
        assert mask is not None
        mask_text = self.tokenizer.names["mask_token"]
        parts = text.replace(mask_text, gap).split(gap) if gap else text.split(mask_text)
        if len(parts) < 2:
            raise GenerationError(f"the text has no gap; write {gap or mask_text} where a word is missing")
        first, last = self.tokenizer.frame
        ids = [*virtual_ids(self.model), *first]
        for number, part in enumerate(parts):
            # the predicted word includes the space before it
            ids += self.tokenizer.encode(part.rstrip(" ") if number < len(parts) - 1 else part)
            ids += [mask] if number < len(parts) - 1 else []
        rows = {*range(self.model.config.vocab_size)}
        never = rows & self.tokenizer.special | rows - self.tokenizer.ids
        filled = fill(self.model, [*ids, *last], mask, n=n, exclude=sorted(never))
        words = [self.tokenizer.piece(best[0][0]).strip() for best in filled.gaps]
        whole = "".join(a + b for a, b in zip(parts, [*words, ""], strict=True))
        return {
            "text": whole,
            "gaps": [
                [{"token": self.tokenizer.piece(token), "probability": probability} for token, probability in best]
                for best in filled.gaps
            ],
        }
