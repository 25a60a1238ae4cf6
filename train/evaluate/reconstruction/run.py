"""Reconstructs images with a VAE and scores the reconstructions against them.

OUT is the folder of a result, as `uhr eval run` writes it, and besides

    vae.json            which VAE and images these are, written first
    reconstructions/    what the VAE makes of each image, as PNG

The same command resumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from uhr.base.console import counted, progress
from uhr.base.errors import UserError
from uhr.base.files import or_half_written, saving, user_path
from uhr.base.paths import in_store
from uhr.base.run_folder import RunFolder
from uhr.runtime import units
from uhr.runtime.units import NO_LIMITS, UnitPlan, run_units
from uhr.train.evaluate import choice
from uhr.train.evaluate.images import ImageRef, ImageSet, References, find_references
from uhr.train.evaluate.overlap.compare import compare
from uhr.train.evaluate.prompts import EvalItem
from uhr.train.evaluate.protocol import EvalProtocol
from uhr.train.evaluate.reconstruction.work import IMAGE as PART_OF
from uhr.train.evaluate.reconstruction.work import ReconstructWork, megapixels, reconstruction
from uhr.train.evaluate.result import Result
from uhr.train.evaluate.run import run
from uhr.train.evaluate.scoring.request import LAYOUT as RESULT
from uhr.train.evaluate.scoring.request import Evaluation, ScoreJob, Scoring

if TYPE_CHECKING:
    from uhr.models.loading.opening import ModelName

PROTOCOL = Path(__file__).parent / "protocol.yaml"
FILE, IMAGES = "vae.json", "reconstructions"
UNITS = "work/reconstruction-units"
SCHEMA_VERSION = 1
LAYOUT = replace(
    RESULT,
    names=(*RESULT.names, FILE, IMAGES),
    marks=(*RESULT.marks, FILE),
    inside={
        **RESULT.inside,
        IMAGES: or_half_written(r"\d{7}\.png"),
        UNITS: or_half_written(units.FILES),
    },
)


@dataclass(frozen=True)
class VaeJob:
    """Which images are reconstructed by which VAE, and how they are scored.

    Args:
        place: a manifest, for its kept rows, also at an address in an object store, or a folder of images.
        model: the model whose VAE it is; `vae` is another one in its place, a folder or a file.
        first: only so many images; None for all.
        scoring: its workers also reconstruct; the references are the images themselves.
    """

    protocol: EvalProtocol
    place: Path | str
    model: ModelName
    vae: Path | None
    out: Path
    scoring: Scoring
    first: int | None = None


def evaluate_vae(job: VaeJob) -> Result:
    """Reconstruct all images that have no reconstruction yet, and score all of them.

    Raises UserError if OUT contains anything else, or if the VAE, an image or a metric cannot be used.
    """
    folder = RunFolder(job.out, LAYOUT)
    folder.check()
    scoring = job.scoring
    named = choice.parse_weights(job.protocol, scoring.weights)
    chosen, missing = choice.choose(job.protocol, named, "paired", scoring.allow_missing)
    training = scoring.trained.open()
    references, names = _images(job.place, job.first)
    items = [
        EvalItem(at, f"{at:07d}", name, at, 0, ref.size())
        for at, (ref, name) in enumerate(zip(references.refs, names, strict=True))
    ]
    chosen, others = choice.sufficient(chosen, items, references, scoring.allow_missing)
    sha256 = _hash_of_vae(job)
    folder.claim()
    with saving(job.out, "free space there; the same command resumes"), folder.lock("work"):
        made_of = {"vae": sha256, "images": references.id}
        folder.keep_request(FILE, made_of, SCHEMA_VERSION, "set of reconstructions")
        refs = _reconstruct(job, folder, references.refs)
    made = {
        "request": {
            "sampler": "none: reconstructions",
            "model": job.model.model,
            "vae": None if job.vae is None else str(job.vae),
            "adapters": [],
            "options": {},
        },
        "weights": {"vae": sha256},
    }
    return run(
        ScoreJob(
            evaluation=Evaluation(job.protocol, items, job.first is None),
            images=ImageSet(job.out / IMAGES, refs, made),
            references=references,
            chosen=chosen,
            missing=[*missing, *others],
            out=job.out,
            runner=scoring.pool.runner(NO_LIMITS, threads=None, device=scoring.device),
            scoring=scoring,
            overlap=None if training is None else compare(training, (), references, scoring.device),
            layout=LAYOUT,
        )
    )


def _images(place: Path | str, first: int | None) -> tuple[References, list[str]]:
    """The images as references of their reconstructions, and the name of each: its uri or relative path."""
    found = find_references(place if in_store(place) else user_path(place), "set", (), first, option="")
    folder = Path(found.place).absolute()
    names = [ref.name if ref.path is None else ref.path.relative_to(folder).as_posix() for ref in found.refs]
    return found._replace(kind="paired"), names


def _hash_of_vae(job: VaeJob) -> str:
    """The hash of the VAE's weights. Raises UserError if they are missing or of another kind."""
    from uhr.models.loading.hashes import hash_of
    from uhr.models.loading.other_weights import check_weights

    model = job.model.open(components=("vae",))
    if job.vae is None:
        return hash_of(model.place("vae"))
    if not job.vae.exists():
        raise UserError(f"--vae {job.vae} does not exist", "name a folder, or a .safetensors file")
    check_weights("vae", job.vae, model.spec)
    return hash_of(job.vae)


def _reconstruct(job: VaeJob, folder: RunFolder, images: Sequence[ImageRef]) -> list[ImageRef]:
    """Write what is missing of the reconstructions."""
    place = job.out / IMAGES
    place.mkdir(exist_ok=True)
    left = [at for at in range(len(images)) if not reconstruction(place, at).exists()]
    # the files say what is done: units of an earlier run may be those of files that were removed
    folder.clear(UNITS)
    if left:
        (job.out / UNITS).mkdir(parents=True, exist_ok=True)
        scoring = job.scoring
        work = ReconstructWork(job.model, job.vae, scoring.device, place)
        plan = UnitPlan.create(job.out / UNITS, megapixels(images, left), 1, "reconstruct", together=PART_OF)
        runner = scoring.pool.runner(NO_LIMITS, threads=None, device=scoring.device)
        with progress("reconstruct", plan.rows, f"megapixels of {counted(len(left), 'image')}") as advance:
            run_units(plan, work, runner, advance)
        folder.clear(UNITS)
    files = [reconstruction(place, at) for at in range(len(images))]
    return [ImageRef(str(file), str(file.absolute())) for file in files]
