# SPDX-License-Identifier: Apache-2.0
"""One forward pass over a text, as a record for a page: what `foundling look` shows."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundling.blocks.stack import Decoder
from foundling.errors import InterpretError, WeightsError
from foundling.interpret.lens import attribute, logit_lens
from foundling.interpret.trace import LayerRecord, Trace, check_attends, check_tokens, trace
from foundling.limits import LOOK_TOKENS, LOOK_WEIGHTS
from foundling.models import family_of
from foundling.report.look import HeadMap, LensRow, LookRecord
from foundling.runtime.hub import local_directory, place_name
from foundling.text import Tokenizer
from foundling.text.framing import Framing
from foundling.text.tokenizer import BYTE_OF
from foundling.weights.loading import files_of, load
from foundling.weights.text_spec import read_text_spec

SHOWN_TOKENS, SHOWN_PARTS = 5, 20
GAP = "___"


def look(directory: str | Path, text: str, *, layer: int | None = None, base: str | Path | None = None) -> LookRecord:
    """Reads the text with the model of a directory. `layer`: the one whose heads are shown, all by default.

    Lens and contributions are of the prediction after the last token, and of an encoder's first masked token, or else
    its last token. An encoder–decoder reads the text as its source and begins its answer: the heads are its encoder's.
    InterpretError for a text that is empty or too long, a model without attention, and a layer that it has not."""
    if not text.strip():
        raise InterpretError("the text is empty; give some words to look at")
    name, directory = place_name(directory), local_directory(directory)
    model = load(directory, base=base, merged=True)
    try:
        check_attends(model)
    except InterpretError as error:
        raise WeightsError(f"{directory}: {error}") from None
    files = files_of(directory, base)
    tokenizer = Tokenizer.load(files)
    framing = Framing(tokenizer, read_text_spec(files, model))
    ids = framing.prompt(text) if model.capabilities.generates else _masked(tokenizer, text)
    return look_at(model, tokenizer, ids, layer=layer, name=name or directory.resolve().name, text=text)


def look_at(
    model: Any, tokenizer: Tokenizer, ids: Sequence[int], *, layer: int | None = None, name: str = "", text: str = ""
) -> LookRecord:
    """`look` at ids, with a model and a tokenizer that are in memory; `name` and `text` are what the record shows.

    InterpretError for no ids, too many, one that the model has not, a model without attention, and a layer that it has
    not."""
    check_attends(model)
    ids = _checked(model, list(ids))
    tokens = torch.tensor([ids], dtype=torch.long, device=next(model.parameters()).device)
    check_tokens(model, tokens)
    source = model.capabilities.reads_source
    if source:
        record = trace(model, tokens.new_tensor([[model.config.start_id]]), source=tokens)
    else:
        record = trace(model, tokens)
    stack = [one for one in record.layers if one.name.startswith("encoder.")] if source else record.stack
    heads = _heads(stack, ids, layer)
    pieces = tuple(token_name(tokenizer, i) for i in ids)
    position = 0 if source else len(ids) - 1
    place = "as the first token of the answer" if source else f"after token {position}"
    if model.capabilities.fills:
        place = f"at token {position}"
        if tokenizer.mask is not None and tokenizer.mask in ids:
            position = ids.index(tokenizer.mask)
            place = f"for the gap at token {position}"
    predicted, lens, contributions, notes = _prediction(model, tokenizer, record, position)
    return LookRecord(
        name, family_of(model).name, text, tuple(ids), pieces, predicted, position, place, heads, lens, contributions,
        notes,
    )  # fmt: skip


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """Its text, with <0xF0> for a byte that is no whole character; its name in the vocabulary where it is special or no
    text."""
    text = "" if token in tokenizer.special else tokenizer.piece(token)
    name = tokenizer.backend.id_to_token(token) or f"#{token}"
    if "\ufffd" not in text:
        return text or name
    if not all(char in BYTE_OF for char in name):  # a tokenizer that falls back to bytes names them so itself
        return name
    marked = bytes(BYTE_OF[char] for char in name).decode("utf-8", "surrogateescape")
    return "".join(f"<0x{ord(char) - 0xDC00:02X}>" if 0xDC80 <= ord(char) <= 0xDCFF else char for char in marked)


def _masked(tokenizer: Tokenizer, text: str) -> list[int]:
    """With the mask token for each gap, as `foundling fill` reads them."""
    first, last = tokenizer.frame
    ids: list[int] = []
    for number, part in enumerate(text.split(GAP) if tokenizer.mask is not None else [text]):
        ids += [tokenizer.mask] if number and tokenizer.mask is not None else []
        ids += tokenizer.encode(part)
    return [*first, *ids, *last]


def _checked(model: Any, ids: list[int]) -> list[int]:
    longest = min(LOOK_TOKENS.high, getattr(model.config, "max_seq_len", LOOK_TOKENS.high))
    if len(ids) > longest:
        raise InterpretError(f"the text has {len(ids):,} tokens; at most {longest:,} can be looked at: shorten it")
    return ids


def _heads(stack: list[LayerRecord], ids: list[int], layer: int | None) -> tuple[HeadMap, ...]:
    numbered = [(number, one) for number, part in enumerate(stack) for one in part.heads if not one.reads_memory]
    if layer is not None:
        there = sorted({number for number, _ in numbered})
        if layer not in there:
            raise InterpretError(f"--layer {layer}: no such layer attends; choose one of {', '.join(map(str, there))}")
        numbered = [(number, record) for number, record in numbered if number == layer]
    n_weights = sum(record.z.shape[1] for _, record in numbered) * len(ids) ** 2
    if n_weights > LOOK_WEIGHTS.high:
        raise InterpretError(
            f"{n_weights:,} attention weights; a page holds at most {LOOK_WEIGHTS.high:,}: choose one --layer or "
            "shorten the text"
        )
    maps: list[HeadMap] = []
    for number, record in numbered:
        weights = record.weights()[0].float().cpu()
        kinds = head_kinds(weights, torch.tensor(ids))
        for head, rows in enumerate(weights):
            packed = tuple(array("f", row) for row in rows.tolist())  # float objects would take eight times as much
            maps.append(HeadMap(number, head, packed, {k: round(float(v[head]), 4) for k, v in kinds.items()}))
    return tuple(maps)


def head_kinds(weights: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """weights (H, T, T) of tokens (T,) -> kind -> (H,), the mean weight on the token before, the first token, the token
    itself, and the tokens that followed earlier occurrences of the same token; 0 where a text has none."""
    n = len(ids)
    later = torch.arange(1, n)
    follows = torch.zeros(n, n, dtype=torch.bool)
    follows[:, 1:] = ids[:, None] == ids[None, :-1]
    follows &= torch.arange(n)[None] <= torch.arange(n)[:, None]
    repeated = follows.any(1)
    induction = (weights * follows)[:, repeated].sum(-1).mean(-1) if repeated.any() else torch.zeros(len(weights))
    empty = torch.zeros(len(weights))
    return {
        "previous": weights[:, later, later - 1].mean(-1) if n > 1 else empty,
        "first": weights[:, later, 0].mean(-1) if n > 1 else empty,
        "itself": weights.diagonal(dim1=1, dim2=2).mean(-1),
        "induction": induction,
    }


def _prediction(model: Any, tokenizer: Tokenizer, record: Trace, position: int) -> tuple[Any, Any, Any, Any]:
    """The most likely token, the lens, the contributions, and what could not be read."""
    try:
        rows = [logits[0, 0] for logits in logit_lens(model, record, torch.tensor([position]))]
    except InterpretError as error:
        return "", (), (), (str(error),)
    token = int(rows[-1].argmax())
    names = ["embedding", *(layer.name for layer in record.stack)]
    lens = []
    for name, logits in zip(names, rows, strict=True):
        top = logits.softmax(-1).topk(min(SHOWN_TOKENS, len(logits)))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        best = tuple((token_name(tokenizer, i), p) for i, p in pairs)
        lens.append(LensRow(name, best, 1 + int((logits > logits[token]).sum())))
    contributions, notes = list[tuple[str, float]](), list[str]()
    if isinstance(model, Decoder):
        try:
            largest = sorted(attribute(model, record, token, position=position), key=lambda one: -abs(one.value))
            contributions = [(one.name, one.value) for one in largest[:SHOWN_PARTS]]
        except InterpretError as error:
            notes.append(f"no contributions: {error}")
    return token_name(tokenizer, token), tuple(lens), tuple(contributions), tuple(notes)
