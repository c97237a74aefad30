# SPDX-License-Identifier: Apache-2.0
"""Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019 for bytes): any Unicode text survives the round trip."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from foundling.errors import ConfigError, DataError, WeightsError
from foundling.text.chat import CHAT_TEMPLATE

END = "<|endoftext|>"
PAD = "<|pad|>"
SPECIAL = [END, PAD, "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
SPARE = 16
MULTIPLE = 64
SMALLEST = 320
MAX_FILE_BYTES = 64 << 20

# Words with the sign or space before them, up to three digits, runs of punctuation, and line breaks together with the
# indentation that follows: in code one token then opens a line.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+[ \t]*|\s+(?!\S)|\s+"


OWN_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": END,
    "eos_token": END,
    "pad_token": PAD,
    "clean_up_tokenization_spaces": False,
    "chat_template": CHAT_TEMPLATE,
}
"""tokenizer_config.json of a tokenizer that is trained here"""
NAMED = ("bos_token", "eos_token", "sep_token", "mask_token")
NAMES_CODE = "auto_map"
"""A key by which transformers finds programs: none is kept or taken along."""


@contextmanager
def _library(doing: str) -> Iterator[None]:
    """Whatever the library makes of a tokenizer that is damaged or lacks something: bare Exception, and where it did
    not expect it a panic, which is no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, UnicodeEncodeError, TypeError):
        raise
    except BaseException as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"the tokenizer cannot {doing} ({why})") from None


class Tokenizer:
    """`eos` closes every document, and `bos` opens it (with ours the same token); special tokens are never read out of
    ordinary text. `described`: what tokenizer_config.json says, of which NAMED tell who plays which part; kept, and
    written again by `save`."""

    def __init__(self, backend: tokenizers.Tokenizer, described: Mapping[str, Any] | None = None) -> None:
        self.backend = backend
        self.backend.encode_special_tokens = True
        self.ids = frozenset(backend.get_vocab(with_added_tokens=True).values())
        """those that a token has; a file may leave some out in between"""
        self.vocab_size: int = max(self.ids, default=-1) + 1
        self.described = dict(described or {})
        self.names = {part: name for part in NAMED if (name := _name(self.described.get(part)))}
        own = backend.token_to_id(END)
        ids = {part: backend.token_to_id(name) for part, name in self.names.items()}
        eos = next((i for i in (ids.get("eos_token"), ids.get("sep_token"), own) if i is not None), None)
        if eos is None:
            raise ConfigError(f"the tokenizer has no {END} token, and names no eos_token")
        self.eos: int = eos
        self.bos: int | None = ids.get("bos_token", None if self.names else own)
        self.mask: int | None = ids.get("mask_token")
        """what stands in a gap, for models that fill them"""
        added = backend.get_added_tokens_decoder()
        self.special = frozenset(i for i, token in added.items() if token.special)
        marks = [backend.token_to_id(f"<|fim_{name}|>") for name in ("prefix", "suffix", "middle")]
        self.fim: tuple[int, int, int] | None = None if None in marks else tuple(marks)  # pyright: ignore
        """what stands before the prefix, the suffix and the middle"""

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learns merges until `vocab_size` (a multiple of 64, at least 320) or until nothing recurs; the rest of the
        vocabulary is spare tokens, so that no row of an embedding is ever without a name."""
        if vocab_size % MULTIPLE or vocab_size < SMALLEST:
            raise ConfigError(f"vocab_size {vocab_size}: expected a multiple of {MULTIPLE} from {SMALLEST} up")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - SPARE,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        size = backend.get_vocab_size()
        padded = -(-(size + SPARE) // MULTIPLE) * MULTIPLE
        backend.add_special_tokens(
            [AddedToken(f"<|spare_{i}|>", special=True, normalized=False) for i in range(padded - size)]
        )
        return cls(backend)

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        file = Path(directory) / "tokenizer.json"
        if not file.is_file():
            raise WeightsError(f"{directory}: no tokenizer.json")
        if file.stat().st_size > MAX_FILE_BYTES:
            raise WeightsError(f"{file}: over {MAX_FILE_BYTES >> 20} MiB, too large for a tokenizer")
        try:
            with _library("be read"):
                backend = tokenizers.Tokenizer.from_file(str(file))
        except WeightsError as error:
            raise WeightsError(f"{file}: damaged, not a tokenizer ({error})") from None
        backend.no_padding()
        backend.no_truncation()
        return cls(backend, _described(Path(directory)))

    def save(self, directory: str | Path) -> None:
        """tokenizer.json, tokenizer_config.json and the chat template, as transformers reads them."""
        directory = Path(directory)
        self.backend.save(str(directory / "tokenizer.json"))
        config = self.described or OWN_CONFIG
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def naming(self, **tokens: str) -> Tokenizer:
        """The same tokenizer whose tokenizer_config.json names further tokens, such as mask_token="<|spare_0|>"."""
        return Tokenizer(self.backend, (self.described or OWN_CONFIG) | tokens)

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone, no special tokens added or read."""
        try:
            with _library("read this text"):
                return self.backend.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):  # what the library makes of half a surrogate pair
            raise DataError("the text holds half a surrogate pair, which is not Unicode text") from None

    def encode_framed(self, text: str) -> list[int]:
        """Ids with what the tokenizer sets around a text that stands alone, such as [CLS] and [SEP]."""
        first, last = self.frame
        return [*first, *self.encode(text), *last]

    @property
    def frame(self) -> tuple[list[int], list[int]]:
        """What the tokenizer sets before and behind a text that stands alone."""
        with _library("frame a text"):
            probe = self.backend.encode("a", add_special_tokens=True)
        own = [at for at, special in enumerate(probe.special_tokens_mask) if not special]
        return (probe.ids[: own[0]], probe.ids[own[-1] + 1 :]) if own else ([], [])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special tokens are left out, bytes that form no character become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def piece(self, token: int) -> str:
        """One token as text, without the sign for a word that goes on (WordPiece's ##)."""
        return self.decode([token]).removeprefix("##")

    def pieces(self, text: str) -> list[tuple[str, int]]:
        """(characters, id) of each token: what the tokenizer sees. A token that ends inside a character shows as ''."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        pieces, end = [], 0
        for i, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            pieces.append((text[max(start, end) : stop], i))
            end = max(end, stop)
        return pieces


def _name(value: Any) -> str | None:
    """A token as the files write it: its text, or a mapping with the text as content."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _described(directory: Path) -> dict[str, Any]:
    """What tokenizer_config.json says of a tokenizer, and before it special_tokens_map.json of its tokens."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = directory / name
        if not file.is_file():
            continue
        if file.stat().st_size > MAX_FILE_BYTES:
            raise WeightsError(f"{file}: over {MAX_FILE_BYTES >> 20} MiB, too large for a configuration")
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            raise WeightsError(f"{file}: damaged, not JSON") from None
        if not isinstance(values, dict):
            raise WeightsError(f"{file}: damaged, expected a mapping")
        found |= {key: value for key, value in values.items() if key != NAMES_CODE}
    return found
