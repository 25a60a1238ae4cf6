"""`units/run.json`: what an unfinished run is, for whoever reads its parts without its command."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from uhr.base.config import Config, read_versioned
from uhr.base.files import write_json
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.run.earlier.files import StageKey, keys_of
from uhr.manifests.info import RuleInfo, StageInfo
from uhr.runtime.mirror import Mirror

NAME = "run.json"

VERSION = 1


class RunFile(Config):
    """The pipeline and the source of an unfinished run.

    images, patches: the stages on images and on patches, in the order in which they run. listed: what the
    listing found and did not open.
    """

    schema_version: int = VERSION
    fingerprint: str
    inputs: str
    pipeline: dict[str, Any]
    images: tuple[StageKey, ...]
    patches: tuple[StageKey, ...]
    stages: tuple[StageInfo, ...]
    rules: tuple[RuleInfo, ...]
    root: str
    origin: dict[str, Any] | None = None

    @classmethod
    def exists(cls, folder: Path) -> bool:
        return (folder / NAME).is_file()

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the file in the folder of a run's units. Raises UserError if it cannot be read."""
        return read_versioned(cls, folder / NAME, VERSION, "start the run again in another folder")

    def write(self, folder: Path) -> None:
        """Write the file; also into the mirror of the folder, if it has one."""
        write_json(folder / NAME, self.model_dump(mode="json"))
        mirror = Mirror.of(folder)
        if mirror is not None:
            mirror.push(NAME)

    @property
    def same_but_limits(self) -> dict[str, Any]:
        """The pipeline without what `--retry` may change: the limits of its images and workers."""
        return without_limits(self.pipeline)


def without_limits(pipeline: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved pipeline without limits and resources."""
    stages = [
        {key: value for key, value in entry.items() if key != "resources"} for entry in pipeline["stages"]
    ]
    return {**pipeline, "limits": None, "stages": stages}


def stages_of(plan: CurationPlan) -> tuple[tuple[StageKey, ...], tuple[StageKey, ...]]:
    """Return the keys of a plan's stages on images and on patches, in order."""
    keys = keys_of(plan)
    images = tuple(key for (_, of_patches), key in keys.items() if not of_patches)
    patches = tuple(key for (_, of_patches), key in keys.items() if of_patches)
    return images, patches
