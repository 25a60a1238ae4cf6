"""Procedural images at 4K and above, with detail down to the single pixel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Scene = Callable[[np.random.Generator, int, int], np.ndarray]
"""(random numbers, height, width in px) -> BGR uint8 [height, width, 3]."""


def _fractal(rng: np.random.Generator, height: int, width: int, roughness: float = 0.6) -> np.ndarray:
    """Noise of all scales from 1/4 of the image to the pixel, float32 [height, width] in [0, 1]."""
    import cv2

    # coarse to fine: each level is the one before at twice the size, with new noise on top
    levels = int(np.log2(max(height, width) / 4))
    total = np.zeros((1, 1), np.float32)
    for level in range(levels, -1, -1):
        rows, columns = -(-height // 2**level), -(-width // 2**level)
        total = cv2.resize(total, (columns, rows), interpolation=cv2.INTER_LINEAR)
        total = total + roughness ** (levels - level) * rng.random((rows, columns), dtype=np.float32)
    low, high = np.percentile(total[::16, ::16], (1, 99))
    return np.clip((total - low) / (high - low), 0, 1)


def _blend(amount: np.ndarray, *colours: tuple[int, int, int]) -> np.ndarray:
    """`amount` in [0, 1] mapped onto a ramp of RGB colours, as BGR uint8 [H, W, 3]."""
    knots = np.linspace(0, 1, len(colours))
    ramp = np.stack(
        [np.interp(np.linspace(0, 1, 256), knots, [c[i] for c in colours]) for i in (2, 1, 0)], -1
    )
    return ramp.round().astype(np.uint8)[(amount * 255).astype(np.uint8)]


def clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return _blend(
        _fractal(rng, height, width, 0.85), (24, 44, 92), (110, 150, 200), (236, 228, 214), (255, 250, 240)
    )


def hills(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Ridges one behind the other, the nearer the darker, with ground that is rough up to the pixel."""
    ground, grass = _fractal(rng, height, width, 0.75), rng.random((height, width), dtype=np.float32)
    image = _blend(
        np.linspace(0, 1, height, dtype=np.float32)[:, None] * np.ones(width), (90, 140, 205), (250, 225, 190)
    )
    rows = np.arange(height)[:, None]
    for depth in np.linspace(0, 1, 6):
        x = np.arange(width) / width
        waves = sum(rng.uniform(-1, 1) / k * np.sin(2 * np.pi * (k * x + rng.random())) for k in range(1, 24))
        ridge = height * (0.35 + 0.55 * depth + 0.06 * waves)
        shade = np.clip((0.45 + 0.3 * depth) * ground + 0.5 * depth * grass + 0.3 * (1 - depth), 0, 1)
        slope = _blend(
            shade, (int(60 - 40 * depth), 70, int(90 - 60 * depth)), (190, 200, int(180 - 70 * depth))
        )
        image = np.where((rows > ridge)[..., None], slope, image)
    return image


def marble(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    veins = _fractal(rng, height, width, 0.66)
    slant = (np.arange(width) / width)[None, :] + (np.arange(height) / height)[:, None]
    amount = 0.5 + 0.5 * np.sin(2 * np.pi * (2.5 * slant + 2.2 * veins), dtype=np.float32)
    return _blend(0.7 * amount + 0.3 * veins, (40, 36, 44), (150, 120, 110), (232, 220, 206), (250, 248, 244))


def weave(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Cloth: threads of 11 px over and under each other, each of its own shade, fibres within."""
    across = (np.sin(np.pi * np.arange(width) / 11) ** 2).astype(np.float32)[None, :]
    down = (np.sin(np.pi * np.arange(height) / 11) ** 2).astype(np.float32)[:, None]
    over = (np.arange(width)[None, :] // 11 + np.arange(height)[:, None] // 11) % 2 == 0
    warp = rng.random(width // 11 + 1, dtype=np.float32)[np.arange(width) // 11][None, :]
    weft = rng.random(height // 11 + 1, dtype=np.float32)[np.arange(height) // 11][:, None]
    thread = np.where(over, across * (0.4 + 0.6 * warp), down * (0.4 + 0.6 * weft))
    fibres = 0.5 * (_fractal(rng, height, width) + rng.random((height, width), dtype=np.float32))
    return _blend(np.clip(0.55 * thread + 0.45 * fibres, 0, 1), (30, 12, 20), (150, 50, 46), (226, 180, 130))


def stars(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A nebula behind some hundred thousand stars of one to a few pixels."""
    import cv2

    light = np.zeros((height, width), np.float32)
    count = height * width // 110
    light[rng.integers(0, height, count), rng.integers(0, width, count)] = rng.pareto(1.6, count).astype(
        np.float32
    )
    glow = np.clip(0.35 * light + 0.6 * cv2.GaussianBlur(light, (0, 0), 1.1), 0, 3)
    haze = _blend(_fractal(rng, height, width, 0.6) ** 2, (4, 4, 14), (60, 20, 74), (150, 90, 110))
    return np.clip(haze + 110 * glow[..., None], 0, 255).astype(np.uint8)


def rings(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Circles that grow finer outwards until they are as fine as the grid can hold."""
    y = (np.arange(height, dtype=np.float32) - height / 2)[:, None]
    x = (np.arange(width, dtype=np.float32) - width / 2)[None, :]
    squared = x**2 + y**2
    wave = 0.5 + 0.5 * np.sin(np.pi * 0.45 / np.sqrt(squared.max()) * squared)
    return _blend(
        0.7 * wave + 0.3 * _fractal(rng, height, width), (10, 40, 60), (90, 160, 150), (250, 240, 210)
    )


SCENES: tuple[tuple[str, str, Scene, int, int], ...] = (
    ("clouds-5120x2880.jpg", "clouds at dusk over a blue sky", clouds, 2880, 5120),
    ("hills-3840x2160.jpg", "hills one behind the other under a pale morning sky", hills, 2160, 3840),
    ("marble-2160x3840.jpg", "a slab of brown and white marble", marble, 3840, 2160),
    ("weave-4096x4096.jpg", "coarse red cloth, woven from uneven threads", weave, 4096, 4096),
    ("stars-3840x2160.png", "a purple nebula behind a field of stars", stars, 2160, 3840),
    ("rings-6000x4000.jpg", "concentric rings in teal and cream", rings, 4000, 6000),
)
"""Name, caption, scene, height and width in px."""
