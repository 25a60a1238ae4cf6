"""A small folder of images with known verdicts, a stage from outside the repository, and the command."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def photograph(seed: int, width: int = 400, height: int = 300) -> np.ndarray:
    """Smooth colour fields with fine noise, uint8 [H, W, 3]: high entropy, nowhere flat."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = 120 + 70 * np.sin(x / (20 + seed) + seed) + 50 * np.cos(y / (30 + seed))
    noise = rng.normal(0, 25, (height, width, 3))
    return np.clip(base[..., None] + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def _images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "my images"
    (folder / "trip").mkdir(parents=True)
    for seed in range(8):
        name = f"{seed}.jpg" if seed % 2 else f"trip/{seed}.png"
        Image.fromarray(photograph(seed)).save(folder / name)
    shutil.copy(folder / "1.jpg", folder / "trip" / "same as 1.jpg")
    Image.fromarray(photograph(20, 60, 40)).save(folder / "small.png")
    whole = (folder / "3.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    # its header says that it is too small: nobody may find out that there is nothing behind it
    (folder / "small and truncated.png").write_bytes((folder / "small.png").read_bytes()[:200])
    Image.new("RGB", (400, 300), (90, 120, 200)).save(folder / "flat.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "empty.jpg").touch()
    (folder / "5.txt").write_text("a striped field\n")
    (folder / "5.json").write_text(json.dumps({"photographer": "Ada", "license": "CC0", "camera": "X1"}))
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "link.png").symlink_to(folder / "flat.png")
    return folder


@pytest.fixture
def images(_images, tmp_path) -> Path:
    """A copy of the folder of this test's own, with the times of the original."""
    folder = tmp_path / "my images"
    shutil.copytree(_images, folder, symlinks=True)
    return folder


@pytest.fixture(scope="session")
def curated(_images, tmp_path_factory) -> tuple[Path, str]:
    """The folder of `quickstart` over the images, with a rule that cannot be evaluated, and the printed text.
    Read only."""
    from uhr.cli import main

    folder = tmp_path_factory.mktemp("curated")
    pipeline, out, printed = folder / "mine.yaml", folder / "out", io.StringIO()
    pipeline.write_text("""
        preset: quickstart
        stages: {q_align: {if_missing: skip, adds: [q_align]}}
        rules: {quality: q_align > 4}
    """)
    arguments = ("--source", _images, "--out", out, "--engine", "local", "--workers", 0)
    with contextlib.redirect_stdout(printed):
        assert main([str(argument) for argument in ("curate", "run", pipeline, *arguments)]) == 0
    return out, printed.getvalue()


VERDICTS = {
    "0-7": "kept",
    "trip/same as 1.jpg": "duplicates",
    "small.png": "resolution",
    "small and truncated.png": "resolution",
    "flat.png": "flatness",
    "link.png": "flatness",
    "truncated.jpg": "truncated",
    "notes.txt": "not an image",
    "empty.jpg": "empty file",
    "gone.jpg": "broken link",
}


@pytest.fixture(scope="session")
def expected() -> dict[str, str]:
    """uri -> kept, the rule, or the kind of fault, for `quickstart` over `images`."""
    verdicts = {name: reason for name, reason in VERDICTS.items() if name != "0-7"}
    for seed in range(8):
        verdicts[f"{seed}.jpg" if seed % 2 else f"trip/{seed}.png"] = "kept"
    return verdicts


OUTSIDE = '''
"""A user's own stages, in a package that knows nothing of where uhr is."""

import ctypes
import time
from pathlib import Path

import pyarrow as pa
from uhr.base.config import Config
from uhr.curate.stage import FrameStage, SetStage
from uhr.manifests.schema import Column


class Redness(FrameStage):
    name = "redness"
    adds = (Column("redness", pa.float64(), "mean of red", "1", "[0, 255]"),)

    class Params(Config):
        scale: float = 1.0

    def annotate(self, frame):
        return {"redness": frame.rgb[..., 0].mean() * self.params.scale}


class Moody(FrameStage):
    """Does what the file's name says."""

    name = "moody"
    needs = ("width",)
    adds = (Column("mood", pa.string(), "how it went"), Column("score", pa.float64(), "a number"))

    def annotate(self, frame):
        stem = Path(frame.uri).stem
        if stem == "segfault":
            ctypes.string_at(0)
        elif stem == "sleep":
            time.sleep(3600)
        elif stem == "eat":
            self.held = [b"x" * 100_000_000 for _ in range(9)]
            time.sleep(3600)
        elif stem == "raise":
            raise KeyError("a key\\nwith two lines")
        elif stem == "exit":
            raise SystemExit(3)
        elif stem == "nan":
            return {"mood": "odd", "score": float("nan")}
        elif stem == "type":
            return {"mood": "odd", "score": "high"}
        elif stem == "none":
            return None
        elif stem == "list":
            return [1.0]
        elif stem == "column":
            return {"mod": "odd"}
        elif stem == "text":
            return {"mood": "\\ud800", "score": 1.0}
        return {"mood": "fine", "score": 1.0}


class Waits(FrameStage):
    name = "waits"
    reads = "header"
    needs = ("entropy", "width")
    adds = (Column("waited", pa.float64(), "bits per pixel"),)

    def annotate(self, frame):
        return {"waited": frame.row["entropy"] / frame.row["width"]}


class Shouting(FrameStage):
    name = "shouting"
    adds = (Column("Width", pa.float64(), "a name that SQL takes for another"),)

    def annotate(self, frame):
        return {"Width": 1.0}


class Neighbours(SetStage):
    name = "neighbours"
    adds = (Column("neighbours", pa.int64(), "how many are still in"),)

    def compute(self, live, workspace):
        return "SELECT sample_id, count(*) OVER () AS neighbours FROM live"
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package of stages outside of the repository, on the search path."""
    package = tmp_path / "elsewhere" / "outside_stages"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(__import__("sys").modules, "outside_stages", raising=False)
    return "outside_stages"
