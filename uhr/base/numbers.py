"""Formatting of numbers for people."""

from __future__ import annotations

from typing import Any

from uhr.base.errors import one_line


def number(value: Any) -> str:
    """`12,345`, `0.0312`, `1.2e+09`: three significant digits, whole numbers whole, thousands grouped."""
    if value is None:
        return "–"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 1e9):
        return f"{int(value):,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
    return str(value)


def with_unit(value: Any, unit: str) -> str:
    """`3.21 bit`; a missing value and a pure number (unit "1") have no unit."""
    return number(value) if value is None or unit in ("", "1") else f"{number(value)} {unit}"


def share(part: float, whole: float) -> str:
    """Format a part of a whole in per cent: `12 %`, `0.4 %`; 0 and 100 only if exact."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99 < percent < 100:
        return f"{min(percent, 99.9):.1f} %"
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.1f} %"


def first_words(text: str | None, most: int = 140) -> str:
    """The first `most` characters of a text, cut between words."""
    text = one_line(text or "")
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0] + " …"
