"""The families of backbones by name. A new one is a file here and an entry in `FAMILIES`."""

from __future__ import annotations

from collections.abc import Mapping

from uhr.models.families.base import Backbone
from uhr.models.families.flux1 import Flux1
from uhr.models.families.flux2 import Flux2

FAMILIES: Mapping[str, Backbone] = {family.name: family for family in (Flux1(), Flux2())}
