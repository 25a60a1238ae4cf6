"""Curation against other programs, on the same files in the same run: guards, the size filter, hashes.

    python -m benchmarks.curation.peers --python PEER/bin/python [--images FOLDER] [--rounds N]

The peers (cleanvision, py-data-juicer, imagehash, imagededup) need not be installed beside uhr: `--python` is
an interpreter that has some of them, and may be given several times. A peer that none of them has is reported
as absent, and nothing is claimed of it. Each runs in a process of its own, on one thread, interleaved with
ours, and the least of several rounds counts: CPU seconds without imports and compilation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.claims import conclude
from uhr.base.console import table
from uhr.base.errors import UserError

_RUN = """
import contextlib, io, json, os, sys, tempfile, time
from pathlib import Path
from uhr.curate.config import PipelineConfig
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.run.job import CurationRequest, run
from uhr.manifests.sources.folder import Folder
from uhr.runtime.pool import Pool
from uhr.runtime.heap import keep_freed_memory
import cv2
cv2.setNumThreads(1)
keep_freed_memory()
stages, rules = json.loads(sys.argv[2])
plan = CurationPlan.of(PipelineConfig.model_validate(
    {"name": "peers", "stages": stages, "rules": rules, "preview": 0}))
with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):
    def curate(name):
        request = CurationRequest(plan, Folder.at(Path(sys.argv[1])), Path(scratch) / name, Pool("local", 0))
        return run(request, command_for=str)
    curate("first")  # imports and compiles
    start = time.process_time()
    made = curate("second")
    seconds = time.process_time() - start
print(json.dumps([seconds, made.manifest.info.counts["rows"], ""]))
"""

_CLEANVISION = """
import importlib.metadata, json, sys, time
from cleanvision import Imagelab
lab = Imagelab(data_path=sys.argv[1], verbose=False)
checks = ("light", "dark", "blurry", "low_information", "odd_size", "odd_aspect_ratio")
start = time.process_time()
lab.find_issues({check: {} for check in checks}, n_jobs=1, verbose=False)
print(json.dumps([time.process_time() - start, len(lab.issues), importlib.metadata.version("cleanvision")]))
"""

_DATA_JUICER = """
import importlib.metadata, json, os, sys
from pathlib import Path
from data_juicer.core.data import NestedDataset
from data_juicer.ops.filter.image_shape_filter import ImageShapeFilter
files = [str(path) for path in sorted(Path(sys.argv[1]).iterdir())]
data = NestedDataset.from_list([{"images": [file]} for file in files])
data = data.add_column("__dj__stats__", [{}] * data.num_rows)
chosen = ImageShapeFilter(min_width=500, min_height=500)
start = sum(os.times()[:4])
# it computes in a process of its own
rows = data.map(chosen.compute_stats, num_proc=1).filter(chosen.process, num_proc=1)
print(json.dumps([sum(os.times()[:4]) - start, len(files), importlib.metadata.version("py-data-juicer")]))
"""

_IMAGEHASH = """
import importlib.metadata, json, sys, time
from pathlib import Path
import imagehash
from PIL import Image
files = sorted(Path(sys.argv[1]).iterdir())
imagehash.phash(Image.open(files[0]))
start = time.process_time()
hashes = [imagehash.phash(Image.open(file)) for file in files]
pairs = [(a, b) for i, a in enumerate(hashes) for b in hashes[i + 1 :] if a - b <= 4]
print(json.dumps([time.process_time() - start, len(files), importlib.metadata.version("imagehash")]))
"""

_IMAGEDEDUP = """
import importlib.metadata, json, logging, os, sys
logging.disable(logging.INFO)
from imagededup.methods import PHash
hasher = PHash(verbose=False)
start = sum(os.times()[:4])
# it computes in processes of its own
encodings = hasher.encode_images(sys.argv[1], num_enc_workers=0)
found = hasher.find_duplicates(encoding_map=encodings, max_distance_threshold=4, num_dist_workers=0)
print(json.dumps([sum(os.times()[:4]) - start, len(found), importlib.metadata.version("imagededup")]))
"""


@dataclass(frozen=True)
class Comparison:
    """A peer: its package and program; our stages and rules for the same; how many times as fast ours are
    claimed to be (None: nothing is claimed). `copies` is the number of names that each image has.
    """

    what: str
    package: str
    program: str
    stages: Sequence[str]
    rules: dict[str, str]
    claim: float | None = None
    copies: int = 1


GUARDS = ("header", "geometry", "decode", "flatness", "entropy", "exposure", "sharpness")
HASHES = ("header", "geometry", "decode", "phash", "near_duplicates")
COMPARISONS = (
    Comparison(
        "guards", "cleanvision", _CLEANVISION, GUARDS, {"flatness": "flat_fraction <= 0.95"}, 5.0, copies=4
    ),
    Comparison(
        "size filter",
        "data_juicer",
        _DATA_JUICER,
        ("header",),
        {"size": "width >= 500 AND height >= 500"},
        copies=20,
    ),
    Comparison(
        "near-duplicates",
        "imagehash",
        _IMAGEHASH,
        HASHES,
        {},
        copies=4,
    ),
    Comparison(
        "near-duplicates",
        "imagededup",
        _IMAGEDEDUP,
        HASHES,
        {},
        copies=4,
    ),
)


def _seconds(python: str, program: str, *arguments: str) -> tuple[float, int, str]:
    done = subprocess.run([python, "-c", program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{python}: {done.stderr[-2000:]}")
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def _copies(images: Path, folder: Path, count: int) -> Path:
    """Return a folder with `count` hard links to the same copy of each image."""
    folder.mkdir()
    for image in sorted(images.iterdir()):
        first = Path(shutil.copy(image, folder / f"0-{image.name}"))
        for number in range(1, count):
            os.link(first, folder / f"{number}-{image.name}")
    return folder


def _has(python: str, package: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    try:
        return subprocess.run([python, "-c", code], check=False, stderr=subprocess.DEVNULL).returncode == 0
    except OSError as error:
        raise UserError(
            f"--python {python} cannot be run ({error.strerror})", "name an interpreter"
        ) from None


def compare(
    pythons: Sequence[str], images: Path, rounds: int, scratch: Path
) -> tuple[list[list[str]], dict[str, bool]]:
    """Run each comparison. Returns the rows of a table, and whether each claim holds."""
    rows, found_claims = [], {}
    for each in COMPARISONS:
        python = next((one for one in pythons if _has(one, each.package)), None)
        if python is None:
            rows.append([each.what, each.package, "absent", "", "", ""])
            continue
        ours, theirs, version, count = [], [], "", 0
        source = images if each.copies == 1 else _copies(images, scratch / each.package, each.copies)
        wanted = json.dumps([[{"stage": name} for name in each.stages], each.rules])
        for _ in range(rounds):
            seconds, count, _ = _seconds(sys.executable, _RUN, str(source), wanted)
            ours.append(seconds)
            seconds, found, version = _seconds(python, each.program, str(source))
            theirs.append(seconds)
            assert found == count, f"{each.package} read {found} files of {count}"
        ratio = min(theirs) / min(ours)
        rows.append(
            [
                each.what,
                f"{each.package} {version}",
                count,
                f"{min(ours):.3f}",
                f"{min(theirs):.3f}",
                f"{ratio:.1f}",
            ]
        )
        if each.claim is not None:
            found_claims[f"{each.what}: {each.claim:g} times {each.package} ({ratio:.1f})"] = (
                ratio >= each.claim
            )
    return rows, found_claims


def options(arguments: list[str]) -> argparse.Namespace:
    """Parse the options of the comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curation.peers")
    parser.add_argument("--python", action="append", default=[], help="an interpreter that has peers")
    parser.add_argument("--images", type=Path, help="a folder of images only; default: those of the demo")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(arguments)


def claims(given: argparse.Namespace) -> dict[str, bool]:
    """Print the table, and return whether each claim holds."""
    with tempfile.TemporaryDirectory() as scratch:
        images = given.images or _of_the_demo(Path(scratch))
        rows, found = compare(given.python or [sys.executable], images, given.rounds, Path(scratch))
    table(["", "peer", "images", "ours, CPU s", "peer, CPU s", "times"], rows)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print the table and whether each claim holds; exit code 1 if one does not."""
    conclude(claims(options([] if arguments is None else arguments)))


def _of_the_demo(scratch: Path) -> Path:
    """The demo's photographs and scenes in one folder, without its planted faults."""
    from uhr.demo.images import gather

    made, images = scratch / "made", scratch / "images"
    made.mkdir()
    images.mkdir()
    for each in gather(made, lambda **_: None):
        file = made / each.name
        if not each.fault and file.suffix in (".jpg", ".png"):
            shutil.copy(file, images / each.name.replace("/", "-"))
    return images


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"benchmarks: {error}")
