# SPDX-License-Identifier: Apache-2.0
"""Charts: inline SVG in the page's colours, and one PNG. The only module that needs matplotlib."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from foundling.contracts.records import RunRecord
from foundling.errors.render import html, terminal
from foundling.report import findings, units
from foundling.report.units import known

_N_POINTS = 300  # more than the page has pixels to tell apart
_N_SPANS = 60
_STYLE: dict = {
    "font.size": 10,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture, and no warnings, on every machine
    "text.parse_math": False,  # a "$" in somebody's text is a dollar
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
}


class Palette(NamedTuple):
    ink: str
    quiet: str
    rule: str
    accent: str
    predicted: str
    paper: str


LIGHT = Palette("#1f2328", "#626b73", "#dedcd4", "#1f6f78", "#b0562a", "#fcfbf8")
# Stand-ins, exchanged for CSS variables once drawn: matplotlib takes colours only, the page has a light and a dark set.
STAND_INS = Palette("#010101", "#020202", "#030303", "#040404", "#050505", "#060606")


def loss_svg(run: RunRecord) -> str:
    """Training loss against tokens, the held-out loss as predicted and as measured; "" if there is no curve to draw."""
    points = findings.curve(run.history, _N_POINTS)
    if len(points) < 2:
        return ""
    label = (
        f"Training loss against tokens: {points[0].loss:.2f} at first, {points[-1].loss:.2f} at the end. "
        f"Held-out loss: predicted {units.number(run.predicted.get('loss'))}, "
        f"measured {units.number(run.actual.get('loss'))}."
    )
    return svg("loss", label, 3.0, lambda axes: _draw_loss(axes, run, STAND_INS))


def throughput_svg(run: RunRecord) -> str:
    """Tokens per second against seconds; "" if there is no curve to draw."""
    spans = findings.throughput(run.history, _N_SPANS)
    if len(spans) < 2:
        return ""
    rates = [span.tokens_per_second for span in spans]
    label = f"Tokens per second over time: between {units.count(min(rates))} and {units.count(max(rates))}."

    def draw(axes: Axes):
        axes.plot([span.seconds for span in spans], rates, color=STAND_INS.accent, linewidth=1.6)
        axes.set_ylim(0, 1.15 * max(rates))
        axes.set_title("tokens per second", color=STAND_INS.quiet)
        axes.set_xlabel("seconds of training", color=STAND_INS.quiet)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))

    return svg("throughput", label, 2.1, draw)


SERIES = {
    "reward": "reward of an answer", "kl_per_token": "KL divergence to the reference, nats a token",
    "length": "tokens of an answer",
}  # fmt: skip
"""figure of a step, of learning from rewards -> its title"""


def series_svgs(run: RunRecord) -> list[str]:
    """A chart against steps for each of SERIES that the history has: where reward rises as KL does, what is rewarded
    may no longer be what was meant."""
    svgs = list[str]()
    for key, title in SERIES.items():
        points = [(r["step"], float(r[key])) for r in run.history if known(r.get(key))]  # pyright: ignore
        if len(points) < 2:
            continue
        steps, values = [step for step, _ in points], [value for _, value in points]

        def draw(axes: Axes, steps: list[int] = steps, values: list[float] = values, title: str = title) -> None:
            axes.plot(steps, values, color=STAND_INS.quiet, linewidth=0.7, alpha=0.45)
            axes.plot(steps, _smoothed(values), color=STAND_INS.accent, linewidth=1.6)
            axes.set_title(title, color=STAND_INS.quiet)
            axes.set_xlabel("steps", color=STAND_INS.quiet)

        label = f"{title}: {values[0]:.3g} at first, {values[-1]:.3g} at the end."
        svgs.append(svg(key, label, 2.1, draw))
    return svgs


def write_summary_png(run: RunRecord, path: Path):
    """The loss curve and the scores side by side, 1200 x 480."""
    with matplotlib.rc_context(_STYLE):
        spaced = ConstrainedLayoutEngine(w_pad=0.25, h_pad=0.2, wspace=0.06)
        figure = Figure(figsize=(12, 4.8), dpi=100, facecolor=LIGHT.paper, layout=spaced)
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        for axes in (left, right):
            _calm(axes, LIGHT)
        _draw_loss(left, run, LIGHT)
        _draw_scores(right, run, LIGHT)
        figure.savefig(path, format="png", metadata={"Software": None})


def _draw_loss(axes: Axes, run: RunRecord, colours: Palette):
    points = findings.curve(run.history, _N_POINTS)
    tokens, losses = [point.tokens for point in points], [point.loss for point in points]
    axes.plot(tokens, losses, color=colours.quiet, linewidth=0.7, alpha=0.45)
    axes.plot(tokens, _smoothed(losses), color=colours.ink, linewidth=1.6)
    axes.set_title(_label(f"loss, {run.loss_unit}"), color=colours.quiet)
    axes.set_xlabel("tokens", color=colours.quiet)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: units.count(x)))
    axes.set_xlim(left=0)
    predicted, measured = run.predicted.get("loss"), run.actual.get("loss")
    marks = []
    if known(predicted):
        axes.axhline(predicted, color=colours.predicted, linewidth=1.2, linestyle=(0, (5, 3)))
        if known(run.law_error):
            low, high = predicted * (1 - run.law_error), predicted * (1 + run.law_error)
            axes.axhspan(low, high, color=colours.predicted, alpha=0.12, linewidth=0)
        marks.append((f"held-out, predicted {predicted:.2f}", colours.predicted))
    if known(measured):
        end = tokens[-1] if tokens else run.tokens
        axes.plot([end], [measured], "o", color=colours.accent, markersize=7, clip_on=False, zorder=5)
        marks.append((f"held-out, measured {measured:.2f}", colours.accent))
    # The curve falls from the upper left, so the upper right is free for words whatever the run.
    ground = {"facecolor": colours.paper, "edgecolor": "none", "pad": 1.5}
    for row, (text, colour) in enumerate([("training", colours.ink), *marks]):
        place = {"transform": axes.transAxes, "ha": "right", "va": "top"}
        axes.text(0.99, 0.97 - 0.1 * row, text, color=colour, bbox=ground, **place)


def _draw_scores(axes: Axes, run: RunRecord, colours: Palette):
    bars = [(bar, bar.share) for bar in findings.score_bars(run) if bar.share is not None]
    better = "lower" if run.metric.lower_is_better else "higher"
    axes.set_title(_label(f"{run.metric.name} on held-out data; {better} is better"), color=colours.quiet)
    axes.set_xlim(0, 1.15)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_axis_off()
    for row, (bar, share) in enumerate(bars):
        colour = colours.accent if bar.ours else colours.rule
        axes.barh(row + 0.16, share, height=0.34, color=colour)
        axes.text(
            0, row - 0.12, _label(bar.name), va="bottom", color=colours.ink, weight="bold" if bar.ours else "normal"
        )
        axes.text(share + 0.015, row + 0.16, _label(bar.value), va="center", color=colours.ink)
    axes.title.set_visible(True)


def _label(text: str) -> str:
    """Untrusted text in the picture's font, which has no pictures of control characters."""
    return re.sub("[\u2400-\u2421]", "\N{REPLACEMENT CHARACTER}", terminal(text, limit=80))


def _smoothed(values: list[float]) -> list[float]:
    """Means over windows that widen with time: symmetric, so that the fall at the start is not drawn late, and cut off
    at the end, so that the last point is a mean too."""
    return [fmean(values[i - i // 10 : i + i // 10 + 1]) for i in range(len(values))]


def _calm(axes: Axes, colours: Palette):
    axes.set_facecolor("none")
    axes.grid(axis="y", color=colours.rule, linewidth=0.6)
    axes.tick_params(colors=colours.quiet, length=0, pad=6)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(colours.rule)


def svg(name: str, label: str, height: float, draw: Callable[[Axes], None]) -> str:
    # Text stays text (searchable, in the page's font); the salt keeps ids the same in every writing, apart per chart.
    with matplotlib.rc_context({**_STYLE, "svg.fonttype": "none", "svg.hashsalt": name}):
        figure = Figure(figsize=(6.6, height), layout="constrained")
        axes = figure.subplots()
        _calm(axes, STAND_INS)
        draw(axes)
        drawn = io.StringIO()
        unnamed = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=unnamed)
    return _inline(drawn.getvalue(), label)


def _inline(svg: str, label: str) -> str:
    """The SVG as part of a page: without prolog, size and style, and without ids that clash with those of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 role="img" aria-label="{html(label)}">', svg, count=1
    )
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", svg)  # kept: markers and clips, which are referred to
    svg = re.sub(r"font-(size|family): [^;\"]*;? ?", "", svg)
    svg = svg.replace("xlink:href", "href")
    for variable, stand_in in zip(Palette._fields, STAND_INS, strict=True):
        svg = svg.replace(stand_in, f"var(--{variable})")
    return svg
