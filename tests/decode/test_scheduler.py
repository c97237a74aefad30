# SPDX-License-Identifier: Apache-2.0
"""Pages and schedule, without a tensor: nobody waits for ever, no page is lost, nothing is read twice."""

import random
import subprocess
import sys

import pytest

from foundling.decode.engine.pages import Pages, keys_of
from foundling.decode.engine.scheduler import Running, Scheduler


def test_the_schedule_needs_no_torch() -> None:
    code = "import sys, foundling.decode.engine.scheduler; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_key_says_what_stands_before_a_page_too() -> None:
    a, b = keys_of([1, 2, 3, 4, 5], 2), keys_of([9, 2, 3, 4], 2)
    assert len(a) == 2 and not set(a) & set(b)
    assert keys_of([1, 2, 3, 4], 2) == a and keys_of([3, 4], 2, a[0]) == a[1:]
    assert keys_of([1, 2], 2, b"other") != a[:1]


def test_ten_thousand_random_requests_leak_no_page() -> None:
    """Sequences that join, grow, share beginnings, guess, are put back and cancelled; who holds what is counted apart
    after every step."""
    draw = random.Random(0)
    pages = Pages(40, 4)
    schedule = Scheduler(pages, most_rows=6, most_tokens=24)
    number, alive, goals, content = 0, dict[int, Running](), dict[int, int](), dict[int, tuple[int, ...]]()
    ended = steps = 0
    while ended < 10_000:
        steps += 1
        while number < 10_000 and len(alive) < 12 and draw.random() < 0.7:
            beginning = [draw.randrange(3)] * draw.choice([0, 4, 9, 17])
            tokens = beginning + [draw.randrange(50) for _ in range(draw.randrange(1, 20))]
            alive[number] = Running(number, tokens)
            goals[number] = min(len(tokens) + draw.randrange(1, 30), 150)
            schedule.add(alive[number])
            number += 1
        if alive and draw.random() < 0.1:
            gone = draw.choice(list(alive))
            schedule.finish(alive.pop(gone))
            ended += 1
        left = 24 - len(schedule.running)
        for s in schedule.running:
            if s.unread == 1 and draw.random() < 0.3 and left >= 3 and goals[s.number] - len(s.tokens) > 3:
                s.tokens += [draw.randrange(50) for _ in range(3)]
                s.guesses, left = 3, left - 3
        plan = schedule.plan()
        assert plan or not alive, "somebody waits and nothing is done"
        assert sum(work.count for work in plan) <= 24 and len(schedule.running) <= 6
        for work in plan:
            s = work.sequence
            assert len(s.pages) * 4 >= work.start + work.count and work.start == s.read and work.count > 0
            for at in range(work.start, work.start + work.count):  # what is read is written, into pages of one's own
                page = s.pages[at // 4]
                assert pages.holders[page] == 1 or page in content
                held = content.get(page, ())[: at % 4]
                content[page] = (*held, s.tokens[at])
        for work in plan:
            s = work.sequence
            kept = draw.randrange(s.guesses + 1)
            guesses, count = s.guesses, work.count
            if work.last:
                if guesses:
                    del s.tokens[len(s.tokens) - guesses + kept :]
                    s.guesses = 0
                    count -= guesses - kept
                s.tokens.append(draw.randrange(50))
            schedule.has_read(s, count)
        for s in schedule.running:  # every place that counts as read holds its own token
            for at in range(s.read):
                assert content[s.pages[at // 4]][at % 4] == s.tokens[at]
        for s in list(schedule.running):
            if len(s.tokens) >= goals[s.number]:
                schedule.finish(alive.pop(s.number))
                ended += 1
        held = [page for s in schedule.running for page in s.pages]
        assert all(pages.holders[page] == held.count(page) for page in range(40))
        assert sorted([*pages.free, *pages.idle, *set(held)]) == list(range(40))
        assert set(pages.idle) <= set(pages.key_of) and len(pages.key_of) == len(pages.page_of)
    assert schedule.preemptions > 100 and steps > 1000


def test_who_begins_as_another_reads_it_once() -> None:
    pages = Pages(100, 4)
    schedule = Scheduler(pages, 8, 64)
    text = list(range(17))
    for number in range(3):
        schedule.add(Running(number, [*text, 50 + number]))
    (first,) = schedule.plan()
    assert first.count == 18 and len(schedule.waiting) == 2, "the others wait for what the first is reading"
    schedule.has_read(first.sequence, 18)
    first.sequence.tokens.append(7)
    plan = schedule.plan()
    assert [work.count for work in plan] == [1, 2, 2] and [w.sequence.found for w in plan[1:]] == [16, 16]
    assert len({page for s in schedule.running for page in s.pages}) == 4 + 3
    assert schedule.utilisation == pytest.approx((16 + 2 + 0 + 0) / 28)


def test_a_long_prompt_does_not_hold_up_those_who_answer() -> None:
    schedule = Scheduler(Pages(100, 4), 8, 10)
    schedule.add(Running(0, [1]))
    (work,) = schedule.plan()
    schedule.has_read(work.sequence, 1)
    work.sequence.tokens.append(2)
    schedule.add(Running(1, list(range(25))))
    pieces = []
    while len(pieces) < 3:
        plan = schedule.plan()
        assert plan[0].sequence.number == 0 and plan[0].count == 1
        pieces.append(plan[1].count)
        for work in plan:
            schedule.has_read(work.sequence, work.count)
            if work.last:
                work.sequence.tokens.append(3)
    assert pieces == [9, 9, 7]
