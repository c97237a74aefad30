# SPDX-License-Identifier: Apache-2.0
"""Texts in, vectors out: an encoder and its tokenizer, pooled as a sentence-transformers directory says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from foundling.decode.classify import BATCH_SIZE, TOKENS_AT_ONCE, WIDTHS, groups_within
from foundling.decode.prompts import pad_prompts
from foundling.errors import GenerationError, WeightsError
from foundling.limits import SEQ_LEN, shown
from foundling.runtime.files import read_json, read_json_list
from foundling.runtime.mode import evaluation_mode
from foundling.text import Tokenizer
from foundling.text.cutting import Encoded, encode_within
from foundling.weights.text_spec import text_spec

Pooling = Literal["mean", "first"]
"""mean: of the states of a text's tokens; first: the state of its first token, [CLS]"""
_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
_LAYERS = ("Transformer", "Pooling", "Normalize")


@dataclass
class TextEmbedder:
    """Vectors have length 1, so that their products are cosines."""

    model: Any
    tokenizer: Tokenizer
    pooling: Pooling = "mean"
    max_len: int | None = None
    """tokens that a text is cut to; at most, and by default, what the model reads"""

    def __post_init__(self) -> None:
        can = self.model.capabilities
        if not can.embeds or "text" not in can.modalities:
            raise GenerationError(f"{type(self.model).__name__} embeds no texts; BERT and CLIP are models that do")
        if self.pooling not in get_args(Pooling):
            raise GenerationError(f"pooling {shown(self.pooling)} is unknown; use {', '.join(get_args(Pooling))}")
        if self.max_len is not None:
            SEQ_LEN.check(self.max_len, "max_len", GenerationError)
        self._spec = text_spec(self.model)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """The ids of each text, special tokens included, and whether it was cut."""
        before, after = self._frame
        if not before and not after:
            return encode_within(self.tokenizer, texts, self.longest)
        available = self.longest - len(before) - len(after)
        if available < 1:
            raise GenerationError(f"the model reads {self.longest} tokens, and its frame leaves none for a text")
        rows = self.tokenizer.encode_batch(texts)
        return [Encoded([*before, *ids[:available], *after], [], len(ids) > available) for ids in rows]

    def embed(self, texts: Sequence[str], *, batch_size: int = BATCH_SIZE) -> Iterator[tuple[int, Tensor, int]]:
        """(index of the text, (D,) float32 on the CPU, tokens), the shortest texts first. GenerationError for vectors
        that are not finite."""
        yield from self.embed_ids([one.ids for one in self.encode(texts)], batch_size=batch_size)

    @torch.inference_mode()
    def embed_ids(
        self, ids: Sequence[Sequence[int]], *, batch_size: int = BATCH_SIZE
    ) -> Iterator[tuple[int, Tensor, int]]:
        """As `embed`, of texts as `encode` gives them, special tokens included, at most `longest` ids each."""
        device = next(self.model.parameters()).device
        rows = [[*self._spec.virtual, *(one or [self.tokenizer.eos])] for one in ids]
        for chosen in groups_within([len(row) for row in rows], batch_size, TOKENS_AT_ONCE):
            longest = max(len(rows[i]) for i in chosen)
            width = min(-(-longest // WIDTHS) * WIDTHS, self.model.config.max_seq_len)
            tokens, documents = pad_prompts([rows[i] for i in chosen], device, width)
            with evaluation_mode(self.model):
                vectors = self._vectors(tokens, documents).float().cpu()
            if not vectors.isfinite().all():
                raise GenerationError("the model's vectors are not finite; is the model damaged?")
            yield from ((i, vectors[place], len(rows[i])) for place, i in enumerate(chosen))

    def _vectors(self, tokens: Tensor, documents: Tensor) -> Tensor:
        if self.pooling == "mean":
            return self.model.embed("text", {"tokens": tokens, "documents": documents})
        return F.normalize(self.model.encode(tokens, documents=documents).states[:, 0].float(), dim=-1)

    @property
    def longest(self) -> int:
        """Tokens of a text that are read, special ones included."""
        most = self.model.config.max_seq_len - len(self._spec.virtual)
        return min(self.max_len or most, most)

    @property
    def _frame(self) -> tuple[list[int], list[int]]:
        """What stands before and after a text where the tokenizer's own frame does not fit: CLIP reads a text's vector
        at its first eos_id, which our tokenizers put before a text, and not after."""
        end = getattr(self.model.config, "eos_id", None)
        if end is None:
            return [], []
        first, last = self.tokenizer.frame
        return (first, last) if last else ([] if end in first else first, [end])


def pooling_of(directory: Path) -> tuple[Pooling, int | None]:
    """How a sentence-transformers directory pools, and the tokens it cuts a text to; mean and None for another one.
    WeightsError for a way that is not supported."""
    modules = directory / "modules.json"
    if not modules.is_file():
        return "mean", None
    parts = [part for part in read_json_list(modules) if isinstance(part, dict)]
    names = [str(part.get("type", "")).rpartition(".")[2] for part in parts]
    if other := [name for name in names if name not in _LAYERS]:
        raise WeightsError(f"{modules}: {shown(other[0])} is not supported; {', '.join(_LAYERS)} are")
    pooling: Pooling = "mean"
    for part, name in zip(parts, names):
        place = str(part.get("path", ""))
        if name == "Pooling" and place == Path(place).name and (directory / place / "config.json").is_file():
            values = read_json(directory / place / "config.json")
            modes = [key for key, on in values.items() if key.startswith("pooling_mode_") and on is True]
            if len(modes) != 1 or modes[0] not in _MODES:
                supported = ", ".join(_MODES)
                raise WeightsError(f"{directory / place}: pools by {shown(modes)}; supported are {supported}")
            pooling = "first" if _MODES[modes[0]] == "first" else "mean"
    lengths = directory / "sentence_bert_config.json"
    longest = read_json(lengths).get("max_seq_length") if lengths.is_file() else None
    return pooling, None if longest is None else SEQ_LEN.check(longest, f"{lengths}: max_seq_length", WeightsError)
