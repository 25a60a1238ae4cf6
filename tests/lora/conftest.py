"""A folder of images as a user has it, and the command on it as a process that may be killed anywhere."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

QUICK = (
    *("--set", "phases.main.steps=6", "--set", "phases.main.lr=0.05"),
    *("--set", "trainable={kind: lora, rank: 4, alpha: 4, targets: attention}"),
    *("--set", "validation.images.steps=1", "--set", "runtime.checkpoint_every=2"),
)
"""A short training whose adapter is seen in an image."""

KILLED = """
import importlib, os, signal, sys
module, _, name = sys.argv[1].partition(":")
*path, last = name.split(".")
owner = importlib.import_module(module)
for part in path:
    owner = getattr(owner, part)
real, left = getattr(owner, last), int(sys.argv[2])
def call(*arguments, **named):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **named)
setattr(owner, last, call)
from uhr.cli import main
sys.exit(main(sys.argv[3:]))
"""
"""A command that is killed at the call number N (from 0) of a function, `module:name`."""


def draw(file: Path, height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


@pytest.fixture(scope="session", name="draw")
def draw_fixture() -> Callable[..., None]:
    return draw


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Six images that can be trained on at 128 px, three with captions; one too small, one broken, a PDF."""
    folder = tmp_path_factory.mktemp("lora") / "my photos"
    for number in range(6):
        height, width = ((160, 160), (170, 250), (260, 170))[number % 3]
        draw(folder / f"{number}.png", height, width, number)
        if number % 2:
            (folder / f"{number}.txt").write_text(f"a thing number {number}")
    draw(folder / "small.png", 50, 50, 9)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    (folder / "notes.pdf").write_bytes(b"%PDF-1.4")
    return folder


@pytest.fixture(scope="session")
def quick() -> tuple[str, ...]:
    return QUICK


@pytest.fixture(scope="session")
def killed(warm) -> Callable[..., int]:
    """`killed("module:function", N, *arguments)`: the exit code of a command that is killed at that call."""

    def run(function: str, calls: int, *arguments: object) -> int:
        return warm.run(["-c", KILLED, function, calls, *arguments], warm_workers=True).returncode

    return run
