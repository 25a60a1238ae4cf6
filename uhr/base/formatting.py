"""Formatting of numbers, sizes and texts for people."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
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


def human_bytes(count: float) -> str:
    """`1.5 GB`: decimal units, as disks and networks count."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def gibibytes(count: float) -> str:
    """`1.5 GiB`, or MiB below 0.1 GiB: binary units, as drivers of GPUs count."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Format seconds as `0.4 s`, `32 s`, `2 min 22 s`, `1 h 20 min` or, from four days on, `26.8 days`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole >= 4 * 86400:
        return f"{whole / 86400:,.1f} days"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def sufficient_bytes(count: int) -> str:
    """`1.51 GiB`: binary units, rounded up, for a limit that has to be enough."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{math.ceil(count / scale * 100) / 100:.2f} {unit}"
    return f"{count} B"


def first_words(text: str | None, most: int = 140) -> str:
    """The first `most` characters of a text, cut between words."""
    text = one_line(text or "")
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0] + " …"


def numbered_names(names: Iterable[str]) -> str:
    """`to_q, blocks.{0-23}.attn.to_out`: names that differ only in a number between two dots, as one.

    Numbers that are missing in between are shown: `blocks.{0-3,5}.attn.to_out`.
    """
    groups: dict[str, set[int]] = {}
    for name in names:
        number = re.search(r"\.(\d+)\.", name)
        pattern = name if number is None else re.sub(r"\.\d+\.", ".#.", name, count=1)
        groups.setdefault(pattern, set()).update(() if number is None else (int(number[1]),))
    return ", ".join(
        pattern.replace("#", _ranges(numbers)) if numbers else pattern for pattern, numbers in groups.items()
    )


def _ranges(numbers: Iterable[int]) -> str:
    """`{0-3,5}`; one number alone has no braces."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    text = ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
    return f"{{{text}}}" if "-" in text or "," in text else text
