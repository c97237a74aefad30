# SPDX-License-Identifier: Apache-2.0
"""Bits per byte of general-purpose compressors: a baseline in the same unit as a language model's loss."""

import gzip
import lzma
from collections.abc import Iterable, Sequence

from foundling.errors import DataError

_MIN_DICT_SIZE = 4096  # bytes; liblzma takes no smaller
_MAX_DICT_SIZE = 64 << 20  # bytes; that of preset 9


def bits_per_byte(documents: Sequence[bytes]) -> dict[str, float]:
    """Compressed bits over original bytes, pooled: long documents weigh more, and containers' headers count.

    - `gzip`: each document alone, `gzip -9 -n`: deflate with a 32 KiB window and 18 bytes of container.
    - `xz`: each document alone, `xz -9e -T1`: the .xz container (CRC64) as the tool writes it, 54 to 57 bytes.
      (The older .lzma would save about 45 of them, but carries no check and is not what `xz` writes.)
    - `xz_stream`: all documents, in the order given, as one such stream without separators. Later documents profit
      from earlier ones, as a model does from its training; the places where documents end are not coded.

    Raises DataError if the documents hold no byte at all. Memory: about eleven times the dictionary, which is the
    input's length up to the next power of two, at most 64 MiB.
    """
    n_bytes = sum(map(len, documents))
    if n_bytes == 0:
        raise DataError(f"{len(documents)} documents hold 0 bytes: bits per byte needs at least one; check the source")
    compressed = {
        "gzip": sum(len(gzip.compress(document, 9, mtime=0)) for document in documents),
        "xz": sum(_xz_size([document], len(document)) for document in documents),
        "xz_stream": _xz_size(documents, n_bytes),
    }
    return {name: 8 * size / n_bytes for name, size in compressed.items()}


def _xz_size(pieces: Iterable[bytes], n_bytes: int) -> int:
    """Bytes of one .xz stream of the pieces, `n_bytes` in all, as `xz -9e -T1` writes it.

    The dictionary is cut to the input: no match can reach further back, and with the 64 MiB of preset 9 the encoder
    allocates some 700 MB.
    """
    dict_size = min(max(1 << (n_bytes - 1).bit_length(), _MIN_DICT_SIZE), _MAX_DICT_SIZE)
    lzma2 = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dict_size}
    compressor = lzma.LZMACompressor(lzma.FORMAT_XZ, filters=[lzma2])
    return sum(len(compressor.compress(piece)) for piece in pieces) + len(compressor.flush())
