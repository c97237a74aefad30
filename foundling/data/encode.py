# SPDX-License-Identifier: Apache-2.0
"""From examples to tokens: one function for each kind, which encodes some examples at once.

What is too long is never cut silently: a chat, or the target of a source, is skipped and counted; a text to classify, a
sentence to tag or a source is cut on the right, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from foundling.data.kinds import PACKED, Example, Kind
from foundling.errors import DataError
from foundling.text.answers import NO_PLACE, Unusable
from foundling.text.framing import Framing

AT_ONCE = 64
SHARE = 0.99
"""of the examples, which the suggested length holds whole"""
MULTIPLE = 8
CHARS = 64
"""characters of a text that are encoded for each token of seq_len, before the whole text is"""

Arrays = dict[str, Any]
"""of one example: `tokens` and `mask`, `targets`, `types` or `source` as lists, `labels` as a number"""


@dataclass
class Encoder:
    """Encodes examples of one kind. `classes` are the names of the labels, by id. Counts what it leaves out."""

    kind: Kind
    framing: Framing
    seq_len: int
    classes: Sequence[str] = ()
    skipped: Counter[str] = field(default_factory=Counter)
    details: dict[str, str] = field(default_factory=dict)
    cut: int = 0

    def __post_init__(self) -> None:
        self.ids = {name: number for number, name in enumerate(self.classes)}
        self.tokenizer = self.framing.tokenizer
        probe = self.tokenizer.encode_framed_batch([("a", "b")])[0]
        self.has_types = any(probe.type_ids)

    @property
    def packed(self) -> bool:
        """Whether examples share rows: those of a causal model, which reads a source as the prompt of its target."""
        return self.kind in PACKED or (self.kind == "seq2seq" and not self.framing.spec.reads_source)

    def __call__(self, examples: Iterable[Example]) -> Iterator[tuple[int, Arrays]]:
        """(place, arrays) of every example, of a text one for each window of seq_len + 1 tokens."""
        function = getattr(self, f"_{self.kind}" if self.kind != "regress" else "_classify")
        place, source = 0, iter(examples)
        while group := list(islice(source, AT_ONCE)):
            for number, arrays in enumerate(function(group)):
                for one in arrays if isinstance(arrays, list) else [arrays]:
                    if isinstance(one, Unusable):
                        self.skipped[one.reason] += 1
                        self.details.setdefault(one.reason, one.detail)
                    else:
                        yield place + number, one
            place += len(group)

    def _chat(self, group: Sequence[Example]) -> Iterator[Any]:
        for example in self.framing.chat_examples([one.fields for one in group], self.seq_len + 1):
            yield example if isinstance(example, Unusable) else {"tokens": example.ids, "mask": example.mask}

    def _text(self, group: Sequence[Example]) -> Iterator[Any]:
        for ids in self.tokenizer.encode_batch([one.fields["text"] for one in group]):
            stream = [*self.tokenizer.opening, *ids, self.tokenizer.eos]
            starts = range(0, len(stream) - 1, self.seq_len)
            windows = [stream[at : at + self.seq_len + 1] for at in starts]
            yield [{"tokens": window, "mask": [True] * len(window)} for window in windows]

    def _classify(self, group: Sequence[Example]) -> Iterator[Any]:
        texts: list[Any] = [(f["text"], f["pair"]) if "pair" in (f := one.fields) else f["text"] for one in group]
        for example, text, encoding in zip(group, texts, self._framed(texts), strict=True):
            if not encoding.ids:
                yield Unusable("a text without tokens")
                continue
            number = example.fields["value"] if self.kind == "regress" else self.ids[example.fields["label"]]
            types = {"types": encoding.type_ids} if self.has_types and isinstance(text, tuple) else {}
            yield {"tokens": encoding.ids, "labels": number, **types}

    def _seq2seq(self, group: Sequence[Example]) -> Iterator[Any]:
        targets = self.tokenizer.encode_batch([one.fields["target"] for one in group])
        if not self.packed:
            sources = [encoding.ids for encoding in self._framed([one.fields["source"] for one in group])]
        else:
            sources = [prompt_ids(one, self.kind, self.framing) for one in group]
        for source, target in zip(sources, targets, strict=True):
            target = [*target, self.tokenizer.eos]
            length = len(target) if not self.packed else len(source) + len(target) - 1
            if length > self.seq_len:
                what = "a target" if not self.packed else "a prompt with its target"
                yield Unusable(f"{what} over {self.seq_len:,} tokens", "raise --seq-len")
            elif self.packed:
                yield {"tokens": source + target, "mask": [False] * len(source) + [True] * len(target)}
            else:
                yield {"tokens": target, "source": source}

    def _tag(self, group: Sequence[Example]) -> Iterator[Any]:
        encodings = self.tokenizer.encode_framed_batch([" ".join(one.fields["words"]) for one in group])
        _, last = self.tokenizer.frame
        for example, encoding in zip(group, encodings, strict=True):
            first = _first_pieces(example.fields["words"], encoding)
            ids, room = list(encoding.ids), self.seq_len - len(last)
            if len(ids) > self.seq_len:
                self.cut += 1
                room = max([at for at in first if at is not None and at <= room], default=0)  # a word begins there
                ids = [*ids[:room], *last]
            targets, mask = [0] * len(ids), [False] * len(ids)
            for at, tag in zip(first, example.fields["tags"], strict=True):
                if at is not None and at < room and tag in self.ids:
                    targets[at], mask[at] = self.ids[tag], True
            if any(mask):
                yield {"tokens": ids, "targets": targets, "mask": mask}
            else:
                yield Unusable("a sentence without tokens", "its words have none, or its first word is too long")

    def _framed(self, texts: Sequence[Any]) -> list[Any]:
        """Encodings of at most seq_len tokens, special ones included: texts, or the longer of two, are cut where a
        token ends."""
        most = CHARS * self.seq_len
        short = [text[:most] if isinstance(text, str) else (text[0][:most], text[1][:most]) for text in texts]
        encodings = list(self.tokenizer.encode_framed_batch(short))
        for i, encoding in enumerate(encodings):
            if short[i] != texts[i] and len(encoding.ids) < self.seq_len:
                encoding = encodings[i] = self.tokenizer.encode_framed_batch([texts[i]])[0]
            if len(encoding.ids) > self.seq_len or short[i] != texts[i]:
                self.cut += 1
            text, over = short[i] if len(encoding.ids) > self.seq_len else texts[i], 0
            while (extra := len(encoding.ids) - self.seq_len) > 0:
                over += extra  # a text that ends elsewhere may have more tokens again
                text = _shortened(self.tokenizer, text, over)
                encoding, over = self.tokenizer.encode_framed_batch([text])[0], 0
                if not any(text):
                    raise DataError(f"seq_len {self.seq_len} has no room for a text beside the special tokens")
            encodings[i] = encoding
        return encodings


def _shortened(tokenizer: Any, text: Any, n: int) -> Any:
    """A text, or a pair, without its last `n` tokens, of a pair those of the longer one first."""
    parts = [text] if isinstance(text, str) else list(text)
    encodings = [tokenizer.backend.encode(part, add_special_tokens=False) for part in parts]
    keep = [len(encoding.ids) for encoding in encodings]
    if sum(keep) <= n:
        return "" if isinstance(text, str) else ("", "")
    longest = int(np.argmax(keep))
    others = sum(keep) - keep[longest]
    if len(keep) == 1 or keep[longest] - n >= others:
        keep[longest] -= n
    else:  # both to half of what is left
        left = sum(keep) - n
        keep = [min(k, (left + 1) // 2) for k in keep]
        keep[longest] = left - keep[1 - longest]
    cuts = [
        part[: min(encoding.offsets[k - 1][1], len(part) - 1 if k < len(encoding.ids) else len(part))] if k else ""
        for part, encoding, k in zip(parts, encodings, keep, strict=True)
    ]
    return cuts[0] if isinstance(text, str) else (cuts[0], cuts[1])


def _first_pieces(words: Sequence[str], encoding: Any) -> list[int | None]:
    """Of each word, where its first token is; None of one that has no token of its own."""
    first, token, start = list[int | None](), -1, 0
    special, offsets = encoding.special_tokens_mask, encoding.offsets  # each is made anew when it is asked for
    for word in words:
        at = token + 1
        while at < len(special) and (special[at] or offsets[at][1] <= start):
            at += 1
        if at < len(special) and offsets[at][0] < start + len(word):
            first.append(at)
            token = at
        else:
            first.append(None)
        start += len(word) + 1
    return first


def prompt_ids(example: Example, kind: Kind, framing: Framing) -> list[int]:
    """The ids that a causal model continues with the last answer of a chat, or with the target of a source, which
    stands before it on a line of its own."""
    if kind == "chat":
        messages = example.fields["messages"]
        return framing.chat(messages[:-1], tools=example.fields.get("tools"))
    if framing.spec.reads_source:
        return framing.prompt(example.fields["source"])
    return framing.beginning(example.fields["source"] + "\n")


def example_lengths(
    examples: Sequence[Example],
    kind: Kind,
    framing: Framing,
    longest: int,
    *,
    classes: Sequence[str] = (),
    n: int = 256,
) -> np.ndarray:
    """(≤ n,) positions that examples take, of some that lie evenly among all; those over `longest` count as such."""
    places = np.unique(np.linspace(0, len(examples) - 1, min(n, len(examples))).astype(int))
    encoder = Encoder(kind, framing, longest, classes)
    lengths = [n_positions(arrays, encoder.packed) for _, arrays in encoder([examples[int(at)] for at in places])]
    if not lengths:
        raise DataError(nothing_left(encoder))
    return np.array(lengths + [longest] * sum(encoder.skipped.values()))


def n_positions(arrays: Arrays, packed: bool) -> int:
    """In a row of a batch: a packed example predicts all tokens but its first."""
    return max(len(arrays["tokens"]) - packed, len(arrays.get("source", ())))


def suggest_seq_len(lengths: np.ndarray, longest: int, share: float = SHARE) -> int:
    """The least multiple of 8 in which `share` of the examples fit whole, at most `longest`."""
    length = int(np.quantile(lengths, share, method="higher"))
    return min(-(-length // MULTIPLE) * MULTIPLE, longest)


def check_template(encoder: Encoder, n: int) -> None:
    """DataError where the template cannot say where the answers of most of `n` chats are."""
    if encoder.kind == "chat" and 2 * encoder.skipped[NO_PLACE] > n:
        raise DataError(f"{NO_PLACE}: {encoder.details[NO_PLACE]}")


def nothing_left(encoder: Encoder) -> str:
    counts = ", ".join(f"{reason}: {n:,}" for reason, n in encoder.skipped.most_common())
    detail = next((encoder.details[reason] for reason, _ in encoder.skipped.most_common(1)), "")
    return f"no example can be encoded ({counts}): {detail}"
