"""The backbone of each family, by the family's name. A new family is listed in `specs/registry.py`."""

from __future__ import annotations

from collections.abc import Mapping

from uhr.base.errors import load_object
from uhr.models.families.base import Backbone
from uhr.models.specs.registry import FAMILY_SPECS

FAMILIES: Mapping[str, Backbone] = {
    name: load_object(family.backbone, "backbone")() for name, family in FAMILY_SPECS.items()
}
