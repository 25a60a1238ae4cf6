"""Removes from messages what differs from run to run, so that they can be stored as data."""

from __future__ import annotations

import re

from uhr.base.errors import one_line

_OF_THE_RUN = (
    # OpenCV's log: level, thread, seconds since the start; source file and line; function
    (re.compile(r"\[ *[A-Z]+:\d+@[\d.]+\] *(?:global )?(?:\S+\.[ch]pp:\d+ )?(?:\w+ )?"), ""),
    # OpenCV's exceptions: version, source file and line; code
    (re.compile(r"OpenCV\([^)]*\) \S+:\d+: (?:error: )?(?:\(-?\d+:[^)]*\) )?"), ""),
    # addresses of objects, as Python and C print them
    (re.compile(r"\b0x[0-9a-fA-F]{7,16}\b"), "0x..."),
)


def stable_text(text: str) -> str:
    """Reduce `text` to one line without times, thread numbers, source lines and addresses."""
    for pattern, replacement in _OF_THE_RUN:
        text = pattern.sub(replacement, text)
    return one_line(text)
