"""Small folders of images under a protocol of one's own, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

HERE = Path(__file__).parent

PROMPTS = ("a red lake", "a blue house", "two dogs", "three cats", "a boat", "a tower")

SIZE = (96, 80)

MINI: dict[str, Any] = {
    "name": "mini",
    "about": "small",
    "prompts": {"layout": "file", "file": "prompts.txt", "count": len(PROMPTS)},
    "size": "96x80",
    "references": {"kind": "set"},
    "metrics": [{"metric": "random-frechet"}, {"metric": "glcm"}, {"metric": "compression-ratio"}],
}


@pytest.fixture(autouse=True)
def at_home(monkeypatch, tmp_path) -> Path:
    """In a folder of its own, where the tests' own metrics (`own_metrics.py`) are found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(HERE))
    Path("prompts.txt").write_text("\n".join(PROMPTS))
    return tmp_path


@pytest.fixture
def protocol() -> Callable[..., Path]:
    """`protocol(key=value, ...)`: the file of the protocol `mini` with these keys changed."""

    def make(name: str = "mini.yaml", **changes: Any) -> Path:
        Path(name).write_text(yaml.safe_dump(MINI | changes))
        return Path(name)

    return make


def picture(seed: int, size: tuple[int, int] = SIZE, blur: int = 0) -> np.ndarray:
    """Random blocks, uint8 [H, W, 3]; `blur` averages over so many px."""
    import cv2

    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    pixels = cv2.resize(small, size, interpolation=cv2.INTER_NEAREST)
    pixels = (pixels // 2 + rng.integers(0, 128, pixels.shape, dtype=np.uint8)).astype(np.uint8)
    return cv2.blur(pixels, (blur, blur)) if blur else pixels


@pytest.fixture
def folder() -> Callable[..., Path]:
    """`folder("a", range(6), blur=3)`: a folder of PNG files 0000.png, 0001.png, ..."""
    from uhr.pixels.decode import png

    def make(
        name: str, seeds: Any = range(len(PROMPTS)), size: tuple[int, int] = SIZE, blur: int = 0
    ) -> Path:
        Path(name).mkdir(parents=True)
        for number, seed in enumerate(seeds):
            (Path(name) / f"{number:04d}.png").write_bytes(png(picture(seed, size, blur)))
        return Path(name)

    return make


@pytest.fixture
def score(uhr) -> Callable[..., tuple[int, dict[str, Any] | None, str]]:
    """`score("mini.yaml", "images", "out", ...)`: run `uhr eval run`; exit code, result, standard error."""

    def run(name: Any, images: Any, out: Any, *options: Any) -> tuple[int, dict[str, Any] | None, str]:
        code, said, err = uhr("eval", "run", name, "--images", images, "--out", out, "--json", *options)
        assert "Traceback" not in err
        return code, json.loads(said) if code == 0 else None, err

    return run
