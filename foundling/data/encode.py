# SPDX-License-Identifier: Apache-2.0
"""From examples to tokens: one function for each kind, which encodes some examples at once.

What is too long is never cut silently: a chat, or the target of a source, is skipped and counted; a text to classify, a
sentence to tag or a source is cut on the right, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from foundling.data.kinds import PACKED, PREFERENCE, PROMPT, Example, Kind
from foundling.errors import DataError, FoundlingError, WeightsError
from foundling.text.answers import NO_PLACE, REFUSED, Unusable
from foundling.text.cutting import Encoded, Text, encode_within
from foundling.text.framing import SEPARATOR, Framing
from foundling.text.tags import encode_words

AT_ONCE = 64
SHARE = 0.99
"""of the examples, which the suggested length holds whole"""
MULTIPLE = 8

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
    too_long: int = 0
    """of the skipped ones"""
    cut: int = 0

    def __post_init__(self) -> None:
        self.ids = {name: number for number, name in enumerate(self.classes)}
        self.tokenizer = self.framing.tokenizer
        probe = self.tokenizer.encode_framed_batch([("a", "b")])[0]
        self.has_types = self.framing.spec.reads_types and any(probe.type_ids)

    @property
    def packed(self) -> bool:
        """Whether examples share rows: those of a causal model, which reads a source as the prompt of its target."""
        if self.kind == "seq2seq":
            return not self.framing.spec.reads_source
        return self.kind in (*PACKED, PREFERENCE, PROMPT)

    def __call__(self, examples: Iterable[Example]) -> Iterator[tuple[int, Arrays]]:
        """(place, arrays) of every example, of a text one for each window of seq_len + 1 tokens."""
        functions: dict[Kind, Callable[[Sequence[Example]], Iterator[Any]]] = {
            "chat": self._chat, "text": self._text, "classify": self._classify, "regress": self._classify,
            "tag": self._tag, "seq2seq": self._seq2seq, "preference": self._preference,
            "prompt": self._prompt,
        }  # fmt: skip
        place, source = 0, iter(examples)
        while group := list(islice(source, AT_ONCE)):
            for number, arrays in enumerate(functions[self.kind](group)):
                for one in arrays if isinstance(arrays, list) else [arrays]:
                    if isinstance(one, Unusable):
                        self.skipped[one.reason] += 1
                        self.too_long += one.too_long
                        self.details.setdefault(one.reason, one.detail)
                    else:
                        yield place + number, one
            place += len(group)

    def _chat(self, group: Sequence[Example]) -> Iterator[Any]:
        for example in self.framing.chat_examples([one.fields for one in group], self.seq_len + 1):
            yield example if isinstance(example, Unusable) else {"tokens": example.ids, "mask": example.mask}

    def _preference(self, group: Sequence[Example]) -> Iterator[Any]:
        """Of each example as many texts as it has completions, or none."""
        chats = [
            {
                "messages": [
                    *({**m, "weight": 0} for m in one.fields["messages"]),
                    {"role": "assistant", "content": text},
                ]
            }
            for one in group
            for text in one.fields["completions"]
        ]
        encoded = iter(self.framing.chat_examples(chats, self.seq_len + 1))
        for one in group:
            texts = [next(encoded) for _ in one.fields["completions"]]
            unusable = next((text for text in texts if isinstance(text, Unusable)), None)
            yield unusable or [{"tokens": text.ids, "mask": text.mask} for text in texts]  # pyright: ignore

    def _prompt(self, group: Sequence[Example]) -> Iterator[Any]:
        for one in group:
            try:
                ids = self.framing.chat(one.fields["messages"])
            except WeightsError:  # of the template itself
                raise
            except FoundlingError as error:
                if self.tokenizer.chat_template is None:
                    raise
                yield Unusable(REFUSED, str(error))
                continue
            if len(ids) <= self.seq_len:
                yield {"tokens": ids, "mask": [False] * len(ids)}
            else:
                yield Unusable(f"a prompt over {self.seq_len:,} tokens", "raise --seq-len", True)

    def _text(self, group: Sequence[Example]) -> Iterator[Any]:
        encoded = self.tokenizer.encode_batch([one.fields["text"] for one in group])
        for example, ids in zip(group, encoded, strict=True):
            end = [] if example.fields.get("continues") else [self.tokenizer.eos]
            stream = [*self.tokenizer.opening, *ids, *end]
            starts = range(0, len(stream) - 1, self.seq_len)
            windows = [stream[at : at + self.seq_len + 1] for at in starts]
            yield [{"tokens": window, "mask": [True] * len(window)} for window in windows]

    def _classify(self, group: Sequence[Example]) -> Iterator[Any]:
        texts: list[Text] = [(f["text"], f["pair"]) if "pair" in (f := one.fields) else f["text"] for one in group]
        for example, text, encoding in zip(group, texts, self._within(texts), strict=True):
            if not encoding.ids:
                yield Unusable("a text without tokens")
                continue
            number = example.fields["value"] if self.kind == "regress" else self.ids[example.fields["label"]]
            types = {"types": encoding.types} if self.has_types and isinstance(text, tuple) else {}
            yield {"tokens": encoding.ids, "labels": number, **types}

    def _seq2seq(self, group: Sequence[Example]) -> Iterator[Any]:
        targets = self.tokenizer.encode_batch([one.fields["target"] for one in group])
        if not self.packed:
            sources = [encoding.ids for encoding in self._within([one.fields["source"] for one in group])]
        else:
            sources = [prompt_ids(one, self.kind, self.framing) for one in group]
        for source, target in zip(sources, targets, strict=True):
            target = [*target, self.tokenizer.eos]
            length = len(target) if not self.packed else len(source) + len(target) - 1
            if length > self.seq_len:
                what = "a target" if not self.packed else "a prompt with its target"
                yield Unusable(f"{what} over {self.seq_len:,} tokens", "raise --seq-len", True)
            elif self.packed:
                yield {"tokens": source + target, "mask": [False] * len(source) + [True] * len(target)}
            else:
                yield {"tokens": target, "source": source}

    def _tag(self, group: Sequence[Example]) -> Iterator[Any]:
        sentences = encode_words(self.tokenizer, [one.fields["words"] for one in group], self.seq_len)
        for example, sentence in zip(group, sentences, strict=True):
            self.cut += sentence.cut
            targets, mask = [0] * len(sentence.ids), [False] * len(sentence.ids)
            for at, tag in zip(sentence.firsts, example.fields["tags"], strict=True):
                if at is not None and tag in self.ids:
                    targets[at], mask[at] = self.ids[tag], True
            if any(mask):
                yield {"tokens": sentence.ids, "targets": targets, "mask": mask}
            else:
                yield Unusable("a sentence without tokens", "its words have none, or its first word is too long")

    def _within(self, texts: Sequence[Text]) -> list[Encoded]:
        """At most seq_len tokens each; what is cut is counted."""
        encoded = encode_within(self.tokenizer, texts, self.seq_len)
        self.cut += sum(one.cut for one in encoded)
        return encoded


def prompt_ids(example: Example, kind: Kind, framing: Framing) -> list[int]:
    """The ids that a model continues with the last answer of a chat, or with the target of a source; those that
    `Framing.prompt` makes of the source for the model that comes of it."""
    if kind == "chat":
        messages = example.fields["messages"]
        return framing.chat(messages[:-1], tools=example.fields.get("tools"))
    if kind in (PREFERENCE, PROMPT):
        return framing.chat(example.fields["messages"])
    if not framing.spec.reads_source:
        framing = Framing(framing.tokenizer, replace(framing.spec, separator=SEPARATOR))
    return framing.prompt(example.fields["source"])


def example_lengths(
    examples: Sequence[Example],
    kind: Kind,
    framing: Framing,
    longest: int,
    *,
    classes: Sequence[str] = (),
    n: int = 256,
) -> np.ndarray:
    """(≤ n,) positions that examples take, of some that lie evenly among all. Those over `longest` count as such;
    what cannot be encoded for another reason is left out."""
    places = np.unique(np.linspace(0, len(examples) - 1, min(n, len(examples))).astype(int))
    encoder = Encoder(kind, framing, longest, classes)
    predicts = encoder.packed and kind != PROMPT
    lengths = [n_positions(arrays, predicts) for _, arrays in encoder([examples[int(at)] for at in places])]
    if not lengths:
        raise DataError(nothing_left(encoder))
    return np.array(lengths + [longest] * encoder.too_long)


def n_positions(arrays: Arrays, predicts: bool) -> int:
    """In a row of a batch: an example that `predicts` all its tokens but the first takes one less than it has. A
    prompt, whose answer comes later, takes all."""
    return max(len(arrays["tokens"]) - predicts, len(arrays.get("source", ())))


def suggest_seq_len(lengths: np.ndarray, longest: int, share: float = SHARE) -> int:
    """The least multiple of 8 in which `share` of the examples fit whole, at most `longest`."""
    length = int(np.quantile(lengths, share, method="inverted_cdf"))
    return min(-(-length // MULTIPLE) * MULTIPLE, longest)


def check_template(encoder: Encoder, n: int) -> None:
    """DataError where the template cannot say where the answers of most of `n` chats are."""
    if encoder.kind in ("chat", PREFERENCE) and 2 * encoder.skipped[NO_PLACE] > n:
        raise DataError(f"{NO_PLACE}: {encoder.details[NO_PLACE]}")


def nothing_left(encoder: Encoder) -> str:
    counts = ", ".join(f"{reason}: {n:,}" for reason, n in encoder.skipped.most_common())
    detail = next((encoder.details[reason] for reason, _ in encoder.skipped.most_common(1)), "")
    return f"no example can be encoded ({counts}): {detail}"
