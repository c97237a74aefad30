# SPDX-License-Identifier: Apache-2.0
"""How often verdicts or rewards agree with a truth that is known: comparisons that were labelled, or a gold reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from foundling.evaluate.answers import PromptRow
from foundling.evaluate.intervals import interval_of
from foundling.evaluate.judge import Compared
from foundling.evaluate.metrics import Figure, cohen_kappa
from foundling.evaluate.preferences import Judged, PairJudge
from foundling.evaluate.rewards import Rewards

PLACES: Mapping[str | None, str] = {"A": "a", "B": "b", "C": "tie"}
NOTHING = Figure(None, None, None, "")
TextPair = tuple[PromptRow, str, str]


class Agreement(NamedTuple):
    """Of verdicts on pairs whose better answer is known."""

    share: Figure
    """of the pairs that is judged rightly, a tie for a half"""
    kappa: Figure
    """Cohen's; a tie is a class of its own, which the truth never has"""
    one_order: Figure
    """of a judge: the share by the first order alone, as it would be without control of position"""
    pairs: int
    ties: int
    unread: int
    """in no other figure"""


def agreement(winners: Sequence[str | None], truth: Sequence[str], first: Sequence[str | None] = ()) -> Agreement:
    """`winners`, and `first` by the first order alone: "a", "b", "tie", None where nothing could be read; `truth`: "a"
    or "b". Figures of no pair are None."""
    read = [(right, winner) for winner, right in zip(winners, truth, strict=True) if winner]
    kappa = cohen_kappa([right for right, _ in read], [winner for _, winner in read]) if read else NOTHING
    alone = [(right, winner) for winner, right in zip(first, truth, strict=False) if winner]
    ties = sum(winner == "tie" for _, winner in read)
    return Agreement(_share(read), kappa, _share(alone), len(read), ties, len(truth) - len(read))


def labelled_pairs(
    comparisons: Sequence[tuple[PromptRow, Sequence[str]]], seed: int = 0
) -> tuple[list[TextPair], list[str]]:
    """All pairs of the answers to each prompt, the best first, and which one is better. Which stands first is drawn by
    the pair and `seed`, or one class would be the only one."""
    pairs, truth = list[TextPair](), list[str]()
    for prompt, texts in comparisons:
        for better, worse in combinations(texts, 2):
            swapped = int(prompt.digest(seed, better, worse)[:15], 16) % 2
            pairs.append((prompt, *((worse, better) if swapped else (better, worse))))
            truth.append("b" if swapped else "a")
    return pairs, truth


def judge_agreement(judge: PairJudge, compared: Sequence[Compared], truth: Sequence[str]) -> Agreement:
    winners = [winner_of(judge.share(one), 0.5) if one.winner else None for one in compared]
    return agreement(winners, truth, [PLACES.get(one.verdicts[0]) for one in compared])


def judge_against_gold(judge: PairJudge, judged: Judged, gold: Sequence[Sequence[float]]) -> Agreement:
    """`gold`: of the texts of each prompt. Pairs with equal gold rewards have no better answer."""
    decided = [(one, winner_of(gold[i][a], gold[i][b])) for i, (a, b), one in judged.pairs if gold[i][a] != gold[i][b]]
    return judge_agreement(judge, [one for one, _ in decided], [right for _, right in decided])


def rewards_agreement(rewards: Rewards, pairs: Sequence[TextPair], truth: Sequence[str]) -> Agreement:
    winners = list[str | None]()
    for prompt, a, b in pairs:
        winners.append(winner_of(*rewards([prompt.fields] * 2, [a, b])))
    return agreement(winners, truth)


def rewards_against_gold(values: Sequence[Sequence[float]], gold: Sequence[Sequence[float]]) -> Agreement:
    """Over all pairs of the answers to a prompt whose gold rewards differ."""
    winners, truth = list[str | None](), list[str]()
    for row, right in zip(values, gold, strict=True):
        for i, j in combinations(range(len(row)), 2):
            if right[i] != right[j]:
                winners.append(winner_of(row[i], row[j]))
                truth.append(winner_of(right[i], right[j]))
    return agreement(winners, truth)


def winner_of(a: float, b: float) -> str:
    return "tie" if a == b else "a" if a > b else "b"


def _share(pairs: Sequence[tuple[str, str]]) -> Figure:
    scores = [0.5 if winner == "tie" else float(right == winner) for right, winner in pairs]
    return Figure(sum(scores) / len(scores), *interval_of(scores)) if scores else NOTHING
