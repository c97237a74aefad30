# SPDX-License-Identifier: Apache-2.0
"""The held-out split: what a model is measured on, chosen by contents and seed alone, and kept out of training.

The law: no held-out document equals, or shares more than half of its long lines with, any one other document
(foundling/data/overlap.py). Exact duplicates, equal but for whitespace at the end, are removed before. The source is
streamed several times; in memory are its hashes, the candidates and the held-out text.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from foundling.data.overlap import near_another, repeats_one_word, without_repeats
from foundling.data.sources import Document
from foundling.data.survey import Survey, n_bytes
from foundling.errors import ConfigError, DataError

LEAST_TRAIN_BYTES = 1_000
LEAST_HELD_OUT_BYTES = 100
LEAST_BYTES = 1_250  # of text that does not repeat itself: from here on both of the above are met
_ROUNDS = 16  # of candidates, for each reads the source twice


@dataclass(frozen=True)
class _Away:
    """What is kept from training: whole documents by place, and perhaps the end of one from some character on."""

    places: frozenset[int] = frozenset()
    cut_place: int = -1
    cut_at: int = 0

    def training(self, survey: Survey) -> Iterator[Document]:
        for place, document in survey.documents():
            if place == self.cut_place:
                yield replace(document, text=document.text[: self.cut_at])
            elif place not in self.places:
                yield document


@dataclass(frozen=True)
class Split:
    """Held-out documents, and a way to the others. Sizes are in bytes of UTF-8.

    What was read adds up: in bytes to train_bytes + held_out_bytes + removed_bytes; in documents to train_documents +
    held_out + removed, but where a tail is held out `removed` counts the blocks and lines taken out of it, too.
    """

    held_out: list[Document] = field(repr=False)
    train_bytes: int
    held_out_bytes: int
    removed_bytes: int
    train_documents: int
    removed: Counter[str]
    data_hash: str  # SHA-256 over the split's parameters and the contents in order; names do not count
    held_out_lines_note: str  # for the report: what was held out, and why so
    _survey: Survey = field(repr=False)
    _away: _Away = field(repr=False)

    def train(self) -> Iterator[Document]:
        """Yield the training documents, read anew. Raises DataError at the end if the source has changed since."""
        return self._away.training(self._survey)


def split(source: Iterable[Document], *, seed: int = 0, share: float = 0.05, max_bytes: int = 500_000) -> Split:
    """Hold out about `share` of the bytes of `source` (re-iterable), at most about `max_bytes`, as whole documents.

    They are taken in the order of sha256(seed, text) if they obey the law. Where no whole one can be held out — a
    single plain file, each document over 4 `share` of the bytes, all too much alike — it is the last 2 `share` of the
    file or of the longest document, less what training holds as well. Raises DataError if too little is left, and
    ConfigError for a share outside (0, 0.5) or max_bytes below 100.
    """
    if not 0 < share < 0.5 or max_bytes < LEAST_HELD_OUT_BYTES:
        raise ConfigError(f"share={share}, max_bytes={max_bytes}: expected 0 < share < 0.5 and max_bytes >= 100")
    parameters = f"foundling-split-1 seed={seed} share={share!r} max_bytes={max_bytes}\n"
    survey = Survey(source, seed, parameters.encode())
    if survey.n_bytes < LEAST_TRAIN_BYTES + LEAST_HELD_OUT_BYTES:
        raise DataError(_too_little(survey))
    single_file = getattr(source, "single_file", False)
    held = {} if single_file else _whole_documents(survey, share, max_bytes)
    held_out, away = list(held.values()), _Away(frozenset(held))
    away_bytes, taken_out = n_bytes(held_out), Counter()
    note = f"{len(held):,} of {len(survey.order):,} documents are held out whole"
    if away_bytes < min(share * survey.n_bytes, max_bytes) / 2:
        note += ", less than was wanted, for the others are too large or too much alike"
    if away_bytes < LEAST_HELD_OUT_BYTES:
        longest = survey.order[[survey.sizes[survey.order].argmax()]]
        places = np.sort(survey.order) if single_file else longest
        tail, away = _tail(survey, places, share, max_bytes)
        away_bytes = n_bytes([tail])
        text, taken_out = without_repeats(tail.text, (document.text for document in away.training(survey)))
        held_out = [replace(tail, text=text)]
        of = "the file" if single_file else "the longest document"
        note = f"the last {away_bytes / int(survey.sizes[places].sum()):.0%} of {of} is held out"
        note += ", less what training holds as well" if taken_out else ""
    train_bytes, held_out_bytes = survey.n_bytes - away_bytes, n_bytes(held_out)
    if train_bytes < LEAST_TRAIN_BYTES:
        raise DataError(_too_little(survey))
    if held_out_bytes < LEAST_HELD_OUT_BYTES or all(repeats_one_word(document.text) for document in held_out):
        raise DataError(_too_repetitive(survey, held_out_bytes))
    return Split(
        held_out=held_out,
        train_bytes=train_bytes,
        held_out_bytes=held_out_bytes,
        removed_bytes=survey.removed_bytes + away_bytes - held_out_bytes,
        train_documents=len(survey.order) - len(away.places),
        removed=survey.removed + taken_out,
        data_hash=survey.data_hash,
        held_out_lines_note=note,
        _survey=survey,
        _away=away,
    )


def _whole_documents(survey: Survey, share: float, max_bytes: int) -> dict[int, Document]:
    """Return the documents to hold out by place, in hash order; too few, or none, where they are too large or alike.

    None is over 4 `share` of the bytes. Those which leave the sum under 4 times what is wanted go first.
    """
    wanted = max(LEAST_HELD_OUT_BYTES, min(int(share * survey.n_bytes), max_bytes))
    most = min(int(min(4 * share, 0.5) * survey.n_bytes), survey.n_bytes - LEAST_TRAIN_BYTES)
    at_most = min(4 * wanted, most)
    sizes = survey.sizes[survey.order]
    order = np.concatenate([survey.order[sizes <= at_most], survey.order[(at_most < sizes) & (sizes <= most)]])
    rounds = np.cumsum(survey.sizes[order]) // (4 * wanted)  # four times as many candidates as are wanted at a time
    held: dict[int, Document] = {}
    total = 0
    for batch in np.split(order, np.flatnonzero(np.diff(rounds)) + 1)[:_ROUNDS]:
        chosen = set(batch.tolist())
        candidates = {place: document for place, document in survey.documents() if place in chosen}
        texts = {place: document.text for place, document in candidates.items()}
        near = near_another(texts, ((place, document.text) for place, document in survey.documents()))
        for place in batch.tolist():
            size = int(survey.sizes[place])
            if place not in near and (not held or total + size <= at_most):
                held[place] = candidates[place]
                total += size
                if total >= wanted:
                    return held
    return held


def _tail(survey: Survey, places: np.ndarray, share: float, max_bytes: int) -> tuple[Document, _Away]:
    """Take the end off the documents at `places`, which ascend, read as one text. Return it, and what is then away."""
    sizes = survey.sizes[places]
    length = int(sizes.sum())
    spare = (survey.n_bytes - LEAST_TRAIN_BYTES) * 4 // 5  # to find a line border the tail may grow by a quarter
    wanted = min(max(LEAST_HELD_OUT_BYTES, min(int(2 * share * length), 4 * max_bytes, spare)), length // 2)
    starts = np.cumsum(sizes) - sizes
    cut = int(np.searchsorted(starts, length - wanted, side="right")) - 1  # the document in which the tail begins
    cut_place, after = int(places[cut]), frozenset(places[cut + 1 :].tolist())
    name, at, parts = "", 0, []
    for place, document in survey.documents():
        if place == cut_place:
            name, at = document.name, _line_border(document.text, int(starts[cut] + sizes[cut]) - (length - wanted))
            parts.append(document.text[at:])
        elif place in after:
            parts.append(document.text)
    tail = Document(f"{name}@tail", "".join(parts))
    return tail, _Away(after, cut_place, at) if at else _Away(after | {cut_place})


def _line_border(text: str, wanted: int) -> int:
    """Where, in characters, the last `wanted` bytes begin: at a line if one begins within a quarter of them."""
    data = text.encode()
    at, near = len(data) - wanted, wanted // 4
    border = data.rfind(b"\n", max(0, at - near - 1), at) + 1
    if not border and wanted - near >= LEAST_HELD_OUT_BYTES:
        border = data.find(b"\n", at, at + near) + 1
    return len(data[: border or at].decode(errors="ignore"))  # ignore: half a character at the cut


def _too_little(survey: Survey) -> str:
    n = len(survey.order)
    less = "".join(f" (not counting {count:,}: {reason})" for reason, count in survey.removed.items())
    there_are = f"{survey.n_bytes:,} bytes of text in {n:,} document{'s' * (n != 1)}{less}"
    return f"{there_are} are too little to learn from and hold some out: give {LEAST_BYTES:,} bytes or more"


def _too_repetitive(survey: Survey, found: int) -> str:
    of = f"of {survey.n_bytes:,} bytes only {found:,} with some variety can be held out that training does not hold too"
    return f"the text repeats itself: {of}, and {LEAST_HELD_OUT_BYTES} are needed: give more text"
