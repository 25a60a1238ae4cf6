"""Files of the demo with their expected results of curation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["kept", "rejected", "failed"]


@dataclass(frozen=True)
class Planted:
    """A file of the demo: its path below the folder, what it is, and its result with the preset `quickstart`.

    `reason` is the rule or the kind of fault, None when kept. `fault` marks what was planted.
    """

    name: str
    what: str
    status: Status = "kept"
    reason: str | None = None
    fault: bool = False
