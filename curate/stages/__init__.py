"""The stages by name. A new one is one file here and one line in `NAMES`."""

from __future__ import annotations

from uhr.base.errors import UserError, load_object, unknown
from uhr.curate.stage import SetStage, Stage

_HERE = "uhr.curate.stages"

NAMES: dict[str, str] = {
    "header": f"{_HERE}.header:HeaderStage",
    "decode": f"{_HERE}.decode:DecodeStage",
    "geometry": f"{_HERE}.geometry:GeometryStage",
    "flatness": f"{_HERE}.flatness:FlatnessStage",
    "entropy": f"{_HERE}.entropy:EntropyStage",
    "exposure": f"{_HERE}.exposure:ExposureStage",
    "sharpness": f"{_HERE}.sharpness:SharpnessStage",
    "native_resolution": f"{_HERE}.native_resolution:NativeResolutionStage",
    "exact_duplicates": f"{_HERE}.exact_duplicates:ExactDuplicatesStage",
    "rank": f"{_HERE}.rank:RankStage",
}
"""Name in a pipeline -> import path. Nothing is imported before it is asked for."""

LATER = frozenset({"safety", "q_align", "artimuse", "caption", "translate"})
"""Stages with weights that presets speak of and this version does not have: `if_missing: skip` leaves them
out. Any other name that is not in `NAMES` is taken for a typing mistake.
"""


def stage_class(name: str) -> type[Stage] | type[SetStage]:
    """The class of the stage called `name`, or at a user's own import path `package.module:Class`."""
    if name in NAMES:
        found = load_object(NAMES[name], "stage")
    elif ":" in name:
        found = load_object(name, "stage")
    else:
        raise unknown("stage", name, [*NAMES, *LATER - {name}])
    if not (isinstance(found, type) and issubclass(found, Stage | SetStage)):
        raise UserError(
            f"stage '{name}' is no stage", "derive the class from uhr.curate.stage:Stage or SetStage"
        )
    return found
