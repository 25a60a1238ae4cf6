"""The kinds of fault that fail an image. They are written to the column `reason`, as rule names are."""

from __future__ import annotations

from typing import get_args

from uhr.manifests.sources.base import BROKEN_LINK
from uhr.pixels.decoder_noise import stable_text
from uhr.pixels.types import FaultKind
from uhr.runtime.units import CRASH, MEMORY_LIMIT, TIME_LIMIT, UnitFault

NO_VALUE, RULE_ERROR = "no value", "rule error"
"""The result of a rule was null; the evaluation of a rule raised an error."""

STAGE_ERROR = "stage error"
"""A stage raised, or returned a value that its column cannot hold."""

CHANGED = "changed"
"""The file or one of its sidecars was changed, replaced or removed after it was listed. The row of such a
file has no measured values.
"""

DOWNLOAD = "download"
"""The image could not be fetched, and another attempt is not expected to succeed."""

UNAVAILABLE = "unavailable"
"""The host of the image or the server of a stage did not answer, or refused: another attempt may succeed."""

OF_STAGE = frozenset((STAGE_ERROR, UNAVAILABLE, TIME_LIMIT, MEMORY_LIMIT, CRASH))
"""Kinds that may be a fault of the stage. If most of its last rows fail with them, it is paused."""

TRANSIENT = frozenset((UNAVAILABLE,))
"""Kinds that say nothing about the image: such a row is no result that another run could reuse."""

KINDS: frozenset[str] = frozenset(
    (
        *get_args(FaultKind),
        TIME_LIMIT,
        MEMORY_LIMIT,
        CRASH,
        NO_VALUE,
        RULE_ERROR,
        STAGE_ERROR,
        BROKEN_LINK,
        UNAVAILABLE,
    )
)
"""All kinds. No rule may have such a name: a rejection could not be distinguished from a failure."""


def stage_fault(error: BaseException) -> UnitFault:
    """Return the fault of a row on which a stage raised an error. If its attribute `transient` is true, it
    says nothing about the row, as where a server does not answer.
    """
    text = stable_text(str(error))
    kind = UNAVAILABLE if getattr(error, "transient", False) else STAGE_ERROR
    return UnitFault(kind, f"{type(error).__name__}{': ' if text else ''}{text}")
