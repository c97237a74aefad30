# SPDX-License-Identifier: Apache-2.0
"""Block manager and scheduler, without tensors: no sequence starves, no block leaks, nothing is computed twice."""

import random
import subprocess
import sys

import pytest

from foundling.decode.engine.block_manager import BlockManager, hash_blocks
from foundling.decode.engine.scheduler import Scheduler, Sequence


def test_the_scheduler_needs_no_torch() -> None:
    code = "import sys, foundling.decode.engine.scheduler; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_block_hash_depends_on_all_that_precedes_the_block() -> None:
    a, b = hash_blocks([1, 2, 3, 4, 5], 2), hash_blocks([9, 2, 3, 4], 2)
    assert len(a) == 2 and not set(a) & set(b)
    assert hash_blocks([1, 2, 3, 4], 2) == a and hash_blocks([3, 4], 2, a[0]) == a[1:]
    assert hash_blocks([1, 2], 2, b"other") != a[:1]


def test_ten_thousand_random_requests_leak_no_block() -> None:
    """Sequences that join, grow, share prefixes, propose drafts, are preempted and cancelled; the users of every block
    are counted independently after every step."""
    draw = random.Random(0)
    blocks = BlockManager(40, 4)
    scheduler = Scheduler(blocks, max_num_seqs=6, max_step_tokens=24)
    number, alive, goals, content = 0, dict[int, Sequence](), dict[int, int](), dict[int, tuple[int, ...]]()
    ended = steps = 0
    while ended < 10_000:
        steps += 1
        while number < 10_000 and len(alive) < 12 and draw.random() < 0.7:
            prefix = [draw.randrange(3)] * draw.choice([0, 4, 9, 17])
            tokens = prefix + [draw.randrange(50) for _ in range(draw.randrange(1, 20))]
            alive[number] = Sequence(number, tokens)
            goals[number] = min(len(tokens) + draw.randrange(1, 30), 150)
            scheduler.add(alive[number])
            number += 1
        if alive and draw.random() < 0.1:
            gone = draw.choice(list(alive))
            scheduler.finish(alive.pop(gone))
            ended += 1
        left = 24 - len(scheduler.running)
        for s in scheduler.running:
            if s.n_uncomputed == 1 and draw.random() < 0.3 and left >= 3 and goals[s.request_id] - len(s.tokens) > 3:
                s.tokens += [draw.randrange(50) for _ in range(3)]
                s.n_draft, left = 3, left - 3
        chunks = scheduler.schedule()
        assert chunks or not alive, "a sequence waits and nothing is scheduled"
        assert sum(chunk.n_tokens for chunk in chunks) <= 24 and len(scheduler.running) <= 6
        for chunk in chunks:
            s = chunk.sequence
            end = chunk.start + chunk.n_tokens
            assert len(s.blocks) * 4 >= end > chunk.start == s.n_computed
            for at in range(chunk.start, end):  # computed tokens are written to blocks that only this sequence uses
                block = s.blocks[at // 4]
                assert blocks.ref_counts[block] == 1 or block in content
                before = content.get(block, ())[: at % 4]
                content[block] = (*before, s.tokens[at])
        for chunk in chunks:
            s = chunk.sequence
            n_accepted = draw.randrange(s.n_draft + 1)
            n_draft, count = s.n_draft, chunk.n_tokens
            if chunk.is_last:
                if n_draft:
                    del s.tokens[len(s.tokens) - n_draft + n_accepted :]
                    s.n_draft = 0
                    count -= n_draft - n_accepted
                s.tokens.append(draw.randrange(50))
            scheduler.on_computed(s, count)
        for s in scheduler.running:  # every computed position contains its own token
            for at in range(s.n_computed):
                assert content[s.blocks[at // 4]][at % 4] == s.tokens[at]
        for s in list(scheduler.running):
            if len(s.tokens) >= goals[s.request_id]:
                scheduler.finish(alive.pop(s.request_id))
                ended += 1
        used = [block for s in scheduler.running for block in s.blocks]
        assert all(blocks.ref_counts[block] == used.count(block) for block in range(40))
        assert sorted([*blocks.free, *blocks.cached, *set(used)]) == list(range(40))
        assert set(blocks.cached) <= set(blocks.hash_of) and len(blocks.hash_of) == len(blocks.block_of)
    assert scheduler.n_preemptions > 100 and steps > 1000


def test_a_common_prefix_is_computed_once() -> None:
    blocks = BlockManager(100, 4)
    scheduler = Scheduler(blocks, 8, 64)
    text = list(range(17))
    for number in range(3):
        scheduler.add(Sequence(number, [*text, 50 + number]))
    (first,) = scheduler.schedule()
    assert first.n_tokens == 18 and len(scheduler.waiting) == 2, "the others wait for what the first computes"
    scheduler.on_computed(first.sequence, 18)
    first.sequence.tokens.append(7)
    chunks = scheduler.schedule()
    assert [chunk.n_tokens for chunk in chunks] == [1, 2, 2] and [w.sequence.n_shared for w in chunks[1:]] == [16, 16]
    assert len({block for s in scheduler.running for block in s.blocks}) == 4 + 3
    assert scheduler.utilisation == pytest.approx((16 + 2 + 0 + 0) / 28)


def test_a_long_prompt_does_not_delay_decoding_sequences() -> None:
    scheduler = Scheduler(BlockManager(100, 4), 8, 10)
    scheduler.add(Sequence(0, [1]))
    (chunk,) = scheduler.schedule()
    scheduler.on_computed(chunk.sequence, 1)
    chunk.sequence.tokens.append(2)
    scheduler.add(Sequence(1, list(range(25))))
    pieces = []
    while len(pieces) < 3:
        chunks = scheduler.schedule()
        assert chunks[0].sequence.request_id == 0 and chunks[0].n_tokens == 1
        pieces.append(chunks[1].n_tokens)
        for chunk in chunks:
            scheduler.on_computed(chunk.sequence, chunk.n_tokens)
            if chunk.is_last:
                chunk.sequence.tokens.append(3)
    assert pieces == [9, 9, 7]
