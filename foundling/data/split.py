# SPDX-License-Identifier: Apache-2.0
"""The held-out split: the text a model is evaluated on, chosen by contents and seed alone, and kept out of training.

The law: no held-out document equals, or shares more than half of its long lines with, any one other document
(foundling/data/overlap.py). Exact duplicates, equal up to whitespace at the end, were removed before. The shards are
read several times; in memory are the hashes of the survey, the candidates and the held-out text.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from foundling.data.overlap import near_another, repeats_one_word, without_repeats
from foundling.data.sources import Document
from foundling.data.survey import Survey, n_bytes
from foundling.data.text_shards import TextShards
from foundling.errors import ConfigError, DataError

LEAST_TRAIN_BYTES = 1_000
LEAST_HELD_OUT_BYTES = 100
LEAST_BYTES = 1_250  # of text that does not repeat itself: from here on both of the above are met
_ROUNDS = 16  # of candidates; each reads the shards once


@dataclass(frozen=True)
class Cut:
    """What training does not see: whole documents by place, and the end of document `place` from character `at` on."""

    places: frozenset[int] = frozenset()
    place: int = -1
    at: int = 0

    def training(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield what is left of `documents`."""
        for place, document in enumerate(documents):
            if place == self.place:
                yield replace(document, text=document.text[: self.at])
            elif place not in self.places:
                yield document


@dataclass(frozen=True)
class Split:
    """The held-out documents and the cut that keeps them out of training."""

    held_out: list[Document]
    cut: Cut
    cut_bytes: int  # of what training does not see; the held-out text is at most as long
    removed: Counter[str]  # blocks and lines that were taken out of a tail because training has them too
    note: str  # for the report: what is held out, and why


def check_parameters(share: float, max_bytes: int) -> None:
    """Raise ConfigError for a share outside (0, 0.5) or max_bytes below 100."""
    if not 0 < share < 0.5 or max_bytes < LEAST_HELD_OUT_BYTES:
        raise ConfigError(f"share={share}, max_bytes={max_bytes}: expected 0 < share < 0.5 and max_bytes >= 100")


def split(documents: TextShards, survey: Survey, *, share: float, max_bytes: int, single_file: bool = False) -> Split:
    """Hold out about `share` of the bytes of the surveyed `documents`, at most about `max_bytes`, as whole documents.

    They are taken in the order of sha256(seed, text) if they obey the law. Where no whole one can be held out (a
    single plain file, each document over 4 `share` of the bytes, all too similar) the last 2 `share` of the file or
    of the longest document is held out, less what training contains as well. Raises DataError if too little is left.
    """
    check_parameters(share, max_bytes)
    if survey.n_bytes < LEAST_TRAIN_BYTES + LEAST_HELD_OUT_BYTES:
        raise DataError(_too_little(survey))
    chosen = {} if single_file else _whole_documents(documents, survey, share, max_bytes)
    held_out, cut = list(chosen.values()), Cut(frozenset(chosen))
    cut_bytes, removed = n_bytes(held_out), Counter()
    note = f"{len(chosen):,} of {len(documents):,} documents are held out whole"
    if cut_bytes < min(share * survey.n_bytes, max_bytes) / 2:
        note += ", less than was wanted, because the others are too large or too similar"
    if cut_bytes < LEAST_HELD_OUT_BYTES:
        order, sizes = survey.order, survey.sizes
        places = np.sort(order) if single_file else order[[sizes[order].argmax()]]
        tail, cut = _tail(documents, survey, places, share, max_bytes)
        cut_bytes = n_bytes([tail])
        text, removed = without_repeats(tail.text, (document.text for document in cut.training(documents)))
        held_out = [replace(tail, text=text)]
        of = "the file" if single_file else "the longest document"
        note = f"the last {cut_bytes / int(sizes[places].sum()):.0%} of {of} is held out"
        note += ", less what training contains as well" if removed else ""
    held_out_bytes = n_bytes(held_out)
    if survey.n_bytes - cut_bytes < LEAST_TRAIN_BYTES:
        raise DataError(_too_little(survey))
    if held_out_bytes < LEAST_HELD_OUT_BYTES or all(repeats_one_word(document.text) for document in held_out):
        raise DataError(_too_repetitive(survey, held_out_bytes))
    return Split(held_out, cut, cut_bytes, removed, note)


def _whole_documents(documents: TextShards, survey: Survey, share: float, max_bytes: int) -> dict[int, Document]:
    """Return the documents to hold out by place, in hash order; few or none where they are too large or too similar.

    None is over 4 `share` of the bytes. Those that leave the sum under 4 times what is wanted come first.
    """
    wanted = max(LEAST_HELD_OUT_BYTES, min(int(share * survey.n_bytes), max_bytes))
    most = min(int(min(4 * share, 0.5) * survey.n_bytes), survey.n_bytes - LEAST_TRAIN_BYTES)
    at_most = min(4 * wanted, most)
    by_hash, sizes = survey.order, survey.sizes
    ordered = sizes[by_hash]
    order = np.concatenate([by_hash[ordered <= at_most], by_hash[(at_most < ordered) & (ordered <= most)]])
    rounds = np.cumsum(sizes[order]) // (4 * wanted)  # four times as many candidates as are wanted at a time
    chosen: dict[int, Document] = {}
    total = 0
    for batch in np.split(order, np.flatnonzero(np.diff(rounds)) + 1)[:_ROUNDS]:
        candidates = documents.take(batch.tolist())
        texts = {place: document.text for place, document in candidates.items()}
        near = near_another(texts, enumerate(document.text for document in documents))
        for place in batch.tolist():
            size = int(sizes[place])
            if place not in near and (not chosen or total + size <= at_most):
                chosen[place] = candidates[place]
                total += size
                if total >= wanted:
                    return chosen
    return chosen


def _tail(
    documents: TextShards, survey: Survey, places: np.ndarray, share: float, max_bytes: int
) -> tuple[Document, Cut]:
    """Cut the end off the documents at `places` (ascending), read as one text. Return the end and the cut."""
    sizes = survey.sizes[places]
    length = int(sizes.sum())
    spare = (survey.n_bytes - LEAST_TRAIN_BYTES) * 4 // 5  # to find a line border the tail may grow by a quarter
    wanted = min(max(LEAST_HELD_OUT_BYTES, min(int(2 * share * length), 4 * max_bytes, spare)), length // 2)
    starts = np.cumsum(sizes) - sizes
    first = int(np.searchsorted(starts, length - wanted, side="right")) - 1  # the document in which the tail begins
    place, after = int(places[first]), places[first + 1 :].tolist()
    taken = documents.take([place, *after])
    at = _line_border(taken[place].text, int(starts[first] + sizes[first]) - (length - wanted))
    text = "".join([taken[place].text[at:], *(taken[later].text for later in after)])
    tail = Document(f"{taken[place].name}@tail", text)
    return tail, Cut(frozenset(after), place, at) if at else Cut(frozenset([place, *after]))


def _line_border(text: str, wanted: int) -> int:
    """Where, in characters, the last `wanted` bytes begin: at a line if one begins within a quarter of them."""
    data = text.encode()
    at, near = len(data) - wanted, wanted // 4
    border = data.rfind(b"\n", max(0, at - near - 1), at) + 1
    if not border and wanted - near >= LEAST_HELD_OUT_BYTES:
        border = data.find(b"\n", at, at + near) + 1
    return len(data[: border or at].decode(errors="ignore"))  # ignore: half a character at the cut


def _too_little(survey: Survey) -> str:
    n = len(survey.sizes)
    less = "".join(f" (not counting {count:,}: {reason})" for reason, count in survey.removed.items())
    there_are = f"{survey.n_bytes:,} bytes of text in {n:,} document{'s' * (n != 1)}{less}"
    return f"{there_are} are too little to learn from and hold some out: give {LEAST_BYTES:,} bytes or more"


def _too_repetitive(survey: Survey, available: int) -> str:
    why = f"of {survey.n_bytes:,} bytes only {available:,} are varied and absent from the rest"
    return f"the text repeats itself: {why}, but {LEAST_HELD_OUT_BYTES} must be held out: give more text"
