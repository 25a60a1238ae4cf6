"""How an adapter is used, beyond its matrices; our exports have it in their metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from uhr.base.config import Config, build, change
from uhr.base.errors import UserError
from uhr.models.adapters.formats.published import is_ultragens

METADATA = "uhr_adapter"
"""The key in a safetensors file's metadata: a `Usage` as JSON."""


class IntendedSampling(Config):
    """How images are generated with an adapter, where that differs from any other adapter.

    sampler: its name. guidance: the guidance of a call; None is that of the model's card.
    options: the sampler's options, by name as `--set` takes them.
    """

    sampler: str = "euler"
    guidance: float | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    def guidance_of(self, sampler: str) -> float | None:
        """The guidance of a call of `sampler`; None if it has no other than without the adapter.

        patch-cascade has a guidance of its patches; that of the call is its base pass's.
        """
        return None if sampler == self.sampler == "patch-cascade" else self.guidance

    @property
    def sets(self) -> list[str]:
        """The options as `--set` takes them."""
        return [change(name, value) for name, value in self.options.items()]


class Usage(Config):
    """The tokens that an adapter acts on, the adapters that it needs, and how it is sampled.

    tokens: all of them, or a guide's alone (`masked.py`)
    over:   adapters that it was trained on top of and that must be active with it, name -> SHA-256 of the
    file
    sampling: None if it is sampled as the model alone
    """

    tokens: Literal["all", "guide"] = "all"
    over: dict[str, str] = Field(default_factory=dict)
    sampling: IntendedSampling | None = None

    def sampled(self, sampling: IntendedSampling) -> Usage:
        """Return the usage with what is particular about sampling."""
        return self.model_copy(update={"sampling": None if sampling == IntendedSampling() else sampling})

    def metadata(self) -> dict[str, str]:
        """Return entries for a file's metadata; none if all values are the defaults."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return {METADATA: json.dumps(values, sort_keys=True)} if values else {}

    @classmethod
    def of(cls, metadata: Mapping[str, str], paths: Iterable[str], where: str) -> Usage:
        """Read the usage from a file's metadata; without an entry, recognise UltraGen's adapter by its
        modules."""
        if METADATA not in metadata:
            return cls(tokens="guide" if is_ultragens(paths) else "all")
        tree = json_object(metadata[METADATA], f"adapter {where}: its {METADATA}")
        return build(cls, tree, f"adapter {where}")


def json_object(text: str, what: str) -> dict[str, Any]:
    """Parse a JSON object. Raises UserError, of which `what` is the subject, for anything else."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise UserError(f"{what} is not a JSON object", "download or export it again")
    return tree


ORDINARY = Usage()
"""The usage of an adapter that acts on every token and needs no other adapter."""
