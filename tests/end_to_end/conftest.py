"""The demo, once, in a folder with a space in its path: the road that the other tests walk on."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

SMALL = [
    "models make-tiny model",
    "curate run quickstart --source images --out set --engine local --workers 1",
    "manifest slice set --sample 3 --out slice",
    "manifest report slice --out report.html",
    "train encode slice --model model --out encoded --device cpu",
    "train run lora --model model --data encoded --out run --set phases.0.steps=3 --set runtime.device=cpu "
    "--set runtime.precision=float32 --set runtime.checkpoint_every=2 --set ema=0.9",
    "train export run --out adapter",
    "sample sdedit --model model --adapter adapter --prompt a --size 256x256 --steps 4 --previews previews "
    "--out image.png",
    "sample euler --model model --prompts prompts.txt --size 128x128 --steps 1 --engine local --workers 0 "
    "--out generated",
]
"""The workflow from images to a generated set, small, on the CPU."""


def _run_small(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    from uhr.cli import main

    (folder / "images").mkdir(parents=True)
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 255, (400, 400, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{number}.png")
        (folder / "images" / f"{number}.txt").write_text(f"image {number}")
    (folder / "prompts.txt").write_text("a\nb\n")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for command in SMALL:
            assert main(shlex.split(command)) == 0, command
    finally:
        os.chdir(before)


@pytest.fixture(scope="session")
def small_umask() -> int:
    """The umask under which `small` was run: one that gives no library's usual modes."""
    usual = os.umask(0)
    os.umask(usual)
    return 0o002 if usual != 0o002 else 0o022


@pytest.fixture(scope="session")
def small(tmp_path_factory, small_umask) -> Path:
    """A folder in which `SMALL` was run. Read only."""
    folder = tmp_path_factory.mktemp("small") / "flow"
    usual = os.umask(small_umask)
    try:
        _run_small(folder)
    finally:
        os.umask(usual)
    return folder


@dataclass
class Walked:
    """Where the demo ran, what it printed, how it ended, and what it knows of its images."""

    folder: Path
    code: int
    printed: str
    planted: list


@pytest.fixture(scope="session")
def walked(tmp_path_factory, warm_curation) -> Walked:
    """`uhr demo` in this process, from a working folder of its own; it trains 4 steps instead of 40, and all
    but one of its scenes have a third of their sides."""
    import contextlib
    import io

    from uhr.cli import main
    from uhr.demo import images, run
    from uhr.demo.scenes import marble

    gather, planted = images.gather, []

    def gathered(*args):
        planted.extend(gather(*args))
        return planted

    scenes = [
        (name, caption, scene, *(side // (1 if scene is marble else 3) for side in sides))
        for name, caption, scene, *sides in images.SCENES
    ]
    folder = tmp_path_factory.mktemp("a newcomer's folder")
    before = Path.cwd()
    printed = io.StringIO()
    os.chdir(folder)
    try:
        with (
            contextlib.redirect_stdout(printed),
            pytest.MonkeyPatch.context() as patch,
            warm_curation.workers(),
        ):
            patch.setattr(run, "STEPS", 4)
            patch.setattr(run, "INTERRUPT_AT", 1)
            patch.setattr(images, "gather", gathered)
            patch.setattr(images, "SCENES", scenes)
            code = main(["demo"])
    finally:
        os.chdir(before)
    return Walked(folder, code, printed.getvalue(), planted)
