"""The exact gray pass of curation against the published filter, per core, on real images and generated 4K.

    python -m benchmarks.curation.gray_pass

Both methods start from the same bytes, each on one thread of a process of its own: the published one's is
plain, ours is set up as the engine's workers are. They take turns; of each image the best of several runs
counts, in processor seconds. The published method (UltraFlux, `tools/filtering_pipeline.py`) gives two
numbers: Pillow decodes, Sobel in float64 patch by patch, scikit-image's entropy. Ours gives those two to the
bit and to 1e-9, and exposure and sharpness with them; the preview is not counted.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from skimage.measure import shannon_entropy

from benchmarks.claims import conclude
from uhr.base.console import table
from uhr.curate.measures import gray_pass
from uhr.demo.scenes import SCENES
from uhr.pixels.decode import decode
from uhr.runtime.heap import keep_freed_memory

WALLPAPERS = Path("/usr/share/wallpapers")
"""Real images up to 5K, where Debian's plasma-workspace-wallpapers is installed."""

ROUNDS = 3
REAL_TIMES, GENERATED_TIMES = 3.0, 4.0
GRAY_PASS_NANOSECONDS = 3.1


@dataclass
class Measured:
    """Totals over a set of images: seconds of each method, of our parts, pixels and bytes."""

    name: str
    images: int
    pixels: int
    bytes: int
    published: float
    ours: float
    decode: float
    gray_pass: float

    @property
    def ratio(self) -> float:
        return self.published / self.ours


def published(data: bytes) -> tuple[float, float]:
    """flat_fraction and entropy, step by step as published."""
    gray = cv2.cvtColor(np.array(Image.open(io.BytesIO(data)).convert("RGB")), cv2.COLOR_RGB2GRAY)
    flat = total = 0
    for y in range(0, gray.shape[0] - gray_pass.PATCH + 1, gray_pass.PATCH):
        for x in range(0, gray.shape[1] - gray_pass.PATCH + 1, gray_pass.PATCH):
            patch = gray[y : y + gray_pass.PATCH, x : x + gray_pass.PATCH]
            flat += gray_pass.published_variance(patch) < gray_pass.FLAT_VARIANCE
            total += 1
    return (flat / total if total else 0.0), float(shannon_entropy(gray))


def ours(data: bytes) -> tuple[float, float]:
    """The same two from one pass, and everything else that the pass gives."""
    found = gray_pass.measure(decode(data).gray())
    _ = found.luma_mean(), found.fraction(slice(0, 16)), found.laplacian_var, found.blockiness
    return found.flat_fraction(), found.entropy()


def decoded(data: bytes) -> None:
    decode(data)


def timed(method: str, data: bytes) -> tuple[float, tuple[float, float] | None]:
    """Processor seconds of one run in this process, and its answer."""
    run = {"published": published, "ours": ours, "decode": decoded}[method]
    start = time.process_time()
    answer = run(data)
    return time.process_time() - start, answer


def timed_pass(data: bytes) -> tuple[float, int]:
    """Processor seconds of the pass over gray alone, and the number of pixels."""
    gray = decode(data).gray()
    start = time.process_time()
    gray_pass.measure(gray)
    return time.process_time() - start, gray.size


def plain_process() -> None:
    cv2.setNumThreads(1)


def worker_process() -> None:
    cv2.setNumThreads(1)
    keep_freed_memory()
    gray_pass.warm()


def measure(name: str, files: Sequence[bytes]) -> Measured:
    """Both methods over the files; their numbers have to agree."""
    total = Measured(name, len(files), 0, 0, 0.0, 0.0, 0.0, 0.0)
    spawn = get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawn, plain_process) as theirs,
        ProcessPoolExecutor(1, spawn, worker_process) as worker,
    ):
        for data in files:
            found = [
                (
                    theirs.submit(timed, "published", data).result(),
                    worker.submit(timed, "ours", data).result(),
                    worker.submit(timed, "decode", data).result(),
                    worker.submit(timed_pass, data).result(),
                )
                for _ in range(ROUNDS)
            ]
            (_, (flat, entropy)), (_, (our_flat, our_entropy)), _, (_, pixels) = found[0]
            assert our_flat == flat, "flat_fraction is the published one"
            assert abs(our_entropy - entropy) < 1e-9, "entropy is the published one"
            best = [min(seconds for seconds, _ in runs) for runs in zip(*found, strict=True)]
            total.published += best[0]
            total.ours += best[1]
            total.decode += best[2]
            total.gray_pass += best[3]
            total.pixels += pixels
            total.bytes += len(data)
    return total


def real_images() -> list[bytes]:
    """The distinct wallpapers; where there are none, the photographs of scikit-image and ultralytics."""
    found = [path for path in sorted(WALLPAPERS.glob("*/contents/images*/*")) if not path.is_symlink()]
    files = [path for path in found if path.suffix in (".jpg", ".png")]
    if not files:
        from uhr.demo.images import gather

        with tempfile.TemporaryDirectory() as folder:
            names = [
                file.name for file in gather(Path(folder), lambda **_: None) if "photographs/" in file.name
            ]
            return [(Path(folder) / name).read_bytes() for name in names]
    return list(dict.fromkeys(path.read_bytes() for path in files))


def generated_images() -> list[bytes]:
    """The demo's scenes at 4K and beyond, as JPEG 90."""
    images = (scene(np.random.default_rng(i), h, w) for i, (_, _, scene, h, w) in enumerate(SCENES))
    return [cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes() for p in images]


def claims() -> dict[str, bool]:
    """Measure, print the table, and return whether each claim holds."""
    real = measure("real images", real_images())
    generated = measure("generated 4K", generated_images())
    head = (
        "images",
        "count",
        "MP",
        "byte/px",
        "published/s",
        "ours/s",
        "times",
        "decode ns/px",
        "gray pass ns/px",
    )
    rows = [
        [
            m.name,
            m.images,
            round(m.pixels / 1e6),
            round(m.bytes / m.pixels, 3),
            round(m.images / m.published, 2),
            round(m.images / m.ours, 2),
            round(m.ratio, 2),
            round(m.decode / m.pixels * 1e9, 2),
            round(m.gray_pass / m.pixels * 1e9, 2),
        ]
        for m in (real, generated)
    ]
    table(head, rows)
    slowest = max(m.gray_pass / m.pixels * 1e9 for m in (real, generated))
    return {
        f"gray pass, real images, {REAL_TIMES:g} times the published method ({real.ratio:.2f})": real.ratio
        >= REAL_TIMES,
        f"gray pass, generated 4K, {GENERATED_TIMES:g} times the published method ({generated.ratio:.2f})": (
            generated.ratio >= GENERATED_TIMES
        ),
        f"the gray pass takes at most {GRAY_PASS_NANOSECONDS:g} ns per pixel ({slowest:.2f})": slowest
        <= GRAY_PASS_NANOSECONDS,
    }


def main() -> None:
    """Print the table and whether each claim holds; exit code 1 if one does not."""
    conclude(claims())


if __name__ == "__main__":
    main()
