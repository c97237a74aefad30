# SPDX-License-Identifier: Apache-2.0
"""A layered drawing of a directed graph (Sugiyama et al. 1981): columns from left to right, few crossings, long edges
led between the boxes of the columns that they pass. Edges that close a cycle are turned for the layout and dashed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from foundling.errors.render import html

WIDTH, HEIGHT, GAP_X, GAP_Y, LANE, PAD = 236, 78, 120, 18, 12, 12
"""of a box, between columns, between rows, of an edge that passes a column, around the drawing"""
SWEEPS = 8
CHARS = 30
"""of a line in a box"""
COLOURS = {"data": "#6b7a2a", "model": "#1f6f78", "adapter": "#4a5fa5", "judge": "#7c4d8b", "evaluation": "#8a6a1f",
           "application": "#b0562a"}  # fmt: skip

Box = tuple[str, bool, str, str, str, str]
"""kind, whether its directory was given, and four lines of text"""
Link = tuple[str, str, str]
"""source, target, label"""


class Layout(NamedTuple):
    columns: list[list[str]]
    """ids from top to bottom; ids of lanes that an edge passes through begin with a NUL"""
    y: dict[str, float]
    """top of each"""
    routes: list[tuple[Link, list[str], bool]]
    """each edge, the ids that it passes, and whether it closes a cycle"""


def layout(ids: Sequence[str], links: Sequence[Link]) -> Layout:
    turned = _closing(ids, links)
    forward = [(b, a) if (a, b) in turned else (a, b) for a, b, _ in links]
    rank = _ranks(ids, forward)
    columns: list[list[str]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for name in ids:
        columns[rank[name]].append(name)
    routes, steps = list[tuple[Link, list[str], bool]](), list[tuple[str, str]]()
    for n, (link, (a, b)) in enumerate(zip(links, forward, strict=True)):
        lanes = [f"\0{n}.{r}" for r in range(rank[a] + 1, rank[b])]
        for r, lane in enumerate(lanes, rank[a] + 1):
            columns[r].append(lane)
        path = [a, *lanes, b]
        steps += pairwise(path)
        routes.append((link, path, (link[0], link[1]) in turned))
    before, after = _neighbours(steps)
    for sweep in range(SWEEPS):
        near = before if sweep % 2 == 0 else after
        order = columns if sweep % 2 == 0 else columns[::-1]
        place = {name: i for column in columns for i, name in enumerate(column)}
        for column in order:
            column.sort(key=lambda name: _mean([place[o] for o in near.get(name, [])], place[name]))
            place |= {name: i for i, name in enumerate(column)}
    return Layout(columns, _heights(columns, before, after), routes)


def _closing(ids: Sequence[str], links: Sequence[Link]) -> set[tuple[str, str]]:
    """Edges that lead back to where a depth-first walk came from, without recursion."""
    following: dict[str, list[str]] = {name: [] for name in ids}
    for a, b, _ in links:
        following[a].append(b)
    state, back = dict[str, int](), set[tuple[str, str]]()
    for start in ids:
        stack = [(start, iter(following[start]))] if start not in state else []
        state.setdefault(start, 1)
        while stack:
            name, rest = stack[-1]
            target = next(rest, None)
            if target is None:
                state[name] = 2
                stack.pop()
            elif state.get(target) == 1:
                back.add((name, target))
            elif target not in state:
                state[target] = 1
                stack.append((target, iter(following[target])))
    return back


def _ranks(ids: Sequence[str], links: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The longest path that leads to each; a source stands directly before what it leads to."""
    before, after = _neighbours(links)
    waiting = {name: len(before.get(name, [])) for name in ids}
    free, order, rank = [name for name in ids if not waiting[name]], list[str](), dict.fromkeys(ids, 0)
    while free:
        name = free.pop()
        order.append(name)
        for target in after.get(name, []):
            rank[target] = max(rank[target], rank[name] + 1)
            waiting[target] -= 1
            if not waiting[target]:
                free.append(target)
    for name in reversed(order):
        if not before.get(name) and after.get(name):
            rank[name] = min(rank[target] for target in after[name]) - 1
    return rank


def _neighbours(links: Sequence[tuple[str, str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    before, after = dict[str, list[str]](), dict[str, list[str]]()
    for a, b in links:
        before.setdefault(b, []).append(a)
        after.setdefault(a, []).append(b)
    return before, after


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _height(name: str) -> int:
    return LANE if name.startswith("\0") else HEIGHT


def _heights(columns: list[list[str]], before: dict[str, list[str]], after: dict[str, list[str]]) -> dict[str, float]:
    """Tops, in the order of the columns: each as near the middle of its neighbours as those above it allow."""
    y, tallest = dict[str, float](), max((sum(_height(n) + GAP_Y for n in c) for c in columns), default=0)
    for column in columns:
        top = (tallest - sum(_height(name) + GAP_Y for name in column)) / 2
        for name in column:
            y[name] = top
            top += _height(name) + GAP_Y
    for sweep in range(SWEEPS):
        near = before if sweep % 2 == 0 else after
        for column in columns if sweep % 2 == 0 else columns[::-1]:
            wish = {n: _mean([y[o] + _height(o) / 2 for o in near.get(n, [])], y[n] + _height(n) / 2) - _height(n) / 2
                    for n in column}  # fmt: skip
            shift = _mean([wish[n] - y[n] for n in column], 0)
            bottom = -1e9
            for name in column:
                y[name] = max(bottom, (wish[name] + y[name] + shift) / 2)
                bottom = y[name] + _height(name) + GAP_Y
    least = min(y.values(), default=0)
    return {name: top - least for name, top in y.items()}


def drawing(boxes: Mapping[str, Box], links: Sequence[Link]) -> str:
    """The SVG. Every text is escaped; colours are variables of the page, with dark on light where it has none."""
    placed = layout(list(boxes), links)
    x = {name: PAD + i * (WIDTH + GAP_X) for i, column in enumerate(placed.columns) for name in column}
    height = max((placed.y[name] + _height(name) for name in placed.y), default=0) + 2 * PAD
    width = 2 * PAD + len(placed.columns) * (WIDTH + GAP_X) - GAP_X
    parts = [_edge(link, path, closes, x, placed.y) for link, path, closes in placed.routes]
    parts += [_box(box, x[name], placed.y[name] + PAD) for name, box in boxes.items()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {max(width, 10)} {height:.0f}" '
        f'width="{max(width, 10)}" role="img" aria-label="lineage" font-size="12" '
        'font-family="ui-monospace, Menlo, Consolas, monospace">'
        '<defs><marker id="end" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="var(--quiet, #626b73)"/></marker></defs>' + "".join(parts) + "</svg>"
    )


def _edge(link: Link, path: list[str], closes: bool, x: Mapping[str, float], y: Mapping[str, float]) -> str:
    points = [(x[path[0]] + WIDTH, y[path[0]] + HEIGHT / 2 + PAD)]
    for name in path[1:-1]:
        points += [(x[name], y[name] + LANE / 2 + PAD), (x[name] + WIDTH, y[name] + LANE / 2 + PAD)]
    points.append((x[path[-1]], y[path[-1]] + HEIGHT / 2 + PAD))
    d = f"M{points[0][0]:.0f} {points[0][1]:.0f}"
    for i, ((ax, ay), (bx, by)) in enumerate(pairwise(points)):
        half = (bx - ax) / 2
        d += (
            f"C{ax + half:.0f} {ay:.0f} {bx - half:.0f} {by:.0f} {bx:.0f} {by:.0f}"
            if i % 2 == 0
            else f"L{bx:.0f} {by:.0f}"
        )
    (ax, ay), (bx, by) = points[-2:]
    style = ' stroke-dasharray="5 4" marker-start="url(#end)"' if closes else ' marker-end="url(#end)"'
    return (
        f'<path d="{d}" fill="none" stroke="var(--quiet, #626b73)" stroke-width="1.2"{style}/>'
        f'<text x="{(ax + bx) / 2:.0f}" y="{(ay + by) / 2 - 4:.0f}" text-anchor="middle" font-size="10" '
        f'fill="var(--quiet, #626b73)" stroke="var(--paper, #fff)" stroke-width="4" paint-order="stroke">'
        f"{html(link[2], limit=40)}</text>"
    )


def _box(box: Box, x: float, y: float) -> str:
    kind, present, *lines = box
    colour = COLOURS.get(kind, "#626b73")
    dash = "" if present else ' stroke-dasharray="5 4"'
    first, rest = ("--ink, #1f2328", 12, 600), ("--quiet, #626b73", 10, 400)
    texts = list[str]()
    for i, line in enumerate(lines):
        ink, size, weight = first if i == 0 else rest
        texts.append(
            f'<text x="{x + 14:.0f}" y="{y + 19 + 17 * i:.0f}" fill="var({ink})" font-size="{size}" '
            f'font-weight="{weight}">{_cut(line, i)}</text>'
        )
    return (
        f'<g><title>{html("; ".join(lines), limit=400)}</title><rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" '
        f'height="{HEIGHT}" rx="5" fill="var(--paper, #fff)" stroke="{colour}" stroke-width="1.5"{dash}/>'
        f'<rect x="{x:.0f}" y="{y:.0f}" width="5" height="{HEIGHT}" rx="2" fill="{colour}"/>{"".join(texts)}</g>'
    )


def _cut(line: str, i: int) -> str:
    most = CHARS if i == 0 else CHARS + 6
    return html(line if len(line) <= most else line[: most - 1] + "…")
