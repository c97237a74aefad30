# SPDX-License-Identifier: Apache-2.0
"""The KV cache in blocks of a few tokens: which sequences use which block, and which blocks hold a known prefix.

Numbers only. What a block consists of is the runner's affair.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence


def hash_blocks(tokens: Sequence[int], block_size: int, prefix: bytes = b"") -> list[bytes]:
    """One hash for each whole block of `tokens`: of the block and of everything before it, `prefix` included."""
    hashes = list[bytes]()
    for start in range(0, len(tokens) - block_size + 1, block_size):
        block = array("q", tokens[start : start + block_size]).tobytes()
        prefix = hashlib.blake2b(prefix + block, digest_size=16).digest()
        hashes.append(prefix)
    return hashes


def count_blocks(n_tokens: int, block_size: int) -> int:
    """The number of blocks that n_tokens need."""
    return -(-n_tokens // block_size)


class BlockManager:
    """A block is free, used (by one sequence or several), or cached: used by none, but found by its hash until space is
    needed. The least recently used cached block is evicted first."""

    def __init__(self, n_blocks: int, block_size: int) -> None:
        self.n_blocks, self.block_size = n_blocks, block_size
        self.free = list(range(n_blocks - 1, -1, -1))
        self.ref_counts = [0] * n_blocks
        self.cached: OrderedDict[int, None] = OrderedDict()
        self.hash_of: dict[int, bytes] = {}
        self.block_of: dict[bytes, int] = {}

    @property
    def n_available(self) -> int:
        return len(self.free) + len(self.cached)

    @property
    def n_used(self) -> int:
        return self.n_blocks - self.n_available

    def allocate(self) -> int:
        """A block with one user and no known content. At least one must be available."""
        if self.free:
            block = self.free.pop()
        else:
            block, _ = self.cached.popitem(last=False)
            del self.block_of[self.hash_of.pop(block)]
        self.ref_counts[block] = 1
        return block

    def acquire(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known prefix of `hashes`, each with one user more."""
        blocks = list[int]()
        for block_hash in hashes:
            block = self.block_of.get(block_hash)
            if block is None:
                break
            self.cached.pop(block, None)
            self.ref_counts[block] += 1
            blocks.append(block)
        return blocks

    def count_known(self, hashes: Sequence[bytes]) -> tuple[int, int]:
        """The length of the longest known prefix of `hashes`, and how many of its blocks nobody uses now."""
        n_cached = 0
        for number, block_hash in enumerate(hashes):
            block = self.block_of.get(block_hash)
            if block is None:
                return number, n_cached
            n_cached += block in self.cached
        return len(hashes), n_cached

    def register(self, block: int, block_hash: bytes) -> None:
        """Records the content of a used block. The first block of a hash is the one that `acquire` returns."""
        if block_hash not in self.block_of and block not in self.hash_of:
            self.hash_of[block], self.block_of[block_hash] = block_hash, block

    def release(self, blocks: Sequence[int]) -> None:
        """One user less. The last blocks are cached first, so that a prefix is evicted after what follows it."""
        for block in reversed(blocks):
            assert self.ref_counts[block] > 0, "released more often than acquired"
            self.ref_counts[block] -= 1
            if self.ref_counts[block] == 0:
                if block in self.hash_of:
                    self.cached[block] = None
                else:
                    self.free.append(block)
