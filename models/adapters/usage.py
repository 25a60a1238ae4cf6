"""What an adapter's matrices do not say of how it acts; our exports carry it in their metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from uhr.base.config import Config, build
from uhr.base.errors import UserError
from uhr.models.adapters.published import is_ultragens

METADATA = "uhr_adapter"
"""The key in a safetensors file's metadata: a `Usage` as JSON."""


class Usage(Config):
    """tokens: which tokens the adapter acts on, all of them or a guide's alone (`masked.py`).

    over: adapters that it was trained on top of and that must act beside it, name -> SHA-256 of the file.
    """

    tokens: Literal["all", "guide"] = "all"
    over: dict[str, str] = Field(default_factory=dict)

    def metadata(self) -> dict[str, str]:
        """Entries for a file's metadata; none for an adapter of which there is nothing to say."""
        said = self.model_dump(mode="json", exclude_defaults=True)
        return {METADATA: json.dumps(said, sort_keys=True)} if said else {}

    @classmethod
    def of(cls, metadata: Mapping[str, str], paths: Iterable[str], where: str) -> Usage:
        """What a file says of itself, else what is known of published ones by the modules that they adapt."""
        if METADATA not in metadata:
            return cls(tokens="guide" if is_ultragens(paths) else "all")
        tree = json_object(metadata[METADATA], f"adapter {where}: its {METADATA}")
        return build(cls, tree, f"adapter {where}")


def json_object(text: str, what: str) -> dict[str, Any]:
    """An object in a file's metadata; UserError, of which `what` is the subject, for anything else."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise UserError(f"{what} is no JSON object", "download or export it again")
    return tree


ORDINARY = Usage()
"""Of an adapter that acts on every token and stands on nothing."""
