"""How often the estimated enlargement is right: real images at native size and enlarged in known ways.

    python -m benchmarks.native_resolution

Native images are real ones shrunk by half over areas, so that their detail reaches the pixel grid; they
are enlarged by 1.5 to 4 with four kernels, some get noise, and all are saved as JPEG. Vector art without
detail is among them: it is no evidence of enlargement and counts as missed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import cv2
import numpy as np

from benchmarks.claims import conclude
from benchmarks.curation.gray_pass import real_images
from uhr.base.console import table
from uhr.curate.measures.resolution import upscale_ratio
from uhr.pixels.decode import decode

KERNELS = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "Lanczos": cv2.INTER_LANCZOS4,
}
SIDE = 1500
"""px: larger images are cut to it after enlarging, to keep the run short."""


def natives() -> Iterator[np.ndarray]:
    for data in real_images():
        bgr = decode(data).bgr
        if min(bgr.shape[:2]) >= 600:
            yield cv2.resize(bgr, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def estimate(bgr: np.ndarray, quality: int) -> float:
    """The ratio of an image that was saved as JPEG."""
    data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return upscale_ratio(decode(data).gray())


def noisy(bgr: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(0, sigma, bgr.shape[:2])[..., None]
    return np.clip(bgr + noise, 0, 255).astype(np.uint8)


def main() -> None:
    """Print the table and whether each claim holds; exit code 1 if one does not."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    rng = np.random.default_rng(0)
    for image in natives():
        found["native", "-"] += [estimate(image, quality) for quality in (95, 85, 75)]
        found["native, noise 3", "-"].append(estimate(noisy(image, 3, rng), 90))
        for ratio in (1.5, 2, 3, 4):
            part = image[: int(SIDE / ratio), : int(SIDE / ratio)]
            for kernel, flag in KERNELS.items():
                large = cv2.resize(part, None, fx=ratio, fy=ratio, interpolation=flag)
                found[f"x{ratio:g}", kernel] += [estimate(large, quality) for quality in (95, 85)]
                if ratio == 2:
                    found["x2, noise 1", kernel].append(estimate(noisy(large, 1, rng), 90))
                    found["x2, noise 3", kernel].append(estimate(noisy(large, 3, rng), 90))
    rows = [
        [
            what,
            kernel,
            len(values),
            _share(values, 0, 1.3),
            _share(values, 1.6, np.inf),
            float(np.median(values)),
        ]
        for (what, kernel), values in sorted(found.items())
    ]
    table(("image", "kernel", "number", "below 1.3", "above 1.6", "median"), rows)
    linear = [value for kernel in ("bilinear", "bicubic", "Lanczos") for value in found["x2", kernel]]
    native, enlarged = _share(found["native", "-"], 0, 1.3), _share(linear, 1.6, np.inf)
    claims = {
        f"95 % of native images are below 1.3 ({native:.0%})": native >= 0.95,
        f"80 % of images enlarged twice are above 1.6 ({enlarged:.0%})": enlarged >= 0.8,
    }
    conclude(claims)


def _share(values: list[float], low: float, high: float) -> float:
    return float(np.mean([low < value < high for value in values]))


if __name__ == "__main__":
    main()
