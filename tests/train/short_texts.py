"""Tiny models that read 80 text tokens in place of 512: a step of training costs a fifth of the time.

What is trained does not depend on how long the texts are. 80 tokens are more than CLIP's 77, as 512 are.
Tests that count the real tokens, or have other processes that this module does not reach, ask for the
fixture `full_texts`.
"""

import contextlib
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

LENGTH, REAL_LENGTH = 80, 512
COMMAND = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import short_texts
with short_texts.text_length():
    from uhr.cli import main
    sys.exit(main(sys.argv[1:]))
"""
"""What `python -c` runs: a command of `uhr` in another process, with the same tiny models."""


@contextlib.contextmanager
def text_length(length: int = LENGTH) -> Generator[None]:
    """Have the tiny models of this process read texts of `length` tokens, in training and in samplers."""
    from uhr.models.families.registry import FAMILIES
    from uhr.models.specs.registry import SPECS

    changed: dict[str, Any] = {}
    for name, spec in SPECS.items():
        if spec.tiny:
            lengths = {**spec.text_lengths, FAMILIES[spec.family].sequence: length}
            changed[name] = replace(spec, text_lengths=lengths)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(SPECS, changed))
        for family in FAMILIES.values():
            stack.enter_context(mock.patch.object(type(family), "text_length", return_value=length))
        yield
