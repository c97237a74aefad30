# SPDX-License-Identifier: Apache-2.0
"""Whether people who labelled the same items agree: kappa and alpha with intervals, what each does otherwise than the
rest, and whether they form two groups that contradict each other.

The unit is a pair of answers to one prompt, which a labeller finds better in one order, in the other, or equal; an item
with several answers has several, and intervals and permutations draw items, never pairs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from foundling.data.labels import Judgement
from foundling.errors import DataError
from foundling.evaluate.intervals import BOOTSTRAP, RESAMPLES, sign_test, wilson
from foundling.evaluate.metrics import Figure, beyond_chance
from foundling.limits import LABELLERS

Array = Any
PERMUTATIONS = 999
LEVEL = 0.01
"""p-value from which groups are named"""
Z_LEVEL = 2.576
"""standard errors that an agreement or a contradiction lies from 0: two-sided 0.01"""
LEAST = 20
"""items with judgements of several labellers, below which no groups are looked for"""
FEWEST = 4
"""labellers: groups have two or more"""


class Votes(NamedTuple):
    """values (L, P): +1 the first answer of a pair is better, −1 the second, 0 equal, NaN not judged."""

    labellers: list[str]
    values: Array
    items: Array
    """(P,) number of the item of each pair"""


def last_judgements(lines: Sequence[Judgement]) -> dict[tuple[str, str], Judgement]:
    """(item, labeller) -> the line that counts, where it is a judgement."""
    last = {(one.item, one.labeller): one for one in lines}
    return {key: one for key, one in last.items() if one.state == "judged"}


def votes_of(lines: Sequence[Judgement]) -> Votes:
    """DataError for more labellers than are compared."""
    last = {key: one for key, one in last_judgements(lines).items() if one.ranking is not None}
    labellers = sorted({labeller for _, labeller in last})
    LABELLERS.check(max(1, len(labellers)), "the number of labellers", DataError)
    items, columns, numbers = dict[str, dict[str, Judgement]](), list[Array](), list[int]()
    for (item, labeller), one in last.items():
        items.setdefault(item, {})[labeller] = one
    for number, (item, judged) in enumerate(items.items()):
        ranks = {labeller: _ranks(one) for labeller, one in judged.items()}
        n = {len(rank) for rank in ranks.values()}
        if len(n) > 1:
            raise DataError(
                f"labellers ranked {min(n)} and {max(n)} answers of item {item}; one of the files is damaged"
            )
        for a, b in combinations(range(max(n)), 2):
            column = np.full(len(labellers), np.nan)
            for labeller, rank in ranks.items():
                column[labellers.index(labeller)] = np.sign(rank[b] - rank[a])
            columns.append(column)
            numbers.append(number)
    values = np.array(columns).T.reshape(len(labellers), len(columns))
    return Votes(labellers, values, np.array(numbers, np.int64))


def _ranks(one: Judgement) -> dict[int, int]:
    return {answer: place for place, group in enumerate(one.ranking or ()) for answer in group}


# --- agreement -------------------------------------------------------------------------------------------------------


def agreement(votes: Votes) -> Figure:
    """Of two labellers Cohen's kappa (1960), of more Krippendorff's alpha for nominal data with missing judgements
    (2011, "Computing Krippendorff's alpha-reliability"). None where no item was judged by two."""
    if len(votes.labellers) == 2:
        return cohen(votes, 0, 1)
    counts = np.stack([(votes.values == kind).sum(0) for kind in (1, 0, -1)], 1).astype(np.float64)  # (P, 3)
    n = counts.sum(1)
    several = n >= 2
    counts, n = counts[several], n[several]
    tables = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(3)
    return _of_tables(tables / np.maximum(n - 1, 1)[:, None, None], votes.items[several], _alpha)


def cohen(votes: Votes, a: int, b: int) -> Figure:
    """Of two labellers, on the pairs that both judged."""
    both = ~np.isnan(votes.values[[a, b]]).any(0)
    x, y = ((votes.values[i, both, None] == np.array([1, 0, -1])) for i in (a, b))
    return _of_tables((x[:, :, None] & y[:, None, :]).astype(np.float64), votes.items[both], _kappa)


def _kappa(tables: Array) -> Array:
    return beyond_chance(tables.diagonal(axis1=-2, axis2=-1), tables.sum(-1), tables.sum(-2))


def _alpha(tables: Array) -> Array:
    """1 − observed / expected disagreement of coincidences (..., 3, 3); 1 where all values are one."""
    n, margins = tables.sum((-2, -1)), tables.sum(-1)
    observed = n - tables.diagonal(axis1=-2, axis2=-1).sum(-1)
    expected = (n**2 - (margins**2).sum(-1)) / np.maximum(n - 1, 1e-9)
    return 1 - np.divide(observed, expected, out=np.zeros_like(n), where=expected > 0)


def _of_tables(tables: Array, items: Array, figure: Any) -> Figure:
    """A figure of the sum of tables (P, 3, 3), with draws of items with replacement."""
    if not len(tables):
        return Figure(None, None, None, "")
    value = float(figure(tables.sum(0)))
    _, inverse = np.unique(items, return_inverse=True)
    by_item = np.zeros((inverse.max() + 1, 9))
    np.add.at(by_item, inverse, tables.reshape(-1, 9))
    if len(by_item) < 2:
        return Figure(value, None, None, "")
    kinds, often = np.unique(by_item, axis=0, return_counts=True)  # of equal tables it does not matter which is drawn
    draws = np.random.default_rng(0).multinomial(len(by_item), often / len(by_item), size=RESAMPLES)
    low, high = np.quantile(figure((draws @ kinds).reshape(-1, 3, 3)), [0.025, 0.975])
    return Figure(value, float(low), float(high), BOOTSTRAP)


def raw_agreement(votes: Votes, *, decided: bool = False) -> tuple[float | None, int]:
    """The share of equal judgements among all two judgements of one pair of answers, and how many pairs have two.
    `decided`: of those that call neither answer equal to the other, since two who are never wrong may still tie on
    different pairs."""
    same, number = 0.0, 0
    for column in votes.values.T:
        judged = column[~np.isnan(column) & ((column != 0) | (not decided))]
        if (n := len(judged)) >= 2:
            _, counts = np.unique(judged, return_counts=True)
            same, number = same + float((counts * (counts - 1)).sum()) / (n * (n - 1)), number + 1
    return (same / number, number) if number else (None, 0)


# --- groups ----------------------------------------------------------------------------------------------------------


class Groups(NamedTuple):
    groups: tuple[list[str], list[str]] | None
    """None where chance explains what was seen"""
    within: tuple[float, float]
    between: float
    """mean agreement inside each group and between them: −1 all opposed, 0 unrelated, 1 all equal"""
    contradict: bool
    """whether the groups oppose each other more often than they agree; else one agrees less with the other"""
    p_value: float


def find_groups(votes: Votes, *, permutations: int = PERMUTATIONS, seed: int = 0) -> Groups | None:
    """Two groups that agree inside and less with each other: the signs of the leading eigenvector of the doubly centred
    matrix of agreement (spectral bisection; Newman 2006, section IV). The statistic is the smaller of the two inner
    agreements less the one between the groups, so that one careless labeller is no group. Its distribution under one
    group is that of judgements which change their labellers within each item, which keeps what is contested about an
    item. None for too few labellers or items."""
    there = ~np.isnan(votes.values)
    clean, first = np.nan_to_num(votes.values), np.unique(votes.items, return_index=True)[1]
    judged = there[:, first]  # (L, items)
    if len(votes.labellers) < FEWEST or (judged.sum(0) >= 2).sum() < LEAST:
        return None
    n_common = there.astype(np.float64) @ there.T
    np.fill_diagonal(n_common, 0)
    place = np.argsort(np.argsort(~judged, axis=0, kind="stable"), axis=0)  # of each among those who judged the item
    generator = np.random.default_rng(seed)

    def shuffled() -> Array:
        """Judgements of an item change places among those who judged it, all pairs of the item together."""
        take = np.argsort(np.where(judged, generator.random(judged.shape), 2.0), axis=0)
        return np.take_along_axis(clean, np.take_along_axis(take, place, 0)[:, votes.items], 0)

    observed, side, within, between = _split(clean, n_common)
    as_large = sum(_split(shuffled(), n_common)[0] >= observed for _ in range(permutations))
    p_value = (1 + as_large) / (1 + permutations)
    names = [[one for one, left in zip(votes.labellers, side, strict=True) if left == want] for want in (1, 0)]
    inner = [(clean[part].sum(0) ** 2 - (clean[part] ** 2).sum(0)) / 2 for part in (side, ~side)]
    contradict = min(within) > 0 and _z(clean[side].sum(0) * clean[~side].sum(0), votes) < -Z_LEVEL
    # labellers of unequal care are no groups either: those who guess neither contradict the others nor agree
    apart = contradict or min(_z(products, votes) for products in inner) > Z_LEVEL
    real = p_value <= LEVEL and apart and all(len(group) > 1 for group in names)
    return Groups((names[0], names[1]) if real else None, within, between, bool(real and contradict), p_value)


def _z(products: Array, votes: Votes) -> float:
    """How many standard errors the sum of products of votes lies from 0, where items are drawn."""
    by_item = np.bincount(votes.items, products)
    return float(by_item.sum() / max(np.sqrt((by_item**2).sum()), 1e-9))


def _split(clean: Array, n_common: Array) -> tuple[float, Array, tuple[float, float], float]:
    """(statistic, side of each labeller, agreement within both, between) of votes (L, P) with 0 where there is none,
    and the number of pairs that two labellers judged."""
    there = (n_common > 0).astype(np.float64)
    means = clean @ clean.T / np.maximum(n_common, 1) * there
    matrix = np.where(there > 0, means, means.sum() / max(there.sum(), 1))
    rows = (matrix.sum(1) - matrix.diagonal()) / (len(matrix) - 1)
    np.fill_diagonal(matrix, rows)  # neutral: a labeller agrees with himself as with the others
    centred = matrix - matrix.mean(0) - matrix.mean(1)[:, None] + matrix.mean()
    side = np.linalg.eigh(centred)[1][:, -1] >= 0
    side = side if side[0] else ~side

    def mean(a: Array, b: Array) -> float:
        n = a @ there @ b
        return float(a @ means @ b / n) if n else -1.0

    left, right = side.astype(np.float64), (~side).astype(np.float64)
    within, between = (mean(left, left), mean(right, right)), mean(left, right)
    return min(within) - between, side, within, between


# --- the report ------------------------------------------------------------------------------------------------------


def label_report(lines: Sequence[Judgement]) -> dict[str, Any]:
    """Of all labellers: how much was done, agreement, pairs of labellers, position bias, groups, and sentences that say
    the same."""
    votes, groups = votes_of(lines), None
    last = {(one.item, one.labeller): one for one in lines}
    names = sorted({labeller for _, labeller in last})
    figure, (share, n_shared) = agreement(votes), raw_agreement(votes)
    pairs = [
        {"a": votes.labellers[a], "b": votes.labellers[b], "kappa": cohen(votes, a, b)._asdict()}
        for a, b in combinations(range(len(votes.labellers)), 2)
    ]
    groups = find_groups(votes)
    labellers = [_labeller(name, [one for (_, who), one in last.items() if who == name]) for name in names]
    record = {
        "labellers": labellers, "measure": "Cohen's kappa" if len(votes.labellers) == 2 else "Krippendorff's alpha",
        "agreement": figure._asdict(), "equal": share, "pairs_judged_twice": n_shared, "pairs": pairs,
        "groups": groups and groups._asdict(),
    }  # fmt: skip
    return record | {"sentences": list(_sentences(record, groups))}


def _labeller(name: str, lines: Sequence[Judgement]) -> dict[str, Any]:
    counts = {state: sum(one.state == state for one in lines) for state in ("judged", "skipped", "flagged")}
    judged = [one for one in lines if one.state == "judged" and len(one.order) == 2]
    first = [one.ranking[0][0] == one.order[0] for one in judged if one.ranking and len(one.ranking[0]) == 1]
    share = sum(first) / len(first) if first else None
    low, high = (None, None) if share is None else wilson(share, len(first))
    return {
        "name": name, **counts, "seconds": round(sum(one.seconds for one in lines), 1),
        "prefers_first": share, "prefers_first_low": low, "prefers_first_high": high,
        "position_p_value": sign_test(sum(first), len(first) - sum(first)),
    }  # fmt: skip


def _sentences(record: dict[str, Any], groups: Groups | None) -> Any:
    for one in record["labellers"]:
        yield f"{one['name']}: {one['judged']} judged, {one['skipped']} skipped, {one['flagged']} flagged"
        share, low, high = (one[f"prefers_first{end}"] for end in ("", "_low", "_high"))
        if one["position_p_value"] <= LEVEL:
            ends = f"{share:.0%} ({low:.0%} to {high:.0%})"
            yield f"{one['name']} prefers the answer that is shown first in {ends}: the place counts too"
    figure = record["agreement"]
    if figure["value"] is None:
        yield "no item was judged by two labellers, so nothing can be said of their agreement"
        return
    ends = "" if figure["low"] is None else f" ({figure['low']:.2f} to {figure['high']:.2f})"
    yield (f"{record['measure']} {figure['value']:.2f}{ends} on {record['pairs_judged_twice']} pairs of answers; "
           f"{record['equal']:.0%} of judgements are equal")  # fmt: skip
    if groups is None:
        yield f"groups are looked for among {FEWEST} labellers or more, on {LEAST} items or more that two have judged"
    elif groups.groups is None and groups.p_value > LEVEL:
        yield f"no groups: chance explains how labellers differ (p = {groups.p_value:.3g})"
    elif groups.groups is None:
        yield (f"labellers differ by more than chance (p = {groups.p_value:.3g}), but not as two groups: some judge "
               "with less care than others, or one judges against the rest")  # fmt: skip
    else:
        a, b = (", ".join(names) for names in groups.groups)
        how = "contradict each other" if groups.contradict else "agree less with each other than inside"
        yield (f"two groups {how} (agreement {groups.within[0]:.2f} and {groups.within[1]:.2f} inside, "
               f"{groups.between:.2f} between; p = {groups.p_value:.3g}): {a} / {b}")  # fmt: skip
        yield "a majority over both groups is the larger group's taste; export each group's judgements by themselves"
