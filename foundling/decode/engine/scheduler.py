# SPDX-License-Identifier: Apache-2.0
"""Which sequence computes how many tokens in the next step. No tensors, no clock: first come, first served.

Running sequences come first. A long prompt is prefilled in chunks beside them, so that none of them waits for it. Where
blocks run out, the newest sequence is preempted: it frees its blocks and computes its tokens again later.
"""

from __future__ import annotations

import collections.abc as abc
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from foundling.decode.engine.block_manager import BlockManager, count_blocks, hash_blocks


@dataclass(eq=False)
class Sequence:
    """One request as the scheduler sees it."""

    request_id: int
    tokens: list[int]
    """prompt and completion"""
    cache_salt: bytes = b""
    """what else the cache depends on (an adapter): only sequences with the same salt share blocks"""
    n_computed: int = 0
    """how many tokens are in the cache"""
    blocks: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    """of whole blocks, as far as known"""
    n_draft: int = 0
    """how many of the last tokens are drafts: computed like the others, dropped on preemption"""
    n_shared: int = 0
    """tokens that another sequence had computed"""

    @property
    def n_uncomputed(self) -> int:
        return len(self.tokens) - self.n_computed


class ScheduledChunk(NamedTuple):
    """tokens[start : start + n_tokens] of a sequence are computed in the next step."""

    sequence: Sequence
    start: int
    n_tokens: int
    is_last: bool
    """all tokens of the sequence are computed afterwards"""


class Scheduler:
    def __init__(
        self,
        blocks: BlockManager,
        max_num_seqs: int,
        max_step_tokens: int,
        *,
        share: bool = True,
        count_resumable: abc.Callable[[abc.Sequence[bytes]], int] | None = None,
    ) -> None:
        """At most `max_num_seqs` sequences run, and at most `max_step_tokens` tokens are computed in a step. `share`
        reuses the blocks of common prefixes. `count_resumable`, for runners with recurrent states: after how many of
        the first blocks, given by their hashes, a state is saved. Prompts are then chunked at the ends of blocks, where
        states are saved."""
        assert max_step_tokens >= max_num_seqs >= 1
        self.blocks, self.max_num_seqs, self.max_step_tokens, self.share = blocks, max_num_seqs, max_step_tokens, share
        self.count_resumable = count_resumable if share else None
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.n_preemptions = 0

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> list[ScheduledChunk]:
        """The chunks of the next step, their blocks allocated; [] when there is no sequence."""
        chunks, n_preemptions = dict[Sequence, ScheduledChunk](), self.n_preemptions
        budget = self.max_step_tokens
        # sequences that decode before those that still prefill
        for sequence in sorted(self.running, key=lambda s: s.n_uncomputed - s.n_draft > 1):
            n_tokens = self._chunk_size(sequence, budget)
            while n_tokens and sequence in self.running:
                if self._allocate(sequence, n_tokens):
                    chunks[sequence] = self._make_chunk(sequence, n_tokens)
                    budget -= n_tokens
                    break
                victim = self.running[-1]
                self._preempt(victim)
                if victim in chunks:
                    budget += chunks.pop(victim).n_tokens
        if self.n_preemptions == n_preemptions:
            self._schedule_waiting(chunks, budget)
        return list(chunks.values())

    def _schedule_waiting(self, chunks: dict[Sequence, ScheduledChunk], budget: int) -> None:
        for sequence in list(self.waiting):
            if budget == 0 or len(self.running) == self.max_num_seqs:
                break
            hashes = self._prefix_hashes(sequence)
            if self._prefix_in_progress(hashes):
                continue
            if not self._admit(sequence, hashes):
                break
            n_tokens = self._chunk_size(sequence, budget)
            allocated = self._allocate(sequence, n_tokens)
            assert allocated
            chunks[sequence] = self._make_chunk(sequence, n_tokens)
            budget -= n_tokens

    def _chunk_size(self, sequence: Sequence, budget: int) -> int:
        n_tokens, size = min(sequence.n_uncomputed, budget), self.blocks.block_size
        if self.count_resumable and n_tokens > 1:
            end = (sequence.n_computed + min(n_tokens, sequence.n_uncomputed - 1)) // size * size
            return end - sequence.n_computed if end > sequence.n_computed else n_tokens
        return n_tokens

    def _make_chunk(self, sequence: Sequence, n_tokens: int) -> ScheduledChunk:
        end = sequence.n_computed + n_tokens
        return ScheduledChunk(sequence, sequence.n_computed, n_tokens, end == len(sequence.tokens))

    def _allocate(self, sequence: Sequence, n_tokens: int) -> bool:
        n_new = count_blocks(sequence.n_computed + n_tokens, self.blocks.block_size) - len(sequence.blocks)
        if n_new > self.blocks.n_available:
            return False
        sequence.blocks += [self.blocks.allocate() for _ in range(n_new)]
        return True

    def _prefix_hashes(self, sequence: Sequence) -> list[bytes]:
        """Of the blocks that may be shared. The last token is always computed, since its logits are needed."""
        if not self.share:
            return []
        size = self.blocks.block_size
        return hash_blocks(sequence.tokens[: (len(sequence.tokens) - 1) // size * size], size, sequence.cache_salt)

    def _prefix_in_progress(self, hashes: list[bytes]) -> bool:
        """Whether a running sequence is about to compute the first block that is not known yet."""
        n_known, _ = self.blocks.count_known(hashes)
        return n_known < len(hashes) and any(
            hashes[n_known] in other.block_hashes[other.n_computed // self.blocks.block_size :]
            for other in self.running
        )

    def _admit(self, sequence: Sequence, hashes: list[bytes]) -> bool:
        """A waiting sequence starts with the known blocks of its prefix, if there is space for all its tokens and one
        block more for each running sequence; with less, one would be preempted at once."""
        n_known, n_cached = self.blocks.count_known(hashes)
        if self.count_resumable:
            n_known, n_cached = self.blocks.count_known(hashes[: self.count_resumable(hashes[:n_known])])
        n_new = count_blocks(len(sequence.tokens), self.blocks.block_size) - n_known
        if n_new + len(self.running) > self.blocks.n_available - n_cached:
            return False
        sequence.block_hashes, sequence.blocks = hashes, self.blocks.acquire(hashes[:n_known])
        sequence.n_computed = sequence.n_shared = n_known * self.blocks.block_size
        self.waiting.remove(sequence)
        self.running.append(sequence)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.n_preemptions += 1
        self.running.remove(sequence)
        self._release_blocks(sequence)
        del sequence.tokens[len(sequence.tokens) - sequence.n_draft :]
        sequence.n_draft = 0
        self.waiting.appendleft(sequence)

    def _release_blocks(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks, sequence.block_hashes, sequence.n_computed = [], [], 0

    def on_computed(self, sequence: Sequence, n_tokens: int) -> None:
        """`n_tokens` more are in the cache; others may share the blocks that are now whole."""
        size, n_whole = self.blocks.block_size, sequence.n_computed // self.blocks.block_size
        sequence.n_computed += n_tokens
        assert sequence.n_computed <= len(sequence.tokens)
        end = sequence.n_computed // size
        if not self.share or end == n_whole:
            return
        n_hashes = len(sequence.block_hashes)
        if n_hashes < end:
            prefix = sequence.block_hashes[-1] if n_hashes else sequence.cache_salt
            sequence.block_hashes += hash_blocks(sequence.tokens[n_hashes * size : end * size], size, prefix)
        for number in range(n_whole, end):
            self.blocks.register(sequence.blocks[number], sequence.block_hashes[number])

    def finish(self, sequence: Sequence) -> None:
        """Removes a sequence that has finished or was cancelled, running or waiting."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release_blocks(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    @property
    def utilisation(self) -> float:
        """The share of token slots in used blocks that hold a token; a shared block counts once."""
        tokens_in = {block: 0 for s in self.running for block in s.blocks}
        for s in self.running:
            for number, block in enumerate(s.blocks):
                here = min(self.blocks.block_size, s.n_computed - number * self.blocks.block_size)
                tokens_in[block] = max(tokens_in[block], here)
        return sum(tokens_in.values()) / max(1, len(tokens_in) * self.blocks.block_size)
