"""Near-duplicates by perceptual hash: recall and precision on generated variants, and the time for a million.

    python -m benchmarks.duplicates

Every generated scene gets variants: resized, recompressed, cropped, brighter, darker. Our hash and that of
imagehash are computed of all of them, and all pairs are compared by brute force: recall is the share of
variants within the radius of their scene, precision the share of pairs within it that are of one scene. The
peer needs the package imagehash. Then the pairs of our search are compared with brute force, and a million
random hashes, a tenth of which have a neighbour, are searched at radius 4: 14 s of processor time at most.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from uhr.base.console import say, table
from uhr.curate.measures.hamming import leaders_within, pairs_within
from uhr.curate.stages.frames.phash import phash
from uhr.demo.scenes import SCENES

PER_SCENE, HEIGHT, WIDTH = 8, 480, 640
RADII = (0, 2, 4, 6, 8, 10, 12)
MILLION, SECONDS = 1_000_000, 14.0
BEHIND = 0.05
"""Recall that ours may have below imagehash's at a radius, of all variants."""

Variant = Callable[[np.ndarray], np.ndarray]


def _resized(factor: float) -> Variant:
    return lambda bgr: cv2.resize(bgr, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def _recompressed(quality: int) -> Variant:
    def make(bgr: np.ndarray) -> np.ndarray:
        data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return cv2.imdecode(data, cv2.IMREAD_COLOR)

    return make


def _cropped(share: float) -> Variant:
    def make(bgr: np.ndarray) -> np.ndarray:
        height, width = bgr.shape[:2]
        y, x = round(height * share / 2), round(width * share / 2)
        return np.ascontiguousarray(bgr[y : height - y, x : width - x])

    return make


def _brighter(gain: float) -> Variant:
    return lambda bgr: np.clip(bgr * np.float32(gain), 0, 255).astype(np.uint8)


VARIANTS: dict[str, Variant] = {
    "resized to 1/2": _resized(0.5),
    "resized to 1/5": _resized(0.2),
    "JPEG 60": _recompressed(60),
    "JPEG 20": _recompressed(20),
    "cropped by 2 %": _cropped(0.02),
    "cropped by 10 %": _cropped(0.1),
    "brightness x 1.2": _brighter(1.2),
    "brightness x 0.7": _brighter(0.7),
}


def ours(bgr: np.ndarray) -> int:
    return phash(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY))


def theirs(bgr: np.ndarray) -> int:
    import imagehash

    return int(str(imagehash.phash(Image.fromarray(bgr[:, :, ::-1]))), 16)


def hashes_of(hash_of: Callable[[np.ndarray], int]) -> np.ndarray:
    """uint64 [scenes, 1 + variants]: each scene, then its variants."""
    found = []
    for _, _, scene, _, _ in SCENES:
        for seed in range(PER_SCENE):
            bgr = scene(np.random.default_rng(seed), HEIGHT, WIDTH)
            found.append([hash_of(each) for each in (bgr, *(make(bgr) for make in VARIANTS.values()))])
    return np.array(found, np.uint64)


def recalls(hashes: np.ndarray, radius: int) -> np.ndarray:
    """float64 [variants]: the share of scenes whose variant is within the radius."""
    return (np.bitwise_count(hashes[:, 1:] ^ hashes[:, :1]) <= radius).mean(0)


def precision(hashes: np.ndarray, radius: int) -> float:
    """Share of all pairs within the radius that are of one scene."""
    flat, scene = hashes.ravel(), np.repeat(np.arange(len(hashes)), hashes.shape[1])
    near = np.triu(np.bitwise_count(flat[:, None] ^ flat[None]) <= radius, 1)
    same = scene[:, None] == scene[None]
    return float((near & same).sum() / max(near.sum(), 1))


def search_is_exact(hashes: np.ndarray) -> bool:
    """Whether the search finds the pairs of brute force, at every radius."""
    flat = np.unique(hashes)
    apart = np.bitwise_count(flat[:, None] ^ flat[None])
    return all(
        np.array_equal(pairs_within(flat, radius), np.argwhere(np.triu(apart <= radius, 1)))
        for radius in range(1, 21)
    )


def seconds_for(count: int, radius: int = 4) -> float:
    """Processor seconds of the search among `count` random hashes, a tenth of which have a neighbour."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    tenth = count // 10
    bits = np.uint64(1) << rng.integers(0, 64, tenth, dtype=np.uint64)
    hashes[:tenth] = hashes[tenth : 2 * tenth] ^ bits
    start = time.process_time()
    found = leaders_within(hashes, radius)
    elapsed = time.process_time() - start
    assert (found != np.arange(count)).sum() == tenth
    return elapsed


def main() -> None:
    mine = hashes_of(ours)
    peers = {"uhr": mine}
    if importlib.util.find_spec("imagehash") is not None:
        peers["imagehash"] = hashes_of(theirs)
    else:
        say("imagehash is not installed: no peer (pip install imagehash)")
    say(f"{len(mine)} scenes of {WIDTH} x {HEIGHT} px, {len(VARIANTS)} variants each: recall by radius")
    rows = [
        [name, peer, *(f"{recalls(hashes, radius)[at]:.2f}" for radius in RADII)]
        for at, name in enumerate(VARIANTS)
        for peer, hashes in peers.items()
    ]
    for peer, hashes in peers.items():
        rows.append(["all variants", peer, *(f"{recalls(hashes, radius).mean():.3f}" for radius in RADII)])
        rows.append(["precision", peer, *(f"{precision(hashes, radius):.3f}" for radius in RADII)])
    table(["variant", "hash", *map(str, RADII)], rows)
    exact = search_is_exact(mine)
    say(f"the search finds exactly the pairs of brute force at radius 1 to 20: {exact}")
    seconds = seconds_for(MILLION)
    say(f"a million hashes at radius 4: {seconds:.1f} s of processor time (at most {SECONDS:g})")
    behind = max(recalls(peers.get("imagehash", mine), r).mean() - recalls(mine, r).mean() for r in RADII)
    say(f"recall below imagehash's: at most {behind:.3f} (claim: {BEHIND:g})")
    sys.exit(0 if exact and seconds <= SECONDS and behind <= BEHIND else 1)


if __name__ == "__main__":
    main()
