"""The engines: header-only throughput of worker processes, and Ray against them on the same work.

python -m benchmarks.curation.engines

Images are hard links to a few files, so that every file is a row of its own and the disk plays no part.
Runs are whole ones, from the listing to the committed manifest and its report, and interleaved; the best of
each counts.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.claims import Claim
from uhr.base.console import say, table
from uhr.curate.config import PipelineConfig, load
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.run.job import CurationRequest, run
from uhr.manifests.sources.folder import Folder
from uhr.runtime.pool import EngineName, Pool
from uhr.runtime.worker import cores

WALLPAPERS = Path("/usr/share/wallpapers")
"""Real images up to 5K, where Debian's plasma-workspace-wallpapers is installed."""

HEADER_FILES = 200_000
HEADER_PER_SECOND = 20_000
RAY_SHARE = 0.85
LOCAL_SECONDS = 75.0
"""Target time of one local run, estimated from two short ones: the claim is about runs of over a minute."""


def header_only(rounds: int = 3) -> Claim:
    """Files per second of a run that needs no pixels, on two local workers, from listing to report."""
    plan = header_plan()
    with _scratch() as scratch:
        source = hard_links(scratch, small_images(scratch / "originals"), HEADER_FILES)
        seconds = min(_timed(plan, source, scratch, "local", 2) for _ in range(rounds))
    rate = HEADER_FILES / seconds
    text = f"header-only filtering on two cores reaches {HEADER_PER_SECOND:,} images/s"
    return Claim(text, f"{rate:,.0f} images/s", rate >= HEADER_PER_SECOND)


def ray_against_local(rounds: int = 2) -> Claim:
    """Seconds of `quickstart` on Ray and on local workers, as many of them, over the same real images."""
    plan = CurationPlan.of(load("quickstart", ["rules.duplicates=null"]))
    workers = cores()
    with _scratch() as scratch:
        originals = _real_images() or _large_images(scratch / "originals")
        # of one run most of the time is its start
        few, more = 50, 400
        probes = [hard_links(scratch / f"probe {count}", originals, count) for count in (few, more)]
        once, longer = (_timed(plan, probe, scratch, "local", workers) for probe in probes)
        count = max(1, round((more - few) * LOCAL_SECONDS / max(longer - once, 0.1)))
        source = hard_links(scratch, originals, count)
        times: dict[EngineName, list[float]] = {"local": [], "ray": []}
        for _ in range(rounds):
            for engine, taken in times.items():
                taken.append(_timed(plan, source, scratch, engine, workers))
    local, ray = min(times["local"]), min(times["ray"])
    text = f"Ray reaches {RAY_SHARE:.0%} of {workers} local workers on a run of a minute or more"
    measured = f"{local / ray:.0%} (local {local:.1f} s, ray {ray:.1f} s, {count:,} images)"
    return Claim(text, measured, local / ray >= RAY_SHARE and local >= 60)


def header_plan() -> CurationPlan:
    """A pipeline that reads headers alone, and has one rule over them."""
    tree = {"name": "headers", "stages": [{"stage": "header"}, {"stage": "geometry"}]}
    return CurationPlan.of(
        PipelineConfig.model_validate({**tree, "rules": {"resolution": "megapixels >= 0.25"}})
    )


CLAIMS = (header_only, ray_against_local)


def _timed(plan: CurationPlan, source: Path, scratch: Path, engine: EngineName, workers: int) -> float:
    out = scratch / "out"
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        outcome = run(CurationRequest(plan, Folder.at(source), out, Pool(engine, workers)), command_for=str)
    seconds = time.perf_counter() - start
    assert outcome.manifest.info.counts["failed"] == 0, outcome.manifest.info.counts
    shutil.rmtree(out)
    return seconds


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def hard_links(folder: Path, originals: Sequence[Path], count: int) -> Path:
    """`count` hard links to the originals, a thousand to a folder."""
    copies = folder / "copies"
    copies.mkdir(parents=True)
    near = [Path(shutil.copy(path, copies / f"{i}{path.suffix}")) for i, path in enumerate(originals)]
    source = folder / "source"
    for number in range(count):
        original = near[number % len(near)]
        link = source / f"{number // 1000:04d}" / f"{number % 1000:03d}{original.suffix}"
        if number % 1000 == 0:
            link.parent.mkdir(parents=True)
        os.link(original, link)
    return source


def _real_images() -> list[Path]:
    if not WALLPAPERS.is_dir():
        return []
    found = [path for path in sorted(WALLPAPERS.rglob("*")) if not path.is_symlink()]
    return [path for path in found if path.suffix in (".jpg", ".png") and path.stat().st_size > 300_000]


def small_images(folder: Path) -> list[Path]:
    """JPEG, PNG and WebP of ten sizes, some below the rule's limit."""
    return [
        _image(folder / f"{side}.{suffix}", side, side)
        for side in range(300, 800, 50)
        for suffix in ("jpg", "png", "webp")
    ]


def _large_images(folder: Path) -> list[Path]:
    return [_image(folder / f"{seed}.jpg", 3840, seed) for seed in range(8)]


def _image(path: Path, width: int, seed: int) -> Path:
    """Smooth fields with fine noise, 16:9."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : width * 9 // 16, 0:width]
    base = 120 + 60 * np.sin(x / (40 + seed % 7)) + 50 * np.cos(y / 60)
    pixels = base[..., None] + rng.normal(0, 12, (*base.shape, 3))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    return path


def main() -> None:
    """Prints each claim; exit code 1 if one does not hold."""
    claims = [claim() for claim in CLAIMS]
    rows = [["holds" if claim.holds else "FAILS", claim.measured, claim.text] for claim in claims]
    table(["", "measured", "claim"], rows)
    say(f"{cores()} cores")
    sys.exit(0 if all(claim.holds for claim in claims) else 1)


if __name__ == "__main__":
    main()
