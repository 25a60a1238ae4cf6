"""The data that a model was trained on: those of its run, and of the runs that this one began with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from uhr.base.console import warn
from uhr.base.errors import UserError
from uhr.base.files import user_path
from uhr.base.paths import in_store, text_path, text_place
from uhr.models.scores.weights import Weights

if TYPE_CHECKING:
    from uhr.manifests.manifest import Manifest
    from uhr.train.run.checkpoints.checkpoint import InitRef


class Training(NamedTuple):
    """The manifests of training data, the names of trained weights whose data are not known, and the CLIP
    model by which the data were embedded, if it is known.
    """

    manifests: tuple[Manifest, ...]
    unknown: tuple[str, ...] = ()
    clip: str | None = None


@dataclass(frozen=True)
class Trained:
    """What a model was trained on, as a command line names it.

    places: manifests and encoded data, also at addresses in object stores, or runs. clip: a folder or hub
    id of open_clip, which embedded them.
    """

    places: Sequence[Path | str] = ()
    clip: str | None = None

    def open(self) -> Training | None:
        """Open the data; None if there are none. Raises UserError as `training_data`, and for a CLIP model
        without data or that does not exist.
        """
        if not self.places:
            if self.clip is not None:
                raise UserError("--clip without --trained-on", "name what the model was trained on")
            return None
        if self.clip is not None:
            Weights.parse(self.clip)
        places = [each if in_store(each) else user_path(each) for each in self.places]
        return training_data(places)._replace(clip=self.clip)


def training_data(places: Iterable[Path | str]) -> Training:
    """Open the training data: manifests, encoded data, or runs of `uhr train` (with the paths of their data).

    Of a run that began with the weights of another, both count. Raises UserError if one of the places is
    nothing of this kind, or if the data of a run that was named are not there any more.
    """
    from uhr.manifests.manifest import Manifest
    from uhr.manifests.places import is_manifest_at
    from uhr.train.run.job import FILE, read_run

    found: dict[str, Manifest] = {}
    unknown: list[str] = []

    def add(folder: Path | str, of: Path | str) -> None:
        if not is_manifest_at(folder):
            what = f"--trained-on {of}: {folder} is not a manifest"
            raise UserError(what, "name a manifest, encoded data, or a run whose data are there")
        manifest = Manifest.open(folder)
        found.setdefault(manifest.id, manifest)

    for place in places:
        if isinstance(place, str) or not (place / FILE).exists():
            add(place, place)
            continue
        info = read_run(place)
        for ref in info.data:
            add(text_place(ref.path), place)
        for ref in _all_inits(info.init):
            run = _run_of(ref)
            try:
                theirs = None if run is None else read_run(run)
                if theirs is None or (ref.run and theirs.id and theirs.id != ref.run):
                    raise UserError("its run is not there")
                for data in theirs.data:
                    add(text_place(data.path), place)
            except UserError as error:
                warn(f"the data of {ref.name}, with which {place} began, are not compared: {error.what}")
                unknown.append(ref.name)
    return Training(tuple(found.values()), tuple(dict.fromkeys(unknown)))


def _all_inits(refs: Iterable[InitRef]) -> Iterator[InitRef]:
    """What a run began with, and what those runs began with."""
    for ref in refs:
        yield ref
        yield from _all_inits(ref.init)


def _run_of(ref: InitRef) -> Path | None:
    """The folder of the run that a checkpoint or its file is in; None if there is none at that place."""
    from uhr.train.run.job import FILE

    if not ref.path:
        return None
    path = text_path(ref.path)
    return next((each for each in (path, *path.parents) if (each / FILE).is_file()), None)
