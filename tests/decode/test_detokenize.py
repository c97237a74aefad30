# SPDX-License-Identifier: Apache-2.0
"""Text of tokens that arrive one by one against decoding all of them, for the kinds of tokenizer that models use."""

import random

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from foundling.decode.detokenize import FullDecoder, MarkedDecoder, SpellingDecoder, StreamDecoder, incremental_decoder
from foundling.decode.text import TextStreamer
from foundling.text import Tokenizer
from foundling.text.framing import AnswerDecoder

TEXT = "the cat sat on the mat,  don't — naïve 漢字 🙂👩‍👩‍👧 ﷽ e\u0301\n\n\tfoo . bar \ufffd 'quoted' \u200bend"


def byte_level() -> Tokenizer:
    return Tokenizer.train([TEXT] * 20, 384)


def word_pieces() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))  # pyright: ignore
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore
    backend.decoder = decoders.WordPiece()  # pyright: ignore
    special = ["[UNK]", "<|endoftext|>"]
    backend.train_from_iterator([TEXT] * 20, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special))
    return Tokenizer(backend)


def byte_fallback() -> Tokenizer:
    """As Llama 2's: spaces as ▁, unknown characters as bytes, a space before the text that decoding removes."""
    vocab = {"<unk>": 0, "<|endoftext|>": 1, "▁": 2} | {f"<0x{i:02X}>": 3 + i for i in range(256)}
    for piece in ("t", "h", "e", "th", "the", "▁the", "c", "a", "ca", "cat", "▁cat", "s", "▁▁", "."):
        vocab.setdefault(piece, len(vocab))
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("c", "a"), ("ca", "t"), ("▁", "cat"), ("▁", "▁")]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = tokenizers.normalizers.Sequence(  # pyright: ignore
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(  # pyright: ignore
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(backend)


TOKENIZERS = {"byte level": byte_level(), "word pieces": word_pieces(), "byte fallback": byte_fallback()}


def check(tokenizer: Tokenizer, ids: list[int]) -> None:
    decoder, streamed = StreamDecoder(AnswerDecoder(tokenizer)), list[str]()
    streamer = TextStreamer(tokenizer.decode, streamed.append, ())
    for n, token in enumerate(ids):
        text, whole = decoder.append(token), tokenizer.decode(ids[: n + 1])
        assert text == whole
        streamer.append(token)
    streamer.finish(tokenizer.decode(ids))
    assert "".join(streamed) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_text(kind: str, data) -> None:
    tokenizer = TOKENIZERS[kind]
    alphabet = st.one_of(st.sampled_from(TEXT), st.characters(exclude_categories=["Cs"]))
    check(tokenizer, tokenizer.encode(data.draw(st.text(alphabet, max_size=60))))


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_ids_whether_or_not_their_bytes_form_characters(kind: str, data) -> None:
    tokenizer = TOKENIZERS[kind]
    check(tokenizer, data.draw(st.lists(st.sampled_from(sorted(tokenizer.ids)), max_size=40)))


def test_bytes_that_take_back_a_character_are_decoded_as_one_run() -> None:
    """Byte fallback replaces a whole run of bytes if one of them is wrong, also those that formed a character."""
    tokenizer, decoder = TOKENIZERS["byte fallback"], StreamDecoder(AnswerDecoder(TOKENIZERS["byte fallback"]))
    ids = [3 + byte for byte in "é".encode()] + [3 + 0xFF] + tokenizer.encode("the cat")
    texts = [decoder.append(token) for token in ids]
    assert texts[1] == "é" and decoder.fallback is None  # the run is decoded as a whole, the text after it is streamed
    assert texts[-1] == tokenizer.decode(ids) == "\ufffd\ufffd\ufffd the cat"


def test_only_a_short_window_is_decoded_however_long_the_text() -> None:
    tokenizer, decoder = TOKENIZERS["byte level"], StreamDecoder(AnswerDecoder(TOKENIZERS["byte level"]))
    draw = random.Random(0)
    longest = 0
    for token in tokenizer.encode("".join(draw.choice(TEXT) for _ in range(3000))):
        decoder.append(token)
        longest = max(longest, len(decoder.tokens) - decoder.n_context)
    assert decoder.text == tokenizer.decode(decoder.tokens) and decoder.fallback is None and longest < 20


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_marks_and_spelled_bytes_come_token_by_token_too(kind: str, data) -> None:
    """The text so far is that of all tokens at once, and no FullDecoder makes it."""
    tokenizer = TOKENIZERS[kind]
    special, ids = sorted(tokenizer.special), st.lists(st.sampled_from(sorted(tokenizer.ids)), max_size=30)
    prompt, answer = data.draw(ids), data.draw(st.lists(st.one_of(ids, st.lists(st.sampled_from(special), max_size=2))))
    spellings = tokenizer.spellings()
    marked = MarkedDecoder(AnswerDecoder(tokenizer, prompt), {special[-1]: "<call>"})
    spelled = SpellingDecoder(lambda ids: b"".join(spellings[i] for i in ids), special)
    for decode in (marked, spelled):
        decoder, sofar = incremental_decoder(decode), list[int]()
        assert not isinstance(decoder, FullDecoder)
        for token in [token for part in answer for token in part]:
            sofar.append(token)
            assert decoder.append(token) == decode(sofar)
    assert marked([special[-1], special[-1]]) == "<call><call>"


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_nothing_that_may_be_a_stop_string_is_sent(data) -> None:
    letters = st.text("ab", min_size=1, max_size=8)
    stops, pieces = data.draw(st.lists(letters, min_size=1, max_size=3)), data.draw(st.lists(letters))
    text = "".join(pieces)
    streamed = list[str]()
    streamer = TextStreamer(lambda ids: text[: len(ids)], streamed.append, stops)
    for n in range(1, len(text) + 1):
        streamer.append(0)
        sent = "".join(streamed)
        pending = max(k for stop in stops for k in range(len(stop)) if text[:n].endswith(stop[:k]))
        ends = [at for stop in stops if (at := text[:n].find(stop)) >= 0]
        if ends:
            assert len(sent) <= min(ends)
            break
        assert sent == text[: n - pending]


def test_only_the_method_of_a_tokenizer_is_streamed() -> None:
    tokenizer = TOKENIZERS["byte level"]
    assert isinstance(incremental_decoder(tokenizer.decode), StreamDecoder)
    for decode in (lambda ids: tokenizer.decode(ids), str):
        decoder = incremental_decoder(decode)
        assert isinstance(decoder, FullDecoder) and [decoder.append(i) for i in (5, 6)] == [decode([5]), decode([5, 6])]
