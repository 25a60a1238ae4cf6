"""The kinds of fault that fail an image; they stand in `reason`, as the names of rules do."""

from __future__ import annotations

from typing import get_args

from uhr.pixels.types import FaultKind
from uhr.runtime.units import CRASH, MEMORY_LIMIT, TIME_LIMIT

NO_VALUE, RULE_ERROR = "no value", "rule error"
"""A rule was null on a row, or could not be computed on it."""

STAGE_ERROR = "stage error"
"""A stage raised, or gave what its columns cannot hold."""

BROKEN_LINK = "broken link"

CHANGED = "changed"
"""The file, or a sidecar of it, is not the one that was listed any more: it was written to, replaced or
removed while the run was in progress. Such a row holds nothing that was measured.
"""

KINDS: frozenset[str] = frozenset(
    (*get_args(FaultKind), TIME_LIMIT, MEMORY_LIMIT, CRASH, NO_VALUE, RULE_ERROR, STAGE_ERROR, BROKEN_LINK)
)
"""All of them: no rule may bear such a name, or nobody could tell a rejection from a failure."""
