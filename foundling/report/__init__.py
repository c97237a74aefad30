# SPDX-License-Identifier: Apache-2.0
"""What a reader gets of a run, as pure functions of its record: one self-contained HTML page, a model card, and one
picture for a README. Nothing here imports torch or knows a kind of run by name."""

from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from foundling.contracts.records import RunRecord
from foundling.errors import OutputError, render
from foundling.report import findings, units
from foundling.report.card import model_card

__all__ = ["model_card", "summary_png", "write_report"]

INSTALL = "pip install 'foundling[report]'"
N_SAMPLES = 5
_N_HISTORY_ROWS = 12


def write_report(run: RunRecord, path: str | PathLike[str]) -> None:
    """Writes the page; without matplotlib, a table takes the place of the curves. OutputError if it cannot be
    written."""
    page = report_html(run)
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"the report {render.terminal(repr(str(path)))} cannot be written: {error.strerror}; name another path"
        ) from error


def report_html(run: RunRecord) -> str:
    """The page as text."""
    charts = _charts()
    rows = findings.predictions(run)
    error_scale = max([0.1, *(abs(row.error) for row in rows if row.error is not None)])
    # every expression of the template passes through the one renderer of untrusted text
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                              finalize=_shown)  # fmt: skip
    environment.filters |= {
        "number": units.number,
        "count": units.count,
        "size": units.size,
        "duration": units.duration,
        "percent": units.percent,
        "power": units.power,
        "visible": _visible,
        "block": _block,
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }
    template = environment.from_string(files("foundling.report").joinpath("report.html.j2").read_text("utf-8"))
    return template.render(
        run=run,
        findings=findings,
        known=units.known,
        samples=run.samples[:N_SAMPLES],
        errors=_error_bars(rows, error_scale),
        error_scale=error_scale,
        rate=_rate(run),
        reproduce=f"foundling reproduce {render.shell(run.directory)}",
        loss_svg=Markup(charts.loss_svg(run)) if charts else "",
        series_svgs=[Markup(svg) for svg in charts.series_svgs(run)] if charts else [],
        throughput_svg=Markup(charts.throughput_svg(run)) if charts else "",
        history=[] if charts else findings.curve(run.history, _N_HISTORY_ROWS),
        install="" if charts else INSTALL,
    )


def summary_png(run: RunRecord, path: str | PathLike[str]) -> None:
    """Writes the loss curve and the scores side by side, 1200 x 480. OutputError if it cannot be written, or without
    matplotlib."""
    charts = _charts()
    where = render.terminal(repr(str(path)))
    if charts is None:
        raise OutputError(f"the picture {where} needs matplotlib, which is not installed: {INSTALL}")
    try:
        charts.write_summary_png(run, Path(path))
    except OSError as error:
        raise OutputError(f"the picture {where} cannot be written: {error.strerror}; name another path") from error


def _charts():
    """The module that draws, or None where matplotlib is not installed; any other failed import is our own error."""
    try:
        from foundling.report import charts
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return None
    return charts


def _error_bars(rows: list[findings.Prediction], scale: float) -> list[tuple[findings.Prediction, float, float]]:
    """(row, left, width) of each error's bar, in percent of a track that goes from −scale to +scale."""
    shares = [50 * (row.error or 0.0) / scale for row in rows]
    return [(row, 50 + min(share, 0.0), abs(share)) for row, share in zip(rows, shares, strict=True)]


def _rate(run: RunRecord) -> float | None:
    """Floating-point operations per second over the training steps alone."""
    seconds = run.history[-1]["seconds"] if run.history else None
    return run.flops / seconds if units.known(run.flops) and units.known(seconds) and seconds > 0 else None


def _shown(value: Any) -> Markup:
    return value if isinstance(value, Markup) else Markup(render.html(value))


def _block(text: str) -> Markup:
    return Markup(render.html(text, limit=render.BLOCK_LIMIT, lines=True))


def _visible(token: str, *, breaks: bool = True) -> Markup:
    """Line breaks and tabs are tokens too: a sign for them, and then what they do."""
    shown = token.replace("\r", "␍").replace("\t", "⇥\t")
    return Markup(render.html(shown.replace("\n", "↵\n" if breaks else "↵"), lines=True))
