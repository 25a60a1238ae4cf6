"""Guards with previews and views against a bare `cv2.imdecode` of the same bytes, per core, on JPEG files.

    python -m benchmarks.curation.guards [--images FOLDER] [--rounds N]

Both run in one process that is set up as the engine's workers are: one thread, freed memory kept. For each
image they take turns, and the best of several rounds counts, in processor seconds. Ours reads the file,
verifies it to its end and hashes its bytes; `imdecode` gets the bytes from memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.claims import conclude
from benchmarks.curation.gray_pass import real_images
from benchmarks.curation.peers import GUARDS
from uhr.base.console import say, table
from uhr.base.errors import UserError
from uhr.curate.config import PipelineConfig
from uhr.curate.frame import Frame
from uhr.curate.measures import gray_pass
from uhr.curate.planning.plan import CurationPlan
from uhr.manifests.sources.base import version_of
from uhr.manifests.sources.blobs import LocalBlob
from uhr.models.scores.images import View
from uhr.runtime.heap import keep_freed_memory

PREVIEW = 320
VIEWS = (View(shortest=224), View(shortest=448))
"""The sizes and the filter of CLIP's ViT-L/14 and of Q-Align."""


@dataclass(frozen=True)
class Work:
    """What is done to each image: stages, a preview, views. `claim` is the share of `imdecode`'s speed."""

    name: str
    stages: Sequence[str]
    preview: bool = False
    views: Sequence[View] = ()
    claim: float | None = None


WORKS = (
    Work("header, decode", ("header", "decode")),
    Work("guards", GUARDS),
    Work(f"guards, preview of {PREVIEW} px", GUARDS, preview=True, claim=0.70),
    Work("guards, preview, views of 224 and 448 px", GUARDS, preview=True, views=VIEWS, claim=0.60),
    Work("guards, native resolution, preview", (*GUARDS, "native_resolution"), preview=True),
)


def _annotate(stages: Sequence, work: Work, file: Path) -> None:
    frame = Frame(file.name, LocalBlob(str(file), version_of(str(file))), {})
    for stage in stages:
        stage.annotate(frame)
    if work.preview:
        frame.preview(PREVIEW)
    for view in work.views:
        frame.view(view)
    frame.check_unchanged()


def _stages(names: Sequence[str]) -> list:
    """The stages by name, ready for images."""
    config = {"name": "guards", "stages": [{"stage": name} for name in names], "rules": {}}
    plan = CurationPlan.of(PipelineConfig.model_validate(config))
    stages = [planned.stage for planned in plan.passes[0].frames]
    for stage in stages:
        stage.open()
    return stages


def measure(files: Sequence[Path], rounds: int) -> tuple[list[list[str]], dict[str, bool]]:
    """Return the rows of a table, and whether each claim holds."""
    works = [(work, _stages(work.stages)) for work in WORKS]
    seconds, pixels = np.zeros(1 + len(works)), 0
    for file in files:
        data = np.frombuffer(file.read_bytes(), np.uint8)
        pixels += int(np.prod(cv2.imdecode(data, cv2.IMREAD_COLOR).shape[:2]))
        calls: list[Callable] = [partial(cv2.imdecode, data, cv2.IMREAD_COLOR)]
        calls += [partial(_annotate, stages, work, file) for work, stages in works]
        seconds += np.min([[_timed(call) for call in calls] for _ in range(rounds)], axis=0)
    say(f"{len(files)} files, {pixels / 1e6:.0f} Mpx")
    share, per_pixel = seconds[0] / seconds, seconds / pixels * 1e9
    rows = [["cv2.imdecode", f"{per_pixel[0]:.2f}", ""]]
    claims = {}
    for (work, _), found, cost in zip(works, share[1:], per_pixel[1:], strict=True):
        rows.append([work.name, f"{cost:.2f}", f"{found:.0%}"])
        if work.claim is not None:
            claims[f"{work.name}: {work.claim:.0%} of the speed of imdecode ({found:.1%})"] = (
                found >= work.claim
            )
    return rows, claims


def _timed(call: Callable) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _jpegs(images: Path | None, scratch: Path) -> list[Path]:
    """The JPEG files of a folder, or the real images of the gray pass written to `scratch`."""
    if images is not None:
        found = [path for path in sorted(images.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
        if not found:
            raise UserError(f"--images {images} has no JPEG file", "name a folder of photographs")
        return found
    for number, data in enumerate(real_images()):
        if data.startswith(b"\xff\xd8"):
            (scratch / f"{number:03}.jpg").write_bytes(data)
    return sorted(scratch.iterdir())


def options(arguments: list[str]) -> argparse.Namespace:
    """Parse the options of the comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curation.guards")
    parser.add_argument("--images", type=Path, help="a folder with JPEG files; default: those of gray_pass")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(arguments)


def claims(given: argparse.Namespace) -> dict[str, bool]:
    """Print the table, and return whether each claim holds."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    keep_freed_memory()
    gray_pass.warm()
    with tempfile.TemporaryDirectory() as scratch:
        rows, found = measure(_jpegs(given.images, Path(scratch)), given.rounds)
    table(["", "ns per pixel", "share of imdecode's speed"], rows)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print the table and whether each claim holds; exit code 1 if one does not."""
    conclude(claims(options([] if arguments is None else arguments)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"benchmarks: {error}")
