# SPDX-License-Identifier: Apache-2.0
"""The report of a run: one self-contained HTML page, and one picture for a README."""

from importlib.resources import files
from os import PathLike
from pathlib import Path
from shlex import quote

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from foundling.errors import OutputError
from foundling.evaluate.report import findings, units
from foundling.evaluate.report.run import Run

__all__ = ["Run", "summary_png", "write_report"]

INSTALL = "pip install 'foundling[report]'"
_N_HISTORY_ROWS = 12


def write_report(run: Run, path: str | PathLike[str]) -> None:
    """Write the page; without matplotlib, a table in place of charts. Raises OutputError if it cannot be written."""
    charts = _charts()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": units.number,
        "count": units.count,
        "size": units.size,
        "energy": units.energy,
        "duration": units.duration,
        "percent": units.percent,
        "power": units.power,
        "visible": _visible,
    }
    template = environment.from_string(files("foundling.evaluate.report").joinpath("report.html.j2").read_text("utf-8"))
    page = template.render(
        run=run,
        findings=findings,
        known=units.known,
        rate=_rate(run),
        reproduce=f"foundling reproduce {quote(run.directory)}",
        loss_svg=Markup(charts.loss_svg(run)) if charts else "",
        throughput_svg=Markup(charts.throughput_svg(run)) if charts else "",
        history=[] if charts else findings.curve(run.history, _N_HISTORY_ROWS),
        install="" if charts else INSTALL,
    )
    try:
        # A path may hold bytes that are no text (surrogates): shown escaped rather than refused after minutes of work.
        Path(path).write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"the report {str(path)!r} cannot be written: {error.strerror}; name another path") from error


def summary_png(run: Run, path: str | PathLike[str]) -> None:
    """Write the loss curve and the scores side by side, 1200 x 480. Raises OutputError, also where matplotlib lacks."""
    charts = _charts()
    if charts is None:
        raise OutputError(f"the picture {str(path)!r} needs matplotlib, which is not installed: {INSTALL}")
    try:
        charts.write_summary_png(run, Path(path))
    except OSError as error:
        raise OutputError(
            f"the picture {str(path)!r} cannot be written: {error.strerror}; name another path"
        ) from error


def _charts():
    """The module that draws, or None where its library is not installed; any other failed import is our own error."""
    try:
        from foundling.evaluate.report import charts
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return None
    return charts


def _rate(run: Run) -> float | None:
    """Floating-point operations per second over the training steps alone."""
    seconds = run.history[-1]["seconds"] if run.history else None
    return run.flops / seconds if units.known(run.flops) and units.known(seconds) and seconds > 0 else None


def _visible(token: str, *, breaks: bool = True) -> str:
    """Line ends and tabs are tokens too: a sign for them, and then what they do."""
    shown = token.replace("\r", "␍").replace("\t", "⇥\t")
    return shown.replace("\n", "↵\n" if breaks else "↵")
