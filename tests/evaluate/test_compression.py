# SPDX-License-Identifier: Apache-2.0
"""Compressors' figures against the bytes that gzip and lzma write with their own presets."""

import gzip
import inspect
import json.decoder
import lzma
import subprocess
import textwrap

import pytest

from foundling.errors import DataError
from foundling.evaluate.baselines.compression import bits_per_byte

DOCUMENTS = [inspect.getsource(module).encode() for module in (json.decoder, textwrap, subprocess)]
N_BYTES = sum(map(len, DOCUMENTS))
PRESET = 9 | lzma.PRESET_EXTREME


def test_gzip_compresses_each_document_alone():
    written = [gzip.compress(document, compresslevel=9) for document in DOCUMENTS]
    assert [gzip.decompress(stream) for stream in written] == DOCUMENTS
    assert bits_per_byte(DOCUMENTS)["gzip"] == 8 * sum(map(len, written)) / N_BYTES


@pytest.mark.parametrize("document", [b"a", b"ab" * 3000, *DOCUMENTS], ids=len)
def test_xz_writes_as_much_with_a_small_dictionary_as_with_the_preset(document):
    assert bits_per_byte([document])["xz"] == 8 * len(lzma.compress(document, preset=PRESET)) / len(document)


def test_xz_is_per_document_and_xz_stream_is_one_stream():
    figures = bits_per_byte(DOCUMENTS)
    assert figures["xz"] == 8 * sum(len(lzma.compress(d, preset=PRESET)) for d in DOCUMENTS) / N_BYTES
    assert figures["xz_stream"] == 8 * len(lzma.compress(b"".join(DOCUMENTS), preset=PRESET)) / N_BYTES


def test_the_stream_profits_from_earlier_documents_and_single_ones_do_not():
    once, twice = bits_per_byte(DOCUMENTS), bits_per_byte(DOCUMENTS * 2)
    assert (twice["gzip"], twice["xz"]) == (once["gzip"], once["xz"])
    assert twice["xz_stream"] < 0.51 * once["xz_stream"]


def test_an_empty_document_costs_its_container():
    figures = bits_per_byte([b"", b"abcd"])
    assert figures["gzip"] == 8 * (len(gzip.compress(b"")) + len(gzip.compress(b"abcd"))) / 4
    assert figures["xz"] == 8 * (len(lzma.compress(b"")) + len(lzma.compress(b"abcd", preset=PRESET))) / 4


@pytest.mark.parametrize("documents", [[], [b"", b""]])
def test_no_bytes_are_refused(documents):
    with pytest.raises(DataError, match="0 bytes"):
        bits_per_byte(documents)
