"""The registry of stages. A new stage is one line in `NAMES`, and one file: in `frames/` if it measures one
image on a CPU, in `models/` if it has a model, in `sets/` if it looks at all rows.
"""

from __future__ import annotations

from uhr.base.errors import UserError, load_object, unknown
from uhr.curate.stage import BaseStage, BatchStage, ExpandStage, FrameStage, SetStage
from uhr.manifests.schema import Column

_HERE = "uhr.curate.stages"

NAMES: dict[str, str] = {
    "fetch": f"{_HERE}.frames.fetch:FetchStage",
    "blocklist": f"{_HERE}.frames.blocklist:BlocklistStage",
    "rights": f"{_HERE}.frames.rights:RightsStage",
    "licence": f"{_HERE}.frames.licence:LicenceStage",
    "header": f"{_HERE}.frames.header:HeaderStage",
    "decode": f"{_HERE}.frames.decode:DecodeStage",
    "geometry": f"{_HERE}.frames.geometry:GeometryStage",
    "flatness": f"{_HERE}.frames.flatness:FlatnessStage",
    "entropy": f"{_HERE}.frames.entropy:EntropyStage",
    "exposure": f"{_HERE}.frames.exposure:ExposureStage",
    "sharpness": f"{_HERE}.frames.sharpness:SharpnessStage",
    "native_resolution": f"{_HERE}.frames.native_resolution:NativeResolutionStage",
    "exact_duplicates": f"{_HERE}.sets.exact_duplicates:ExactDuplicatesStage",
    "rank": f"{_HERE}.sets.rank:RankStage",
    "phash": f"{_HERE}.frames.phash:PhashStage",
    "near_duplicates": f"{_HERE}.sets.near_duplicates:NearDuplicatesStage",
    "semantic_duplicates": f"{_HERE}.sets.semantic_duplicates:SemanticDuplicatesStage",
    "overlap": f"{_HERE}.sets.overlap:OverlapStage",
    "patches": f"{_HERE}.patches:PatchesStage",
    "pyiqa": f"{_HERE}.models.quality:PyiqaStage",
    "q_align": f"{_HERE}.models.quality:QAlignStage",
    "embedding": f"{_HERE}.models.clip:EmbeddingStage",
    "laion_aesthetic": f"{_HERE}.models.clip:LaionAestheticStage",
    "clip_score": f"{_HERE}.models.clip:ClipScoreStage",
    "safety": f"{_HERE}.models.safety:SafetyStage",
    "rating": f"{_HERE}.models.rating:RatingStage",
    "artimuse": f"{_HERE}.models.rating:ArtimuseStage",
    "people": f"{_HERE}.models.people:PeopleStage",
    "caption": f"{_HERE}.models.caption:CaptionStage",
    "translate": f"{_HERE}.models.caption:TranslateStage",
}
"""Name in a pipeline -> import path. A stage is imported when it is first used."""


def example(name: str) -> BaseStage:
    """Return a stage with its default parameters, and placeholders in capitals for those that it requires."""
    cls = stage_class(name)
    required = [key for key, field in cls.Params.model_fields.items() if field.is_required()]
    return cls(cls.Params.model_validate({key: key.upper() for key in required}))


def is_inherited(column: Column) -> bool:
    """Whether the patches of an image have its value of a column that another run wrote: those that no stage
    measured, and those of stages that are `inherited`.
    """
    if not column.stage:
        return True
    return column.stage in NAMES and getattr(stage_class(column.stage), "inherited", False)


def stage_adding(column: str) -> str | None:
    """Return the first stage that adds a column of this name with its default parameters, None if none does.
    All stages are imported: for errors only.
    """
    return next((name for name in NAMES if any(c.name == column for c in example(name).adds)), None)


def stage_class(name: str) -> type[BaseStage]:
    """Return the stage class with this name, or at the import path `package.module:Class`.

    Raises UserError if there is no such stage, or if the object is not a stage.
    """
    if name in NAMES:
        found = load_object(NAMES[name], "stage")
    elif ":" in name:
        found = load_object(name, "stage")
    else:
        raise unknown("stage", name, NAMES)
    if not (isinstance(found, type) and issubclass(found, BatchStage | ExpandStage | FrameStage | SetStage)):
        raise UserError(
            f"stage '{name}' is not a stage",
            "derive the class from FrameStage, BatchStage, ExpandStage or SetStage of uhr.curate.stage",
        )
    return found
