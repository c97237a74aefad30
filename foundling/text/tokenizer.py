# SPDX-License-Identifier: Apache-2.0
"""Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019 for bytes): encodes and decodes any Unicode text without
loss."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from foundling.errors import ConfigError, DataError, WeightsError
from foundling.limits import COMPANION_BYTES, NEW_TOKENS, shown
from foundling.runtime.files import read_json
from foundling.runtime.hub import local_directory
from foundling.text.chat import CHAT_TEMPLATE
from foundling.text.growth import check_growth

END = "<|endoftext|>"
PAD = "<|pad|>"
SPECIAL = [END, PAD, "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
CHAT_MARKS = ("<|im_start|>", "<|im_end|>")
SPARE = 16
MULTIPLE = 64
SMALLEST = 320

LONGEST_WORD = 128
"""characters of a word that training sees at once: merging a longer one takes time that grows with its square"""

# Words with a preceding sign or space, up to three digits, runs of punctuation, and line breaks with the following
# indentation, so that one token can start a line of code.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+[ \t]*|\s+(?!\S)|\s+"


OWN_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": END,
    "eos_token": END,
    "pad_token": PAD,
    "clean_up_tokenization_spaces": False,
    "chat_template": CHAT_TEMPLATE,
}
"""tokenizer_config.json of a tokenizer trained by this library."""
CLEANED = {
    " .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " 's": "'s", " 've": "'ve",
    " 're": "'re",
}  # fmt: skip
"""what transformers replaces in decoded text where tokenizer_config.json asks for it, in this order"""
CLEANED_SPAN = 8
"""characters at the end of a text that what follows may still change so"""
NAMED = ("bos_token", "eos_token", "sep_token", "mask_token")
NAMES_CODE = "auto_map"
"""The key by which transformers finds code to execute; it is always removed."""

_PRINTED = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_OF = {chr(byte): byte for byte in _PRINTED} | {
    chr(0x100 + n): byte for n, byte in enumerate(byte for byte in range(256) if byte not in _PRINTED)
}
"""Character of ByteLevel's alphabet -> the byte that it stands for (Radford et al. 2019, section 2.2): printable ones
are themselves, the others the characters from U+0100 on."""


@contextmanager
def _library(action: str) -> Iterator[None]:
    """Turns errors of the tokenizers library into WeightsError. It raises bare Exception, and for bugs a panic, which
    is not an Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, UnicodeEncodeError, TypeError):
        raise
    except BaseException as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"the tokenizer cannot {action} ({why})") from None


class Tokenizer:
    """A tokenizer. `eos` ends every document and `bos` starts it (the same token in our tokenizers). Special tokens are
    never recognised in ordinary text. `described`: the contents of tokenizer_config.json, whose NAMED keys define the
    special tokens; `save` writes them again."""

    def __init__(self, backend: tokenizers.Tokenizer, described: Mapping[str, Any] | None = None) -> None:
        self.backend = backend
        self.backend.encode_special_tokens = True
        self.ids = frozenset(backend.get_vocab(with_added_tokens=True).values())
        """The ids in use; a file may have gaps."""
        self.vocab_size: int = max(self.ids, default=-1) + 1
        self.described = dict(described or {})
        self.names = {part: name for part in NAMED if (name := _name(self.described.get(part)))}
        own = backend.token_to_id(END)
        ids = {part: backend.token_to_id(name) for part, name in self.names.items()}
        eos = next((i for i in (ids.get("eos_token"), ids.get("sep_token"), own) if i is not None), None)
        if eos is None:
            raise ConfigError(f"the tokenizer has no {END} token and defines no eos_token")
        self.eos: int = eos
        self.bos: int | None = ids.get("bos_token", None if self.names else own)
        self.mask: int | None = ids.get("mask_token")
        """The mask token, for models that fill gaps."""
        added = backend.get_added_tokens_decoder()
        self.special = frozenset(i for i, token in added.items() if token.special)
        marks = [backend.token_to_id(f"<|fim_{name}|>") for name in ("prefix", "suffix", "middle")]
        self.fim: tuple[int, int, int] | None = None if None in marks else tuple(marks)  # pyright: ignore
        """The tokens before prefix, suffix and middle."""
        self.own = all(backend.token_to_id(token) is not None for token in SPECIAL)
        """Whether it was trained by this library."""
        if self.own and backend.post_processor is None:  # a text begins as a document does in training, for all readers
            backend.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, own)])

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learns merges until `vocab_size` (a multiple of 64, at least 320) or until no pair recurs. The rest of
        the vocabulary is spare tokens, so every row of an embedding has a name."""
        if vocab_size % MULTIPLE or vocab_size < SMALLEST:
            raise ConfigError(f"vocab_size {vocab_size}: expected a multiple of {MULTIPLE}, at least {SMALLEST}")
        backend = tokenizers.Tokenizer(models.BPE())
        words = pre_tokenizers.Split(Regex(WORDS), "isolated")
        short = pre_tokenizers.Split(Regex(f"(?m:.{{1,{LONGEST_WORD}}})"), "isolated")  # with m, . is any character
        bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, short, bytes_of])
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - SPARE,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_of])
        size = backend.get_vocab_size()
        padded = -(-(size + SPARE) // MULTIPLE) * MULTIPLE
        backend.add_special_tokens(
            [AddedToken(f"<|spare_{i}|>", special=True, normalized=False) for i in range(padded - size)]
        )
        return cls(backend)

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        directory = local_directory(directory)
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise WeightsError(f"{directory}: no tokenizer.json")
        if file.stat().st_size > COMPANION_BYTES.high:
            raise WeightsError(f"{file}: over {COMPANION_BYTES.high >> 20} MiB, too large for a tokenizer")
        try:
            with _library("be read"):
                backend = tokenizers.Tokenizer.from_file(str(file))
        except WeightsError as error:
            raise WeightsError(f"{file}: damaged, not a tokenizer ({error})") from None
        check_growth(backend, str(file))
        backend.no_padding()
        backend.no_truncation()
        return cls(backend, _read_config(directory))

    def save(self, directory: str | Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, with the chat template, in the format of transformers."""
        directory = Path(directory)
        self.backend.save(str(directory / "tokenizer.json"))
        config = self.described or OWN_CONFIG
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def naming(self, **tokens: str) -> Tokenizer:
        """A copy whose tokenizer_config.json defines further tokens, such as mask_token="<|spare_0|>"."""
        return Tokenizer(self.backend, (self.described or OWN_CONFIG) | tokens)

    def with_tokens(self, texts: Sequence[str], *, special: bool = True) -> Tokenizer:
        """A copy with further tokens, whose ids follow the last one; `special`: that no text holds, and decoding leaves
        out. ConfigError for no text, one that is empty, comes twice or is a token already."""
        NEW_TOKENS.check(len(texts), "the number of new tokens")
        for text, number in Counter(texts).items():
            if not text or self.backend.token_to_id(text) is not None or number > 1:
                why = "is empty" if not text else "comes twice" if number > 1 else "is a token already"
                raise ConfigError(f"the new token {shown(text)} {why}; leave it out")
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        tokens = [AddedToken(text, special=special, normalized=False) for text in texts]
        backend.add_special_tokens(tokens) if special else backend.add_tokens(tokens)
        extended = Tokenizer(backend, self.described)
        expected = [*range(self.vocab_size, self.vocab_size + len(texts))]
        if [backend.token_to_id(text) for text in texts] != expected:
            raise ConfigError(f"the tokenizer has gaps in its ids, so a new token would not get {expected[0]}")
        return extended

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without adding or recognising special tokens."""
        return self._encoded(self._plain(text), text, add_special_tokens=False)

    @staticmethod
    def _encoded(backend: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            with _library("read this text"):
                return backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (UnicodeEncodeError, TypeError):  # the library's errors for a lone surrogate
            raise DataError("the text contains a lone surrogate, which is not valid Unicode") from None

    def encode_framed(self, text: str) -> list[int]:
        """Ids with the tokenizer's special tokens around a single text, such as [CLS] and [SEP]."""
        return self._encoded(self._plain(text), text, add_special_tokens=True)

    def encode_marked(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are written out, as a chat template writes them; none are added."""
        return self._encoded(self._marked, text, add_special_tokens=False)

    def encode_marked_batch(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """As encode_marked, with the characters of each token: [start, stop)."""
        try:
            with _library("read these texts"):
                encodings = self._marked.encode_batch(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            raise DataError("a text contains a lone surrogate, which is not valid Unicode") from None
        return [(encoding.ids, encoding.offsets) for encoding in encodings]

    def encode_framed_batch(self, texts: Sequence[str | tuple[str, str]]) -> list[tokenizers.Encoding]:
        """Of texts or pairs of them, with the special tokens around them: `ids`, `offsets`, and `type_ids` of pairs."""
        plain = [part for text in texts for part in ([text] if isinstance(text, str) else text)]
        try:
            with _library("read these texts"):
                return self._plain(*plain).encode_batch(list(texts), add_special_tokens=True)
        except (UnicodeEncodeError, TypeError):
            raise DataError("a text contains a lone surrogate, which is not valid Unicode") from None

    def with_chat_template(self, template: str = CHAT_TEMPLATE) -> Tokenizer:
        """A copy with this chat template, by default ChatML. DataError where the tokenizer has no tokens for that."""
        missing = [mark for mark in CHAT_MARKS if self.backend.token_to_id(mark) not in self.special]
        if template == CHAT_TEMPLATE and missing:
            raise DataError(f"the tokenizer has no special token {missing[0]}, which the chat template ChatML needs")
        return Tokenizer(self.backend, (self.described or OWN_CONFIG) | {"chat_template": template})

    def _plain(self, *texts: str) -> tokenizers.Tokenizer:
        """The backend that takes these texts for text alone. A Unigram model looks for all of its vocabulary in a text,
        </s> included, which SentencePiece never does."""
        if isinstance(self.backend.model, models.Unigram) and any(
            mark in text for mark in self._marks for text in texts
        ):
            return self._without_marks
        return self.backend

    @cached_property
    def _marks(self) -> list[str]:
        added = self.backend.get_added_tokens_decoder().values()
        return [token.content for token in added if token.special and token.content]

    @cached_property
    def _without_marks(self) -> tokenizers.Tokenizer:
        """A copy whose special tokens have names that no text holds."""
        table = json.loads(self.backend.to_str())
        marks = set(self._marks)
        for piece in table["model"]["vocab"]:
            piece[0] = f"\0{piece[0]}\0" if piece[0] in marks else piece[0]
        table["added_tokens"] = [token for token in table["added_tokens"] if token["content"] not in marks]
        backend = tokenizers.Tokenizer.from_str(json.dumps(table))
        backend.encode_special_tokens = True
        return backend

    @cached_property
    def cleans(self) -> bool:
        """Whether decoding takes spaces out before signs, as transformers does; it does not with a BPE."""
        if self.described.get("clean_up_tokenization_spaces") is not True:
            return False
        forced = self.described.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output") is True
        return forced or not isinstance(self.backend.model, models.BPE)

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Tokens that are single bytes of a character (<0xE4>), in tokenizers that fall back to them."""
        ids = (self.backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(i for i in ids if i is not None)

    @cached_property
    def _marked(self) -> tokenizers.Tokenizer:
        """A copy that recognises special tokens."""
        return tokenizers.Tokenizer.from_str(self.backend.to_str())

    def name(self, part: str) -> str | None:
        """The text of a special token by its key in tokenizer_config.json, such as "pad_token"."""
        return _name(self.described.get(part, None if self.described else OWN_CONFIG.get(part)))

    @property
    def chat_template(self) -> str | None:
        """The template of tokenizer_config.json or chat_template.jinja; of several, the one called "default"."""
        found = self.described.get("chat_template", None if self.described else CHAT_TEMPLATE)
        if isinstance(found, list):
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
            found = named.get("default")
        return found if isinstance(found, str) else None

    @property
    def frame(self) -> tuple[list[int], list[int]]:
        """Special tokens before and after a single text."""
        with _library("frame a text"):
            probe = self.backend.encode("a", add_special_tokens=True)
        own = [at for at, special in enumerate(probe.special_tokens_mask) if not special]
        return (probe.ids[: own[0]], probe.ids[own[-1] + 1 :]) if own else ([], [])

    @cached_property
    def opening(self) -> list[int]:
        """What stands before a document in a stream of them: the eos that ends the one before, and what the tokenizer
        itself puts before a text."""
        first, _ = self.frame
        return first if first[:1] == [self.eos] else [self.eos, *first]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._plain(*texts).encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special tokens are omitted; invalid bytes become U+FFFD."""
        text = self.backend.decode(list(ids), skip_special_tokens=True)
        for spaced, clean in CLEANED.items() if self.cleans else ():
            text = text.replace(spaced, clean)
        return text

    def spellings(self) -> list[bytes]:
        """The bytes of each token, special ones as they are written; b"" for an id without one."""
        level, found = isinstance(self.backend.decoder, decoders.ByteLevel), list[bytes]()
        for i in range(self.vocab_size):
            token = self.backend.id_to_token(i) or ""
            if level and all(char in BYTE_OF for char in token):
                found.append(bytes(BYTE_OF[char] for char in token))
            elif i in self.byte_ids:
                found.append(bytes([int(token[3:5], 16)]))
            else:
                found.append(token.replace("\u2581", " ").encode())
        return found

    def piece(self, token: int) -> str:
        """One token as text, without WordPiece's continuation prefix (##)."""
        return self.decode([token]).removeprefix("##")

    def pieces(self, text: str) -> list[tuple[str, int]]:
        """(characters, id) of each token. A token that ends inside a character has ''."""
        encoding = self._plain(text).encode(text, add_special_tokens=False)
        pieces, end = [], 0
        for i, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            pieces.append((text[max(start, end) : stop], i))
            end = max(end, stop)
        return pieces


def _name(value: Any) -> str | None:
    """The text of a token: a string, or a mapping with the text as `content`."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _read_config(directory: Path) -> dict[str, Any]:
    """special_tokens_map.json merged with tokenizer_config.json, which takes precedence."""
    merged: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = directory / name
        if not file.is_file():
            continue
        values = read_json(file, COMPANION_BYTES.high)
        merged |= {key: value for key, value in values.items() if key != NAMES_CODE}
    file = directory / "chat_template.jinja"
    if (
        file.is_file() and file.stat().st_size <= COMPANION_BYTES.high
    ):  # transformers 5 writes it, and it takes precedence
        merged["chat_template"] = file.read_text(encoding="utf-8", errors="replace")
    return merged
