"""Optimisers, chosen by kind: a name of `NAMES`, or the import path of any optimiser for torch.

A new one is a class derived from `base.Optimiser`, and a line in `NAMES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from uhr.base.errors import load_object
from uhr.base.kinds import of_kind
from uhr.train.optimisers.base import Optimiser

NAMES = {
    "adamw": "uhr.train.optimisers.kinds:AdamW",
    "adamw-8bit": "uhr.train.optimisers.kinds:AdamW8bit",
    "prodigy": "uhr.train.optimisers.kinds:Prodigy",
}
"""The optimisers by kind. Any other is an import path: a class derived from `base.Optimiser`, or an optimiser
for torch, such as `torch.optim:NAdam`, whose other keys are its keyword arguments."""


def optimiser(value: Any) -> Optimiser:
    """Return the optimiser that a value of a recipe describes.

    Raises UserError for an unknown kind and for keys or values that it does not accept.
    """
    kind = value.get("kind") if isinstance(value, Mapping) else value
    if isinstance(kind, str) and ":" in kind:
        found = load_object(kind, "optimiser")
        if not (isinstance(found, type) and issubclass(found, Optimiser)):
            from uhr.train.optimisers.kinds import TorchOptimiser

            return TorchOptimiser.of(found, value)
    return of_kind(Optimiser, NAMES, "optimiser", value)


if TYPE_CHECKING:
    AnyOptimiser = Optimiser
else:
    AnyOptimiser: Any = Annotated[pydantic.SerializeAsAny[Optimiser], pydantic.BeforeValidator(optimiser)]
