# SPDX-License-Identifier: Apache-2.0
"""The best of N as a page: proxy and gold reward against the KL bound, drawn and as a table."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from foundling.report.charts import STAND_INS, svg
from foundling.report.pages import styled_page

NAMED = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""N that are marked on the curve"""


def best_of_n_page(curve: dict[str, Any]) -> str:
    """Of evaluate.best_of_n.curve."""
    named = [point for point in curve["points"] if point["n"] in NAMED or point is curve["points"][-1]]
    return styled_page("best_of_n.html.j2", curve=curve, named=named, chart=Markup(best_of_n_svg(curve)))


def best_of_n_svg(curve: dict[str, Any]) -> str:
    """Both rewards, each as the change from N = 1, which puts them on one scale, with their 95 % intervals."""
    points = curve["points"]
    first, last = points[0], points[-1]
    label = (
        f"Rewards of the best of N against the KL bound. From N = {first['n']} to {last['n']}: "
        f"proxy {last['proxy'] - first['proxy']:+.3f}, gold {last['gold'] - first['gold']:+.3f}."
    )
    return svg("best-of-n", label, 3.2, lambda axes: _draw(axes, points))


def _draw(axes: Axes, points: list[dict[str, Any]]) -> None:
    kl = [point["kl"] for point in points]
    for row, (name, colour) in enumerate((("proxy", STAND_INS.predicted), ("gold", STAND_INS.accent))):
        values = [point[name] - points[0][name] for point in points]
        axes.plot(kl, values, color=colour, linewidth=1.6)
        if all(point[f"{name}_low"] is not None for point in points):
            low, high = ([point[f"{name}_{end}"] - points[0][name] for point in points] for end in ("low", "high"))
            axes.fill_between(kl, low, high, color=colour, alpha=0.12, linewidth=0)
        marked = [i for i, point in enumerate(points) if point["n"] in NAMED]
        axes.plot([kl[i] for i in marked], [values[i] for i in marked], "o", color=colour, markersize=4)
        place = {"transform": axes.transAxes, "ha": "left", "va": "top"}
        axes.text(0.02, 0.97 - 0.09 * row, f"{name} reward", color=colour, **place)
    axes.set_title("reward of the best of N, change from N = 1; marks at N = 1, 2, 4, 8 …", color=STAND_INS.quiet)
    axes.set_xlabel("KL, at most: log N − (N − 1)/N, nats", color=STAND_INS.quiet)
