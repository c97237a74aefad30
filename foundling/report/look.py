# SPDX-License-Identifier: Apache-2.0
"""A page that shows one forward pass over a text: attention by head, the logit lens, and what adds to the next token.
Pure functions of a LookRecord; torch is not needed to draw it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from foundling.errors import OutputError, render

STEP_X, STEP_Y, SIDE = 190, 17, 9
"""of the drawing: between the two columns of tokens, between two tokens, and of a square of the matrix"""
TOKEN_CHARS, FAINT = 14, 0.04
"""of a token in a drawing; weights below FAINT are not drawn as lines"""


@dataclass(frozen=True)
class HeadMap:
    layer: int
    """by number, from 0"""
    head: int
    rows: Sequence[Sequence[float]]
    """of each query, the weight of each key; arrays where they are many"""
    kinds: dict[str, float] = field(default_factory=dict)
    """mean weight on: the token before (previous), the first one, the token itself, and what followed the same token
    earlier (induction)"""


@dataclass(frozen=True)
class LensRow:
    name: str
    """embedding, layers.0, …"""
    best: tuple[tuple[str, float], ...]
    """the most likely tokens and their probabilities"""
    rank: int
    """of the token that the model predicts in the end; 1 is the most likely"""


@dataclass(frozen=True)
class LookRecord:
    """What was read of a model in one forward pass."""

    model: str
    """the name of its directory, without the path: a page is there to be shown to others"""
    family: str
    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    predicted: str
    position: int
    """the token at which lens and contributions are read; of an encoder–decoder among those of the answer"""
    place: str
    """where `predicted` stands, in words: after token 5"""
    heads: tuple[HeadMap, ...]
    lens: tuple[LensRow, ...] = ()
    contributions: tuple[tuple[str, float], ...] = ()
    """part and its share of the logit of `predicted`, the largest first"""
    notes: tuple[str, ...] = ()
    """what could not be read, and why"""

    def as_json(self) -> dict[str, Any]:
        """Weights to four digits."""
        heads = [
            {"layer": head.layer, "head": head.head, "rows": [[round(w, 4) for w in row] for row in head.rows],
             "kinds": head.kinds} for head in self.heads
        ]  # fmt: skip
        return asdict(replace(self, heads=())) | {"heads": heads}


def write_look(record: LookRecord, path: str | PathLike[str]) -> None:
    """Writes the page. OutputError if it cannot be written."""
    page = look_html(record)
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        where = render.terminal(repr(str(path)))
        raise OutputError(f"the page {where} cannot be written: {error.strerror}; name another path") from error


def look_html(record: LookRecord) -> str:
    """The page as text. It loads nothing and runs one script, its own, which the page's policy names by its hash; the
    script reads weights in base64 and numbers, never a token."""
    folder = files("foundling.report")
    script = folder.joinpath("look.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # every expression of the template passes through the one renderer of untrusted text
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                              finalize=_shown)  # fmt: skip
    environment.filters |= {"token": shown_token, "bytes": _weight_bytes}
    template = environment.from_string(folder.joinpath("look.html.j2").read_text("utf-8"))
    pair = striking_heads(record.heads)
    largest = max((abs(value) for _, value in record.contributions), default=0.0) or 1.0
    return template.render(
        look=record, pair=pair, drawings=[Markup(heads_svg(record.tokens, [head])) for head in pair], digest=digest,
        script=Markup(script), largest=largest,
    )  # fmt: skip


def striking_heads(heads: Sequence[HeadMap]) -> list[HeadMap]:
    """Two heads to show first: the one with the most weight on what followed the same token earlier, and the one with
    the most on the token before; of one layer or several."""
    striking: list[HeadMap] = []
    for kind in ("induction", "previous", "itself"):
        rest = [head for head in heads if head not in striking]
        if rest and len(striking) < 2 and any(head.kinds.get(kind, 0.0) > 0 for head in rest):
            striking.append(max(rest, key=lambda head: head.kinds.get(kind, 0.0)))
    return striking or list(heads[:2])


def heads_svg(tokens: Sequence[str], heads: Sequence[HeadMap]) -> str:
    """Each head as lectures draw it: queries on the left, keys on the right, lines as strong as the weights; and beside
    it the matrix, queries down and keys across. Tokens are escaped; colours are those of the page, or dark on light."""
    height, width = STEP_Y * len(tokens) + 52, STEP_X + 250 + max(SIDE * len(tokens), 90)
    parts, at = [], 0
    for head in heads:
        parts.append(f'<g transform="translate(0 {at})">{_head(tokens, head)}</g>')
        at += height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {at}" role="img" font-size="11" '
        f'font-family="ui-monospace, Menlo, Consolas, monospace" style="max-width: {width}px">{"".join(parts)}</svg>'
    )


def _head(tokens: Sequence[str], head: HeadMap) -> str:
    names = [shown_token(token, limit=TOKEN_CHARS) for token in tokens]
    left, right, top = 110, 110 + STEP_X, 40
    drawn = [f'<text x="0" y="14" fill="currentColor" font-weight="600">layer {head.layer}, head {head.head}</text>']
    drawn += [f'<text x="{x}" y="30" fill="currentColor" opacity=".65" text-anchor="{anchor}">{word}</text>'
              for x, anchor, word in ((left - 6, "end", "query"), (right + 6, "start", "key"))]  # fmt: skip
    for i, name in enumerate(names):
        y = top + STEP_Y * i
        drawn.append(f'<text x="{left - 6}" y="{y + 4}" fill="currentColor" text-anchor="end">{name}</text>')
        drawn.append(f'<text x="{right + 6}" y="{y + 4}" fill="currentColor">{name}</text>')
    matrix = right + 140
    for i, row in enumerate(head.rows):
        for j, weight in enumerate(row[: len(tokens)]):
            if weight >= FAINT:
                drawn.append(
                    f'<line x1="{left}" y1="{top + STEP_Y * i}" x2="{right}" y2="{top + STEP_Y * j}" '
                    f'stroke="#1f6f78" stroke-width="{0.6 + 2.4 * weight:.2f}" opacity="{min(1.0, weight):.2f}"/>'
                )
                drawn.append(
                    f'<rect x="{matrix + SIDE * j}" y="{top + SIDE * i}" width="{SIDE}" height="{SIDE}" '
                    f'fill="#1f6f78" opacity="{min(1.0, weight):.2f}"><title>{names[i]} → {names[j]}: {weight:.2f}'
                    "</title></rect>"
                )
    n = SIDE * len(tokens)
    drawn.append(
        f'<rect x="{matrix}" y="{top}" width="{n}" height="{n}" fill="none" stroke="currentColor" opacity=".4"/>'
    )
    return "".join(drawn)


def shown_token(token: str, *, limit: int = 60) -> Markup:
    """A token with signs for spaces at its ends, line breaks and tabs, escaped."""
    marked = token.replace("\n", "↵").replace("\r", "␍").replace("\t", "⇥")
    if marked != (inner := marked.lstrip(" ")):
        marked = "·" * (len(marked) - len(inner)) + inner
    return Markup(render.html(marked or "∅", limit=limit))


def _weight_bytes(head: HeadMap) -> str:
    """Weights in 255ths, row by row, in base64."""
    return base64.b64encode(bytes(round(255 * min(1.0, max(0.0, w))) for row in head.rows for w in row)).decode()


def _shown(value: Any) -> Markup:
    return value if isinstance(value, Markup) else Markup(render.html(value))
