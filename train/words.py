"""Commands as they are printed: a path with a space in it must survive being copied."""

from __future__ import annotations

import shlex


def command(*words: object) -> str:
    """`uhr` and these words, quoted for a shell."""
    return shlex.join(["uhr", *map(str, words)])
