# SPDX-License-Identifier: Apache-2.0
"""Figures for readers: three significant digits and a unit. An unknown number (None, NaN, infinity) is a dash.

A no-break space joins a number and its unit, so that tables break lines between figures only.
"""

from math import floor, isfinite, log10
from typing import TypeGuard

ABSENT = "—"
SPACE = "\N{NO-BREAK SPACE}"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def known(value: object) -> TypeGuard[float]:
    """Whether this is a number that can be shown and computed with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def number(value: float | None, decimals: int = 2) -> str:
    return f"{value:,.{decimals}f}" if known(value) else ABSENT


def count(value: float | None) -> str:
    """99,999 in full; above, millions: 912,384 is "0.912 M"."""
    if not known(value):
        return ABSENT
    if value < 1e5:
        return f"{value:,.0f}"
    return _scaled(value / 1e6, ("M", "B", "T"))


def size(value: float | None) -> str:
    """Bytes, in powers of ten as disks are sold."""
    return _scaled(value, ("B", "kB", "MB", "GB", "TB")) if known(value) else ABSENT


def energy(value: float | None) -> str:
    """Joules, and watt-hours beside them: the unit on the bill."""
    if not known(value):
        return ABSENT
    return f"{_scaled(value, ('J', 'kJ', 'MJ', 'GJ'))} ({_scaled(value / 3600, ('Wh', 'kWh', 'MWh', 'GWh'))})"


def duration(value: float | None) -> str:
    if not known(value):
        return ABSENT
    if value < 59.5:
        return f"{value:.3g}{SPACE}s" if value < 10 else f"{value:.0f}{SPACE}s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min{SPACE}{seconds:02d}{SPACE}s"
    return f"{minutes // 60:,}{SPACE}h{SPACE}{minutes % 60:02d}{SPACE}min"


def percent(share: float | None, *, signed: bool = False) -> str:
    return f"{100 * share:{'+' if signed else ''}.1f}{SPACE}%" if known(share) else ABSENT


def power(value: float | None) -> str:
    """3.1 × 10¹²"""
    if not known(value) or value <= 0:
        return ABSENT
    exponent = floor(log10(value))
    mantissa = f"{value / 10**exponent:.1f}"
    if mantissa == "10.0":
        mantissa, exponent = "1.0", exponent + 1
    return f"{mantissa}{SPACE}×{SPACE}10{str(exponent).translate(_SUPERSCRIPT)}"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """`value` of units[0], in the unit that needs the fewest digits."""
    for unit in units[:-1]:
        if abs(value) < 999.5:
            return f"{value:.3g}{SPACE}{unit}"
        value /= 1000
    return f"{value:.3g}{SPACE}{units[-1]}" if abs(value) < 999.5 else f"{value:,.0f}{SPACE}{units[-1]}"
